"""One worker in memory: decoding, order, dispatch, gates and retry queues are the worker's own, Redis is a `Kept`.

It does nothing by itself and has no time of its own: `settle` runs what is there until no handler has anything left to
do, `pass_to` moves the clock on, and runs what falls due on the way, in order.

| what a worker does | here |
| --- | --- |
| reads the stream, fetches session states | `_read` |
| commits | `_commit`, once all handlers under way have ended |
| takes retry queues that are due (`retry_queues.runner`) | `_take_due` |
| gives up what has waited too long behind a dead letter (`retry_queues.expiry`) | `_expire_parked` |
| replays and discards dead letters (`jobs.letter_scan`) | `replay`, `discard` |
"""

import asyncio
import contextvars
import math
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Final, NamedTuple

from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.handler_control import HandlerReport, Pause
from maskline.worker.api.binding import BoundHandler, Table
from maskline.worker.api.retry_schedule import RetryPolicy
from maskline.worker.commands.retry_ops import Requeue
from maskline.worker.counters import Counters
from maskline.worker.dead_letters.calls import DeadLetterCalls
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.dispatch.failed_attempts import RetryTiming
from maskline.worker.entries.dead_letter import public_id
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.entries.entry import entry_position
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.jobs.letter_plan import plan_replay
from maskline.worker.jobs.letter_replay import discard, put_back
from maskline.worker.jobs.letter_scan import PARKED_WITHIN_MS
from maskline.worker.ordering.reorder import Policy
from maskline.worker.partitions.ledger import GroupPosition, Lease
from maskline.worker.partitions.partition import Partition, PartitionSettings
from maskline.worker.partitions.phase import Phase
from maskline.worker.partitions.session import LiveSession
from maskline.worker.testing.kept import Kept, Place

PARTITION: Final = 0
GROUP: Final = "workers"

UNCOUNTED_RETRIES: Final = 9
"""Retries of a handler without `retries=` while retries do not wait; a worker would try for a day. Ten attempts show a
test as much."""

SESSION_TTL_S: Final = 86_400
SESSIONS_MAX: Final = 1_000_000
"""Sessions in memory: what a test feeds stays there."""


class WorkerSettings(NamedTuple):
    """The settings of a worker that a harness has, with the meaning of the MASKLINE_ ones."""

    gap_timeout_ms: int = 5_000
    first_sequence: int = 1
    recording_sequence: str = "own"
    late: str = "deliver"
    held_max: int = 256
    concurrency: int = 256
    ignored_parameters: frozenset[str] = frozenset()
    dead_ttl_s: int = 604_800
    retry_waits: bool = False
    """Failures are handled in the harness's time as in a worker's; otherwise retries follow at once, no handler goes
    down, and none has limits."""

    def partition(self) -> PartitionSettings:
        """Those that a partition needs."""
        return PartitionSettings(
            group=GROUP,
            policy=Policy(self.gap_timeout_ms, self.first_sequence, self.held_max),
            recording_shared=self.recording_sequence == "shared",
            session_ttl_s=SESSION_TTL_S,
            ignored_parameters=self.ignored_parameters,
        )


class Clock:
    """The time of a harness, milliseconds since the epoch, and what is to be called when it gets there."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._timers_set = 0

    def wall_ms(self) -> int:
        """The time, ms."""
        return self.now_ms

    def seconds(self) -> float:
        """The time, seconds."""
        return self.now_ms / 1000

    def call_at(self, at_ms: int, function: Callable[[], None]) -> None:
        """Call a function once the time is `at_ms`."""
        self._timers_set += 1
        heappush(self._timers, (at_ms, self._timers_set, function))

    @property
    def next_timer_ms(self) -> int | None:
        """When the next function is to be called; None if there is none."""
        return self._timers[0][0] if self._timers else None

    def run_timers(self) -> None:
        """Call the functions that are due."""
        while self._timers and self._timers[0][0] <= self.now_ms:
            heappop(self._timers)[2]()


class Arrived(NamedTuple):
    """A callback that was read, and what it came to at once."""

    at_ms: int
    entry_id: str
    encoded: bytes
    became: str
    """`released`, `waits` (for others, or it did), `duplicate`, or `dead letter`."""


class Parts(NamedTuple):
    """What a worker is made of that outlives it: another one goes on with the same."""

    kept: Kept
    clock: Clock
    counters: Counters
    table: Table
    dead_calls: DeadLetterCalls
    context: contextvars.Context
    """The one that the resources were opened in."""
    arrivals: list[Arrived]


class InMemoryWorker:
    """The owner of the one partition, by the fencing token `token`. `known`: what an earlier one knew of handlers."""

    def __init__(
        self,
        parts: Parts,
        settings: WorkerSettings,
        *,
        token: int = 1,
        known: Mapping[str, HandlerReport] | None = None,
        paused: Mapping[str, Pause] | None = None,
    ) -> None:
        self._kept, self._clock, self._counters = parts.kept, parts.clock, parts.counters
        self._table, self._dead_calls = parts.table, parts.dead_calls
        self._arrivals = parts.arrivals
        self._settings = settings
        self.token = token
        self._changed = asyncio.Event()
        self.crashed = False
        handlers = {handler.name: handler for bound in parts.table.values() for handler in bound}
        self._limited = [handler.name for handler in handlers.values() if handler.limited]
        self.gates = _gates(handlers, parts.clock, settings)
        self.gates.set_paused(paused or {})
        for name, report in (known or {}).items():
            self.gates.take_over(name, report)
        self._dispatcher = Dispatcher(
            parts.table,
            concurrency=settings.concurrency,
            late_dead=settings.late == "dead",
            counters=parts.counters,
            on_progress=self._progressed,
            gates=self.gates,
            timing=RetryTiming(parts.clock.wall_ms, lambda: 1.0, 0 if settings.retry_waits else 2_000),
            context=parts.context,
        )
        self._dispatcher.finisher.on_queue_closed = lambda _queue: self._changed.set()
        position = GroupPosition(parts.kept.cursor, -1)
        lease = Lease(PARTITION, token, f"{token} harness")
        self.partition = Partition(lease, position, settings.partition(), parts.counters)
        self.partition.lease_until = math.inf
        self.partition.session_cache = SESSIONS_MAX
        pending, self._read_to = parts.kept.unread()
        self._read_pending(pending)

    # Its life

    async def stop(self, reason: str) -> None:
        """End what is under way, and commit nothing more: as a stop at the end of a test, or as a crash."""
        self.crashed = True
        self.partition.move_to(Phase.LOST)
        self._dispatcher.cancel(None, reason)
        await self._dispatcher.stop()
        self._dispatcher.finisher.drop_queues(self.partition)
        self._changed.set()

    async def settle(self, *, commit: bool = True) -> None:
        """Run what is there until nothing is left to do now. `commit`: False leaves it uncommitted."""
        partition = self.partition
        while not self.crashed:
            self._read()
            if partition.unfinished or partition.retry_queues:
                self._changed.clear()
                await self._changed.wait()
            elif commit and partition.wants_commit:
                await self._commit()
            elif not (commit and self._take_due()) and self._read_to == len(self._kept.stream):
                return

    async def pass_to(self, at_ms: int) -> None:
        """Move the clock on to `at_ms`, and run on the way what falls due."""
        clock = self._clock
        await self.settle()
        while not self.crashed and (due_ms := self._next_due_ms()) is not None and due_ms <= at_ms:
            clock.now_ms = max(clock.now_ms, due_ms)
            await self._run_due()
        clock.now_ms = max(clock.now_ms, at_ms)
        await self._run_due()

    @property
    def next_gap_ms(self) -> int | None:
        """When the next gap is given up; None if nothing waits for a number."""
        return self.partition.next_deadline_ms

    # Dead letters

    def replay(self, letter_id: str) -> None:
        """Run the event of a dead letter again, as `maskline dead replay` does. Raises ValueError if that cannot be."""
        letter = self._kept.letters[letter_id]
        fields = CALLBACK_FIELD, letter.callback
        settings = self._settings.partition()
        try:
            arrival = entry_decoder(settings.ignored_parameters, settings.group).arrival_of(
                letter.entry_id, fields, settings.recording_shared
            )
        except (UndecodableEntryError, ValueError):
            arrival = None
        plan = plan_replay(letter, arrival, lambda kind: [handler.name for handler in self._table[kind]])
        if plan.action == "gone":
            raise ValueError("no handler takes the event of this dead letter any more")
        if plan.action == "requeue":
            self.partition.add_retry_op(Requeue(letter_id, letter.callback))
            return
        session = self._changeable_session(plan.session_uuid)
        parks = self._parks(letter_id)
        put_back(self.partition, session, letter_id, letter, plan, parks=parks, now_ms=self._clock.now_ms)

    def discard(self, letter_id: str) -> None:
        """Give a dead letter up for good, as `maskline dead discard` does: what waits behind it goes on."""
        letter, parks = self._kept.letters[letter_id], self._parks(letter_id)
        session = self._changeable_session(letter.session_uuid) if parks and letter.session_uuid else None
        discard(self.partition, session, letter_id, letter, parks=parks)

    def _changeable_session(self, uuid: str) -> LiveSession:
        session = self.partition.session_of(uuid, self._kept.state(uuid, self._clock.now_ms))
        if not self.partition.may_change_queues(session):
            raise ValueError("events of the session wait for a number: let the time of the gap pass first")
        return session

    def _parks(self, letter_id: str) -> bool:
        """Whether its handler's queue waits behind this letter, and not behind a later one."""
        letter = self._kept.letters[letter_id]
        if not letter.parked or letter.handler is None or letter.session_uuid is None:
            return False
        parked_ms = self._kept.queues.parked_ms(Place(letter.handler, letter.session_uuid))
        return parked_ms is not None and parked_ms <= entry_position(letter_id)[0] + PARKED_WITHIN_MS

    # Inside

    def _progressed(self, partition: Partition) -> None:
        partition.commit_requested = False
        self._changed.set()

    def _read(self) -> None:
        """Read the stream to its end. What is read at once is in order before any gap in it is given up."""
        if self._read_to < len(self._kept.stream):
            while self._read_to < len(self._kept.stream):
                entry = self._kept.stream[self._read_to]
                self._read_to += 1
                self._note_arrival(entry, self._take_in([entry], pending=False))
            self._advance_watermark()

    def _read_pending(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Read what the last owner has left."""
        for entry in entries:
            self._take_in([entry], pending=True)
        self._advance_watermark()

    def _take_in(self, entries: Sequence[tuple[str, bytes]], *, pending: bool) -> str:
        """Decode and order entries. Returns what they came to, as `Arrived.became`."""
        partition, counters, now_ms = self.partition, self._counters, self._clock.now_ms
        duplicates, dead, held = counters.duplicates, counters.dead.total(), partition.held
        fields = [(entry_id.encode(), [CALLBACK_FIELD, encoded]) for entry_id, encoded in entries]
        decoded = partition.decode(fields, pending=pending, now_ms=now_ms)
        states = self._kept.states(decoded.unknown, now_ms)
        self._dispatcher.submit(partition.arrive(decoded, states, partition.watermark_ms))
        if counters.duplicates > duplicates:
            return "duplicate"
        if counters.dead.total() > dead:
            return "dead letter"
        return "waits" if partition.held > held else "released"

    def _advance_watermark(self) -> None:
        """Give up the gaps whose time is over."""
        now_ms = self._clock.now_ms
        nothing = self.partition.decode((), pending=False, now_ms=now_ms)
        self._dispatcher.submit(self.partition.arrive(nothing, {}, now_ms))

    def _note_arrival(self, entry: tuple[str, bytes], became: str) -> None:
        self._arrivals.append(Arrived(self._clock.now_ms, *entry, became))

    async def _commit(self) -> None:
        partition = self.partition
        written = self._kept.apply(partition.take_commit(), self._clock.now_ms)
        partition.committed()
        partition.retry_due_ms = {}  # `Kept` knows
        for letter_id, letter in written.items():
            await self._dead_calls.call(letter, public_id(PARTITION, letter_id), self.token)

    def _take_due(self) -> bool:
        """Begin the retry queues that are due and may run. Returns whether there is anything to do then."""
        now_ms, gates, partition = self._clock.now_ms, self.gates, self.partition
        due = [
            place
            for at_ms, place in self._kept.queues.due()
            if at_ms <= now_ms or not self._settings.retry_waits
        ]
        waiting = {place.handler for place in due}
        for handler in [*gates.holds, *self._limited]:
            if handler not in waiting:
                gates.nothing_due(handler)
        begun = False
        for place in due:
            if gates.take_max(place.handler) > 0:
                gates.queue_began(place.handler)
                begun = self._open(place) or begun
        return begun or partition.wants_commit

    def _open(self, place: Place) -> bool:
        """Begin a retry queue; False if none of it can be run now."""
        partition, now_ms = self.partition, self._clock.now_ms
        items = self._kept.queues.items(place)
        session = partition.session_of(place.session, self._kept.state(place.session, now_ms))
        queue = partition.open_queue(
            session, place.handler, items, takes=1, waiting=len(items), now_ms=now_ms
        )
        if queue is None:
            self.gates.queue_ended(place.handler, ran=False)
            return False
        queue.scheduled = True
        self._dispatcher.submit([queue])
        return True

    def _next_due_ms(self) -> int | None:
        """When anything falls due next, after the present; None if nothing does."""
        now_ms, ttl_ms = self._clock.now_ms, self._settings.dead_ttl_s * 1000
        moments = [self.partition.next_deadline_ms, self._clock.next_timer_ms]
        moments += [since_ms + ttl_ms for since_ms, _ in self._kept.queues.parked_since()[:1]]
        for at_ms, place in self._kept.queues.due():
            if at_ms > now_ms:
                moments.append(at_ms)
            elif (wait_s := self.gates.next_look_s(place.handler)) is not None:
                moments.append(now_ms + math.ceil(wait_s * 1000))
        due_ms = min((at_ms for at_ms in moments if at_ms is not None), default=None)
        return None if due_ms is None else max(due_ms, now_ms + 1)

    async def _run_due(self) -> None:
        """Do what has fallen due by now, and whatever follows from it."""
        self._advance_watermark()
        self._clock.run_timers()
        self._expire_parked()
        await self.settle()

    def _expire_parked(self) -> None:
        kept, now_ms = self._kept, self._clock.now_ms
        for since_ms, place in kept.queues.parked_since():
            if now_ms - since_ms >= self._settings.dead_ttl_s * 1000:
                session = self.partition.session_of(place.session, kept.state(place.session, now_ms))
                if self.partition.may_change_queues(session):
                    items = kept.queues.items(place)
                    self.partition.give_up_waiting(session, place.handler, items, now_ms=now_ms)


def at_once(handler: BoundHandler) -> BoundHandler:
    """The handler, whose retries do not wait, and which has no limits."""
    policy = handler.policy
    retries = UNCOUNTED_RETRIES if policy.retries is None else policy.retries
    return BoundHandler(
        handler.name,
        handler.call,
        handler.in_thread,
        RetryPolicy(retries, 0, 0, policy.give_up_after_s),
        handler.timeout_s,
        handler.on_give_up,
    )


def _gates(handlers: Mapping[str, BoundHandler], clock: Clock, settings: WorkerSettings) -> HandlerGates:
    kind = HandlerGates if settings.retry_waits else _NeverDownGates
    return kind(handlers.values(), wall_ms=clock.wall_ms, chance=lambda: 0.0, clock=clock.seconds)


class _NeverDownGates(HandlerGates):
    """Gates that only pauses close: a test wants to see each event handled or given up, however often one fails."""

    def failed(self, handler: str, session: str) -> None:
        """Nothing follows."""
