"""Reads a stretch of a partition's stream in pages that are bounded by count and by bytes.

Redis takes a count for a page and no bytes, so the count follows from the size of the entries before.
"""

from typing import Final

import hiredis

from maskline.runtime.redis.pipeline import pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.worker.connections import WorkerConnections
from maskline.worker.entries.decode import StreamEntries
from maskline.worker.partitions.partition import Partition

PAGE_ENTRIES_MAX: Final = 256

PAGE_MAX_BYTES: Final = 256 * 1024
"""Of a page, roughly: it must not hold up the commits, which go over the same connection."""

FIRST_PAGE_ENTRIES: Final = 16
"""A first page of the largest callbacks then has a MiB."""


class StreamPages:
    """The entries of a stream from `first` up to `last`, in its order. `first`: an ID, or `(` and the ID before it.

    They are read over the connection of the partition's commits: what a commit has removed before is not read any more.
    """

    def __init__(
        self, connections: WorkerConnections, partition: Partition, stream: str, *, first: str, last: str
    ) -> None:
        self._connections = connections
        self._partition = partition
        self._stream = stream
        self._first = first
        self._last = last
        self._count = FIRST_PAGE_ENTRIES
        self.at_end = False
        """Whether everything was read."""

    async def next(self) -> StreamEntries:
        """The next page. Raises RedisUnavailableError, and reads the same page at the next call."""
        number = self._partition.number
        connection = self._connections.verified_commands(number, self._partition.verified_at)
        if connection is None:
            raise RedisUnavailableError("the partition's server is away")
        (reply,) = await connection.send(
            pack("XRANGE", self._stream, self._first, self._last, "COUNT", self._count), 1
        )
        if isinstance(reply, hiredis.ReplyError):
            self._connections.handle_error_reply(number, str(reply))
            raise RedisUnavailableError(f"a stream could not be read: {reply}")
        entries: StreamEntries = [entry for entry in reply if entry[1] is not None]
        self.at_end = len(reply) < self._count
        if reply:
            self._first = f"({reply[-1][0].decode()}"
            size = sum(len(field) for _, fields in entries for field in fields)
            fitting = int(PAGE_MAX_BYTES * len(reply) / max(size, 1))
            self._count = max(1, min(fitting, 2 * self._count, PAGE_ENTRIES_MAX))
        return entries
