"""Manages the partitions of a worker process: renews leases, takes and gives back partitions, and opens them.

`worker.leases.planner` decides what to ask, what to take and what to give back. This file carries the plans out:

| step | by |
| --- | --- |
| renew leases, find live workers and free leases | `worker.leases.renewal` |
| take free leases | `worker.leases.acquisition` |
| read the group's pending list, then open the partition | `worker.leases.pending_list` |
| wait for handlers, commit, release the lease | `worker.leases.handover` |
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Final

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.runtime.redis.pipeline import pack
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts
from maskline.worker.connections import WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.dispatch.quarantine import Quarantine
from maskline.worker.leases.acquisition import Acquisition, LeaseAcquirer
from maskline.worker.leases.handover import PartitionHandover
from maskline.worker.leases.pending_list import PendingListReader
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
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition, PartitionSettings
from maskline.worker.partitions.phase import Phase
from maskline.worker.streams.pipeline import StreamPipeline

DRAIN_SPARE_S: Final = 2.0
"""How long the last commits and releases may take, after the handlers have ended or were cancelled."""

DRAIN_CHECK_S: Final = 0.1

SIGN_OFF_S: Final = 0.5
"""How long removing the heartbeat may take at a stop, as the server may hang."""

_log = get_logger("maskline.worker")


class PartitionManager:
    """Owns the partitions of a worker process: it fills `owned`, and nothing else does.

    `worker_id`: holds the leases. `run` raises the error of a task of its own, which is a fault in maskline.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        owned: OwnedPartitions,
        settings: Settings,
        *,
        worker_id: str,
        counters: Counters,
        dispatcher: Dispatcher,
        committer: Committer,
        quarantine: Quarantine,
        pipeline: StreamPipeline,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections = connections
        self._keys = keys
        self._owned = owned
        self._worker_id = worker_id
        self._counters = counters
        self._dispatcher = dispatcher
        self._committer = committer
        self._quarantine = quarantine
        self._partition_settings = _partition_settings(settings)
        self._lease_s = settings.lease_ttl_ms / 1000
        self._planner = LeasePlanner(worker_id, settings.partitions, self._lease_s)
        self._renewer = LeaseRenewer(
            connections,
            keys,
            worker_id=worker_id,
            lease_ttl_ms=settings.lease_ttl_ms,
            on_late_reply=self._replied_late,
        )
        self._acquirer = LeaseAcquirer(
            connections,
            keys,
            worker_id=worker_id,
            lease_ttl_ms=settings.lease_ttl_ms,
            on_acquired=self._acquired,
            spawn=self._spawn,
        )
        self._pending_lists = PendingListReader(connections, keys, pipeline, committer)
        self._handover = PartitionHandover(
            connections,
            keys,
            owned,
            dispatcher,
            committer,
            stop_timeout_s=settings.stop_timeout_ms / 1000,
            on_released=self._forget,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._releasing: set[Partition] = set()
        self.signed_off = asyncio.Event()
        """Set by `drain`: the other workers do not count this one any more."""
        self._early = asyncio.Event()
        """Something happened that calls for an early renewal request."""

    @property
    def live_workers(self) -> tuple[str, ...]:
        """The ids of the group's live workers, as last seen."""
        return self._planner.live

    async def run(self) -> None:
        """Keep the leases until cancelled."""
        while True:
            pause_s = await self._renew_leases()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._early.wait()
                await asyncio.sleep(self._planner.early_delay_s(_chance()))
            self._early.clear()
            if self._failure is not None:
                raise self._failure

    async def drain(self, timeout_s: float) -> None:
        """Give everything back: wait for handlers under way up to `timeout_s`, then cancel them."""
        self._handover.drain(timeout_s)
        self._planner.drain()
        deadline = monotonic() + timeout_s
        for partition in self._owned:
            self._handover.pause(partition)
            self._release(partition, self._handover.give_back)
        # Before any lease is released: the others' shares grow, so that they take each partition as soon as it is free.
        await self._sign_off()
        self.signed_off.set()
        end = deadline + DRAIN_SPARE_S
        while self._tasks and (left_s := end - monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=min(left_s, DRAIN_CHECK_S))
            if not any(partition.running for partition in self._owned):
                # No handler is at work: the rest needs Redis, which may be gone.
                end = min(end, monotonic() + DRAIN_SPARE_S)
        for task in list(self._tasks):
            task.cancel()

    def look_soon(self) -> None:
        """Send the next renewal request early: there may be free leases."""
        self._early.set()

    def fenced(self, partition: Partition) -> None:
        """Forget a partition that another worker owns now."""
        self._forget(partition)
        if not partition.lost:
            self._lose(partition, "the lease was lost")
            self._counters.leases_lost += 1
            _log.warning("lease lost", partition=partition.number, fencing_token=partition.token)
            self._early.set()

    def diverged(self, partition: Partition) -> None:
        """Acquire a partition anew whose server lacks part of its history, and begin with the entries that it has."""
        if not partition.lost:
            self._lose(partition, "the server has lost what was read")
            self._counters.diverged += 1
            self._spawn(self._give_back_diverged(partition))

    # Renewals, and the plans that follow

    async def _renew_leases(self) -> float:
        """Send a renewal request, and carry out the plan; return the seconds until the next request."""
        sent_at = lease_clock()
        request = self._planner.request(sent_at)
        reply = await self._renewer.renew(request, self._lease_s / RENEWALS_PER_LIFE)
        plan = self._follow(request, reply, sent_at)
        if plan.acquire and not self._handover.draining:
            await self._acquirer.acquire(plan.acquire)
            _log.info("partitions owned", count=len(self._owned), live_workers=len(self.live_workers))
        return plan.next_s

    def _replied_late(self, request: RenewalRequest, reply: RenewalReply, sent_at: float) -> None:
        self._follow(request, reply, sent_at)

    def _follow(self, request: RenewalRequest, reply: RenewalReply, sent_at: float) -> LeasePlan:
        """Carry out the plan that follows from a reply, but for the acquisitions."""
        plan = self._planner.plan(request, reply, sent_at=sent_at, now=lease_clock(), chance=_chance())
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
                self._release(partition, self._handover.hand_over)
        return plan

    # Partitions that come and go

    def _acquired(self, acquisition: Acquisition) -> None:
        number, lease, incarnation, sent_at = acquisition
        partition = Partition(
            Lease(number, lease.token, scripts.lease_value(lease.token, self._worker_id)),
            GroupPosition(lease.cursor, lease.entries_read),
            self._partition_settings,
            self._counters,
        )
        partition.verified_at = incarnation
        self._quarantine.taken_over(partition, lease)
        self._planner.acquired(number, lease.token, sent_at)
        partition.lease_until = self._planner.lease_until(number)
        self._owned.add(partition)
        self._counters.leases_gained += 1
        if self._handover.draining:  # it has begun since the lease was requested
            self._release(partition, self._handover.give_back)
        else:
            self._spawn(self._open(partition, lease.pending))

    async def _open(self, partition: Partition, pending: int) -> None:
        """Read the pending list of `pending` entries, then have the stream read."""
        if pending and not await self._pending_lists.read(partition):
            self.fenced(partition)
        if not partition.closed:
            self._owned.move(partition, Phase.OPEN)

    def _release(
        self, partition: Partition, release: Callable[[Partition], Coroutine[Any, Any, None]]
    ) -> None:
        """Begin to give a partition back, unless that has begun."""
        if partition not in self._releasing:
            self._releasing.add(partition)
            self._spawn(release(partition))

    async def _give_back_diverged(self, partition: Partition) -> None:
        await self._handover.give_back_lost(partition)
        self._early.set()

    def _lose(self, partition: Partition, reason: str) -> None:
        """Start and commit nothing more of a partition. Its next owner gets the uncommitted events again."""
        self._owned.move(partition, Phase.LOST)
        self._committer.abandon(partition)
        self._dispatcher.cancel(partition, reason)
        self._dispatcher.finisher.drop_queues(partition)

    def _forget(self, partition: Partition) -> None:
        """Remove a partition whose lease is not ours any more."""
        if partition in self._owned:
            self._owned.remove(partition)
            self._releasing.discard(partition)
            self._planner.forget(partition.number)

    async def _sign_off(self) -> None:
        """Remove this worker from the live ones."""
        server = self._connections.heartbeat_server
        if server is not None and server.leases is not None and server.leases.connected:
            removed = server.leases.send(pack("ZREM", self._keys.workers, self._worker_id), 1)
            await asyncio.wait([removed], timeout=SIGN_OFF_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            # A fault in maskline. `run` raises it, and the process ends: its partitions must not lie idle.
            self._failure = failure
            self._early.set()


def _partition_settings(settings: Settings) -> PartitionSettings:
    return PartitionSettings(
        group=settings.group,
        policy=Policy(
            settings.gap_timeout_ms, settings.first_sequence, settings.held_max, settings.gap_spool_ms
        ),
        recording_shared=settings.recording_sequence == "shared",
        session_ttl_s=settings.session_ttl_s,
        ignored_parameters=frozenset(settings.ignored_parameters),
    )


def _chance() -> float:
    return random.random()  # noqa: S311 - spreads load, guards nothing
