"""Makes any logged value fit for a log: plain types, bounded in size, without a phone number. Never raises.

- A value under the name of a number attribute becomes a token, even if it does not look like a number.
- In text, everything that looks like a number, and the numbers of the events under way, become tokens.
- An object becomes text first, so that its attributes cannot carry a number past this.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any, Final

from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.schemas.call_summary import SUMMARY_NUMBER_FIELDS
from maskline.schemas.privacy import NUMBER_ATTRIBUTES, number_token, redact

NUMBER_NAMES: Final = frozenset(NUMBER_ATTRIBUTES) | {
    "from_number",
    "to_number",
    "first_party",
    "second_party",
    *SUMMARY_NUMBER_FIELDS,
}
"""Values under these names are phone numbers, even if they do not look like one."""
DEPTH_MAX: Final = 6
"""Nesting of a logged value; deeper is cut, so that a value that contains itself ends."""
ITEMS_MAX: Final = 100
"""Members of a logged list or dict; a line is read by a person or billed by the byte."""
TEXT_MAX_CHARS: Final = 32_768
"""Of one text, a traceback included; the line of a runaway recursion would run to megabytes."""

_TOKEN: Final = re.compile(r"num_[0-9a-f]+")


def redact_value(name: str, value: Any, depth: int = 0) -> Any:
    """The value as a log may hold it: numbers as tokens, text redacted, objects as their redacted text.

    `name`: the field it is logged under. `depth`: how deep it is nested in that field.
    """
    if value is None or isinstance(value, bool):
        return value
    if name in NUMBER_NAMES:
        return _number(value)
    if type(value) in (int, float):
        return value
    if isinstance(value, (Mapping, list, tuple, set, frozenset)) and depth < DEPTH_MAX:
        return _members(value, depth + 1)
    return _text(value)


def _members(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        pairs = itertools.islice(value.items(), ITEMS_MAX)
        return {_text(name): redact_value(str(name), member, depth) for name, member in pairs}
    return [redact_value("", member, depth) for member in itertools.islice(value, ITEMS_MAX)]


def _number(value: Any) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_number(member) for member in itertools.islice(value, ITEMS_MAX)]
    text = as_text(value)
    return text if not text or _TOKEN.fullmatch(text) else number_token(text)


def _text(value: Any) -> str:
    shown = as_text(value)
    text = redact(shown)
    if text is not shown:  # known numbers first: a number has one token, with its country code or without
        text = redact(KNOWN_NUMBERS.hide(shown))
    return text if len(text) <= TEXT_MAX_CHARS else text[:TEXT_MAX_CHARS] + "…"


def as_text(value: Any) -> str:
    """The value as text, not redacted; a placeholder with its type where it cannot be shown."""
    try:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value).decode("utf-8", "backslashreplace")
        # An exception's text alone rarely says what it is; that of a time or a UUID does.
        return repr(value) if isinstance(value, BaseException) else str.__str__(str(value))
    except Exception:  # noqa: BLE001 - a value that cannot be shown must not stop the work that logs it
        return f"<{type(value).__name__} that cannot be shown>"
