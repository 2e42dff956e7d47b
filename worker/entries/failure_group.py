"""Groups dead letters by what went wrong: ten thousand letters of three bugs are three groups. Pure.

A group is the handler, the code, the exception's type, the user's own innermost function, and the exception's message
with everything taken out that differs from event to event. Line numbers do not count, as the next release moves them.

The message is cut into words, and each of these becomes `#`: quoted text, a word with a digit in it (numbers, times,
IDs, UUIDs, tokens of phone numbers), a long hexadecimal word, an address with `@`. What stands between two of them and
is no word goes with them, so that lists of different lengths are alike.
"""

import re
from base64 import b32encode
from hashlib import blake2s
from typing import Final

KEY_BYTES: Final = 5
"""Of the hash in a group's key: eight letters, which can be read aloud. With a thousand groups two of them are the same
once in two million times."""

READ_MAX_CHARS: Final = 1_000
"""Of a message: exceptions' texts are cut to as much before."""

MESSAGE_MAX_CHARS: Final = 200
"""Of a normalised message: what follows, and whether it was cut somewhere, makes no difference."""

# A quote opens where no word is before it, so that an apostrophe is none; one that nothing closes goes to the end.
_QUOTED: Final = "|".join(
    f"{opens}[^{closes}]*(?:{closes}|$)"
    for opens, closes in (("'", "'"), ('"', '"'), ("`", "`"), (r"\u2018", r"\u2019"), (r"\u201c", r"\u201d"))
)
_WORD: Final = r"[\w.+/%@-]+"
_PARTS: Final = re.compile(rf"((?<!\w)(?:{_QUOTED}))|{_WORD}")
_VARIES: Final = re.compile(r"\d|@|^num_|^[0-9a-fA-F]{8,}$")
_LIST: Final = re.compile(r"#(?:[^\w#]*#)+")


def normalised_message(message: str) -> str:
    """The message without what differs from event to event; at most MESSAGE_MAX_CHARS characters, in one line."""
    marked = _PARTS.sub(_replacement, message[:READ_MAX_CHARS])
    return " ".join(_LIST.sub("#", marked).split())[:MESSAGE_MAX_CHARS]


def _replacement(match: re.Match[str]) -> str:
    word: str = match[0]
    return "#" if match[1] is not None or _VARIES.search(word) else word


def group_key(handler: str | None, code: str, error_type: str | None, frame: str | None, message: str) -> str:
    """The key of the group that a dead letter belongs to: eight letters and digits, the same in every process.

    The arguments are fields of a `DeadLetter`; `message` is the exception's text, or the letter's reason if it has no
    exception.
    """
    parts = (handler or "", code, error_type or "", frame or "", normalised_message(message))
    hashed = blake2s("\0".join(parts).encode("utf-8", "backslashreplace"), digest_size=KEY_BYTES)
    return b32encode(hashed.digest()).decode().lower()
