"""Counts the dead letters of owned partitions, and the bytes of memory that they take.

`MEMORY USAGE` with one sample reads one node of a stream, however long that is: microseconds of the server's time.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.connections import WorkerConnections
from maskline.worker.partitions.owned_partitions import OwnedPartitions

REFRESH_S: Final = 15.0
"""Between two counts: as often as Prometheus usually asks."""

REFRESH_FIRST_S: Final = 1.0

REQUEST_PARTITIONS_MAX: Final = 256
"""Partitions counted in one round trip."""


class DeadLetterCounts:
    """The dead letters of the open partitions, as of the last count."""

    def __init__(self, connections: WorkerConnections, keys: Keys, owned: OwnedPartitions) -> None:
        self._connections = connections
        self._keys = keys
        self._owned = owned
        self._by_number: dict[int, tuple[int, int | None]] = {}

    @property
    def count(self) -> int:
        """Dead letters of owned partitions, of all groups."""
        return sum(count for count, _ in self._counts())

    @property
    def size_bytes(self) -> int | None:
        """The bytes of the server's memory that they take, roughly; None if the server does not report it."""
        sizes = [size for _, size in self._counts()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    async def run(self) -> None:
        """Count until cancelled."""
        await asyncio.sleep(REFRESH_FIRST_S)
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Count the dead letters of all open partitions."""
        by_connection: defaultdict[PipelinedConnection, list[int]] = defaultdict(list)
        owned = [partition.number for partition in self._owned.open]
        self._by_number = {number: count for number, count in self._by_number.items() if number in set(owned)}
        for number in owned:
            if (connection := self._connections.commands(number)) is not None:
                by_connection[connection].append(number)
        for connection, numbers in by_connection.items():
            for first in range(0, len(numbers), REQUEST_PARTITIONS_MAX):
                await self._count(connection, numbers[first : first + REQUEST_PARTITIONS_MAX])

    async def _count(self, connection: PipelinedConnection, numbers: Sequence[int]) -> None:
        asked = b"".join(
            pack("XLEN", key) + pack("MEMORY", "USAGE", key, "SAMPLES", 1)
            for key in map(self._keys.dead, numbers)
        )
        try:
            replies = await connection.send(asked, 2 * len(numbers))
        except RedisUnavailableError:
            return
        for number, count, size in zip(numbers, replies[::2], replies[1::2], strict=True):
            if isinstance(count, int):
                self._by_number[number] = count, size_of(size)

    def _counts(self) -> list[tuple[int, int | None]]:
        owned = {partition.number for partition in self._owned.open}
        return [count for number, count in self._by_number.items() if number in owned]


def size_of(reply: Any) -> int | None:
    """The bytes that MEMORY USAGE replied: 0 for a key that is not there, None where the command is refused."""
    if reply is None:
        return 0
    return reply if isinstance(reply, int) else None
