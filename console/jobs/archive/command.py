"""`maskline replay --from-archive`: reads an archive, asks, and feeds its callbacks to the workers."""

import argparse
import asyncio
import contextlib

from maskline.console.jobs.archive.feeder import ArchiveFeeder
from maskline.console.jobs.archive.plan import look_at_archive
from maskline.console.jobs.archive.session_sort import SessionSort
from maskline.console.jobs.records import JobError, stop_job
from maskline.console.jobs.start import Request, run
from maskline.console.redis_reader import RedisReader, open_reader, with_embedded_server
from maskline.console.selectors import callback_selection
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.jobs import Job
from maskline.schemas.settings import load_settings

LEAVE_S = 5.0
"""For stopping the job when the operator leaves; the feeds expire otherwise, and that stops it too."""


def replay_archive(arguments: argparse.Namespace) -> int:
    """Run `maskline replay --from-archive` with parsed arguments; the exit code."""
    selection = callback_selection(arguments, "replay", all_by_default=True)
    with SessionSort() as sort:
        request = Request(
            command="replay",
            kind="archive",
            selection=selection,
            question="run these again?",
            look=lambda reader: look_at_archive(reader, arguments.from_archive, selection, sort),
            feed=_ArchiveFeed(sort),
        )
        return run(request, arguments)


class _ArchiveFeed:
    """A `jobs.start.Feed` from sorted sessions."""

    def __init__(self, sort: SessionSort) -> None:
        self._feeder = ArchiveFeeder(sort)

    async def open(self, reader: RedisReader, job: Job) -> None:
        await self._feeder.open(reader, job)

    async def run(self, job: Job) -> None:
        """Over a connection of its own: following the job opens the other one anew as it likes."""
        reader = await open_reader(with_embedded_server(load_settings()))
        try:
            await self._feeder.run(reader, job)
        finally:
            reader.close()

    async def close(self, reader: RedisReader, job: Job) -> None:  # noqa: ARG002
        await self._feeder.renew(reader, ttl_ms=1)

    async def leave(self, reader: RedisReader, job: Job) -> list[str]:
        if self._feeder.all_fed:
            with contextlib.suppress(RedisUnavailableError, JobError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._feeder.leave(reader)
            return [
                "the workers have all of it: the replay goes on without this command, `maskline replay list` shows it,",
                f"`maskline replay stop {job.id}` stops it",
            ]
        for step in (stop_job(reader, job.id), self._feeder.renew(reader, ttl_ms=1)):  # either stops it
            with contextlib.suppress(RedisUnavailableError, JobError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await step
        return [
            f"{self._feeder.sessions_fed:,} sessions were fed to the workers, who end what they have begun; the rest",
            f"is not fed any more: the replay {job.id} is stopped. Start it again to run all of it",
        ]
