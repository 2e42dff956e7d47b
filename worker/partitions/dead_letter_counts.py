"""Counts the dead letters, and the bytes of memory that they take, and says when MASKLINE_DEAD_MAX_BYTES is reached.

With them it counts what waits in retry queues, for the metrics.

`MEMORY USAGE` with one sample reads one node of a stream, however long that is: microseconds of the server's time.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys, decode_handler
from maskline.worker.connections import WorkerConnections
from maskline.worker.partitions.owned_partitions import OwnedPartitions

REFRESH_S: Final = 5.0
"""Between two counts: by so much MASKLINE_DEAD_MAX_BYTES may be overrun."""

REFRESH_FIRST_S: Final = 1.0

REQUEST_PARTITIONS_MAX: Final = 256
"""Partitions counted in one round trip."""

WAITING_BYTES_MIN: Final = 1_024.0
"""What an event behind a dead letter takes at least: a callback of 700 bytes, and its place in the queue."""

LETTER_BYTES: Final = 2_048.0
"""What a dead letter is taken for where the server does not report it: callback, reason, traceback."""

_log = get_logger("maskline.worker")


class QueuedEvents(NamedTuple):
    """The events in the retry queues of one handler."""

    waiting: int = 0
    parked: int = 0
    """Those of them that wait behind a dead letter."""


class DeadLetterCount(NamedTuple):
    """The dead letters of one partition, of all groups, and the retry queues of one group."""

    letters: int
    size_bytes: int | None
    """None if the server does not report it."""
    queued: Mapping[str, QueuedEvents]
    """By handler."""


class DeadLetterCounts:
    """The dead letters of the open partitions, as of the last count, and whether all partitions have too many.

    `partitions`: how many there are. `max_bytes`: MASKLINE_DEAD_MAX_BYTES.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        owned: OwnedPartitions,
        *,
        partitions: int,
        max_bytes: int,
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._owned = owned
        self._partitions = partitions
        self.max_bytes = max_bytes
        self.held_bytes = 0
        """What MASKLINE_DEAD_MAX_BYTES bounds, of all partitions, as of the last count."""
        self._by_number: dict[int, DeadLetterCount] = {}
        self._full = False

    @property
    def count(self) -> int:
        """Dead letters of owned partitions, of all groups."""
        return sum(count.letters for count in self._counts())

    @property
    def size_bytes(self) -> int | None:
        """The bytes of the server's memory that they take, roughly; None if the server does not report it."""
        return _sum_of(count.size_bytes for count in self._counts())

    @property
    def queued(self) -> dict[str, QueuedEvents]:
        """What waits in retry queues of owned partitions, by handler."""
        totals: defaultdict[str, QueuedEvents] = defaultdict(QueuedEvents)
        for count in self._counts():
            for handler, (waiting, parked) in count.queued.items():
                total = totals[handler]
                totals[handler] = QueuedEvents(total.waiting + waiting, total.parked + parked)
        return dict(totals)

    async def run(self) -> None:
        """Count until cancelled."""
        await asyncio.sleep(REFRESH_FIRST_S)
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Count the dead letters of all partitions."""
        by_connection: defaultdict[PipelinedConnection, list[int]] = defaultdict(list)
        for number in range(self._partitions):
            if (connection := self._connections.commands(number)) is not None:
                by_connection[connection].append(number)
        for connection, numbers in by_connection.items():
            for first in range(0, len(numbers), REQUEST_PARTITIONS_MAX):
                await self._count(connection, numbers[first : first + REQUEST_PARTITIONS_MAX])
        self._check_bound()

    async def _count(self, connection: PipelinedConnection, numbers: Sequence[int]) -> None:
        asked = b"".join(
            pack("XLEN", key)
            + pack("MEMORY", "USAGE", key, "SAMPLES", 1)
            + pack("HGETALL", self._keys.of(number).retry_counts)
            for number in numbers
            for key in (self._keys.dead(number),)
        )
        try:
            replies = await connection.send(asked, 3 * len(numbers))
        except RedisUnavailableError:
            return
        for number, count, size, counts in zip(
            numbers, replies[::3], replies[1::3], replies[2::3], strict=True
        ):
            if isinstance(count, int):
                self._by_number[number] = DeadLetterCount(count, size_of(size), _queued_of(counts))

    def _check_bound(self) -> None:
        """Say whether the bound is reached."""
        counts = self._by_number.values()
        self.held_bytes = held_bytes(
            sum(count.letters for count in counts),
            _sum_of(count.size_bytes for count in counts),
            sum(queued.parked for count in counts for queued in count.queued.values()),
        )
        full = self.held_bytes >= self.max_bytes
        if full != self._full:
            self._full = full
            details = {"size_bytes": self.held_bytes, "max_bytes": self.max_bytes}
            if full:
                _log.error("dead letters full", **details)
            else:
                _log.info("dead letters no longer full", **details)
        for partition in self._owned:
            partition.dead_letters_full = full

    def _counts(self) -> list[DeadLetterCount]:
        owned = {partition.number for partition in self._owned.open}
        return [count for number, count in self._by_number.items() if number in owned]


def held_bytes(letters: int, size_bytes: int | None, parked: int) -> int:
    """About how much memory dead letters take, and the `parked` events behind them: each as much as a letter.

    `size_bytes`: that of the letters; None if the server does not report it.
    """
    size = letters * LETTER_BYTES if size_bytes is None else size_bytes
    return round(size + parked * max(size / letters if letters else 0.0, WAITING_BYTES_MIN))


def _sum_of(sizes: Iterable[int | None]) -> int | None:
    """The sum; None if one is not known."""
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total


def _queued_of(reply: Any) -> dict[str, QueuedEvents]:
    """What waits in retry queues, from the counts of a partition (`schemas.keys`)."""
    queued: dict[str, QueuedEvents] = {}
    if isinstance(reply, list):
        for field, count in zip(reply[::2], reply[1::2], strict=False):
            what, _, encoded = field.decode().partition(" ")
            handler = decode_handler(encoded)
            if what in QueuedEvents._fields:
                queued[handler] = queued.get(handler, QueuedEvents())._replace(**{what: int(count)})
    return queued


def size_of(reply: Any) -> int | None:
    """The bytes that MEMORY USAGE replied: 0 for a key that is not there, None where the command is refused."""
    if reply is None:
        return 0
    return reply if isinstance(reply, int) else None
