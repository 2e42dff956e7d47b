"""What commands print: JSON for programs, texts from outside made harmless for a terminal."""

import json
import re
import sys
from collections.abc import AsyncIterable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from maskline.schemas.call_summary import SUMMARY_NUMBER_FIELDS
from maskline.schemas.privacy import NUMBER_ATTRIBUTES, number_token, redact

_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]+")


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, indented."""
    sys.stdout.write(_for_stdout(msgspec.json.format(msgspec.json.encode(value)).decode()) + "\n")


async def print_json_array(values: AsyncIterable[Any]) -> None:
    """Print an array as JSON on stdout, a line for each value, as they come: however many there are."""
    before = "["
    async for value in values:
        sys.stdout.write(f"{before}\n  {_for_stdout(msgspec.json.encode(value).decode())}")
        before = ","
    sys.stdout.write("[]\n" if before == "[" else "\n]\n")


def _for_stdout(text: str) -> str:
    """JSON as stdout can hold it: with escapes, where its encoding lacks a character."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    return text


def shown_parameters(pairs: Iterable[tuple[str, str]], *, reveal: bool = False) -> list[list[str]]:
    """Parameters of a callback as [name, value]; without `reveal` with tokens in place of phone numbers."""
    if reveal:
        return [[name, value] for name, value in pairs]
    return [[redact(name), _masked(name, value)] for name, value in pairs]


def _masked(name: str, value: str) -> str:
    named = name in NUMBER_ATTRIBUTES or name in SUMMARY_NUMBER_FIELDS
    return number_token(value) if named and value else redact(value)


def shown_value(value: Any) -> str:
    """A value as text for a terminal: a time in UTC, `none` for None."""
    if value is None:
        return "none"
    return f"{value:%Y-%m-%d %H:%M:%S.%f} UTC" if isinstance(value, datetime) else printable(str(value))


def note(line: str) -> None:
    """Print a line about the command itself on stderr, at once: stdout has what was asked for."""
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def counted(count: int, noun: str) -> str:
    """A number and what it counts: `1 event`, `2,000 events`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """The text with control characters escaped: a text from outside must not control the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def utc_time(milliseconds: int) -> datetime | None:
    """Milliseconds since the epoch as a time in UTC; None outside the years 1 to 9999."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def shortened(text: str, chars_max: int) -> str:
    """The text in one line, cut to `chars_max` characters, made harmless for a terminal."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"
