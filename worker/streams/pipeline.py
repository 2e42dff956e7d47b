"""Takes in what was read, puts it in order, and hands it to the dispatcher.

The pollers (`worker.streams.poller`), one a server, bring the entries. Reading leaves no trace in Redis (XREAD, not
XREADGROUP), so an owner that was paused past its lease takes nothing away from the new one.

| bound | on |
| --- | --- |
| MASKLINE_OUTSTANDING_MAX | entries read and not done, in a process: reading stops |
| RUN_AHEAD_MAX (`partitions.partition`) | entries of a partition read ahead of what Redis knows: that one is not read |
| HELD_FACTOR times MASKLINE_OUTSTANDING_MAX | entries waiting in gaps, in a process: the oldest are given up |
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands.scripts import get_states
from maskline.worker.connections import RETRY_DELAY_S, ServerConnections, WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.entries.decode import StreamEntries, entry_ms
from maskline.worker.partitions.ledger import RUN_AHEAD_MAX
from maskline.worker.partitions.partition import DecodedBatch, Partition
from maskline.worker.partitions.session import LiveSession

YIELD_EVERY: Final = 256
"""Entries decoded and ordered before the event loop may do other work."""

HELD_FACTOR: Final = 5

_log = get_logger("maskline.worker")

_NO_STATES: Final[Mapping[str, bytes | None]] = {}


class Batch(NamedTuple):
    """What one read brought of one partition."""

    partition: Partition
    entries: StreamEntries
    watermark_ms: int


class _Asked(NamedTuple):
    """States that one server was asked for."""

    wanted: list[tuple[Partition, list[str]]]
    future: asyncio.Future[list[Any]]
    """A reply for each partition: its sessions' states, in their order."""


class Portion(NamedTuple):
    """Batches that were decoded, on their way to be put in order."""

    decoded: list[tuple[Batch, DecodedBatch]]
    asked: list[_Asked]
    size: int
    """Entries, those that could not be decoded included."""


class Reader:
    """`partitions()`: those to read now. `on_progress(partition)`: it has something to commit.

    `on_fault(doing, error)`: something on one entry that we did not foresee; the entry is a dead letter.
    """

    def __init__(
        self, connections: WorkerConnections, keys: Keys, dispatcher: Dispatcher,
        partitions: Callable[[], Sequence[Partition]], *, outstanding_max: int, counters: Counters,
        on_progress: Callable[[Partition], None],
        on_fault: Callable[[str, BaseException], None] = lambda _doing, _error: None,
    ) -> None:  # fmt: skip
        self._connections = connections
        self._keys = keys
        self._dispatcher = dispatcher
        self._partitions = partitions
        self.outstanding_max = outstanding_max
        self._counters = counters
        self._on_progress = on_progress
        self._on_fault = on_fault
        self._since_yield = 0
        self._refusal_lines = LogRateLimit()
        self.in_hand = 0
        """Entries that were read and are not put in order yet."""

    # What pollers ask

    def readable(self, connection: ServerConnections, poller: object) -> tuple[list[Partition], bool]:
        """The partitions to read at a server, and whether others must wait.

        Those wait for their commits, for another poller, or until the server is known to have what was seen of them.
        """
        of, incarnation = self._connections.of_partition, connection.incarnation
        there = [p for p in self._partitions() if of(p.number) is connection]
        readable = [
            p
            for p in there
            if p.run_ahead < RUN_AHEAD_MAX and p.verified_at is incarnation and p.poller in (None, poller)
        ]
        return readable, len(readable) < len(there)

    def room(self) -> int:
        """How many more entries may be read."""
        unfinished = sum(partition.unfinished for partition in self._partitions())
        return self.outstanding_max - self.in_hand - unfinished

    def taken_in(
        self, streams: Sequence[tuple[Partition, StreamEntries]], count: int, now_ms: int
    ) -> list[Batch]:
        """What a read of `count` entries a partition brought; also partitions that have gaps to give up.

        `now_ms`: Redis's time before the read.
        """
        batches: list[Batch] = []
        for partition, entries in streams:
            stream_now_ms = partition.stream_now_ms(now_ms)
            if entries:
                last_id = entries[-1][0].decode()
                partition.read_id, partition.last_entry = last_id, entries[-1]
                self._counters.read += len(entries)
                at_end = len(entries) < count
                watermark_ms = max(stream_now_ms, entry_ms(last_id)) if at_end else entry_ms(last_id)
                batches.append(Batch(partition, entries, watermark_ms))
                continue
            deadline = partition.next_deadline_ms
            if deadline is not None and deadline <= stream_now_ms:
                batches.append(Batch(partition, (), stream_now_ms))
            else:
                partition.watermark_ms = max(partition.watermark_ms, stream_now_ms)
        return batches

    def take(self, batches: Sequence[Batch]) -> "Intake":
        """Begin to take in what one read brought: states that are needed first are asked for when this returns."""
        return Intake(self, batches)

    async def feed(self, batches: Sequence[Batch], *, pending: bool) -> None:
        """Take in entries at once, however many. `pending`: of the pending lists. No partition stands there twice."""
        await self.order(self.decode(batches, pending=pending))

    # The steps of taking in

    def decode(self, batches: Sequence[Batch], *, pending: bool) -> Portion:
        """Decode entries and ask Redis for the states of their sessions."""
        now_ms = time.time_ns() // 1_000_000
        decoded = [
            (batch, batch.partition.decode(batch.entries, pending=pending, now_ms=now_ms))
            for batch in batches
            if not batch.partition.lost
        ]
        return Portion(decoded, self._ask(decoded), sum(len(batch.entries) for batch in batches))

    async def order(self, portion: Portion) -> None:
        """Wait for the states, put decoded entries in order, hand over what is released."""
        decoded, asked = portion.decoded, portion.asked
        while decoded:
            states = await self._answers(asked) if asked else {}
            unanswered: list[tuple[Batch, DecodedBatch]] = []
            ready: list[LiveSession] = []
            for batch, one in decoded:
                partition = batch.partition
                if partition.lost:
                    continue
                if one.unknown and partition not in states:
                    unanswered.append((batch, one))
                    continue
                # Also where it is closed: it may be opened again, and what was read is not read twice.
                ready += partition.arrive(one, states.get(partition, _NO_STATES), batch.watermark_ms)
                if partition.internal_errors:
                    self._tell(partition)
                if partition.wants_commit:
                    self._on_progress(partition)
                self._since_yield += len(batch.entries)
            self._dispatcher.submit(ready)
            decoded = unanswered
            if decoded:
                await asyncio.sleep(RETRY_DELAY_S)
                asked = self._ask(decoded)
        if self._since_yield >= YIELD_EVERY:
            self._since_yield = 0
            await asyncio.sleep(0)

    def relieve(self) -> None:
        """Keep what waits in gaps within its bound, at the price of giving the oldest gaps up early."""
        partitions = self._partitions()
        surplus = sum(partition.held for partition in partitions) - HELD_FACTOR * self.outstanding_max
        while surplus > 0:
            partition = max(partitions, key=lambda candidate: candidate.held)
            before = partition.held
            self._dispatcher.submit(partition.give_up_oldest())
            self._counters.forced_gaps += 1
            surplus -= before - partition.held
            if partition.held == before:
                return

    # Inside

    def _ask(self, decoded: Iterable[tuple[Batch, DecodedBatch]]) -> list[_Asked]:
        """Ask for the states of sessions that are not in memory, in one trip to each server."""
        by_connection: dict[PipelinedConnection, list[tuple[Partition, list[str]]]] = {}
        for batch, one in decoded:
            if (
                one.unknown
                and (lease_connection := self._connections.commands(batch.partition.number)) is not None
            ):
                by_connection.setdefault(lease_connection, []).append((batch.partition, one.unknown))
        return [
            _Asked(
                wanted,
                lease_connection.send(
                    b"".join(
                        get_states(self._keys, partition.number, unknown) for partition, unknown in wanted
                    ),
                    len(wanted),
                    at_once=True,
                ),
            )
            for lease_connection, wanted in by_connection.items()
        ]

    async def _answers(self, asked: Iterable[_Asked]) -> dict[Partition, Mapping[str, bytes | None]]:
        """The encoded states, of those partitions that answer."""
        found: dict[Partition, Mapping[str, bytes | None]] = {}
        for wanted, future in asked:
            with contextlib.suppress(RedisUnavailableError):
                for (partition, unknown), reply in zip(wanted, await future, strict=True):
                    if not isinstance(reply, hiredis.ReplyError):
                        found[partition] = dict(zip(unknown, reply, strict=True))
                    else:
                        self._refused(partition, str(reply))
        return found

    def _tell(self, partition: Partition) -> None:
        faults, partition.internal_errors = partition.internal_errors, []
        for doing, error in faults:
            self._on_fault(doing, error)

    def _refused(self, partition: Partition, reply: str) -> None:
        self._connections.note_error_reply(partition.number, reply)
        if self._refusal_lines.due(partition.number, reply.partition(" ")[0]):
            _log.error(
                "session state read failed", partition=partition.number, reply=reply,
                repeats_of_all=self._refusal_lines.take_silent(),
            )  # fmt: skip


class Intake:
    """What one read brought, on its way to the dispatcher, a portion at a time so that others get their turns.

    The next portion is decoded, and its states are asked for, before the one under way is put in order: so the server's
    answers are there when they are wanted. Waiting for each was an eighth of a busy worker's time.
    """

    def __init__(self, reader: Reader, batches: Sequence[Batch]) -> None:
        self._reader = reader
        self._left = sum(len(batch.entries) for batch in batches)
        reader.in_hand += self._left
        self._portions = _portions(batches)
        self._first = self._decoded()

    async def finish(self) -> None:
        """Hand over everything."""
        portion = self._first
        try:
            while portion is not None:
                following = self._decoded()
                if following is not None:
                    await asyncio.sleep(0)  # handlers have their turn
                await self._reader.order(portion)
                self._put_down(portion.size)
                portion = following
        finally:
            self._put_down(self._left)
        self._reader.relieve()

    def _put_down(self, entries: int) -> None:
        self._left -= entries
        self._reader.in_hand -= entries

    def _decoded(self) -> Portion | None:
        batches = next(self._portions, None)
        return None if batches is None else self._reader.decode(batches, pending=False)


def _portions(batches: Iterable[Batch]) -> Iterator[Sequence[Batch]]:
    gathered: list[Batch] = []
    size = 0
    for batch in batches:
        gathered.append(batch)
        size += len(batch.entries)
        if size >= YIELD_EVERY:
            yield gathered
            gathered, size = [], 0
    if gathered:
        yield gathered
