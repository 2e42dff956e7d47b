"""Keeps one publisher connected to its server: connects, checks the server, and reconnects.

Before a connection is used, the namespace in Redis must fit the settings, the server must not evict or be too old, and
it must be able to do MASKLINE_DURABILITY. A server that fails a check counts as unavailable: callbacks are spooled
until it passes.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final

from maskline.ingest.metrics import Metrics
from maskline.ingest.publish.durability import RECHECK_S, check_durability
from maskline.ingest.publish.publisher import Publisher
from maskline.runtime.logs import get_logger
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.namespace import NamespaceCheck
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.runtime.redis.reconnect import LOG_AGAIN_S, keep_connected
from maskline.runtime.redis.server_monitor import ServerMonitor
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import ConfigError, RedisRefusesError, RedisUnavailableError
from maskline.schemas.settings import Settings

START_TIMEOUT_S: Final = 2.0
"""How long the start waits for the first connection before the node listens without it."""

_log = get_logger("maskline.ingest")


@dataclass(frozen=True, slots=True)
class ConnectionContext:
    """What all connections of a publisher pool share."""

    settings: Settings
    endpoint: RedisEndpoint
    namespace_check: NamespaceCheck
    server_monitor: ServerMonitor
    metrics: Metrics
    tasks: BackgroundTasks
    name: str
    """Of the connections, in CLIENT LIST."""
    on_stale: Callable[[], None]
    """Called when a connection is lost or cannot be opened, and when a server says that a key is on another one."""


class PublisherConnection:
    """Owns a publisher and its connection, from `start` to `stop`.

    `server`: the cluster's node; None for the only server there is.
    """

    def __init__(self, context: ConnectionContext, server: Server | None, publisher: Publisher) -> None:
        self._context = context
        self._server = server
        self._lost = asyncio.Event()
        self._attempted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log_again_at = 0.0
        self.publisher = publisher
        publisher.on_moved = context.on_stale
        publisher.on_slow = self._log_latency
        self.connection: PipelinedConnection | None = None
        """None while there is none."""
        self.error = "not connected yet"
        """Why there is no connection; empty while there is one."""
        self.durability_doubt = ""
        """Why the server does not have, or may not have, the configured durability; empty if it has."""
        self._verified: set[tuple[bytes, bytes]] = set()
        """Servers whose fsync was tried out, for `check_durability`."""
        self.misconfigured = False
        """Whether the settings contradict the namespace in Redis, so that waiting does not help."""

    @property
    def address(self) -> str:
        """The server's address as configured, host:port or path."""
        return str(self._server) if self._server is not None else self._context.endpoint.address

    @property
    def connected_to(self) -> str:
        """Which of the name's addresses the connection leads to, as ip:port; empty while there is none."""
        return "" if self.connection is None else self.connection.address

    @property
    def up(self) -> bool:
        """Whether there is a connection that has passed its checks."""
        return self.publisher.connected

    @property
    def slowness(self) -> str:
        """How slow the server is, for /readyz and the log; empty while it is not."""
        publisher = self.publisher
        if not publisher.slow:
            return ""
        return (
            f"Redis is slow: it answers after {publisher.late_reply_s * 1000:.0f} ms, and requests wait "
            f"{publisher.in_time_s * 1000:.0f} ms; callbacks reach it through the spool"
        )

    def start(self) -> None:
        """Connect, and stay connected, in the background; nothing if it was started before."""
        if self._task is None:
            self._task = self._context.tasks.start(
                "connection to Redis",
                lambda: keep_connected(
                    self._connect, self._wait_until_lost, self._on_unavailable, self._attempted
                ),
            )

    async def wait_first_attempt(self) -> None:
        """Wait for the first try to connect, START_TIMEOUT_S at most.

        Raises ConfigError where the settings contradict the namespace in Redis; even then it goes on trying until
        `stop`. For any other fault of Redis (it refuses the log-in, would evict, cannot do the durability), callbacks
        are spooled until it is mended.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._attempted.wait()
        except TimeoutError:
            self._on_unavailable(f"no answer within {START_TIMEOUT_S:g} s", None)
        if self.misconfigured:
            raise ConfigError(self.error)

    async def stop(self) -> None:
        """Disconnect, and stay disconnected."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.connection is not None:
            self.connection.close()
            self.publisher.detach()

    async def _connect(self) -> None:
        """Connect and check the server. Raises ConfigError, RedisRefusesError or RedisUnavailableError."""
        context = self._context
        if self.connection is not None:  # after a fault of ours
            self.connection.close()
        self._lost.clear()
        connection = await context.endpoint.connect(context.name, self._lost.set, server=self._server)
        try:
            await context.namespace_check.check(connection, self._server)
            await context.server_monitor.require_safe(connection, self.address)
            await self._check_durability(connection)
            self.publisher.attach(connection)
        except BaseException:
            connection.close()
            raise
        if self._lost.is_set():
            raise RedisUnavailableError("the connection to Redis was lost at once")
        self.connection = connection
        self.error = ""
        self.misconfigured = False
        context.metrics.connects += 1
        # After a timeout a connection alone proves nothing: the next page of the spool does.
        proven = {} if self.publisher.ready else {"not_proven_after": self.publisher.breaker.reason}
        _log.info("connected to redis", redis=self.address, address=self.connected_to, **proven)

    async def _wait_until_lost(self) -> str:
        """Check every RECHECK_S whether the server still does the durability, until the connection is lost."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await self._lost.wait()
                return (self.connection and self.connection.loss) or "the connection to Redis was lost"
            if self.connection is not None:
                try:
                    await self._check_durability(self.connection)
                except RedisRefusesError:
                    self.connection.close()  # the next connection says why it is not used
                except RedisUnavailableError:
                    continue

    async def _check_durability(self, connection: PipelinedConnection) -> None:
        settings = self._context.settings
        doubt = await check_durability(connection, settings, self._verified)
        if doubt and doubt != self.durability_doubt:
            _log.warning(
                "redis durability doubtful", redis=self.address, durability=settings.durability, reason=doubt
            )
        self.durability_doubt = doubt

    def _log_latency(self) -> None:
        if self.publisher.slow:
            _log.warning("redis slow", redis=self.address, reason=self.slowness)
        elif self.publisher.ready:
            _log.info("redis latency recovered", redis=self.address)

    def _on_unavailable(self, reason: str, cause: Exception | None) -> None:
        """Record and log why there is no connection. `cause`: the exception, if that was the reason."""
        self.connection = None
        self.publisher.detach()
        self.misconfigured = isinstance(cause, ConfigError)
        now = monotonic()
        if reason != self.error or now >= self._log_again_at:  # once per reason, not once per try
            if isinstance(cause, (ConfigError, RedisRefusesError)):  # the operator must act
                _log.error("redis unavailable", redis=self.address, reason=reason)
            else:
                _log.warning("redis unavailable", redis=self.address, reason=reason)
            self._log_again_at = now + LOG_AGAIN_S
        self.error = reason
        self._context.on_stale()
