"""Draws a call as bars on one scale: who was dialled, rang and talked when, and what was recorded. Pure.

09:00:03                                                      09:04:01
first party    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╸
second party       ·╌╌╌━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final, NamedTuple

from rich.text import Text

from maskline.console.session.report import CallRow
from maskline.schemas.call_summary import Leg

LABEL_CHARS: Final = 16
CLOCK_CHARS: Final = 8

DIALLED, RINGING, TALKING, FAILED = "·", "╌", "━", "✕"
"""What a party's time is drawn with."""

_STYLES: Final = {DIALLED: "dim", RINGING: "yellow", TALKING: "green", FAILED: "red"}


class _Stretch(NamedTuple):
    """A time in which a leg was in one state."""

    sign: str
    start: datetime
    end: datetime


UNDER_WAY_MAX: Final = timedelta(hours=4)
"""A call whose end is missing is drawn up to the present for so long: later it is surely over."""


def bars_of(call: CallRow, width: int, now: datetime | None) -> Iterator[Text]:
    """The bars of a call, `width` columns wide: up to its end, or to the present; nothing where neither is known."""
    began, ended = call.started_at, call.ended_at
    if began is not None and ended is None and now is not None and now - began <= UNDER_WAY_MAX:
        ended = now
    if began is None or ended is None or began >= ended:
        return
    legs = (("first party", call.first_party), ("second party", call.second_party))
    drawn = [(name, list(_stretches(leg, ended))) for name, leg in legs]
    if not any(stretches for _, stretches in drawn):
        return
    columns = width - LABEL_CHARS - 2
    gap = " " * (columns - 2 * CLOCK_CHARS)
    yield Text(f"{'':{LABEL_CHARS}}{began:%H:%M:%S}{gap}{ended:%H:%M:%S}", style="dim")
    for name, stretches in drawn:
        if not stretches:
            continue
        line = Text(f"  {name:{LABEL_CHARS - 2}}")
        line.append_text(_bar(stretches, began, ended, columns))
        line.rstrip()
        yield line


def _stretches(leg: Leg, call_ended: datetime) -> Iterator[_Stretch]:
    """The states of a leg, one after another."""
    ended = leg.ended_at or call_ended
    starts = [
        (sign, at)
        for sign, at in ((DIALLED, leg.initiated_at), (RINGING, leg.ringing_at), (TALKING, leg.answered_at))
        if at is not None
    ]
    for place, (sign, at) in enumerate(starts):
        following = starts[place + 1][1] if place + 1 < len(starts) else ended
        yield _Stretch(sign, at, max(at, following))
    if leg.outcome == "failed" and leg.ended_at is not None:
        yield _Stretch(FAILED, leg.ended_at, leg.ended_at)


def _bar(stretches: Iterable[_Stretch], began: datetime, ended: datetime, columns: int) -> Text:
    whole = (ended - began).total_seconds()
    signs = [" "] * columns
    for sign, start, end in stretches:
        first = _column(start, began, whole, columns)
        last = max(first, _column(end, began, whole, columns))
        for column in range(first, last + 1):
            signs[column] = sign
    bar = Text()
    for sign, run in groupby(signs):
        bar.append("".join(run), style=_STYLES.get(sign, ""))
    return bar


def _column(moment: datetime, began: datetime, whole_s: float, columns: int) -> int:
    share = (moment - began).total_seconds() / whole_s
    return max(0, min(columns - 1, int(share * columns)))
