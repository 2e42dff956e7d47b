"""Keeps a publisher connected to its server: opens the link, agrees on the layout, looks the server over.

When the link is lost it opens the next one.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from time import monotonic
from typing import Final

from maskline.ingest.metrics import Metrics
from maskline.ingest.publish.durability import RECHECK_S, check_durability
from maskline.ingest.publish.publisher import Publisher
from maskline.runtime.logs import get_logger
from maskline.runtime.redis.connect import RedisEndpoint, reconnect_delay_s
from maskline.runtime.redis.namespace import NamespaceCheck
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.runtime.redis.server_monitor import ServerMonitor
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import ConfigError, RedisRefusesError, RedisUnavailableError
from maskline.schemas.settings import Settings

START_TIMEOUT_S: Final = 2.0
"""How long the start waits for the first connection before the node listens without it."""

SAY_AGAIN_S: Final = 60.0
"""Between log lines about one and the same reason: who looks into the log of an hour's outage finds it."""

_log = get_logger("maskline.ingest")


class PublisherConnection:
    """Owns a publisher and its link.

    `server`: the cluster's node, None for the only server there is. `on_trouble`: called when the connection is lost or
    cannot be opened, and when the server says that a key is somewhere else.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: RedisEndpoint,
        server: Server | None,
        namespace_check: NamespaceCheck,
        monitor: ServerMonitor,
        publisher: Publisher,
        metrics: Metrics,
        tasks: BackgroundTasks,
        *,
        name: str,
        on_trouble: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._server = server
        self._namespace_check = namespace_check
        self._monitor = monitor
        self._metrics = metrics
        self._tasks = tasks
        self._name = name
        self._on_trouble = on_trouble
        self._lost = asyncio.Event()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._say_again_at = 0.0
        self.publisher = publisher
        publisher.on_moved = on_trouble
        publisher.on_slow = self._say_slow
        self.redis: PipelinedConnection | None = None
        """None while there is none."""
        self.error = "not connected yet"
        """Why there is no connection, empty while there is."""
        self.durability_doubt = ""
        """What keeps the server from the durability asked for, or may; empty where nothing does."""
        self._honest: set[tuple[bytes, bytes]] = set()
        self.misconfigured = False
        """The settings contradict the layout in Redis: no waiting mends that."""

    @property
    def address(self) -> str:
        return str(self._server) if self._server is not None else self._endpoint.address

    @property
    def connected_to(self) -> str:
        """Which of the name's addresses the connection leads to, as ip:port; empty while there is none."""
        return "" if self.redis is None else self.redis.address

    @property
    def up(self) -> bool:
        return self.publisher.connected

    def start(self) -> None:
        """Connect, and stay connected, in the background."""
        if self._task is None:
            self._task = self._tasks.start("connection to Redis", self._keep_connected)

    async def wait_first_attempt(self) -> None:
        """Wait for the first try, START_TIMEOUT_S at most.

        Raises ConfigError where the settings contradict the layout in Redis; even then it goes on trying until `stop`.
        Whatever else Redis says (that it refuses the log-in, would evict, cannot do the durability), callbacks are
        spooled until it says something else.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._tried.wait()
        except TimeoutError:
            self._on_unavailable(f"no answer within {START_TIMEOUT_S:g} s")
        if self.misconfigured:
            raise ConfigError(self.error)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.redis is not None:
            self.redis.close()
            self.publisher.detach()

    async def _connect(self) -> None:
        if self.redis is not None:  # after a fault of ours
            self.redis.close()
        self._lost.clear()
        redis = await self._endpoint.connect(self._name, self._lost.set, server=self._server)
        try:
            await self._namespace_check.check(redis, self._server)
            await self._monitor.require_safe(redis, self.address)
            await self._check_durability(redis)
            self.publisher.attach(redis)
        except BaseException:
            redis.close()
            raise
        if self._lost.is_set():
            raise RedisUnavailableError("the connection to Redis was lost at once")
        self.redis = redis
        self.error = ""
        self.misconfigured = False
        self._metrics.connects += 1
        # After a timeout a connection alone proves nothing: the next page of the spool does.
        proven = {} if self.publisher.ready else {"not_proven_after": self.publisher.breaker.reason}
        _log.info("connected to redis", redis=self.address, address=self.connected_to, **proven)

    async def _keep_connected(self) -> None:
        attempt = 0
        while True:
            try:
                await self._connect()
            except (RedisUnavailableError, ConfigError) as error:
                self._on_unavailable(str(error), error)
            except Exception as error:
                self._on_unavailable(f"a fault in maskline: {type(error).__name__}")
                raise
            finally:
                self._tried.set()
            if self.publisher.connected:
                attempt = 0
                await self._until_lost()
                self._on_unavailable((self.redis and self.redis.loss) or "the connection to Redis was lost")
            await asyncio.sleep(reconnect_delay_s(attempt, random.random()))  # noqa: S311 - spreads load, guards nothing
            attempt += 1

    async def _until_lost(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await self._lost.wait()
                return
            if self.redis is not None:
                try:
                    await self._check_durability(self.redis)
                except RedisRefusesError:
                    self.redis.close()  # the next connection says why it is not used
                except RedisUnavailableError:
                    continue

    async def _check_durability(self, redis: PipelinedConnection) -> None:
        durability_doubt = await check_durability(redis, self._settings, self._honest)
        if durability_doubt and durability_doubt != self.durability_doubt:
            _log.warning(
                "redis durability doubtful", redis=self.address,
                durability=self._settings.durability, reason=durability_doubt,
            )  # fmt: skip
        self.durability_doubt = durability_doubt

    @property
    def slowness(self) -> str:
        """How slow the server is; empty while it is not."""
        publisher = self.publisher
        if not publisher.slow:
            return ""
        return (
            f"Redis is slow: it answers after {publisher.reply_s * 1000:.0f} ms, and requests wait "
            f"{publisher.in_time_s * 1000:.0f} ms; callbacks reach it through the spool"
        )

    def _say_slow(self) -> None:
        if self.publisher.slow:
            _log.warning("redis slow", redis=self.address, reason=self.slowness)
        elif self.publisher.ready:
            _log.info("redis latency recovered", redis=self.address)

    def _on_unavailable(self, reason: str, cause: Exception | None = None) -> None:
        self.redis = None
        self.publisher.detach()
        self.misconfigured = isinstance(cause, ConfigError)
        now = monotonic()
        if reason != self.error or now >= self._say_again_at:  # once per reason, not once per try
            if isinstance(cause, (ConfigError, RedisRefusesError)):
                _log.error("redis unavailable", redis=self.address, reason=reason)
            else:
                _log.warning("redis unavailable", redis=self.address, reason=reason)
            self._say_again_at = now + SAY_AGAIN_S
        self.error = reason
        self._on_trouble()
