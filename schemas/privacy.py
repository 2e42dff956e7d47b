"""Replaces phone numbers in logs, metrics, error texts and `repr` by keyed tokens. Pure, but for the key.

A number has the same token wherever it stands and however its digits are grouped, so that logs can be searched for it
without revealing it. The key is random until `set_token_key` sets the one that all nodes share.

`redact` takes any text and errs on the side of hiding: it replaces everything that could be a dialable number of 8 to
15 digits, and keeps text that is sure to be something else (the table _KEPT). `schemas.phone_numbers` finds known
numbers, in any spelling.
"""

import hmac
import os
import re
from collections.abc import Callable
from typing import Final

NUMBER_ATTRIBUTES: Final = frozenset({"From", "To", "FirstParty", "SecondParty"})
"""Plivo's names of the attributes that hold real numbers. `VirtualNumber` is the mask, no person's number."""

DIGITS_MIN: Final = 8
DIGITS_MAX: Final = 15
"""E.164 ends at 15 digits; a number with fewer than 8 looks like any other figure."""

TOKEN_HEX_CHARS: Final = 10
"""40 bits: among a million numbers two may share a token, and a log line stays readable."""

KEY_BYTES_MIN: Final = 16
"""Half of what HMAC-SHA256 can use. No generator makes a shorter key, so a shorter one is a mistake."""

_token_key = os.urandom(32)


def set_token_key(key: bytes) -> None:
    """Set the key of all tokens that this process makes; the nodes of an installation share it.

    Raises ValueError for fewer than KEY_BYTES_MIN bytes.
    """
    global _token_key  # noqa: PLW0603 - one key a process, set once at start
    if len(key) < KEY_BYTES_MIN:
        raise ValueError(f"the key of number tokens needs {KEY_BYTES_MIN} bytes or more")
    _token_key = key


def token_key() -> bytes:
    """The key of all tokens that this process makes, for a process that is to make the same."""
    return _token_key


def number_token(text: str) -> str:
    """The token of a phone number: `num_` and ten hexadecimal digits.

    Only the digits count, so `+1 415-555-0123` and `14155550123` have one token. A text with fewer than DIGITS_MIN
    digits (`anonymous`, a short code) counts as it stands.
    """
    digits = "".join(_DIGIT.findall(text))
    identity = digits if len(digits) >= DIGITS_MIN else text.strip()
    digest = hmac.digest(_token_key, identity.encode("utf-8", "surrogatepass"), "sha256")
    return "num_" + digest.hex()[:TOKEN_HEX_CHARS]


def is_token(text: str) -> bool:
    """Whether a text is what `number_token` makes."""
    return _TOKEN.fullmatch(text) is not None


def redact(text: str) -> str:
    """The text with the token in place of everything that looks like a dialable number."""
    return replace_dialable(text, number_token)


def replace_dialable(text: str, replacement: Callable[[str], str]) -> str:
    """As `redact`, with `replacement` of each number, as the text spells it, in place of its token.

    Percent-encoded signs are blanks for `replacement`; where it returns what it was given, the text stays.
    """
    if _CANDIDATE.search(text) is None:
        return text
    return _PARTS.sub(lambda match: _replace(match, replacement), text)


_DIGIT: Final = re.compile(r"\d")
_TOKEN: Final = re.compile(rf"num_[0-9a-f]{{{TOKEN_HEX_CHARS}}}")

# What may stand between two digits of one number, up to three together: blanks, hyphens of any kind, dots,
# brackets, as they are or percent-encoded, and a form's `+` for a blank. Line breaks are not among them.
_SEPARATOR: Final = r"(?:[ \t\u00a0\u2009\u202f.()\-\u2010-\u2015\u2212]|%(?:20|28|29|2[DdEe])|\+)"
_CANDIDATE: Final = re.compile(rf"\d(?:{_SEPARATOR}{{0,3}}\d){{{DIGITS_MIN - 1},}}")
"""A text without a match has nothing to hide, which is true of most."""

# No further group of digits: otherwise it may be part of a number.
_ENDS: Final = rf"(?!{_SEPARATOR}{{0,3}}\d)"
_BYTE: Final = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_CLOCK: Final = r"(?:[01]\d|2[0-3])(?::|%3[Aa])[0-5]\d(?:(?::|%3[Aa])[0-6]\d(?:[.,]\d+)?)?(?!\d)"
_OFFSET: Final = r"\ ?[+\-](?:0\d|1[0-4]):?[0-5]\d(?!\d)"
_UUID: Final = r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}(?![0-9A-Za-z])"
_DATE: Final = r"(?:19|20)\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])(?!\d)"
_MOMENT: Final = rf"{_DATE}(?:(?:T|\ ){_CLOCK}(?:{_OFFSET})?)?"
_ENTRY_ID: Final = r"1\d{12}-\d{1,10}(?!\d)"
NO_NUMBER: Final = re.compile(rf"(?<![0-9A-Za-z+])(?:{_UUID}|{_MOMENT}|1\d{{12}}-\d{{1,5}}(?!\d))")
"""No phone number, even if it has the digits of a known one across its hyphens and colons: by chance a few lines among
a hundred thousand do. Digits between two of these may be a number: behind a comma, or at the end of an identifier."""
NO_NUMBER_MAX_CHARS: Final = 64
"""A UUID has 36, and a date with its time as many at most."""

# Texts that are sure to be no phone number, if neither a letter, a digit nor a plus is right before them.
_KEPT: Final = {
    "UUID": _UUID,
    "long hexadecimal identifier": r"(?=[0-9]*[A-Fa-f])[0-9A-Fa-f]{16,}(?![0-9A-Za-z])",
    "memory address": r"0x[0-9A-Fa-f]{6,}(?![0-9A-Za-z])",
    "ISO date and time": _MOMENT,
    "the same, compact": r"(?:19|20)\d{6}T\d{6}(?!\d)",
    "ID of a stream entry": _ENTRY_ID,
    # Seconds or milliseconds. As numbers they would begin with country code 1, whose numbers have 11 digits.
    "time since the epoch": rf"1[6-9]\d{{8}}(?:\.\d+|\d{{3}})?{_ENDS}",
    "IPv4 address": rf"{_BYTE}(?:\.{_BYTE}){{3}}{_ENDS}",
    "decimal": rf"\d+\.\d+{_ENDS}",
}

# Groups of digits, as far as the next of them does not begin what is unmistakably something else.
_GROUPED: Final = rf"\d(?:(?:{_SEPARATOR}{{1,3}}(?!{_DATE}|{_ENTRY_ID}|{_UUID}))?\d){{{DIGITS_MIN - 1},}}"

_PARTS: Final = re.compile(
    rf"num_[0-9a-f]{{{TOKEN_HEX_CHARS}}}(?![0-9A-Za-z])"
    rf"|(?<![0-9A-Za-z+])(?:{'|'.join(_KEPT.values())})"
    rf"|(?P<number>(?:\+|%2[Bb])?[(]?{_GROUPED})"
)

_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")


def _replace(match: re.Match[str], replacement: Callable[[str], str]) -> str:
    number = match["number"]
    if number is None:
        return match[0]
    number = _ESCAPE.sub(" ", number)
    digits = len(_DIGIT.findall(number))
    if digits <= DIGITS_MAX:
        return _unless_same(match[0], number, replacement(number))
    if number.isdigit():
        return number  # one run of digits, too long to be dialled
    pieces = number.split()
    if all(DIGITS_MIN <= len(_DIGIT.findall(piece)) <= DIGITS_MAX for piece in pieces):
        made = [*map(replacement, pieces)]  # a list of numbers
        return match[0] if made == pieces else " ".join(made)
    return _unless_same(match[0], number, replacement(number))


def _unless_same(original: str, number: str, made: str) -> str:
    """What was made of a number; the original, with its escapes, if it was to stay."""
    return original if made == number else made
