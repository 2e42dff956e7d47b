"""The pipeline of a worker: it decodes the entries that were read, orders them, and submits them to the dispatcher.

The pollers (`worker.streams.poller`), one a server, bring the entries. Reading leaves no trace in Redis (XREAD, not
XREADGROUP), so an owner that was paused past its lease takes nothing away from the new one.

| bound | on |
| --- | --- |
| MASKLINE_OUTSTANDING_MAX | entries read and not done, in a process: reading stops |
| RUN_AHEAD_MAX (`partitions.ledger`) | entries of a partition read ahead of its committed cursor: it is not read |
| HELD_FACTOR times MASKLINE_OUTSTANDING_MAX | entries waiting in gaps, in a process: the oldest are given up |

Entries are processed a slice at a time, so that handlers get their turns. The next slice is decoded, and the states of
its sessions are requested (`worker.streams.lookups`), before the slice under way is ordered: so the server's reply is
there when it is needed.
Waiting for each reply took an eighth of a busy worker's time.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.schemas.keys import Keys
from maskline.worker.connections import RETRY_DELAY_S, ServerConnections, WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.entries.decode import StreamEntries, entry_ms
from maskline.worker.partitions.decoded_batch import DecodedBatch
from maskline.worker.partitions.ledger import RUN_AHEAD_MAX
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.session import LiveSession
from maskline.worker.streams.lookups import NOTHING_FOUND, LookupRequest, Lookups

SLICE_ENTRIES: Final = 256
"""Entries decoded and ordered before the event loop may do other work."""

HELD_FACTOR: Final = 5

QUIET_WATERMARK_MS: Final = 100
"""How far the watermark of a partition may stay behind where nothing comes and nothing is held, so that nothing waits
for it."""

_log = get_logger("maskline.worker")

_NO_STATES: Final[Mapping[str, bytes | None]] = {}


class ReadEntries(NamedTuple):
    """The entries that one read brought of one partition."""

    partition: Partition
    entries: StreamEntries
    watermark_ms: int
    """The stream's time after these entries: no later entry is older."""


class _Slice(NamedTuple):
    """Entries that were decoded together. They wait for what was requested of Redis."""

    decoded: list[tuple[ReadEntries, DecodedBatch]]
    requests: list[LookupRequest]
    size: int
    """How many entries, those that could not be decoded included."""


class StreamPipeline:
    """Passes the entries of all owned partitions from the pollers to the dispatcher.

    `on_progress(partition)`: called when a partition has something to commit. `on_fault(doing, error)`: called with an
    error on one entry that is a fault in maskline; the entry becomes a dead letter.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        owned: OwnedPartitions,
        dispatcher: Dispatcher,
        *,
        outstanding_max: int,
        counters: Counters,
        on_progress: Callable[[Partition], None],
        on_fault: Callable[[str, BaseException], None] = lambda _doing, _error: None,
    ) -> None:
        self._connections = connections
        self._lookups = Lookups(connections, keys)
        self._owned = owned
        self._dispatcher = dispatcher
        self.outstanding_max = outstanding_max
        self._counters = counters
        self._on_progress = on_progress
        self._on_fault = on_fault
        self._since_yield = 0
        self._wait_lines = LogRateLimit()
        self._unordered = 0
        """Entries that were read and are not ordered yet."""
        self._open_at: defaultdict[ServerConnections | None, list[Partition]] = defaultdict(list)
        """The open partitions by their server, as long as `_open_known_for` are what is the case."""
        self._open_known_for: tuple[object, object] = None, None

    # What a poller may read

    def open_at(self, server: ServerConnections) -> Sequence[Partition]:
        """The partitions of a server that are open, whether or not they may be read now."""
        known_for = self._owned.open, self._connections.placement
        if self._open_known_for[0] is not known_for[0] or self._open_known_for[1] is not known_for[1]:
            self._open_known_for = known_for
            self._open_at.clear()
            for partition in known_for[0]:
                self._open_at[known_for[1][partition.number]].append(partition)
        return self._open_at.get(server, ())

    def readable(
        self, server: ServerConnections, poller: object, among: Container[int] | None = None
    ) -> tuple[list[Partition], bool]:
        """The partitions that a poller may read at a server now, and whether others of that server must wait.

        The others wait for their commits, for another poller, or until their history on the server is checked. `among`:
        the numbers of those in question; None for all.
        """
        incarnation, candidates = server.incarnation, self.open_at(server)
        if among is not None:
            candidates = [partition for partition in candidates if partition.number in among]
        readable = [
            p
            for p in candidates
            if p.run_ahead < RUN_AHEAD_MAX and p.verified_at is incarnation and p.poller in (None, poller)
        ]
        return readable, len(readable) < len(candidates)

    def room(self) -> int:
        """How many more entries may be read."""
        unfinished = sum([partition.unfinished for partition in self._owned.open])
        return self.outstanding_max - self._unordered - unfinished

    # Entries in

    def receive(
        self, streams: Sequence[tuple[Partition, StreamEntries]], count: int, now_ms: int
    ) -> list[ReadEntries]:
        """Take in what a read brought. Returns what must be processed: entries, and partitions with gaps to give up.

        `count`: how many entries were asked for of each partition. `now_ms`: Redis's time before the read.
        """
        received: list[ReadEntries] = []
        for partition, entries in streams:
            # Most have nothing, where a read names many partitions: so this comes first, and costs little.
            if (
                not entries
                and not partition.held
                and 0 <= now_ms - partition.watermark_ms < QUIET_WATERMARK_MS
            ):
                continue
            stream_now_ms = partition.stream_now_ms(now_ms)
            if entries:
                last_id = entries[-1][0].decode()
                partition.read_id, partition.last_entry = last_id, entries[-1]
                self._counters.read += len(entries)
                at_end = len(entries) < count
                watermark_ms = max(stream_now_ms, entry_ms(last_id)) if at_end else entry_ms(last_id)
                received.append(ReadEntries(partition, entries, watermark_ms))
                continue
            deadline = partition.next_deadline_ms if partition.held else None
            if deadline is not None and deadline <= stream_now_ms:
                received.append(ReadEntries(partition, (), stream_now_ms))
            else:
                partition.watermark_ms = max(partition.watermark_ms, stream_now_ms)
        return received

    def process(self, received: Sequence[ReadEntries]) -> Awaitable[None]:
        """Decode the first slice and request its states now. The caller awaits the result, which does the rest."""
        size = sum(len(one.entries) for one in received)
        self._unordered += size
        slices = _slices(received)
        return self._process(self._decode_next(slices), slices, size)

    async def process_pending(self, received: ReadEntries) -> None:
        """Process entries of a partition's pending list, all at once, however many."""
        await self._order(self._decode([received], pending=True))

    # Inside

    async def _process(
        self, current: _Slice | None, slices: Iterator[Sequence[ReadEntries]], left: int
    ) -> None:
        try:
            while current is not None:
                following = self._decode_next(slices)
                if following is not None:
                    await asyncio.sleep(0)  # handlers have their turn
                await self._order(current)
                left -= current.size
                self._unordered -= current.size
                current = following
        finally:
            self._unordered -= left
        self._force_gaps()

    def _decode_next(self, slices: Iterator[Sequence[ReadEntries]]) -> _Slice | None:
        received = next(slices, None)
        return None if received is None else self._decode(received, pending=False)

    def _decode(self, received: Sequence[ReadEntries], *, pending: bool) -> _Slice:
        """Decode entries, and request from Redis what is needed to order them."""
        now_ms = time.time_ns() // 1_000_000
        decoded = [
            (
                one,
                one.partition.decode(
                    one.entries, pending=pending, now_ms=now_ms, watermark_ms=one.watermark_ms
                ),
            )
            for one in received
            if not one.partition.lost
        ]
        return _Slice(decoded, self._request(decoded), sum(len(one.entries) for one in received))

    async def _order(self, current: _Slice) -> None:
        """Wait for what was requested, order the decoded entries, and submit the sessions that have work."""
        decoded, requests = current.decoded, current.requests
        while decoded:
            found = await self._lookups.receive(requests) if requests else NOTHING_FOUND
            unanswered: list[tuple[ReadEntries, DecodedBatch]] = []
            ready: list[LiveSession] = []
            for received, batch in decoded:
                partition = received.partition
                if partition.lost:
                    continue
                if not found.suffices(partition, batch):
                    unanswered.append((received, batch))
                    continue
                # Also for a paused partition: it may be opened again, and what was read is not read twice.
                ready += partition.arrive(
                    batch, found.states.get(partition, _NO_STATES), received.watermark_ms
                )
                if batch.look and partition.gaps.any_waits_for_spools:
                    self._log_wait(partition)
                if partition.internal_errors:
                    self._report_faults(partition)
                if partition.wants_commit:
                    self._on_progress(partition)
                self._since_yield += len(received.entries)
            self._dispatcher.submit(ready)
            decoded = unanswered
            if decoded:
                await asyncio.sleep(RETRY_DELAY_S)
                requests = self._request(decoded)
        if self._since_yield >= SLICE_ENTRIES:
            self._since_yield = 0
            await asyncio.sleep(0)

    def _force_gaps(self) -> None:
        """Keep the events that wait in gaps within their bound, by giving the oldest gaps up early."""
        partitions = self._owned.open
        surplus = sum(partition.held for partition in partitions) - HELD_FACTOR * self.outstanding_max
        while surplus > 0:
            partition = max(partitions, key=lambda candidate: candidate.held)
            before = partition.held
            self._dispatcher.submit(partition.give_up_oldest())
            self._counters.forced_gaps += 1
            surplus -= before - partition.held
            if partition.held == before:
                return

    def _request(self, decoded: Iterable[tuple[ReadEntries, DecodedBatch]]) -> list[LookupRequest]:
        return self._lookups.request((one.partition, batch) for one, batch in decoded)

    def _log_wait(self, partition: Partition) -> None:
        if self._wait_lines.due(partition.number):
            spools = partition.gaps.spools
            _log.info(
                "gaps wait for spools",
                partition=partition.number,
                sessions=partition.gaps.count_waiting_for_spools(),
                nodes=spools.holders(spools.looked_ms),
                repeats_of_all=self._wait_lines.take_suppressed(),
            )

    def _report_faults(self, partition: Partition) -> None:
        faults, partition.internal_errors = partition.internal_errors, []
        for doing, error in faults:
            self._on_fault(doing, error)


def _slices(received: Iterable[ReadEntries]) -> Iterator[Sequence[ReadEntries]]:
    """Group what was received into slices of SLICE_ENTRIES entries or a little more; one partition's entries of a read
    stay together.
    """
    gathered: list[ReadEntries] = []
    size = 0
    for one in received:
        gathered.append(one)
        size += len(one.entries)
        if size >= SLICE_ENTRIES:
            yield gathered
            gathered, size = [], 0
    if gathered:
        yield gathered
