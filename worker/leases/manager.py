"""Which partitions this worker owns: takes leases, keeps them, opens partitions and gives them back.

What to ask, what to take and what to give back is decided by `worker.leases.planner`; `worker.leases.renewal` carries
it to the servers. A partition is opened from what its group's pending list and cursor say; it is given back when its
handlers under way have ended and everything done is committed.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from time import monotonic, time_ns
from typing import Any, Final

from redis.exceptions import ResponseError

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.runtime.redis.pipeline import pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts
from maskline.worker.connections import RETRY_DELAY_S, ServerConnections, WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.dispatch.quarantine import Quarantine
from maskline.worker.entries.decode import entry_ms
from maskline.worker.leases.planner import (
    RENEWALS_PER_LIFE,
    LeasePlan,
    LeasePlanner,
    RenewalReply,
    RenewalRequest,
)
from maskline.worker.leases.renewal import LeaseRenewer
from maskline.worker.ordering.reorder import Policy
from maskline.worker.partitions.committer import Committer
from maskline.worker.partitions.ledger import GroupPosition, Lease
from maskline.worker.partitions.partition import Partition, PartitionSettings
from maskline.worker.partitions.phase import Phase
from maskline.worker.streams.pipeline import Batch, Reader
from maskline.worker.streams.poller import Pollers
from maskline.worker.streams.read_size import Pace

PENDING_PAGE: Final = 256
"""Entries of the pending list read at a time when a partition is opened, at most."""

OPENINGS_MAX: Final = 8
"""Such pages asked for at a time: together they bring what a read may bring (worker.streams.read_size)."""

DRAIN_CHECK_S: Final = 0.01

YIELD_S: Final = 0.25
"""How long a partition's sessions wait for handlers at work, so that it can go to another worker."""

YIELD_AGAIN_S: Final = 1.0
"""After that, how long until the next try."""

SETTLE_S: Final = 2.0
"""After the handlers have ended or were cancelled: how long the last commits and releases may take."""

SETTLE_CHECK_S: Final = 0.1

LEAVE_S: Final = 0.5
"""For signing off at a stop: a server that hangs is not waited for."""

ACQUIRE_PART: Final = 0.1
"""How long a round waits for leases reached for, in parts of a lease. A server that takes longer is not asked for more
meanwhile, and what it says still counts: the leases of the others must be renewed."""

SESSION_CACHE_MIN: Final = 64
"""Sessions in memory that every partition may have, however many partitions there are."""

_log = get_logger("maskline.worker")


class PartitionManager:
    """Owns the partitions of a worker process. Set `reader` and `pollers` before `run`: they need each other."""

    def __init__(
        self, connections: WorkerConnections, keys: Keys, dispatcher: Dispatcher, committer: Committer,
        settings: Settings, worker_id: str, counters: Counters,
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._connections = connections
        self._keys = keys
        self._dispatcher = dispatcher
        self._committer = committer
        self._settings = settings
        self._worker_id = worker_id
        self._counters = counters
        self._partition_settings = PartitionSettings(
            group=settings.group,
            policy=Policy(settings.gap_timeout_ms, settings.first_sequence, settings.held_max),
            recording_shared=settings.recording_sequence == "shared",
            session_ttl_s=settings.session_ttl_s,
            ignored_parameters=frozenset(settings.ignored_parameters),
        )
        self._life_s = settings.lease_ttl_ms / 1000
        self._planner = LeasePlanner(worker_id, settings.partitions, self._life_s)
        self._renewer = LeaseRenewer(
            connections,
            keys,
            worker_id=worker_id,
            lease_ttl_ms=settings.lease_ttl_ms,
            on_late_reply=self._replied_late,
        )
        self._owned: dict[int, Partition] = {}
        self._opened: list[Partition] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._draining = asyncio.Event()
        self._stop_timeout_s = settings.stop_timeout_ms / 1000
        self._openings = asyncio.Semaphore(OPENINGS_MAX)
        self._opening_pace = Pace()
        self._leaving: set[Partition] = set()
        """On their way back."""
        self._tokens: dict[int, int] = {}
        """The last fencing token of every partition that this worker has had."""
        self._soon = asyncio.Event()
        self._failure_lines = LogRateLimit()
        self._acquiring: dict[ServerConnections, asyncio.Task[None]] = {}
        """Leases reached for, by server, that it has not answered for."""
        self.reader: Reader
        self.quarantine: Quarantine
        self.pollers: Pollers

    @property
    def workers(self) -> tuple[str, ...]:
        """The live workers of the group, as last seen."""
        return self._planner.live

    @property
    def owned(self) -> int:
        return len(self._owned)

    @property
    def partitions(self) -> Sequence[Partition]:
        """All that are owned, also those that are not read now."""
        return list(self._owned.values())

    def opened(self) -> Sequence[Partition]:
        """The partitions to read: owned, caught up with their pending list, not on their way back."""
        return self._opened

    async def run(self) -> None:
        """Keep the leases until cancelled."""
        while True:
            pause_s = await self._round()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._soon.wait()
                await asyncio.sleep(self._planner.early_delay_s(_chance()))
            self._soon.clear()
            if self._failure is not None:
                raise self._failure

    async def drain(self, timeout_s: float) -> None:
        """Give everything back: wait for handlers under way up to `timeout_s`, then cancel them."""
        self._stop_timeout_s = timeout_s
        self._draining.set()
        self._planner.drain()
        deadline = monotonic() + timeout_s
        for partition in list(self._owned.values()):
            self._close(partition)
            self._start(self._give_back, partition)
        # Before any lease goes: the others' shares grow, so that they take what is given back as it comes.
        home = self._connections.heartbeat_server
        if home is not None and home.leases is not None and home.leases.connected:
            leave = home.leases.send(pack("ZREM", self._keys.workers, self._worker_id), 1)
            await asyncio.wait([leave], timeout=LEAVE_S)
        end = deadline + SETTLE_S
        while self._tasks and (left_s := end - monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=min(left_s, SETTLE_CHECK_S))
            if not any(partition.running for partition in self._owned.values()):
                # Nothing runs any more: what is left needs Redis, which may be gone.
                end = min(end, monotonic() + SETTLE_S)
        for task in list(self._tasks):
            task.cancel()

    def fenced(self, partition: Partition) -> None:
        """Somebody else owns the partition now: forget all about it."""
        self._forget(partition)
        if not partition.lost:
            self._drop(partition, "the lease was lost")
            self._counters.leases_lost += 1
            _log.warning("lease lost", partition=partition.number, fencing_token=partition.token)
            self._soon.set()

    def diverged(self, partition: Partition) -> None:
        """The server lacks something that was seen of the partition: begin again with what is there."""
        if not partition.lost:
            self._drop(partition, "the server has lost what was read")
            self._counters.diverged += 1
            self._spawn(self._let_go(partition))

    # One round

    async def _round(self) -> float:
        """Ask, and do what follows; return the seconds until the next round."""
        sent_at = lease_clock()
        request = self._planner.request(sent_at)
        reply = await self._renewer.renew(request, self._life_s / RENEWALS_PER_LIFE)
        plan = self._planner.plan(request, reply, sent_at=sent_at, now=lease_clock(), chance=_chance())
        self._follow(request, plan)
        if plan.acquire and not self._draining.is_set():
            await self._acquire(plan.acquire)
        return plan.next_s

    def _replied_late(self, request: RenewalRequest, reply: RenewalReply, sent_at: float) -> None:
        plan = self._planner.plan(request, reply, sent_at=sent_at, now=lease_clock(), chance=_chance())
        self._follow(request, plan)

    def _follow(self, request: RenewalRequest, plan: LeasePlan) -> None:
        for number in request.renew:
            if (partition := self._owned.get(number)) is not None:
                partition.lease_until = self._planner.lease_until(number)
        for number in plan.lost:
            if (partition := self._owned.get(number)) is not None:
                self.fenced(partition)
        for number in plan.resume:
            if (partition := self._owned.get(number)) is not None:
                self._dispatcher.resume(partition)
        for number in plan.release:
            if (partition := self._owned.get(number)) is not None:
                self._start(self._hand_over, partition)

    async def _acquire(self, numbers: Sequence[int]) -> None:
        by_connection: dict[ServerConnections, list[int]] = {}
        for number in numbers:
            if (connection := self._connections.of_partition(number)) is not None:
                by_connection.setdefault(connection, []).append(number)
        for connection, there in by_connection.items():
            if connection not in self._acquiring:
                task = self._acquiring[connection] = self._spawn(self._acquire_at(connection, there))
                task.add_done_callback(partial(self._acquire_answered, connection))
        if self._acquiring:
            await asyncio.wait([*self._acquiring.values()], timeout=ACQUIRE_PART * self._life_s)
        _log.info("partitions owned", count=len(self._owned), live_workers=len(self.workers))

    def _acquire_answered(self, connection: ServerConnections, _task: asyncio.Task[None]) -> None:
        del self._acquiring[connection]

    async def _acquire_at(self, connection: ServerConnections, numbers: Sequence[int]) -> None:
        lease_connection, incarnation = connection.leases, connection.incarnation
        if lease_connection is None or not lease_connection.connected:
            return
        sent_at = lease_clock()
        packed = [
            scripts.acquire(
                self._keys, number, self._worker_id, self._settings.lease_ttl_ms,
                token_over=self._tokens.get(number, 0),
            )
            for number in numbers
        ]  # fmt: skip
        try:
            replies = await lease_connection.send(b"".join(packed), len(packed), timeout_s=self._life_s)
        except RedisUnavailableError:
            return  # what was taken by it lapses, or is found to be ours no more than anybody's
        for number, reply in zip(numbers, replies, strict=True):
            try:
                acquired = scripts.read_acquired(reply)
            except RedisUnavailableError as error:
                # This one alone: something else lies under its keys, perhaps.
                if self._failure_lines.due("acquire", number):
                    _log.error(
                        "partition acquire failed",
                        partition=number,
                        reason=str(error),
                        repeats_of_all=self._failure_lines.take_silent(),
                    )
                connection.note_error_reply(str(reply))
                continue
            if acquired is None:
                continue
            if acquired.reset:
                _log.error(
                    "consumer group cursor reset",
                    partition=number,
                )
            value = scripts.lease_value(acquired.token, self._worker_id)
            lease = Lease(number, acquired.token, value)
            position = GroupPosition(acquired.cursor, acquired.entries_read)
            partition = Partition(lease, position, self._partition_settings, self._counters)
            partition.verified_at = incarnation
            self._tokens[number] = acquired.token
            self.quarantine.taken_over(partition, acquired)
            self._planner.acquired(number, acquired.token, sent_at)
            partition.lease_until = self._planner.lease_until(number)
            self._owned[number] = partition
            self._counters.leases_gained += 1
            if self._draining.is_set():  # since it was asked for
                self._start(self._give_back, partition)
            else:
                self._spawn(self._open(partition, acquired.pending))

    # Losing, opening and giving back

    def _drop(self, partition: Partition, why: str) -> None:
        """Nothing more of it is started or committed. What was not committed comes again, to whoever owns it next."""
        partition.move_to(Phase.LOST)
        self._committer.abandon(partition)
        self._dispatcher.cancel(partition, why)
        self._changed()

    def _forget(self, partition: Partition) -> None:
        """The lease is not ours any more."""
        if self._owned.get(partition.number) is partition:
            del self._owned[partition.number]
            self._leaving.discard(partition)
            self._planner.forget(partition.number)

    async def _let_go(self, partition: Partition) -> None:
        """Give back a lease that is still ours, of a partition that was dropped; then take it anew."""
        # Its handlers end first: what they are at comes again, and no two may be at one session's events.
        await self._quiet(partition, self._stop_timeout_s)
        await self._release(partition)
        self._soon.set()

    async def _open(self, partition: Partition, pending: int) -> None:
        """Take up what the last owner left in the pending list, oldest first, then let the reader go on."""
        start = "0-0" if pending else None
        while start is not None and not partition.closed:
            if self._connections.verified_commands(partition.number, partition.verified_at) is None:
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            try:
                cursor, entries, deleted = await self._claim(partition, start)
            except RedisUnavailableError:
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            except ResponseError as error:
                self._connections.note_error_reply(partition.number, str(error))
                if self._failure_lines.due("open", partition.number):
                    _log.error(
                        "partition open failed",
                        partition=partition.number,
                        reason=str(error),
                        repeats_of_all=self._failure_lines.take_silent(),
                    )
                self.fenced(partition)
                return
            for entry_id in deleted:
                partition.take_in_deleted(entry_id.decode(), time_ns() // 1_000_000)
            if entries:
                batch = Batch(partition, entries, entry_ms(entries[-1][0].decode()))
                await self.reader.feed([batch], pending=True)
            if partition.wants_commit:
                self._committer.mark(partition)
            start = cursor.decode() if cursor != b"0-0" else None
        if not partition.closed:
            partition.move_to(Phase.OPEN)
            self._changed()

    async def _claim(self, partition: Partition, start: str) -> list[Any]:
        """A page of the pending list, as XAUTOCLAIM reply: no more of it than comes quickly."""
        async with self._openings:
            commands = await self._connections.commands_ready(partition.number)
            pace, asked_at = self._opening_pace, monotonic()
            count = max(1, min(PENDING_PAGE, pace.entries // OPENINGS_MAX))
            try:
                page: list[Any] = await commands.execute(
                    "XAUTOCLAIM", self._keys.callbacks(partition.number), self._keys.group, scripts.CONSUMER,
                    0, start, "COUNT", count,
                )  # fmt: skip
            except RedisUnavailableError:
                pace.cut()
                raise
            took_s = monotonic() - asked_at
            entries = len(page[1])
            size_bytes = sum(len(value) for _, fields in page[1] for value in fields)
            full = entries >= count
            pace.brought(OPENINGS_MAX * entries, OPENINGS_MAX * size_bytes, took_s, took_s, full=full)
            return page

    def _start(self, way: Callable[[Partition], Coroutine[Any, Any, None]], partition: Partition) -> None:
        """Begin to give a partition back, unless that has begun."""
        if partition not in self._leaving:
            self._leaving.add(partition)
            self._spawn(way(partition))

    async def _hand_over(self, partition: Partition) -> None:
        """Give a partition to another worker when none of its handlers is at work.

        While one is, the partition's other sessions go on: a slow handler must not hold them up. Only if there is one
        at every look until the stop timeout is over are the others held, and it is waited for.
        """
        deadline = monotonic() + self._stop_timeout_s
        while partition.phase is Phase.OPEN and not self._draining.is_set():
            self._close(partition)
            await self._quiet(partition, YIELD_S)
            quiet = not partition.running or partition.lost
            if quiet or monotonic() >= deadline or self._draining.is_set():
                break
            partition.move_to(Phase.OPEN)
            self._changed()
            self._dispatcher.resume(partition)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(YIELD_AGAIN_S):
                    await self._draining.wait()
        await self._give_back(partition)

    async def _give_back(self, partition: Partition) -> None:
        """Let handlers under way end, or cancel them after the stop timeout; commit; let go of the lease."""
        self._close(partition)
        self._dispatcher.forget(partition)
        await self._quiet(partition, self._stop_timeout_s)
        while partition.running and not partition.lost:
            self._dispatcher.cancel(partition, "the partition is given back")
            await asyncio.sleep(DRAIN_CHECK_S)
        await self._committer.settle(partition)
        if not partition.lost:
            await self._release(partition)
            partition.move_to(Phase.LOST)

    async def _release(self, partition: Partition) -> None:
        """Give the lease back, unless it is lost meanwhile."""
        release = scripts.release(self._keys, partition.number, partition.lease_value)
        while self._owned.get(partition.number) is partition:
            leases = await self._connections.leases_ready(partition.number)
            try:
                (reply,) = await leases.send(release, 1)
            except RedisUnavailableError:
                reply = None
            if isinstance(reply, int):
                self._forget(partition)
                return
            if reply is not None:
                if self._failure_lines.due("release", partition.number):
                    _log.error(
                        "partition release failed",
                        partition=partition.number,
                        reason=str(reply),
                        repeats_of_all=self._failure_lines.take_silent(),
                    )
                self._connections.note_error_reply(partition.number, str(reply))
            await asyncio.sleep(RETRY_DELAY_S)

    def _close(self, partition: Partition) -> None:
        if not partition.closed:
            partition.move_to(Phase.PAUSED)
            self._changed()

    async def _quiet(self, partition: Partition, timeout_s: float) -> None:
        """Wait until none of the partition's handlers is at work, at most so long."""
        deadline = monotonic() + timeout_s
        while partition.running and monotonic() < deadline:  # noqa: ASYNC110 - see below
            await asyncio.sleep(DRAIN_CHECK_S)  # rather than an event on the way of every handler

    def _changed(self) -> None:
        """The set of partitions to read has changed."""
        self._opened = [p for p in self._owned.values() if p.phase is Phase.OPEN]
        for partition in self._opened:
            partition.session_cache = max(
                self._settings.session_cache // len(self._opened), SESSION_CACHE_MIN
            )
        self.pollers.wake()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            # A fault in maskline. `run` fails by it, and the process with it: its partitions must not lie idle.
            self._failure = failure
            self._soon.set()


def _chance() -> float:
    return random.random()  # noqa: S311 - spreads load, guards nothing
