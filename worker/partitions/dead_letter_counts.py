"""Counts the dead letters of owned partitions and what they take: they stay until somebody has looked at them.

`MEMORY USAGE` with one sample looks at one node of a stream, however long that is: microseconds of the server's time.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.connections import WorkerConnections
from maskline.worker.partitions.partition import Partition

LOOK_S: Final = 15.0
"""Between looks: as often as Prometheus usually asks."""

LOOK_FIRST_S: Final = 1.0

TRIP_PARTITIONS_MAX: Final = 256
"""Looked at with one trip."""


class DeadLetters:
    """`partitions()`: those owned now."""

    def __init__(
        self, connections: WorkerConnections, keys: Keys, partitions: Callable[[], Sequence[Partition]]
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._partitions = partitions
        self._seen: dict[int, tuple[int, int | None]] = {}

    @property
    def count(self) -> int:
        """Dead letters of owned partitions, of all groups."""
        return sum(count for count, _ in self._owned())

    @property
    def size_bytes(self) -> int | None:
        """What they take of the server's memory, about; None where it does not tell."""
        sizes = [size for _, size in self._owned()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    async def run(self) -> None:
        """Look until cancelled."""
        await asyncio.sleep(LOOK_FIRST_S)
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        by_connection: defaultdict[PipelinedConnection, list[int]] = defaultdict(list)
        owned = [partition.number for partition in self._partitions()]
        self._seen = {number: seen for number, seen in self._seen.items() if number in set(owned)}
        for number in owned:
            if (connection := self._connections.commands(number)) is not None:
                by_connection[connection].append(number)
        for connection, numbers in by_connection.items():
            for first in range(0, len(numbers), TRIP_PARTITIONS_MAX):
                await self._look_at(connection, numbers[first : first + TRIP_PARTITIONS_MAX])

    async def _look_at(self, connection: PipelinedConnection, numbers: Sequence[int]) -> None:
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
                self._seen[number] = count, size_of(size)

    def _owned(self) -> list[tuple[int, int | None]]:
        owned = {partition.number for partition in self._partitions()}
        return [seen for number, seen in self._seen.items() if number in owned]


def size_of(reply: Any) -> int | None:
    """What MEMORY USAGE says: 0 for a key that is not there, None where it is refused."""
    if reply is None:
        return 0
    return reply if isinstance(reply, int) else None
