"""Reads owned partitions, puts what comes in order, and hands it to the dispatcher.

All owned partitions are read with one command, which waits at the server while there is nothing. It is preceded by
TIME in the same trip: a partition that then has less than was asked for had been read to its end at that time, which
is how the watermark moves on where no entries do. The next read is sent before the last one's entries are worked on.

Reading leaves no trace in Redis (XREAD, not XREADGROUP), so an owner that was paused past its lease takes nothing
away from the new one.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import hiredis

from runtime.link import Link, pack
from runtime.logs import get_logger
from schemas.errors import RedisUnavailableError
from schemas.keys import Keys
from worker.connection import Connection
from worker.dispatch import Dispatcher
from worker.partition import Decoded, Partition, entry_ms
from worker.stats import Stats

READ_MAX: Final = 1_024
"""Entries asked for with one read, over all partitions: some ten milliseconds of work."""

READ_PARTITION_MIN: Final = 4
READ_PARTITION_MAX: Final = 256

BLOCK_MAX_MS: Final = 250
"""How long a read waits at the server. It bounds how late a gap is given up, and a wake-up that came too early."""

YIELD_EVERY: Final = 256
"""Entries decoded and ordered before the event loop may do other work."""

HELD_FACTOR: Final = 5
"""Entries waiting in gaps, in multiples of `outstanding_max`, before the oldest gaps are given up early."""

LOAD_REPEAT_S: Final = 0.1

Entries = Sequence[tuple[bytes, Sequence[bytes]]]

_log = get_logger("maskline.worker")


class _Request(NamedTuple):
    partitions: dict[bytes, Partition]
    """By the key of the stream."""
    each: int
    """Entries asked for of every partition."""
    future: asyncio.Future[list[Any]]


class _Batch(NamedTuple):
    partition: Partition
    entries: Entries
    watermark_ms: int


class Reader:
    """`partitions()`: those to read now."""

    def __init__(
        self, connection: Connection, keys: Keys, dispatcher: Dispatcher, partitions: Callable[[], Sequence[Partition]],
        *, outstanding_max: int, stats: Stats, on_progress: Callable[[Partition], None],
    ) -> None:  # fmt: skip
        self._connection = connection
        self._keys = keys
        self._dispatcher = dispatcher
        self._partitions = partitions
        self._outstanding_max = outstanding_max
        self._stats = stats
        self._on_progress = on_progress
        self._woken = asyncio.Event()
        self._at_server = False
        self._since_yield = 0
        self.starved = False
        """Reading has stopped because too much is unfinished: wake it when there is room."""

    def wake(self) -> None:
        """The partitions to read, or the room for them, have changed: let a waiting read go."""
        self._woken.set()
        commands = self._connection.commands
        if self._at_server and commands is not None:
            self._at_server = False
            commands.send(pack("CLIENT", "UNBLOCK", self._connection.reads_id), 1)

    async def run(self) -> None:
        """Read until cancelled, over any number of connections."""
        while True:
            _, reads = await self._connection.ready()
            try:
                await self._read_while_connected(reads)
            except RedisUnavailableError:
                self._at_server = False
                # The connection's keeper needs a turn to see the loss before `ready` may answer again.
                await asyncio.sleep(LOAD_REPEAT_S)

    async def feed(self, partition: Partition, entries: Entries, *, pending: bool, watermark_ms: int) -> None:
        """Decode entries, fetch the states of their sessions, put them in order, hand over what is released."""
        decoded = partition.decode(entries, pending=pending, now_ms=time.time_ns() // 1_000_000)
        states = await self._states(partition, decoded) if decoded.unknown else {}
        if partition.closed:
            return
        self._dispatcher.submit(partition.arrive(decoded, states, watermark_ms))
        if partition.wants_commit:
            self._on_progress(partition)
        self._since_yield += len(entries)
        if self._since_yield >= YIELD_EVERY:
            self._since_yield = 0
            await asyncio.sleep(0)

    # Inside

    async def _read_while_connected(self, reads: Link) -> None:
        request = self._request(reads)
        while True:
            if request is None:
                await self._woken.wait()
                request = self._request(reads)
                continue
            self._at_server = True
            time_reply, read_reply = await request.future
            self._at_server = False
            if isinstance(read_reply, hiredis.ReplyError):
                _log.error("Redis refuses to be read, trying again", reply=str(read_reply))
                await asyncio.sleep(LOAD_REPEAT_S)
                request = self._request(reads)
                continue
            now_ms = int(time_reply[0]) * 1000 + int(time_reply[1]) // 1000
            batches = self._batches(request, read_reply or (), now_ms)
            request = self._request(reads)
            for batch in batches:
                if not batch.partition.closed:
                    await self.feed(
                        batch.partition, batch.entries, pending=False, watermark_ms=batch.watermark_ms
                    )
            self._relieve()

    def _request(self, reads: Link) -> _Request | None:
        """Send the next read; None if there is nothing to read or no room for it."""
        self._woken.clear()
        partitions = self._partitions()
        room = self._outstanding_max - sum(partition.unfinished for partition in partitions)
        # Where the bound is less than the least that is read, it is read when nothing is unfinished.
        self.starved = room < min(len(partitions) * READ_PARTITION_MIN, self._outstanding_max)
        if not partitions or self.starved:
            return None
        each = min(READ_MAX, room) // len(partitions)
        count = min(max(each, READ_PARTITION_MIN), READ_PARTITION_MAX)
        keys = [self._keys.callbacks(partition.number) for partition in partitions]
        block_ms = BLOCK_MAX_MS
        for partition in partitions:
            if (deadline := partition.next_deadline_ms) is not None:
                block_ms = min(block_ms, max(deadline - partition.watermark_ms, 1))
        future = reads.send(
            pack("TIME")
            + pack(
                "XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS",
                *keys, *(partition.read_id for partition in partitions),
            ),
            2,
        )  # fmt: skip
        return _Request(dict(zip((key.encode() for key in keys), partitions, strict=True)), count, future)

    def _batches(self, request: _Request, streams: Sequence[Any], now_ms: int) -> list[_Batch]:
        """What was read, by partition; also partitions without entries where the watermark lets something expire."""
        batches: list[_Batch] = []
        came: set[Partition] = set()
        for key, entries in streams:
            partition = request.partitions[key]
            came.add(partition)
            last_id = entries[-1][0].decode()
            partition.read_id = last_id
            self._stats.read += len(entries)
            watermark_ms = (
                max(now_ms, entry_ms(last_id)) if len(entries) < request.each else entry_ms(last_id)
            )
            batches.append(_Batch(partition, entries, watermark_ms))
        for partition in request.partitions.values():
            if partition in came:
                continue
            deadline = partition.next_deadline_ms
            if deadline is not None and deadline <= now_ms:
                batches.append(_Batch(partition, (), now_ms))
            else:
                partition.watermark_ms = max(partition.watermark_ms, now_ms)
        return batches

    async def _states(self, partition: Partition, decoded: Decoded) -> Mapping[str, bytes | None]:
        """The encoded states of sessions that are not in memory, however often the connection is lost meanwhile."""
        packed = pack("MGET", *self._keys.sessions(partition.number, decoded.unknown))
        while not partition.closed:
            commands, _ = await self._connection.ready()
            try:
                (reply,) = await commands.send(packed, 1)
            except RedisUnavailableError:
                reply = None
            if isinstance(reply, list):
                return dict(zip(decoded.unknown, reply, strict=True))
            await asyncio.sleep(LOAD_REPEAT_S)
        return {}

    def _relieve(self) -> None:
        """Keep what waits in gaps within its bound, at the price of giving the oldest gaps up early."""
        partitions = self._partitions()
        surplus = sum(partition.held for partition in partitions) - HELD_FACTOR * self._outstanding_max
        while surplus > 0:
            partition = max(partitions, key=lambda candidate: candidate.held)
            before = partition.held
            self._dispatcher.submit(partition.give_up_oldest())
            self._stats.forced_gaps += 1
            surplus -= before - partition.held
            if partition.held == before:
                return
