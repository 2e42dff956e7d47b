"""Watches how far a worker is behind its streams: jobs wait while that is more than LAG_MAX_MS."""

from typing import Final

import hiredis

from maskline.runtime.redis.pipeline import pack
from maskline.worker.connections import ServerConnections, WorkerConnections
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition

LAG_MAX_MS: Final = 2_000
"""A partition that is read to its end is behind by a quarter of a second (`worker.streams.poller.BLOCK_MAX_MS`)."""

MEASURE_S: Final = 0.25
"""Between two measurements, while a job is carried out."""


class LagWatch:
    """Whether an owned partition is behind its stream by more than LAG_MAX_MS, by the last measurement."""

    def __init__(self, connections: WorkerConnections, owned: OwnedPartitions) -> None:
        self._connections = connections
        self._owned = owned
        self.lagging = True
        """True as long as nothing was measured."""

    async def measure(self) -> None:
        """Compare each partition's watermark with its server's time. Raises RedisUnavailableError."""
        by_server: dict[ServerConnections, list[Partition]] = {}
        for partition in self._owned.open:
            if (server := self._connections.of_partition(partition.number)) is not None:
                by_server.setdefault(server, []).append(partition)
        lags_ms = [0]
        for server, partitions in by_server.items():
            if server.commands is None:
                continue
            (time,) = await server.commands.send(pack("TIME"), 1)
            if isinstance(time, hiredis.ReplyError):
                continue  # nor are the watermarks known then
            now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
            lags_ms += (partition.stream_now_ms(now_ms) - partition.watermark_ms for partition in partitions)
        self.lagging = max(lags_ms) > LAG_MAX_MS
