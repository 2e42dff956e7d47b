"""Reads what operators want of the handlers, and tells others what this worker process knows of them.

Once a second it reads the group's control hash (`schemas.handler_control`), tells the gates which handlers are paused,
and whoever cares that jobs have changed. No partition is acquired before the first read, so no event runs that a pause
holds. While Redis is away, what was read last stays.

At the start it takes over what other workers knew, the ended ones included; then it writes what it knows itself:
whenever that changes, and every PUBLISH_INTERVAL_S, as a failover may have lost it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from types import MappingProxyType
from typing import Any, Final

import hiredis
import msgspec

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.runtime.redis.pipeline import Argument, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.handler_control import decode_reports, encode_reports, read_control
from maskline.schemas.keys import Keys
from maskline.worker.connections import READY_CHECK_S, WorkerConnections
from maskline.worker.gates.gates import HandlerGates

READ_INTERVAL_S: Final = 1.0
"""A pause takes effect within it."""

PUBLISH_INTERVAL_S: Final = 15.0

STOP_PUBLISH_S: Final = 0.5
"""How long the last write may take at a stop, as the server may hang."""

_log = get_logger("maskline.worker")


class HandlerControl:
    """Carries pauses to the gates, and the gates' reports to Redis.

    `lease_ttl_ms`: a worker whose last heartbeat is older has ended. `events`: the names of the types of events that
    each handler takes. `on_revision(revision)`: called at the first read and whenever a command has changed pauses or
    jobs.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        gates: HandlerGates,
        *,
        worker_id: str,
        lease_ttl_ms: int,
        events: Mapping[str, Sequence[str]] = MappingProxyType({}),
        on_revision: Callable[[int], None] = lambda _revision: None,
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._gates = gates
        self._worker_id = worker_id
        self._lease_ttl_ms = lease_ttl_ms
        self._events = {handler: tuple(names) for handler, names in events.items()}
        self._on_revision = on_revision
        self._known = asyncio.Event()
        self._taken_over = False
        self._ended: list[str] = []
        """Workers that have ended, and whose reports have been taken over: they are removed with the next write."""
        self._revision: int | None = None
        self._published = b""
        self._publish_at = 0.0
        self._failure_lines = LogRateLimit()

    async def wait_known(self) -> None:
        """Wait until the pauses are known."""
        await self._known.wait()

    async def run(self) -> None:
        """Read and write until cancelled."""
        while True:
            with contextlib.suppress(RedisUnavailableError):
                await self._read()
                await self._publish()
            await asyncio.sleep(READ_INTERVAL_S if self._known.is_set() else READY_CHECK_S)

    async def stop(self) -> None:
        """Write what has changed since the last write; it is for the workers that come."""
        with contextlib.suppress(RedisUnavailableError, TimeoutError):
            async with asyncio.timeout(STOP_PUBLISH_S):
                await self._publish()

    async def _read(self) -> None:
        (fields,) = await self._send(self._keys.control, ("HGETALL", self._keys.control))
        control = read_control(dict(zip(map(_text, fields[::2]), fields[1::2], strict=True)))
        self._gates.set_paused(control.paused)
        if not self._taken_over:
            await self._take_over()
            self._taken_over = True
        self._known.set()
        if control.revision != self._revision:
            self._revision = control.revision
            self._on_revision(control.revision)

    async def _take_over(self) -> None:
        """Begin with what other workers know. It only reads: a server without memory must not keep a worker waiting."""
        (fields,) = await self._send(self._keys.handlers, ("HGETALL", self._keys.handlers))
        left = dict(zip(map(_text, fields[::2]), fields[1::2], strict=True))
        left.pop(self._worker_id, None)
        if not left:
            return
        for value in left.values():
            for handler, report in decode_reports(value).items():
                self._gates.take_over(handler, report)
        live = await self._live_workers()
        self._ended = [worker for worker in left if worker not in live]

    async def _live_workers(self) -> set[str]:
        time, heartbeats = await self._send(
            self._keys.workers, ("TIME",), ("ZRANGE", self._keys.workers, 0, -1, "WITHSCORES")
        )
        lapsed_ms = int(time[0]) * 1000 + int(time[1]) // 1000 - self._lease_ttl_ms
        return {
            _text(worker)
            for worker, beat_ms in zip(heartbeats[::2], heartbeats[1::2], strict=True)
            if float(beat_ms) >= lapsed_ms
        }

    async def _publish(self) -> None:
        reports = {
            handler: msgspec.structs.replace(report, events=self._events.get(handler, ()))
            for handler, report in self._gates.reports().items()
        }
        encoded, now = encode_reports(reports), monotonic()
        if encoded == self._published and now < self._publish_at:
            return
        await self._send(self._keys.handlers, ("HSET", self._keys.handlers, self._worker_id, encoded))
        self._published, self._publish_at = encoded, now + PUBLISH_INTERVAL_S
        if self._ended:
            await self._send(self._keys.handlers, ("HDEL", self._keys.handlers, *self._ended))
            self._ended = []

    async def _send(self, key: str, *commands: Sequence[Argument]) -> list[Any]:
        """The replies of the server that has `key`. Raises RedisUnavailableError, also where it refuses a command."""
        server = self._connections.of_key(key)
        if server is None or server.commands is None:
            raise RedisUnavailableError("there is no connection to the server of the key")
        replies = await server.commands.send(b"".join(pack(*command) for command in commands), len(commands))
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                server.handle_error_reply(str(reply))
                self._log_refused(key, str(reply))
                raise RedisUnavailableError(str(reply))
        return replies

    def _log_refused(self, key: str, reason: str) -> None:
        if self._failure_lines.due(key, reason[:20]):
            _log.error(
                "handler control refused",
                key=key,
                reason=reason,
                begun=self._known.is_set(),
                repeats_of_all=self._failure_lines.take_suppressed(),
            )


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
