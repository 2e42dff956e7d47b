"""Takes retry queues that are due from Redis, and submits them to the dispatcher.

A worker asks for what is due, and only then: it knows from its own commits, and from the index of each partition that
it acquires, when the next queue of each handler is due. So a million events that wait cost a worker nothing.

| bound | on |
| --- | --- |
| `HandlerGates.take_max` | queues of a handler begun: one probe while it is down, none while it is paused |
| QUEUES_PER_HANDLER_MAX | queues of a handler in memory |
| TAKE_MAX | queues taken by one call |
| ITEMS_MAX | items of a queue in memory: what follows is read when they are done |
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import hiredis

from maskline.runtime.clock import wall_clock_ms
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.api.binding import BoundHandler
from maskline.worker.commands import scripts
from maskline.worker.connections import RETRY_DELAY_S, WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.retry_queue import RetryQueue

QUEUES_PER_HANDLER_MAX: Final = 64
"""Queues of one handler in memory: a handler that hangs must not keep the others' queues from running."""

TAKE_MAX: Final = 32

ITEMS_MAX: Final = 16

TAKE_AGAIN_MS: Final = 50
"""Before the next try, when a queue is due and cannot be taken yet: a commit of it is under way."""

RETRY_DELAY_MS: Final = int(RETRY_DELAY_S * 1000)

LOOK_AGAIN_S: Final = 30.0
"""The longest wait. Nothing depends on it: whatever changes what is due wakes the runner."""

_log = get_logger("maskline.worker")


class RetryQueueRunner:
    """Runs the retry queues of a worker process.

    `handlers`: all that are loaded; queues of others wait. `on_progress(partition)`: called when a partition has
    something to commit. `on_fenced(partition)`: its lease is not ours any more. `on_diverged(partition)`: the server
    lacks its last commit.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        owned: OwnedPartitions,
        dispatcher: Dispatcher,
        gates: HandlerGates,
        *,
        handlers: Iterable[BoundHandler],
        counters: Counters,
        on_progress: Callable[[Partition], None],
        on_fenced: Callable[[Partition], None],
        on_diverged: Callable[[Partition], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections = connections
        self._keys = keys
        self._owned = owned
        self._dispatcher = dispatcher
        self._gates = gates
        bound = list(handlers)
        self._handlers = frozenset(handler.name for handler in bound)
        self._limited = frozenset(handler.name for handler in bound if handler.limited)
        self._counters = counters
        self._on_progress = on_progress
        self._on_fenced = on_fenced
        self._on_diverged = on_diverged
        self._due: dict[Partition, dict[str, float]] = {}
        """By partition and handler: when the next queue is due, by the loop's clock."""
        self._taking: set[tuple[Partition, str]] = set()
        self._reading: set[Partition] = set()
        self._active: Counter[str] = Counter()
        """Queues in memory, and those being taken, by handler."""
        self._wake = asyncio.Event()
        self._failure_lines = LogRateLimit()
        dispatcher.finisher.on_queue_closed = self._queue_closed
        gates.on_change = self._gate_changed
        owned.on_change(self._wake.set)

    @property
    def active(self) -> int:
        """Queues in memory, and those being taken."""
        return self._active.total()

    async def run(self) -> None:
        """Take what is due until cancelled."""
        while True:
            self._wake.clear()
            wait_s = self._take_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    def due_changed(self, partition: Partition) -> None:
        """A commit is confirmed that has made queues due (`Partition.retry_due_ms`)."""
        delays, partition.retry_due_ms = partition.retry_due_ms, {}
        if partition in self._due:  # else its index is read, which has them all
            self.note_due(partition, delays)

    def note_due(self, partition: Partition, delays_ms: dict[str, int]) -> None:
        """Note in how many ms from now the next queue of each handler is due, if that is earlier than what is known."""
        due, now = self._due.setdefault(partition, {}), self._loop.time()
        for handler, delay_ms in delays_ms.items():
            at = now + delay_ms / 1000
            if at < due.get(handler, at + 1):
                due[handler] = at
                self._wake.set()

    # Inside

    def _take_due(self) -> float:
        """Request every queue that is due and may run. Returns after how many seconds to look again."""
        now = self._loop.time()
        for partition in [*self._due]:
            if partition not in self._owned or partition.lost:
                del self._due[partition]
        look_at = now + LOOK_AGAIN_S
        due_now: list[tuple[float, Partition, str]] = []
        for partition in self._owned:
            if partition.closed:
                continue
            if partition not in self._due:
                look_at = min(look_at, self._read_index(partition))
                continue
            for handler, at in self._due[partition].items():
                if at > now:
                    look_at = min(look_at, at)
                elif handler in self._handlers and (partition, handler) not in self._taking:
                    due_now.append((at, partition, handler))
        self._report_nothing_due({handler for _, _, handler in due_now})
        due_now.sort(key=lambda one: one[0])
        for _, partition, handler in due_now:
            room = min(
                self._gates.take_max(handler), QUEUES_PER_HANDLER_MAX - self._active[handler], TAKE_MAX
            )
            if room > 0:
                look_at = min(look_at, self._take(partition, handler, room))
            elif (next_s := self._gates.next_look_s(handler)) is not None:
                look_at = min(look_at, now + next_s)
        return max(look_at - now, 0.0)

    def _report_nothing_due(self, due: set[str]) -> None:
        """Tell the gates which handlers have nothing left to work off."""
        if not self._reading:
            for handler in [*self._gates.holds, *self._limited]:
                if handler not in due and not self._active[handler]:
                    self._gates.nothing_due(handler)

    def _take(self, partition: Partition, handler: str, count: int) -> float:
        """Request queues of a handler. Returns when to look again, by the loop's clock."""
        connection = self._connections.verified_commands(partition.number, partition.verified_at)
        if connection is None:
            return self._loop.time() + RETRY_DELAY_S
        packed = scripts.take_due(
            self._keys,
            partition.number,
            partition.lease_value,
            handler,
            count=count,
            items=ITEMS_MAX,
            commits=partition.commit_numbers,
            excluded=partition.unavailable_queues(handler),
        )
        self._taking.add((partition, handler))
        del self._due[partition][handler]  # what a commit makes due from here on is not in the reply
        self._active[handler] += count
        for _ in range(count):
            self._gates.queue_began(handler)
        replies = connection.send(packed, 1, at_once=True)
        replies.add_done_callback(partial(self._replied, partition, handler, count))
        return self._loop.time() + LOOK_AGAIN_S

    def _replied(
        self, partition: Partition, handler: str, count: int, future: asyncio.Future[list[Any]]
    ) -> None:
        self._taking.discard((partition, handler))
        self._wake.set()
        begun = 0
        try:
            if future.exception() is None:
                begun = self._taken(partition, handler, future.result()[0])
            elif partition in self._due:
                self.note_due(partition, {handler: RETRY_DELAY_MS})
        finally:
            self._active[handler] -= count - begun
            for _ in range(count - begun):
                self._gates.queue_ended(handler, ran=False)

    def _taken(self, partition: Partition, handler: str, reply: Any) -> int:
        """Begin what was taken. Returns how many queues are in memory now."""
        if isinstance(reply, hiredis.ReplyError):
            self._log_failure(partition, str(reply))
            self.note_due(partition, {handler: RETRY_DELAY_MS})
            return 0
        if reply == scripts.DIVERGED:
            self._on_diverged(partition)
            return 0
        taken = scripts.read_taken(reply)
        if taken is None:
            if not partition.lost:
                self._counters.fenced += 1
                self._on_fenced(partition)
            return 0
        if partition.lost:
            return 0
        if taken.next_due_ms is not None:
            wait_ms = taken.next_due_ms if taken.queues else max(taken.next_due_ms, TAKE_AGAIN_MS)
            self.note_due(partition, {handler: wait_ms})
        opened: list[RetryQueue] = []
        for one in taken.queues:
            session = partition.session_of(one.session, one.state)
            queue = partition.open_queue(
                session, handler, one.items, takes=one.takes, waiting=one.waiting, now_ms=wall_clock_ms()
            )
            if queue is not None:
                queue.scheduled = True
                opened.append(queue)
        if partition.wants_commit:
            self._on_progress(partition)
        self._dispatcher.submit([*opened])
        return len(opened)

    def _read_index(self, partition: Partition) -> float:
        """Request what is due in a partition just acquired, and how far jobs are there, which count what is run.

        Returns when to look again, by the loop's clock.
        """
        connection = self._connections.verified_commands(partition.number, partition.verified_at)
        if connection is not None and partition not in self._reading:
            self._reading.add(partition)
            index = scripts.retry_index(self._keys, partition.number)
            replies = connection.send(index + scripts.get_jobs(self._keys, partition.number), 2)
            replies.add_done_callback(partial(self._index_read, partition))
        return self._loop.time() + (RETRY_DELAY_S if connection is None else LOOK_AGAIN_S)

    def _index_read(self, partition: Partition, future: asyncio.Future[list[Any]]) -> None:
        self._reading.discard(partition)
        self._wake.set()
        if future.exception() is not None or partition.lost:
            return
        indexed, jobs = future.result()
        try:
            index = scripts.read_retry_index(indexed)
            partition.jobs.load(scripts.read_jobs(jobs))
        except RedisUnavailableError as error:
            self._log_failure(partition, str(error))
            self._loop.call_later(RETRY_DELAY_S, self._wake.set)
            return
        self.note_due(
            partition, {one.handler: one.next_due_ms for one in index if one.next_due_ms is not None}
        )
        for one in index:
            if one.handler not in self._handlers and self._failure_lines.due(one.handler, "no handler"):
                _log.warning(
                    "retry queue without handler",
                    handler=one.handler,
                    waiting=one.waiting,
                    partition=partition.number,
                )

    def _queue_closed(self, queue: RetryQueue) -> None:
        self._active[queue.handler] -= 1
        self._wake.set()

    def _gate_changed(self, _handler: str) -> None:
        self._wake.set()

    def _log_failure(self, partition: Partition, reply: str) -> None:
        self._connections.handle_error_reply(partition.number, reply)
        if self._failure_lines.due(partition.number, reply.partition(" ")[0]):
            _log.error(
                "retry queues read failed",
                partition=partition.number,
                reply=reply,
                repeats_of_all=self._failure_lines.take_suppressed(),
            )
