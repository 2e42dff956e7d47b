"""Follows a job until it has ended, through failovers, restarts and deaths of workers: it only reads.

Progress is shown on stderr, as a bar on a terminal and as a line every PLAIN_PROGRESS_S elsewhere; stdout is left to
the report. The job does not depend on any of this.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, NamedTuple, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from maskline.console.jobs.records import JobError, checked, read_progress
from maskline.console.output import note, printable
from maskline.console.redis_reader import RedisReader, query_for
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.handler_control import read_control
from maskline.schemas.jobs import Job, JobTotals, sum_up
from maskline.schemas.keys import decode_handler

POLL_S: Final = 0.25
"""Between two looks at the records: a command for each partition of the job."""

RECONNECT_MIN_S: Final = 0.25
RECONNECT_MAX_S: Final = 5.0
"""Between two attempts to reach Redis; doubled from the first to the last."""

PLAIN_PROGRESS_S: Final = 5.0
"""Between two lines of progress if stderr is no terminal."""

NAMES: Final = {"dead": "replay", "callbacks": "replay", "discard": "discard", "archive": "replay"}
"""What an operator calls a job, by its kind."""

T = TypeVar("T")


class _View(NamedTuple):
    """A look at a job that runs."""

    totals: JobTotals
    workers: int
    """How many are alive."""
    paused: list[str]
    """Handlers that runs of the job wait for, as an operator has paused them."""


async def follow_job(reader: RedisReader, job: Job, planned: int) -> JobTotals:
    """Wait until a job has ended; its totals. `planned`: runs expected, for the bar.

    A job that stopped itself is not waited for: what fails again may be tried on for a day.
    Raises JobError if its records are gone from Redis.
    """
    with _progress(NAMES[job.kind], planned) as show:
        while True:
            view = await persistently(reader, lambda: _look(reader, job))
            show(view)
            if view.totals.ended or view.totals.state == "failing":
                return view.totals
            await asyncio.sleep(POLL_S)


async def persistently(reader: RedisReader, attempt: Callable[[], Awaitable[T]]) -> T:
    """The result of an attempt, which is repeated on new connections for as long as Redis is away."""
    wait_s = 0.0
    while True:
        try:
            if wait_s:
                await asyncio.sleep(wait_s)
                await reader.reconnect()
            return await attempt()
        except RedisUnavailableError as error:
            if not wait_s:
                note(f"waiting for Redis: {error}")
            wait_s = min(max(2 * wait_s, RECONNECT_MIN_S), RECONNECT_MAX_S)


async def _look(reader: RedisReader, job: Job) -> _View:
    (records,) = await read_progress(reader, [job])
    known = [record for record in records if record is not None]
    if len(known) < len(records):
        raise JobError(f"the records of the job {job.id} are gone from Redis: look at `maskline dead list`")
    handlers = {decode_handler(queue.partition(" ")[0]) for record in known for queue in record.under_way}
    paused = handlers & await _read_paused(reader) if handlers else set()
    return _View(sum_up(known), await count_workers(reader), sorted(paused))


async def _read_paused(reader: RedisReader) -> set[str]:
    """The names of the handlers that operators have paused."""
    control = reader.keys.control
    (fields,) = checked(await reader.send([query_for(control, "HGETALL", control)]))
    by_name = {
        name.decode(errors="replace"): value for name, value in zip(fields[::2], fields[1::2], strict=True)
    }
    return {*read_control(by_name).paused}


async def count_workers(reader: RedisReader) -> int:
    """How many workers of the group are alive, by their heartbeats."""
    key = reader.keys.workers
    (time_now,) = checked(await reader.send([query_for(key, "TIME")]))
    oldest_ms = int(time_now[0]) * 1000 + int(time_now[1]) // 1000 - reader.settings.lease_ttl_ms
    (count,) = checked(await reader.send([query_for(key, "ZCOUNT", key, oldest_ms, "+inf")]))
    return int(count)


def _state(view: _View) -> str:
    """A few words about what a job does at present."""
    totals = view.totals
    if not view.workers:
        return "no worker is alive: it goes on when one starts"
    if view.paused:
        return f"paused: {', '.join(map(printable, view.paused))} (maskline resume)"
    parts = [
        f"{count:,} {word}"
        for count, word in (
            (totals.failed, "failed again"),
            (totals.parked, "parked"),
            (totals.gone, "without a handler"),
            (totals.under_way, "under way"),
        )
        if count
    ]
    return ", ".join(parts)


def _share(totals: JobTotals, planned: int) -> tuple[int, int]:
    """The runs of which the outcome is known, and all."""
    known = totals.succeeded + totals.failed + totals.gone + totals.discarded + totals.parked
    return known, max(planned, totals.selected)


@contextlib.contextmanager
def _progress(name: str, planned: int) -> Iterator[Callable[[_View], None]]:
    """Shows how far a job is, each time the function that it yields is called."""
    if sys.stderr is not None and sys.stderr.isatty():
        columns = (
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
        )
        console = Console(file=sys.stderr)
        with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
            task = bar.add_task(name, total=planned, state="")

            def draw(view: _View) -> None:
                done, total = _share(view.totals, planned)
                bar.update(task, completed=done, total=total, state=_state(view))

            yield draw
        return
    told_at = 0.0

    def tell(view: _View) -> None:
        nonlocal told_at
        now = time.monotonic()
        if view.totals.ended or (told_at and now - told_at < PLAIN_PROGRESS_S):
            return
        told_at = now
        state = _state(view)
        done, total = _share(view.totals, planned)
        note(f"{name}: {done:,} of {total:,}" + (f", {state}" if state else ""))

    yield tell
