"""Draws what went on in a harness, for a person who looks at a failed test: what arrived, what each handler got, what
waits and why, dead letters. Pure. It fits TABLE_WIDTH columns, and shows phone numbers as tokens.
"""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

TABLE_WIDTH: Final = 80
"""Columns."""

ROWS_MAX: Final = 100
"""Rows of one block, the last ones: what went wrong stands at the end, and the report must stay readable."""

NAME_COLUMNS: Final = 31
"""Room for an event's name; the longest that Plivo documents has 30 letters."""

NOTE_MAX_CHARS: Final = 400
"""Of an exception's text."""

_INDENT: Final = " " * 15


class Row(NamedTuple):
    """One line of a block."""

    at_ms: int | None
    """When, by the harness's time; None where that says nothing."""
    session: str
    event_name: str
    number: int | None
    note: str
    """What there is to say of it."""


class Block(NamedTuple):
    """A headline with its rows, in their order."""

    title: str
    rows: Sequence[Row]


def order_table(blocks: Iterable[Block], *, start_ms: int, now_ms: int, hide: Callable[[str], str]) -> str:
    """The table. Times are shown from `start_ms` on. `hide`: replaces phone numbers in a text by tokens.

    Blocks without rows are left out.
    """
    drawn = [block for block in blocks if block.rows]
    sessions = list(dict.fromkeys(row.session for block in drawn for row in block.rows[-ROWS_MAX:]))
    short = {session: _letters(place) for place, session in enumerate(sessions)}
    lines = [f"at {_time(now_ms - start_ms)} of the harness's time"]
    for session in sessions:
        lines += _wrapped(f"session {short[session]} is {hide(session) or '(none)'}", "    ")
    for block in drawn:
        lines += ["", *_wrapped(hide(block.title), "    ")]
        left_out = len(block.rows) - ROWS_MAX
        if left_out > 0:
            lines.append(f"  … {left_out} before these")
        for row in block.rows[-ROWS_MAX:]:
            lines += _row(row, short[row.session], start_ms, hide)
    return "\n".join(lines)


def _row(row: Row, session: str, start_ms: int, hide: Callable[[str], str]) -> list[str]:
    at = "" if row.at_ms is None else _time(row.at_ms - start_ms)
    number = "-" if row.number is None else str(row.number)
    name = hide(row.event_name)
    if len(name) > NAME_COLUMNS:
        name = name[: NAME_COLUMNS - 1] + "…"
    head = f"{at:>11} {session:<2} {name:<{NAME_COLUMNS}} {number:>4}"
    note = " ".join(hide(row.note).split())
    if len(note) > NOTE_MAX_CHARS:
        note = note[: NOTE_MAX_CHARS - 1] + "…"
    if len(head) + 2 + len(note) <= TABLE_WIDTH:
        return [f"{head}  {note}".rstrip()]
    return [head[:TABLE_WIDTH], *_wrapped(_INDENT + note, _INDENT)]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, TABLE_WIDTH, subsequent_indent=indent, break_long_words=True, drop_whitespace=True
    )


def _time(milliseconds: int) -> str:
    return f"{milliseconds / 1000:+.3f}s"


def _letters(place: int) -> str:
    """a, b, …, z, aa, ab, …"""
    letters = ""
    place += 1
    while place:
        place, digit = divmod(place - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters
