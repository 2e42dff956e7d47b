"""Reads the entries that the last owner of a partition left in its group's pending list, before the stream is read.

The pending list is the durable reorder buffer: it holds the entries that were read and not done, and those that wait
for a gap. It is read in pages, oldest entry first, sized by `worker.streams.read_size`.
"""

import asyncio
from time import monotonic, time_ns
from typing import Any, Final

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands import scripts
from maskline.worker.connections import RETRY_DELAY_S, WorkerConnections
from maskline.worker.entries.decode import entry_ms
from maskline.worker.partitions.committer import Committer
from maskline.worker.partitions.partition import Partition
from maskline.worker.streams.pipeline import ReadEntries, StreamPipeline
from maskline.worker.streams.read_size import ReadSize

PAGE_ENTRIES_MAX: Final = 256
"""Entries of the pending list read at a time."""

PAGES_UNDER_WAY_MAX: Final = 8
"""Pages requested at a time: together they have the size of one read (`worker.streams.read_size`)."""

_log = get_logger("maskline.worker")


class PendingListReader:
    """Feeds the pending lists of partitions just acquired to the pipeline."""

    def __init__(
        self, connections: WorkerConnections, keys: Keys, pipeline: StreamPipeline, committer: Committer
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._pipeline = pipeline
        self._committer = committer
        self._pages = asyncio.Semaphore(PAGES_UNDER_WAY_MAX)
        self._read_size = ReadSize()
        self._failure_lines = LogRateLimit()

    async def read(self, partition: Partition) -> bool:
        """Process the whole pending list, or as much of it as there is until the partition is paused or lost.

        Returns False if Redis refuses to read it.
        """
        start = "0-0"
        while not partition.closed:
            if self._connections.verified_commands(partition.number, partition.verified_at) is None:
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            try:
                cursor, entries, deleted = await self._read_page(partition, start)
            except RedisUnavailableError:
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            except hiredis.ReplyError as error:
                self._connections.handle_error_reply(partition.number, str(error))
                self._log_failure(partition.number, str(error))
                return False
            for entry_id in deleted:
                partition.take_in_deleted(entry_id.decode(), time_ns() // 1_000_000)
            if entries:
                watermark_ms = entry_ms(entries[-1][0].decode())
                await self._pipeline.process_pending(ReadEntries(partition, entries, watermark_ms))
            if partition.wants_commit:
                self._committer.mark(partition)
            if cursor == b"0-0":
                break
            start = cursor.decode()
        return True

    async def _read_page(self, partition: Partition, start: str) -> list[Any]:
        """A page of the pending list, as XAUTOCLAIM replies: the next start, entries, IDs of deleted entries."""
        async with self._pages:
            commands = await self._connections.commands_ready(partition.number)
            size, read_at = self._read_size, monotonic()
            count = max(1, min(PAGE_ENTRIES_MAX, size.entries // PAGES_UNDER_WAY_MAX))
            try:
                page: list[Any] = await commands.execute(
                    *("XAUTOCLAIM", self._keys.callbacks(partition.number), self._keys.group),
                    *(scripts.CONSUMER, 0, start, "COUNT", count),
                )
            except RedisUnavailableError:
                size.interrupted()
                raise
            took_s = monotonic() - read_at
            entries = PAGES_UNDER_WAY_MAX * len(page[1])
            size_bytes = PAGES_UNDER_WAY_MAX * sum(len(value) for _, fields in page[1] for value in fields)
            size.completed(entries, size_bytes, took_s, took_s, full=len(page[1]) >= count)
            return page

    def _log_failure(self, number: int, reason: str) -> None:
        if self._failure_lines.due(number):
            _log.error(
                "partition open failed",
                partition=number,
                reason=reason,
                repeats_of_all=self._failure_lines.take_suppressed(),
            )
