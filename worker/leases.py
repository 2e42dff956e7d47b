"""Which partitions this worker owns: takes leases, keeps them, gives them back. The balance itself is `balance.plan`.

One trip every third of a lease's life says that the worker lives and renews what it owns. Only a worker that owns
less than its share looks for free partitions. A partition is opened from what its group's pending list and cursor
say; it is given back when its handlers under way have ended and everything done is committed.
"""

import asyncio
import contextlib
import random
from collections.abc import Coroutine, Sequence
from time import monotonic, time_ns
from typing import Any, Final

import hiredis
from redis.exceptions import ResponseError

from runtime.link import Link, pack
from runtime.logs import get_logger
from schemas.errors import RedisUnavailableError
from schemas.keys import Keys
from schemas.settings import Settings
from worker import scripts
from worker.balance import plan, share
from worker.commits import Committer
from worker.connection import Connection
from worker.dispatch import Dispatcher
from worker.partition import Partition, PartitionSettings, entry_ms
from worker.reader import Reader
from worker.reorder import Policy
from worker.stats import Stats

RENEWALS_PER_LIFE: Final = 3

PENDING_PAGE: Final = 256
"""Entries of the pending list read at a time when a partition is opened."""

DRAIN_CHECK_S: Final = 0.01

REPEAT_DELAY_S: Final = 0.1

SETTLE_S: Final = 2.0
"""After the handlers have ended or were cancelled: how long the last commits and releases may take."""

SESSION_CACHE_MIN: Final = 64
"""Sessions in memory that every partition may have, however many partitions there are."""

_log = get_logger("maskline.worker")


class LeaseKeeper:
    """Owns the partitions of a worker process. Set `reader` before `run`: the two need each other."""

    def __init__(
        self, connection: Connection, keys: Keys, dispatcher: Dispatcher, committer: Committer,
        settings: Settings, worker_id: str, stats: Stats,
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._keys = keys
        self._dispatcher = dispatcher
        self._committer = committer
        self._settings = settings
        self._worker_id = worker_id
        self._stats = stats
        self._partition_settings = PartitionSettings(
            group=settings.group,
            policy=Policy(settings.gap_timeout_ms, settings.first_sequence, settings.held_max),
            recording_shared=settings.recording_sequence == "shared",
            session_ttl_s=settings.session_ttl_s,
        )
        self._owned: dict[int, Partition] = {}
        self._opened: list[Partition] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._draining = False
        self._soon = asyncio.Event()
        self.reader: Reader
        self.workers: tuple[str, ...] = ()
        """The live workers of the group, as last seen."""

    @property
    def owned(self) -> int:
        return len(self._owned)

    def opened(self) -> Sequence[Partition]:
        """The partitions to read: owned, caught up with their pending list, not on their way back."""
        return self._opened

    async def run(self) -> None:
        """Keep the leases until cancelled."""
        life_s = self._settings.lease_ttl_ms / 1000
        while True:
            commands, _ = await self._connection.ready()
            try:
                await self._round(commands, life_s)
            except RedisUnavailableError as error:
                _log.warning("the leases could not be renewed", reason=str(error))
                await asyncio.sleep(min(0.1, life_s / 10))
                continue
            pause_s = life_s / RENEWALS_PER_LIFE * (0.9 + 0.1 * random.random())  # noqa: S311
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), pause_s)
            self._soon.clear()
            if self._failure is not None:
                raise self._failure

    async def drain(self, timeout_s: float) -> None:
        """Give everything back: wait for handlers under way up to `timeout_s`, then cancel them."""
        self._draining = True
        deadline = monotonic() + timeout_s
        for partition in list(self._owned.values()):
            self._start_giving_back(partition, deadline)
        # Before any lease goes: the others' shares grow, so that they take what is given back as it comes.
        commands = self._connection.commands
        if commands is not None and commands.connected:
            await asyncio.wait([commands.send(pack("ZREM", self._keys.workers, self._worker_id), 1)])
        while self._tasks and (left_s := deadline + SETTLE_S - monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s)
        for task in list(self._tasks):
            task.cancel()

    def fenced(self, partition: Partition) -> None:
        """Somebody else owns the partition now: forget all about it."""
        if partition.lost:
            return
        partition.lost = partition.closed = True
        if self._owned.get(partition.number) is partition:
            del self._owned[partition.number]
        self._stats.leases_lost += 1
        self._committer.abandon(partition)
        self._dispatcher.cancel(partition, "the lease was lost")
        self._changed()
        _log.warning("a lease was lost", partition=partition.number, fencing_token=partition.token)
        self._soon.set()

    # One round

    async def _round(self, commands: Link, life_s: float) -> None:
        settings, keys = self._settings, self._keys
        owned = list(self._owned.values())
        short = not self._draining and len(owned) < share(
            self._worker_id, self.workers or (self._worker_id,), settings.partitions
        )
        look = [number for number in range(settings.partitions) if number not in self._owned] if short else []
        if self._draining:
            heartbeat = pack("ZRANGE", keys.workers, 0, -1)
        else:
            heartbeat = scripts.heartbeat(keys, self._worker_id, settings.lease_ttl_ms)
        packed = [heartbeat]
        packed += [scripts.renew(keys, p.number, p.lease_value, settings.lease_ttl_ms) for p in owned]
        packed += [pack("GET", keys.lease(number)) for number in look]
        sent_at = monotonic()
        replies = await commands.send(b"".join(packed), len(packed))
        self._raise_refused(commands, replies)
        self.workers = tuple(worker.decode() for worker in replies[0])
        for partition, kept in zip(owned, replies[1 : len(owned) + 1], strict=True):
            self._renewed(partition, bool(kept), sent_at + life_s)
        if self._draining:
            return
        taken = {
            number: reply.decode()
            for number, reply in zip(look, replies[len(owned) + 1 :], strict=True)
            if reply is not None
        }
        decision = plan(self._worker_id, self.workers, self._owned.keys(), taken, settings.partitions)
        for number in decision.release:
            self._start_giving_back(self._owned[number], sent_at + settings.stop_timeout_ms / 1000)
        if decision.acquire and not look:
            self._soon.set()  # a worker has gone: look at once who held what
        elif decision.acquire:
            await self._acquire(commands, decision.acquire, life_s)

    def _raise_refused(self, commands: Link, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                if str(reply).startswith("NOSCRIPT"):
                    commands.close()  # the next connection loads the scripts again
                raise RedisUnavailableError(f"Redis refuses: {reply}")

    def _renewed(self, partition: Partition, kept: bool, until: float) -> None:
        if partition.lost:
            return
        if not kept:
            self.fenced(partition)
            return
        lapsed = partition.lease_until <= monotonic()
        partition.lease_until = until
        if lapsed:
            self._dispatcher.resume(partition)

    async def _acquire(self, commands: Link, numbers: Sequence[int], life_s: float) -> None:
        settings, keys = self._settings, self._keys
        sent_at = monotonic()
        packed = [scripts.acquire(keys, number, self._worker_id, settings.lease_ttl_ms) for number in numbers]
        replies = await commands.send(b"".join(packed), len(packed))
        for number, reply in zip(numbers, replies, strict=True):
            try:
                acquired = scripts.read_acquired(reply)
            except (
                RedisUnavailableError
            ) as error:  # this one alone: something else lies under its keys, perhaps
                _log.error("a partition could not be taken", partition=number, reason=str(error))
                continue
            if acquired is None:
                continue
            partition = Partition(
                number,
                acquired.token,
                scripts.lease_value(acquired.token, self._worker_id),
                acquired.cursor,
                acquired.entries_read,
                self._partition_settings,
                self._stats,
            )
            partition.lease_until = sent_at + life_s
            self._owned[number] = partition
            self._stats.leases_gained += 1
            if self._draining:  # since it was asked for
                self._start_giving_back(partition, monotonic())
            else:
                self._spawn(self._open(partition, acquired.pending))
        _log.info("partitions owned", count=len(self._owned), live_workers=len(self.workers))

    # Opening and giving back

    async def _open(self, partition: Partition, pending: int) -> None:
        """Take up what the last owner left in the pending list, oldest first, then let the reader go on."""
        start = "0-0" if pending else None
        while start is not None and not partition.closed:
            commands, _ = await self._connection.ready()
            try:
                cursor, entries, deleted = await commands.execute(
                    "XAUTOCLAIM", self._keys.callbacks(partition.number), self._keys.group, scripts.CONSUMER,
                    0, start, "COUNT", PENDING_PAGE,
                )  # fmt: skip
            except RedisUnavailableError:
                await asyncio.sleep(REPEAT_DELAY_S)
                continue
            except ResponseError as error:
                _log.error("a partition could not be opened", partition=partition.number, reply=str(error))
                self.fenced(partition)
                return
            for entry_id in deleted:
                partition.lost_while_pending(entry_id.decode(), time_ns() // 1_000_000)
            if entries:
                await self.reader.feed(
                    partition, entries, pending=True, watermark_ms=entry_ms(entries[-1][0].decode())
                )
            if partition.wants_commit:
                self._committer.mark(partition)
            start = cursor.decode() if cursor != b"0-0" else None
        if not partition.closed:
            partition.opened = True
            self._changed()

    def _start_giving_back(self, partition: Partition, deadline: float) -> None:
        if not partition.closed:
            partition.closed = True
            self._changed()
            self._spawn(self._give_back(partition, deadline))

    async def _give_back(self, partition: Partition, deadline: float) -> None:
        while partition.running and not partition.lost:
            if monotonic() >= deadline:
                self._dispatcher.cancel(partition, "the partition is given back")
            await asyncio.sleep(DRAIN_CHECK_S)
        await self._committer.settle(partition)
        while not partition.lost:
            commands, _ = await self._connection.ready()
            try:
                release = scripts.release(self._keys, partition.number, partition.lease_value)
                self._raise_refused(commands, await commands.send(release, 1))
            except RedisUnavailableError:
                await asyncio.sleep(REPEAT_DELAY_S)
                continue
            partition.lost = True
            self._owned.pop(partition.number, None)

    def _changed(self) -> None:
        """The set of partitions to read has changed."""
        self._opened = [p for p in self._owned.values() if p.opened and not p.closed]
        for partition in self._opened:
            partition.session_cache = max(
                self._settings.session_cache // len(self._opened), SESSION_CACHE_MIN
            )
        self.reader.wake()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            # A fault in maskline. `run` fails by it, and the process with it: its partitions must not lie idle.
            self._failure = failure
            self._soon.set()
