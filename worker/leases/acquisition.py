"""Acquires free leases: sends the commands for all partitions of one server together.

A server that has not answered is not asked again meanwhile, and its late reply still counts: the leases on the other
servers must be renewed in time.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands import scripts
from maskline.worker.connections import ServerConnections, WorkerConnections

WAIT_PART: Final = 0.1
"""How long `acquire` waits for the servers, in parts of a lease."""

_log = get_logger("maskline.worker")


class Acquisition(NamedTuple):
    """A lease that was granted."""

    number: int
    """Of the partition."""
    lease: scripts.AcquiredLease
    incarnation: object
    """Of the connections (`ServerConnections.incarnation`) that it was granted over."""
    sent_at: float
    """When it was requested, by `lease_clock`."""


class LeaseAcquirer:
    """Acquires leases of partitions for one worker.

    `on_acquired(acquisition)`: called for each lease granted, even after `acquire` has returned. `spawn`: starts a task
    that the owner of this object supervises.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        *,
        worker_id: str,
        lease_ttl_ms: int,
        on_acquired: Callable[[Acquisition], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._worker_id = worker_id
        self._lease_ttl_ms = lease_ttl_ms
        self._on_acquired = on_acquired
        self._spawn = spawn
        self._tokens: dict[int, int] = {}
        """By partition: the last fencing token that this worker has had."""
        self._under_way: dict[ServerConnections, asyncio.Task[None]] = {}
        self._failure_lines = LogRateLimit()

    async def acquire(self, numbers: Sequence[int]) -> None:
        """Try to take the leases of these partitions; wait for the servers WAIT_PART of a lease at most."""
        by_server: dict[ServerConnections, list[int]] = {}
        for number in numbers:
            if (server := self._connections.of_partition(number)) is not None:
                by_server.setdefault(server, []).append(number)
        for server, of_server in by_server.items():
            if server not in self._under_way:
                task = self._under_way[server] = self._spawn(self._acquire_from(server, of_server))
                task.add_done_callback(partial(self._ended, server))
        if self._under_way:
            await asyncio.wait([*self._under_way.values()], timeout=WAIT_PART * self._lease_ttl_ms / 1000)

    def _ended(self, server: ServerConnections, _task: asyncio.Task[None]) -> None:
        del self._under_way[server]

    async def _acquire_from(self, server: ServerConnections, numbers: Sequence[int]) -> None:
        connection, incarnation = server.leases, server.incarnation
        if connection is None or not connection.connected:
            return
        sent_at = lease_clock()
        packed = [
            scripts.acquire(
                self._keys,
                number,
                self._worker_id,
                self._lease_ttl_ms,
                token_over=self._tokens.get(number, 0),
            )
            for number in numbers
        ]
        try:
            replies = await connection.send(
                b"".join(packed), len(packed), timeout_s=self._lease_ttl_ms / 1000
            )
        except RedisUnavailableError:
            return  # if the server did grant leases, they expire unused
        for number, reply in zip(numbers, replies, strict=True):
            try:
                lease = scripts.read_acquired(reply)
            except RedisUnavailableError as error:
                # The other replies count: one of this partition's keys may be of another type.
                server.handle_error_reply(str(reply))
                self._log_failure(number, str(error))
                continue
            if lease is not None:
                self._tokens[number] = lease.token
                if lease.reset:
                    _log.error("consumer group cursor reset", partition=number)
                self._on_acquired(Acquisition(number, lease, incarnation, sent_at))

    def _log_failure(self, number: int, reason: str) -> None:
        if self._failure_lines.due(number):
            _log.error(
                "partition acquire failed",
                partition=number,
                reason=reason,
                repeats_of_all=self._failure_lines.take_suppressed(),
            )
