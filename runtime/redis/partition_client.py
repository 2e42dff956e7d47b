"""A client for handler modules that keep something of their own beside a partition's streams, in its hash slot.

It has one connection to each server, of its own: what a handler asks of Redis waits for nothing that the worker does,
and the other way round. Connections are opened again after a loss. A call whose server is away fails at once: the
handler fails, and the worker tries it again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from hashlib import sha1
from time import monotonic
from typing import Any, Final, Self

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.cluster import Cluster
from maskline.runtime.redis.connect import CONNECT_TIMEOUT_S, MOVED_AWAY, WRONG_SERVER, RedisEndpoint
from maskline.runtime.redis.pipeline import Argument, PipelinedConnection, pack
from maskline.runtime.redis.reconnect import LOG_AGAIN_S, keep_connected
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import ConfigError, RedisRefusesError, RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings

_log = get_logger("maskline.redis")


class Script:
    """A Lua script, which runs on the server by its SHA-1."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.sha = sha1(source, usedforsecurity=False).hexdigest()

    def call(self, keys: list[str], *arguments: Argument) -> bytes:
        """The packed command that runs it."""
        return pack("EVALSHA", self.sha, len(keys), *keys, *arguments)


class _ServerConnection:
    """Keeps the connection to one server open."""

    def __init__(
        self,
        endpoint: RedisEndpoint,
        server: Server | None,
        name: str,
        scripts: Mapping[str, Script],
        tasks: BackgroundTasks,
    ) -> None:
        self._endpoint, self._server, self._name, self._scripts = endpoint, server, name, scripts
        self._tasks = tasks
        self._lost = asyncio.Event()
        self._attempted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._error = ""
        self._log_again_at = 0.0
        self.connection: PipelinedConnection | None = None

    @property
    def up(self) -> bool:
        return self.connection is not None and self.connection.connected

    def start(self) -> None:
        if self._task is None:
            self._task = self._tasks.start(
                f"{self._name} connection",
                lambda: keep_connected(self._open, self._until_lost, self._unavailable, self._attempted),
            )

    async def wait_first_attempt(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._attempted.wait()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._close()

    async def _open(self) -> None:
        self._lost.clear()
        connection = await self._endpoint.connect(self._name, self._lost.set, server=self._server)
        try:
            await self._load_scripts(connection)
        except BaseException:
            connection.close()
            raise
        self.connection, self._error = connection, ""

    async def _load_scripts(self, connection: PipelinedConnection) -> None:
        loads = [pack("SCRIPT", "LOAD", script.source) for script in self._scripts.values()]
        for reply in await connection.send(b"".join(loads), len(loads)):
            if isinstance(reply, hiredis.ReplyError):
                raise RedisUnavailableError(f"Redis refuses to load a script: {reply}")

    async def _until_lost(self) -> str:
        await self._lost.wait()
        return "the connection was lost"

    def _unavailable(self, reason: str, _error: Exception | None) -> None:
        self._close()
        now = monotonic()
        if reason != self._error or now >= self._log_again_at:
            address = self._server or self._endpoint.address
            _log.warning("module cannot reach redis", module=self._name, redis=str(address), reason=reason)
            self._log_again_at = now + LOG_AGAIN_S
        self._error = reason

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None


class PartitionClient:
    """Sends commands about partitions to the servers that have them. An async context manager.

    `name`: the module's, for logs and CLIENT LIST. `scripts`: loaded into every server that it connects to. Raises
    ConfigError for settings without MASKLINE_REDIS_URL, or with one that cannot be read.
    """

    def __init__(self, settings: Settings, name: str, scripts: Mapping[str, Script]) -> None:
        if not settings.redis_url:
            raise ConfigError("MASKLINE_REDIS_URL is not set")
        self.keys: Final = Keys(settings.namespace, settings.group)
        self.partitions: Final = settings.partitions
        self._endpoint = RedisEndpoint(settings)
        self._name = f"maskline-{name}"
        self._scripts = scripts

    async def __aenter__(self) -> Self:
        self._tasks = BackgroundTasks()
        self._cluster: Cluster[_ServerConnection] = Cluster(
            self._endpoint,
            self.keys,
            self.partitions,
            self._tasks,
            lambda server: _ServerConnection(self._endpoint, server, self._name, self._scripts, self._tasks),
        )
        await self._cluster.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._cluster.stop()
        await self._tasks.stop()

    async def send(self, partition: int, packed: bytes, count: int = 1) -> list[Any]:
        """Send packed commands about a partition; the replies, in order.

        Raises RedisUnavailableError where the server is away or does not answer in time: then nobody knows whether the
        commands were carried out. Raises RedisRefusesError where it answers one with an error, as out of memory.
        """
        server = self._cluster.of_partition(partition)
        connection = None if server is None else server.connection
        if server is None or connection is None:
            self._cluster.request_refresh()
            raise RedisUnavailableError("not connected to Redis")
        replies = await connection.send(packed, count)
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                self._handle_error(connection, str(reply))
                raise RedisRefusesError(f"Redis refuses: {reply}")
        return replies

    def every(
        self, name: str, interval_s: float, work: Callable[[], Coroutine[Any, Any, object]]
    ) -> asyncio.Task[None]:
        """Await `work()` again and again, `interval_s` after the end of the one before, until the client is closed.

        An error is logged and counted as that of any background task.
        """

        async def repeat() -> None:
            while True:
                await asyncio.sleep(interval_s)
                await work()

        return self._tasks.start(name, repeat)

    def _handle_error(self, connection: PipelinedConnection, reply: str) -> None:
        if reply.startswith(MOVED_AWAY):
            self._cluster.request_refresh()
        elif reply.startswith(("NOSCRIPT", *WRONG_SERVER)):
            connection.close()  # the next one loads the scripts again, or leads to another server
