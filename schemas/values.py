"""Reads single values: from the text that Plivo sends to a number, an amount or a time. Pure.

Plivo writes every value as text and is not consistent about it, so a reader accepts what a person would read without
doubt, and nothing else. For any other text each reader raises ValueError, and never anything else. Digits are ASCII
digits: `int()` and `Decimal()` alone would also take `1_000` and `١٢`.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from maskline.schemas.times import read_any_time

NULLS: Final = frozenset({"", "null", "none"})
"""Texts that stand for an absent value: in lower case, without the white space around them."""

NULL_CHARS_MAX: Final = 4
"""Length of the longest of them: a longer text is not compared."""

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
"""The range that msgpack, JSON readers and databases hold without loss. No documented value comes near it."""

NUMBER_CHARS_MAX: Final = 64
"""A longer text is no number. The bound keeps a body of digits from taking quadratic time."""

TIME_CHARS_MAX: Final = 128
"""Twice the longest format in use, JavaScript's, which spells out the name of the zone."""

_SHORT_DIGITS: Final = 18
"""Numbers of so many digits always fit the range."""

_INTEGER: Final = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_REST_ZONE: Final = " +0000 UTC"
_REST_CHARS_MIN: Final = len("2024-02-01 06:28") + len(_REST_ZONE)


def is_null(text: str) -> bool:
    """Whether a text stands for an absent value: empty, white space, `null` or `None` in any case."""
    stripped = text.strip()
    return len(stripped) <= NULL_CHARS_MAX and stripped.lower() in NULLS


def read_int(text: str) -> int:
    """Read a whole number of 64 bits. `60`, ` 60 `, `+60`, `60.0` read as 60; `60.5`, `6e1`, `1_000` do not."""
    if len(text) <= _SHORT_DIGITS and text.isascii() and text.isdigit():
        return int(text)
    if len(text) > NUMBER_CHARS_MAX:
        raise ValueError("too long for a whole number")
    match = _INTEGER.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a whole number")
    value = int(match[1])
    if not INT_MIN <= value <= INT_MAX:
        raise ValueError("beyond 64 bits")
    return value


def read_decimal(text: str) -> Decimal:
    """Read a finite decimal, exactly as written. No thousands separators, no currency."""
    if len(text) > NUMBER_CHARS_MAX:
        raise ValueError("too long for a decimal")
    stripped = text.strip()
    if _DECIMAL.fullmatch(stripped) is None:
        raise ValueError("not a decimal")
    return Decimal(stripped)


def read_time(text: str) -> datetime:
    """Read a time, as a datetime in UTC. A time without an offset is in UTC already, as Plivo's are.

    | text | from |
    | --- | --- |
    | `2024-02-01 06:28:15 +0000 UTC` | Plivo's REST API (Go's way of printing a time) |
    | `2024-02-01T06:28:15Z`, with an offset, without, with a space for the `T`, with a fraction | ISO 8601 |
    | `2024-02-01 06:28:15.123456` | Python's way |
    | `Thu, 01 Feb 2024 06:28:15 GMT`, seconds since the epoch, … | see `schemas.times` |

    Digits after the microseconds are cut off; a date alone is its midnight. A zone's name counts only if it is UTC's or
    follows an offset.
    """
    if len(text) > TIME_CHARS_MAX:
        raise ValueError("too long for a time")
    if text.endswith(_REST_ZONE) and len(text) >= _REST_CHARS_MIN and text[10] == " ":
        # The usual notation; the general reader is slower.
        moment = datetime.fromisoformat(text[: -len(_REST_ZONE)] + "+00:00")
    else:
        moment = read_any_time(text)
    if moment.tzinfo is UTC:
        return moment
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("beyond the years 1 to 9999") from None
