"""One worker in memory: decoding, order, dispatch, gates and retry queues are the worker's own, Redis is a `Kept`.

It does nothing by itself and has no time of its own: `settle` runs what is there until no handler has anything left to
do, `pass_to` moves the clock on, and runs what falls due on the way, in order.

| what a worker does | here |
| --- | --- |
| reads the stream, fetches session states | `_read` |
| commits | `_commit`, once all handlers under way have ended |
| takes retry queues that are due (`retry_queues.runner`) | `_take_due` |
| gives up what has waited too long behind a dead letter (`retry_queues.expiry`) | `_expire_parked` |
| replays and discards (`jobs`) | `Operator` |
"""

import asyncio
import math
from collections.abc import Mapping, Sequence

from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.handler_control import HandlerReport, Pause
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.dispatch.failed_attempts import RetryTiming
from maskline.worker.entries.dead_letter import public_id
from maskline.worker.partitions.ledger import GroupPosition, Lease
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.phase import Phase
from maskline.worker.testing.kept import Place
from maskline.worker.testing.operator import Operator
from maskline.worker.testing.parts import PARTITION, SESSIONS_MAX, Arrived, Parts, WorkerSettings, gates_of


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
        self._dead_calls = parts.dead_calls
        self._arrivals = parts.arrivals
        self._settings = settings
        self.token = token
        self._changed = asyncio.Event()
        self.crashed = False
        handlers = {handler.name: handler for bound in parts.table.values() for handler in bound}
        self._limited = [handler.name for handler in handlers.values() if handler.limited]
        self.gates = gates_of(handlers, parts.clock, settings)
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
        self.operator = Operator(self.partition, parts.kept, parts.clock, parts.table, settings.partition())
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
