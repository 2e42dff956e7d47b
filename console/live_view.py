"""The live view of `maskline dev`: one line for each event, in handling order, and a summary now and then.

Strategy: events go through a bounded queue to one task, which looks up the order of arrival of each and writes its
line. If more events come than it can write, lines are left out, and a line says how many.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple

from rich.console import Console
from rich.text import Text

from maskline.console.arrivals import Arrivals
from maskline.console.dev_handler import HandledEvent

SHOWN_WAITING_MAX: Final = 5_000
"""Lines in the queue: some seconds' worth. Nobody can read more than that."""
PLACE_TIMEOUT_S: Final = 0.5
SUMMARY_INTERVAL_S: Final = 5.0
MISSING_SHOWN_MAX: Final = 8

_ORDERS: Final = {
    "in_order": ("in order", "green"),
    "after_gap": ("after gap", "yellow"),
    "late": ("late", "red"),
    "unsequenced": ("unsequenced", "cyan"),
}


class Counts(NamedTuple):
    """The numbers of the summary."""

    arrived: int
    handled: int
    in_order: int
    after_gap: int
    late: int
    unsequenced: int
    duplicates: int
    held: int
    dead: int


def event_line(handled: HandledEvent, place: int | None, now: datetime) -> Text:
    """The line of an event: `12:04:05.123  5f598579      3  SessionSecondPartyRing  in order  arrived #5`.

    `place`: as which callback of its session it arrived, counted from 1; None if that is not known.
    """
    words, colour = _ORDERS[handled.order]
    number = "-" if handled.number is None else str(handled.number)
    line = Text()
    line.append(f"{now:%H:%M:%S}.{now.microsecond // 1000:03}  ", "dim")
    line.append(f"{handled.session_uuid[:8]:8}  ")
    line.append(f"{'rec' if handled.recording else '':3} {number:>4}  ", "bold")
    line.append(f"{handled.event_name:32}  ")
    line.append(f"{words:11}", colour)
    if place is not None:
        line.append(f"  arrived #{place}", "dim")
    if handled.missing:
        line.append(f"  missing {_numbers(handled.missing)}", "yellow")
    if handled.run:
        line.append(f"  run {handled.run}", "dim")
    return line


def summary_line(counts: Counts) -> Text:
    """The line that sums up the events handled so far."""
    orders = [
        f"{number:,} {word}"
        for number, word in (
            (counts.in_order, "in order"),
            (counts.after_gap, "after a gap"),
            (counts.late, "late"),
            (counts.unsequenced, "unsequenced"),
        )
        if number
    ]
    handled = f"{counts.handled:,} handled" + (f" ({', '.join(orders)})" if orders else "")
    parts = [f"{counts.arrived:,} arrived", handled, f"{counts.duplicates:,} duplicates dropped"]
    if counts.held:
        parts.append(f"{counts.held:,} waiting for a missing number")
    parts.append(f"{counts.dead:,} dead letters")
    return Text("-- " + " · ".join(parts), "bold")


def _numbers(missing: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, missing[:MISSING_SHOWN_MAX]))
    more = len(missing) - MISSING_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown


class LiveView:
    """Writes handled events to a console, which may be a terminal or a pipe."""

    def __init__(self, console: Console, arrivals: Arrivals, counts: Callable[[], Counts]) -> None:
        self._console = console
        self._arrivals = arrivals
        self._counts = counts
        self._shown: Counts | None = None
        self._waiting: deque[HandledEvent] = deque()
        self._left_out = 0
        self._filled = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()

    def show(self, handled: HandledEvent) -> None:
        """Queue an event to be written; never waits."""
        if len(self._waiting) >= SHOWN_WAITING_MAX:
            self._left_out += 1
            return
        self._waiting.append(handled)
        self._written.clear()
        self._filled.set()

    async def run(self) -> None:
        """Write events as they come, and the summary when it has changed, until cancelled."""
        loop = asyncio.get_running_loop()
        summary_at = loop.time() + SUMMARY_INTERVAL_S
        while True:
            try:
                async with asyncio.timeout_at(summary_at):
                    await self._filled.wait()
            except TimeoutError:
                self.summarise()
                summary_at = loop.time() + SUMMARY_INTERVAL_S
                continue
            await self._write_waiting()
            if loop.time() >= summary_at:
                self.summarise()
                summary_at = loop.time() + SUMMARY_INTERVAL_S

    async def written(self) -> None:
        """Wait until every event queued so far is written."""
        await self._written.wait()

    def summarise(self) -> None:
        """Write the summary, unless nothing has changed since the last one."""
        counts = self._counts()
        if counts != self._shown and any(counts):
            self._shown = counts
            self.write(summary_line(counts))

    def write(self, line: Text | str = "") -> None:
        """Write one line at once, before the events that are queued."""
        # Whole lines at any width: other programs read a pipe, and a terminal wraps by itself.
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    async def _write_waiting(self) -> None:
        # Only those queued now: more may come all the time, and the summary is due now and then.
        for _ in range(len(self._waiting)):
            handled = self._waiting.popleft()
            place = await self._arrivals.place(
                handled.session_uuid, handled.entry_id, timeout_s=PLACE_TIMEOUT_S
            )
            self.write(event_line(handled, place, datetime.now()))  # noqa: DTZ005  the reader's own clock
        if self._left_out:
            self.write(Text(f"-- {self._left_out:,} more were handled and are not shown", "dim"))
            self._left_out = 0
        if not self._waiting:
            self._filled.clear()
            self._written.set()
