"""Reads times in every notation that leaves no doubt which moment is meant. Pure.

| text | from |
| --- | --- |
| `2024-02-01 06:28:15 +0000 UTC`, `… -0300 -03`, `… UTC m=+0.1` | Go; the monotonic clock after `m=` is ignored |
| `2024-02-01T06:28:15Z` and its like | ISO 8601, as `datetime.fromisoformat` reads it |
| `2024-02-01T07:28:15+01:00[Europe/Berlin]` | RFC 9557, as Java's ZonedDateTime and JavaScript's Temporal |
| `Thu, 01 Feb 2024 06:28:15 GMT`, `1 Feb 2024 06:28 +0000 (UTC)` | RFC 1123 and 2822 |
| `Thursday, 01-Feb-24 06:28:15 GMT` | RFC 850 |
| `Thu Feb  1 06:28:15 2024`, `Thu Feb 01 06:28:15 +0000 2024` | asctime, date of Unix, Ruby |
| `Thu Feb 01 2024 06:28:15 GMT+0000 (Coordinated Universal Time)` | JavaScript's Date |
| `1706768895`, `1706768895.5`, `1706768895123` | since the epoch |

Since the epoch, 10 digits are seconds, 13 milliseconds, 16 microseconds, 19 nanoseconds: all for times from 2001 to
2286. Other numbers might be dates without hyphens and are refused.

In a form an unescaped plus is a blank, so an offset may have lost its plus: `06:28:15  0000 UTC`, `T06:28:15 00:00`. A
minus survives, so there is no doubt here either.

A text that could be two moments is refused: `01/02/2024`, a year of two digits without the weekday that fits this
century, the weekday of another day, `IST` without an offset.
"""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SINCE_EPOCH: Final = re.compile(r"([0-9]{10}|[0-9]{13}|[0-9]{16}|[0-9]{19})(?:\.([0-9]*))?")
_UNITS_US: Final = {10: 1_000_000, 13: 1_000, 16: 1}
"""Microseconds of the unit, by the number of digits."""

_MONOTONIC: Final = re.compile(r"\sM=\s?[+-]?[0-9]+\.[0-9]+\s*\Z")
_CLOCK: Final = r"(?P<clock>[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?)"
_MAIL: Final = re.compile(
    r"(?:(?P<weekday>[A-Z]{3,9}),? )?(?P<day>[0-9]{1,2})([ -])(?P<month>[A-Z]{3})\3(?P<year>[0-9]{4}|[0-9]{2}) "
    rf"{_CLOCK}(?: (?P<zone>.+))?"
)
_ASCTIME: Final = re.compile(
    rf"(?P<weekday>[A-Z]{{3}}) (?P<month>[A-Z]{{3}}) (?P<day>[0-9]{{1,2}}) {_CLOCK}(?: (?P<zone>.+))? "
    r"(?P<year>[0-9]{4})"
)
_JAVASCRIPT: Final = re.compile(
    rf"(?P<weekday>[A-Z]{{3}}) (?P<month>[A-Z]{{3}}) (?P<day>[0-9]{{2}}) (?P<year>[0-9]{{4}}) {_CLOCK} "
    r"GMT(?P<zone>[+ -][0-9]{4})(?: \([^()]+\))?"
)
_MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS: Final = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")
_YEAR_CHARS: Final = 4
_CENTURY: Final = 2_000

_DATE_CHARS: Final = len("2024-02-01")
_HAS_CLOCK: Final = re.compile(r".*T[0-9]{2}:?[0-9]{2}(?::?[0-9]{2}(?:[.,][0-9]+)?)?")
_OFFSET: Final = re.compile(r"[+-][0-9]{2}(?::?[0-9]{2})?")
_OFFSET_WITHOUT_PLUS: Final = re.compile(r"(?:0[0-9]|1[0-4]):?[0-5][0-9]")
"""Up to 14:59, the largest that occur."""
_REGION: Final = re.compile(r"(.*T.*(?:Z|[+-][0-9]{2}:?[0-9]{2}))\[[A-Z0-9/_+-]+\]")
"""Only after an offset: alone it would need a table of zones."""
_ZONE_NAME: Final = re.compile(r"[A-Z]{2,5}|\([A-Z]{2,5}\)")


def read_any_time(text: str) -> datetime:
    """The moment that a text names, without a zone if the text has none. Raises ValueError."""
    upper = text.upper()
    parts = _without_monotonic(upper) if "M=" in upper else upper.split()
    if not parts:
        raise ValueError("empty")
    first = parts[0]
    if first[-1] == "]" and (with_region := _REGION.fullmatch(first)):
        first = parts[0] = with_region[1]
    if first[_YEAR_CHARS : _YEAR_CHARS + 1] != "-":
        since_epoch = _SINCE_EPOCH.fullmatch(first)
        if since_epoch is not None and len(parts) == 1:
            return _after_epoch(since_epoch[1], since_epoch[2] or "")
        if len(first) < _YEAR_CHARS or not first[:_YEAR_CHARS].isdigit():
            return datetime.fromisoformat(_iso_of_words(" ".join(parts)))
    return datetime.fromisoformat(_iso(parts))


def _without_monotonic(upper: str) -> list[str]:
    """The parts of a time without the monotonic clock that Go appends."""
    written = _MONOTONIC.search(upper)
    parts = upper[: written.start()].split() if written is not None else []
    if len(parts) < len(("date", "clock", "zone")):
        raise ValueError("a monotonic clock without a time before it")
    return parts


def _after_epoch(whole: str, fraction: str) -> datetime:
    unit_us = _UNITS_US.get(len(whole))
    if unit_us is None:
        return _EPOCH + timedelta(microseconds=int(whole) // 1_000)
    part_us = int(fraction[:6].ljust(6, "0")) * unit_us // 1_000_000
    return _EPOCH + timedelta(microseconds=int(whole) * unit_us + part_us)


def _iso_of_words(words: str) -> str:
    """A time that names its month, in ISO 8601."""
    match = _MAIL.fullmatch(words) or _ASCTIME.fullmatch(words) or _JAVASCRIPT.fullmatch(words)
    if match is None or match["month"] not in _MONTHS:
        raise ValueError("not a time")
    weekday, year = match["weekday"], int(match["year"])
    if len(match["year"]) < _YEAR_CHARS:
        if weekday is None:
            raise ValueError("a year without its century")
        year += _CENTURY
    day = date(year, 1 + _MONTHS.index(match["month"]), int(match["day"]))
    if weekday is not None and weekday not in (name := _WEEKDAYS[day.weekday()], name[:3]):
        raise ValueError("another day of the week")
    iso, zone = f"{day.isoformat()}T{match['clock']}", (match["zone"] or "").split()
    return _with_zone(iso, zone) if zone else iso


def _iso(parts: list[str]) -> str:
    """The parts of a time (date, clock, offset, zone's name) in ISO 8601."""
    iso = parts.pop(0)
    if parts and parts[0][0].isdigit() and "T" not in iso:
        iso = f"{iso}T{parts.pop(0)}"
    elif len(iso) > _DATE_CHARS and "T" not in iso:
        # fromisoformat takes any character before the time, so it would read an offset after a date as one.
        raise ValueError("neither a date nor a date and a time")
    return _with_zone(iso, parts) if parts else iso


def _with_zone(iso: str, zone: list[str]) -> str:
    """Append to `iso` the offset of `zone`: an offset, a name, or an offset and a name."""
    if "T" not in iso:
        raise ValueError("a zone without a time")
    match zone:
        case ["UTC" | "UT" | "GMT" | "Z"]:
            return f"{iso}+00:00"
        case [offset, *name] if len(name) <= 1:
            if offset[0].isdigit() and _OFFSET_WITHOUT_PLUS.fullmatch(offset) and _HAS_CLOCK.fullmatch(iso):
                offset = f"+{offset}"
            if _OFFSET.fullmatch(offset) and (not name or _names(name[0], offset)):
                return iso + offset
    raise ValueError("not a time zone")


def _names(name: str, offset: str) -> bool:
    """Whether a zone with this offset may have this name. Go calls a zone without a name by its offset, as `+0545`."""
    if name[0].isdigit():
        name = f"+{name}"  # its plus was lost like the offset's
    return _ZONE_NAME.fullmatch(name) is not None or name in (offset, offset.removesuffix("00"))
