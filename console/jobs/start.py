"""Starts a job after the operator has seen what it will do, and follows it to its end.

Three steps: look, ask, do. Between them no connection is open, so an operator may take his time to answer.
"""

import argparse
import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from maskline.console.arguments import rate
from maskline.console.confirmation import confirmed
from maskline.console.jobs.follow import NAMES, count_workers, follow_job, persistently
from maskline.console.jobs.records import JobError, create_job, new_job
from maskline.console.jobs.report import all_well, report_lines, row_of
from maskline.console.output import note, print_json
from maskline.console.redis_reader import RedisReader, run_with_reader
from maskline.schemas.jobs import Job, JobKind, JobTotals, Selection

ID_TRIES_MAX: Final = 5
"""Ids drawn for a job: the first is taken by another with a chance of one in thousands."""


class Plan(Protocol):
    """What a job would do, as far as can be seen before it is done."""

    @property
    def runs(self) -> int:
        """Events that would be run, or letters that would be discarded; 0 if there is nothing to do."""

    @property
    def ends(self) -> Mapping[int, str]:
        """The last entry that is selected in each partition that has one: the job goes no further."""

    @property
    def problem(self) -> bool:
        """Whether not all that was asked for can be done."""

    def lines(self) -> Iterator[str]:
        """The plan for a person."""

    def as_json(self) -> Any:
        """The plan for a program."""


class Feed(Protocol):
    """What workers need of a command while they carry a job out, besides the job."""

    async def open(self, reader: RedisReader, job: Job) -> None:
        """Prepare a job that nobody knows yet. Harmless to repeat."""

    async def run(self, job: Job) -> None:
        """Feed the workers until cancelled."""

    async def close(self, reader: RedisReader, job: Job) -> None:
        """The job has ended."""

    async def leave(self, reader: RedisReader, job: Job) -> list[str]:
        """The operator leaves before that; what becomes of the job then, in lines for him."""


class Request(NamedTuple):
    """What the operator asked for."""

    command: str
    """As he typed it: `dead replay`."""
    kind: JobKind
    selection: Selection
    question: str
    """Asked before it begins."""
    look: Callable[[RedisReader], Coroutine[Any, Any, Plan]]
    """Finds out what the job would do."""
    feed: Feed | None = None
    """Only for a job that needs the command."""


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that starts a job; `run` reads them."""
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--rate", type=rate, default=0.0, metavar="N", help="begin at most N a second (default: no bound)"
    )
    parser.add_argument("--json", action="store_true", help="the report, or the plan of --dry-run, as JSON")


def run(request: Request, arguments: argparse.Namespace) -> int:
    """Show the plan, ask, start the job and follow it; the exit code: 1 if not all of it succeeded."""
    plans: list[Plan] = []

    async def look(reader: RedisReader) -> int:
        plans.append(await request.look(reader))
        return 0

    code = run_with_reader(look)
    if not plans:
        return code
    (plan,) = plans
    only_shown = arguments.dry_run or not plan.runs
    if only_shown and arguments.json:
        print_json(plan.as_json())
    else:
        for line in plan.lines():
            print(line) if only_shown else note(line)
    if only_shown:
        return 1 if plan.problem else 0
    if not confirmed(request.question, request.command, yes=arguments.yes):
        note("nothing was changed")
        return 1
    return run_with_reader(lambda reader: _start_and_follow(reader, request, plan, arguments)) or int(
        plan.problem
    )


async def _start_and_follow(
    reader: RedisReader, request: Request, plan: Plan, arguments: argparse.Namespace
) -> int:
    job = await _create(reader, request, plan, arguments.rate)
    name, feed = NAMES[job.kind], request.feed
    try:
        note(f"{name} {job.id} is started; Ctrl-C " + ("ends it" if feed else "leaves it running"))
        if not await persistently(reader, lambda: count_workers(reader)):
            note(f"no worker of group {reader.keys.group!r} is alive: the {name} waits until one starts")
        totals = await _followed(follow_job(reader, job, plan.runs), feed, job)
    except asyncio.CancelledError:
        for line in await _left_lines(reader, job, feed):
            note(line)
        raise
    except Exception:
        if feed is not None:  # without which the job would wait for what does not come
            for line in await feed.leave(reader, job):
                note(line)
        raise
    if feed is not None:
        await persistently(reader, lambda: feed.close(reader, job))
    row = row_of(job, totals)
    if arguments.json:
        print_json(row)
    else:
        for line in report_lines(row):
            print(line)
    return 0 if all_well(row) else 1


async def _followed(following: Coroutine[Any, Any, JobTotals], feed: Feed | None, job: Job) -> JobTotals:
    """The totals of a job that has ended. What feeds it runs meanwhile; if that fails, so does the command."""
    if feed is None:
        return await following
    try:
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(feed.run(job))
            totals = await following
            feeding.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return totals


async def _left_lines(reader: RedisReader, job: Job, feed: Feed | None) -> list[str]:
    """What becomes of a job that the operator does not wait for."""
    name = NAMES[job.kind]
    if feed is not None:
        return await feed.leave(reader, job)
    return [
        f"the {name} goes on without this command: `maskline replay list` shows it,",
        f"`maskline replay stop {job.id}` stops it",
    ]


async def _create(reader: RedisReader, request: Request, plan: Plan, rate: float) -> Job:
    for _ in range(ID_TRIES_MAX):
        job = new_job(request.kind, request.selection, [*plan.ends], rate)
        if request.feed is not None:
            await persistently(reader, partial(request.feed.open, reader, job))
        if await persistently(reader, partial(create_job, reader, job, plan.ends)):
            return job
    raise JobError("no free id for a job was found: try again")
