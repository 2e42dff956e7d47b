"""Describes a read that a poller has sent: what it asks for, and how long it takes."""

import asyncio
from time import monotonic
from typing import Any

from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.worker.partitions.partition import Partition


class ReadRequest:
    """A read under way over the connection `reads`.

    `incarnation`: that of the connections it was sent over (`ServerConnections.incarnation`). `count`: how many entries
    were asked for of each partition. `combined`: whether one XREAD asked for all of them.
    """

    __slots__ = (
        "_before_bytes",
        "_future",
        "_reads",
        "_wanted_at",
        "combined",
        "count",
        "incarnation",
        "partitions",
        "sent_at",
        "took_s",
        "transfer_s",
    )

    def __init__(
        self,
        reads: PipelinedConnection,
        incarnation: object,
        partitions: list[Partition],
        count: int,
        future: asyncio.Future[list[Any]],
        *,
        combined: bool,
    ) -> None:
        self._reads = reads
        self.incarnation = incarnation
        self.partitions = partitions
        self.count = count
        self.combined = combined
        self._future = future
        self._before_bytes = reads.received_bytes
        self.sent_at = monotonic()
        """When it was sent, by `time.monotonic`."""
        self._wanted_at: float | None = None
        """When the last read's entries were processed, so that the poller began to wait for this read."""
        self.took_s: float | None = None
        """Seconds until the replies had come; None while they have not."""
        self.transfer_s = 0.0
        """The part of `took_s` after the first reply, which is to TIME. The rest is latency, which a smaller read has
        too."""
        future.add_done_callback(self._replied)

    def _replied(self, _future: asyncio.Future[list[Any]]) -> None:
        self.took_s = monotonic() - self.sent_at
        self.transfer_s = self._reads.transfer_s

    async def replies(self) -> list[Any]:
        """Wait for the replies: to TIME, then one for each XREAD. Raises RedisUnavailableError."""
        self._wanted_at = monotonic()
        return await self._future

    @property
    def waited_s(self) -> float:
        """How long the poller has waited for it with nothing else to do, also while it is under way."""
        if self._wanted_at is None:
            return 0.0
        ended_at = monotonic() if self.took_s is None else self.sent_at + self.took_s
        return max(0.0, ended_at - self._wanted_at)

    @property
    def size_bytes(self) -> int:
        """The size of the replies in bytes; valid until the next read is sent."""
        return self._reads.received_bytes - self._before_bytes
