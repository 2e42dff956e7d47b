"""A read that a poller has sent: what it asked for, what came of it, and how long that took."""

import asyncio
from time import monotonic
from typing import Any

from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.worker.partitions.partition import Partition


class ReadRequest:
    """A read under way, and how long it takes."""

    __slots__ = (
        "before_bytes",
        "each",
        "future",
        "incarnation",
        "partitions",
        "reads",
        "sent_at",
        "together",
        "took_s",
        "transfer_s",
        "wanted_at",
    )

    def __init__(
        self, reads: PipelinedConnection, incarnation: object, partitions: list[Partition], each: int,
        future: asyncio.Future[list[Any]], *, together: bool,
    ) -> None:  # fmt: skip
        self.reads = reads
        self.incarnation = incarnation
        """Of the connection (`ServerConnections.incarnation`) that it was sent over."""
        self.partitions = partitions
        self.each = each
        """Entries asked for of every partition."""
        self.together = together
        self.future = future
        self.before_bytes = reads.received_bytes
        self.sent_at = monotonic()
        self.wanted_at: float | None = None
        """When the work on the last read was over, and this one was waited for."""
        self.took_s: float | None = None
        """None while it is under way."""
        self.transfer_s = 0.0
        """What of that came after the first reply, which is to TIME: the rest is latency, and no smaller read's."""
        future.add_done_callback(self._came)

    def _came(self, _future: asyncio.Future[list[Any]]) -> None:
        self.took_s = monotonic() - self.sent_at
        self.transfer_s = self.reads.transfer_s

    async def replies(self) -> list[Any]:
        self.wanted_at = monotonic()
        return await self.future

    @property
    def waited_s(self) -> float:
        """How long it was waited for with nothing else to do; also while it is under way."""
        if self.wanted_at is None:
            return 0.0
        ended_at = monotonic() if self.took_s is None else self.sent_at + self.took_s
        return max(0.0, ended_at - self.wanted_at)

    @property
    def size_bytes(self) -> int:
        """What came of it, as long as the next one is not sent."""
        return self.reads.received_bytes - self.before_bytes
