"""Gives partitions back: waits for their handlers, commits what is done, and releases the lease.

A slow handler must not hold up the other sessions of its partition. So a partition that goes to another worker is
paused only for a moment at a time (PAUSE_S): if a handler is still at work then, it is opened again (for OPEN_AGAIN_S),
until the stop timeout is over. At a stop of the worker it stays paused, and handlers are cancelled after the stop
timeout.
"""

import asyncio
import contextlib
from collections.abc import Callable
from time import monotonic
from typing import Final

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands import scripts
from maskline.worker.connections import RETRY_DELAY_S, WorkerConnections
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.partitions.committer import Committer
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.phase import Phase

PAUSE_S: Final = 0.25
"""How long a partition's sessions wait for handlers at work, so that the partition can go to another worker."""

OPEN_AGAIN_S: Final = 1.0
"""After that, how long until the next try."""

DRAIN_CHECK_S: Final = 0.01
"""How often a partition is checked for handlers that are still at work."""

_log = get_logger("maskline.worker")


class PartitionHandover:
    """Gives owned partitions back, one task a partition.

    `on_released(partition)`: called when the lease of an owned partition was released. `stop_timeout_s`: how long
    handlers under way may take before they are cancelled.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        owned: OwnedPartitions,
        dispatcher: Dispatcher,
        committer: Committer,
        *,
        stop_timeout_s: float,
        on_released: Callable[[Partition], None],
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._owned = owned
        self._dispatcher = dispatcher
        self._committer = committer
        self._stop_timeout_s = stop_timeout_s
        self._on_released = on_released
        self._draining = asyncio.Event()
        self._failure_lines = LogRateLimit()

    @property
    def draining(self) -> bool:
        """Whether the worker stops, and everything is given back."""
        return self._draining.is_set()

    def drain(self, stop_timeout_s: float) -> None:
        """Stop with the worker: partitions that are being handed over are not opened again."""
        self._stop_timeout_s = stop_timeout_s
        self._draining.set()

    async def hand_over(self, partition: Partition) -> None:
        """Give a partition to another worker when none of its handlers is at work."""
        deadline = monotonic() + self._stop_timeout_s
        while partition.phase is Phase.OPEN and not self.draining:
            self.pause(partition)
            await self._wait_until_idle(partition, PAUSE_S)
            idle = not partition.running or partition.lost
            if idle or monotonic() >= deadline or self.draining:
                break
            self._owned.move(partition, Phase.OPEN)
            self._dispatcher.resume(partition)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OPEN_AGAIN_S):
                    await self._draining.wait()
        await self.give_back(partition)

    async def give_back(self, partition: Partition) -> None:
        """Wait for handlers under way, or cancel them after the stop timeout; commit; release the lease."""
        self.pause(partition)
        self._dispatcher.forget(partition)
        await self._wait_until_idle(partition, self._stop_timeout_s)
        while partition.running and not partition.lost:
            self._dispatcher.cancel(partition, "the partition is given back")
            await asyncio.sleep(DRAIN_CHECK_S)
        if not partition.lost:
            self._dispatcher.finisher.set_aside_unfinished(partition)
        await self._committer.wait_committed(partition)
        if not partition.lost:
            await self._release(partition)
            self._owned.move(partition, Phase.LOST)

    async def give_back_lost(self, partition: Partition) -> None:
        """Release a lease that is still ours, of a partition whose phase is LOST already."""
        # Its handlers must end first: their events come again, and a session's events never run twice at a time.
        await self._wait_until_idle(partition, self._stop_timeout_s)
        await self._release(partition)

    def pause(self, partition: Partition) -> None:
        """Start no more handlers of the partition, and read no more of it."""
        if not partition.closed:
            self._owned.move(partition, Phase.PAUSED)

    async def _release(self, partition: Partition) -> None:
        """Commit, then release the lease, unless it is lost meanwhile."""
        release = scripts.release(self._keys, partition.number, partition.lease_value)
        while partition in self._owned:
            leases = await self._connections.leases_ready(partition.number)
            try:
                (reply,) = await leases.send(release, 1)
            except RedisUnavailableError:
                reply = None
            if isinstance(reply, int):
                self._on_released(partition)
                return
            if reply is not None:
                self._log_failure(partition.number, str(reply))
                self._connections.handle_error_reply(partition.number, str(reply))
            await asyncio.sleep(RETRY_DELAY_S)

    async def _wait_until_idle(self, partition: Partition, timeout_s: float) -> None:
        """Wait until none of the partition's handlers is at work, `timeout_s` at most."""
        deadline = monotonic() + timeout_s
        while partition.running and monotonic() < deadline:  # noqa: ASYNC110 - see below
            await asyncio.sleep(DRAIN_CHECK_S)  # rather than an event on the way of every handler

    def _log_failure(self, number: int, reason: str) -> None:
        if self._failure_lines.due(number):
            _log.error(
                "partition release failed",
                partition=number,
                reason=reason,
                repeats_of_all=self._failure_lines.take_suppressed(),
            )
