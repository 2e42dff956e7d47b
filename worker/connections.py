"""The worker's connections to Redis: three to each server, one server or one for each primary of a cluster.

The three are for reads, which block; for leases; and for everything else. Leases have one of their own, so that no
reply of megabytes delays their renewal. All three live and die together: when one is lost, they are all opened anew,
with backoff. Commands under way then fail with RedisUnavailableError, and their sender decides what to do once `ready`
returns again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Final, cast

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.cluster import Cluster
from maskline.runtime.redis.connect import (
    CONNECT_TIMEOUT_S,
    MOVED_AWAY,
    WRONG_SERVER,
    RedisEndpoint,
)
from maskline.runtime.redis.namespace import NamespaceCheck
from maskline.runtime.redis.pipeline import REPLY_TIMEOUT_S, PipelinedConnection
from maskline.runtime.redis.reconnect import LOG_AGAIN_S, keep_connected
from maskline.runtime.redis.server_monitor import ServerMonitor
from maskline.runtime.redis.tracking import track_reads
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import ConfigError, RedisRefusesError
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.commands.scripts import load_scripts

RETRY_DELAY_S: Final = 0.1
"""Between two tries of a command that a server refused, or did not answer because its connection was lost."""

READY_CHECK_S: Final = 0.05
"""How often a task that waits for a server checks whether it is back."""

_log = get_logger("maskline.worker")


class ServerConnections:
    """Keeps the three connections to one server open.

    `server`: the cluster's node, None for the only server there is. `on_error`: called when the connections are lost or
    cannot be opened, and when the server says that a key has moved. `on_open`: the connections were opened.
    """

    def __init__(
        self,
        endpoint: RedisEndpoint,
        server: Server | None,
        *,
        name: str,
        namespace_check: NamespaceCheck,
        monitor: ServerMonitor,
        tasks: BackgroundTasks,
        on_error: Callable[[], None] = lambda: None,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint = endpoint
        self._server = server
        self._name = name
        self._namespace_check = namespace_check
        self._monitor = monitor
        self._tasks = tasks
        self._on_error = on_error
        self._on_open = on_open
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._attempted = asyncio.Event()
        self._log_again_at = 0.0
        self._config_error: ConfigError | None = None
        self._task: asyncio.Task[None] | None = None
        self.commands: PipelinedConnection | None = None
        self.reads: PipelinedConnection | None = None
        self.leases: PipelinedConnection | None = None
        """For leases and heartbeats, in the order in which they are sent."""
        self.reads_client_id = 0
        """The client ID of the reading connection, to end a blocking read early."""
        self.notifies = False
        """The reading connection is told when a stream changes that it has read (`runtime.redis.tracking`)."""
        self._notify_refusal = ""
        self.incarnation = object()
        """A new object each time the connections are opened: the server may have lost what was seen before."""
        self.opened_ms: int | None = None
        """When the connections were opened, by the server's clock, ms; None if it does not tell its time."""
        self.lost_ms: int | None = None
        """When the last ones stopped working at the earliest, by the server's clock; None if these are the first."""
        self._lost_at: float | None = None
        self.error = "not connected yet"
        """Why there is no connection; empty while there is one."""

    @property
    def address(self) -> str:
        """The server's address, without credentials."""
        return str(self._server) if self._server is not None else self._endpoint.address

    @property
    def connected_to(self) -> str:
        """Which of the name's addresses the connections lead to, as ip:port; empty while there are none."""
        return "" if self.commands is None else self.commands.address

    @property
    def up(self) -> bool:
        """The three connections are open."""
        return self._up.is_set()

    def start(self) -> None:
        """Connect, and stay connected, in the background."""
        if self._task is None:
            self._task = self._tasks.start(
                "connection to Redis",
                lambda: keep_connected(self._open, self._wait_until_lost, self._unavailable, self._attempted),
            )

    async def wait_first_attempt(self) -> None:
        """Wait for the first try, CONNECT_TIMEOUT_S at most.

        Raises ConfigError where the settings contradict what Redis holds. Even then it goes on trying until `stop`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._attempted.wait()
        if self._config_error is not None:
            raise self._config_error

    async def stop(self) -> None:
        """Close the connections for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._close()

    async def ready(self) -> tuple[PipelinedConnection, PipelinedConnection]:
        """Wait for the connections, and return those for commands and for reads."""
        while True:
            await self._up.wait()
            if self.commands is not None and self.reads is not None:
                return self.commands, self.reads

    def handle_error_reply(self, reply: str) -> None:
        """Act on an error that the server replied: it may be the wrong server, or have forgotten our scripts."""
        if reply.startswith(MOVED_AWAY):
            self._on_error()
        elif self.commands is not None and reply.startswith(("NOSCRIPT", *WRONG_SERVER)):
            # SCRIPT FLUSH, or a failover: the next connection loads the scripts again.
            self.commands.close()

    async def _wait_until_lost(self) -> str:
        await self._lost.wait()
        return "the connection was lost"

    async def _open(self) -> None:
        self._lost.clear()
        try:
            self.commands = await self._endpoint.connect(self._name, self._lost.set, server=self._server)
            reads = await self._open_others(self.commands)
            await self._namespace_check.check(self.commands, self._server)
            await self._monitor.require_supported(self.commands, self.address)
            await load_scripts(self.commands)
            self.reads_client_id = int(await reads.execute("CLIENT", "ID"))
            if self._endpoint.is_cluster:  # one server lets a read of all its partitions wait instead
                await self._ask_for_notifications(reads)
            await self._ask_time(reads)
        except BaseException:
            self._close()
            raise
        if self.error:
            _log.info("connected to redis", redis=self.address, address=self.connected_to)
        self.error = ""
        self._config_error = None
        self.incarnation = object()
        self._up.set()
        self._on_open()

    async def _open_others(self, commands: PipelinedConnection) -> PipelinedConnection:
        """Open the connections for reads, which is returned, and for leases.

        Both are opened at the same time: through a slow network each round trip counts.
        """
        others = await asyncio.gather(
            *(
                self._endpoint.connect(f"{self._name}:{use}", self._lost.set, beside=commands)
                for use in ("reads", "leases")
            ),
            return_exceptions=True,
        )
        # Both are kept even if one failed: `_close` closes each that was opened.
        self.reads, self.leases = (
            other if isinstance(other, PipelinedConnection) else None for other in others
        )
        for other in others:
            if isinstance(other, BaseException):
                raise other
        return cast("PipelinedConnection", self.reads)

    async def _ask_for_notifications(self, reads: PipelinedConnection) -> None:
        refusal = await track_reads(reads)
        self.notifies = not refusal
        if refusal and refusal != self._notify_refusal:
            _log.warning("stream notifications refused", redis=self.address, reply=refusal)
        self._notify_refusal = refusal

    async def _ask_time(self, connection: PipelinedConnection) -> None:
        """Note when the connections were opened, and when the last ones were lost."""
        self.opened_ms = self.lost_ms = None
        with contextlib.suppress(hiredis.ReplyError):  # this user may not ask
            seconds, microseconds = await connection.execute("TIME")
            self.opened_ms = int(seconds) * 1000 + int(microseconds) // 1000
            if self._lost_at is not None:
                # It may have been silent for so long before that was noticed.
                away_s = monotonic() - self._lost_at + REPLY_TIMEOUT_S
                self.lost_ms = self.opened_ms - round(away_s * 1000)

    def _close(self) -> None:
        if self.up:
            self._lost_at = monotonic()
        self._up.clear()
        for connection in (self.commands, self.reads, self.leases):
            if connection is not None:
                connection.close()
        self.commands = self.reads = self.leases = None

    def _unavailable(self, reason: str, error: Exception | None) -> None:
        """Note why there is no connection. `error`: what opening it raised, if that was the reason."""
        self._close()
        self._config_error = error if isinstance(error, ConfigError) else None
        if self._config_error is not None and not self._attempted.is_set():
            return  # the start ends with this error, and reports it
        now = monotonic()
        if reason != self.error or now >= self._log_again_at:
            if isinstance(error, (ConfigError, RedisRefusesError)):
                _log.error("redis unavailable", redis=self.address, reason=reason)
            else:
                _log.warning("redis unavailable", redis=self.address, reason=reason)
            self._log_again_at = now + LOG_AGAIN_S
        self.error = reason
        self._on_error()


class WorkerConnections:
    """The connections to all servers, and which of them serves a partition.

    `on_change`: the cluster's partitions are spread otherwise than before. `on_open`: connections were opened.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        tasks: BackgroundTasks,
        *,
        name: str,
        on_change: Callable[[], None] = lambda: None,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        endpoint = RedisEndpoint(settings)
        namespace_check = NamespaceCheck(settings, self._server_of_key)
        self._keys = keys
        self.monitor = ServerMonitor(tasks)
        self.is_cluster = endpoint.is_cluster
        self.address = endpoint.address

        def make(server: Server | None) -> ServerConnections:
            return ServerConnections(
                endpoint,
                server,
                name=name,
                namespace_check=namespace_check,
                monitor=self.monitor,
                tasks=tasks,
                on_error=self._refresh_map,
                on_open=on_open,
            )

        self._cluster: Cluster[ServerConnections] = Cluster(
            endpoint, keys, settings.partitions, tasks, make, on_change
        )

    async def start(self) -> None:
        """Connect to all servers, and stay connected in the background.

        Raises ConfigError where the settings are wrong. Call `stop` even then.
        """
        self.monitor.start(self._connected)
        await self._cluster.start()

    async def stop(self) -> None:
        """Close all connections for good."""
        await self.monitor.stop()
        await self._cluster.stop()

    def __iter__(self) -> Iterator[ServerConnections]:
        return iter(self._cluster)

    def of_partition(self, number: int) -> ServerConnections | None:
        """The server that has the partition; None while it is not known which."""
        return self._cluster.of_partition(number)

    @property
    def placement(self) -> Sequence[ServerConnections | None]:
        """What `of_partition` returns for each partition, by number; another object whenever any of it has changed."""
        return self._cluster.placement

    def commands(self, number: int) -> PipelinedConnection | None:
        """For commands about the partition; None while its server is away."""
        server = self._cluster.of_partition(number)
        connection = None if server is None else server.commands
        return connection if connection is not None and connection.connected else None

    def leases(self, number: int) -> PipelinedConnection | None:
        """For commands about the partition's lease; None while its server is away."""
        server = self._cluster.of_partition(number)
        connection = None if server is None else server.leases
        return connection if connection is not None and connection.connected else None

    def verified_commands(self, number: int, verified_at: object) -> PipelinedConnection | None:
        """For commits of the partition; None while its server is away, or may lack what was seen of the partition.

        `verified_at`: the incarnation of the connections whose server was found to have all of it, None for none.
        """
        server = self._cluster.of_partition(number)
        if server is None or verified_at is not server.incarnation:
            return None
        connection = server.commands
        return connection if connection is not None and connection.connected else None

    @property
    def heartbeat_server(self) -> ServerConnections | None:
        """The server that has the workers' heartbeats; None while it is not known which."""
        return self.of_key(self._keys.workers)

    def of_key(self, key: str) -> ServerConnections | None:
        """The server that has a key of no partition; None while it is not known which."""
        return self._cluster.of_key(key)

    async def commands_ready(self, number: int) -> PipelinedConnection:
        """Wait for the partition's server, and return the connection for commands about the partition."""
        while (connection := self.commands(number)) is None:  # noqa: ASYNC110 - see below
            await asyncio.sleep(READY_CHECK_S)  # rather than an event for each way in which it may change
        return connection

    async def leases_ready(self, number: int) -> PipelinedConnection:
        """Wait for the partition's server, and return the connection for commands about the partition's lease."""
        while (connection := self.leases(number)) is None:  # noqa: ASYNC110 - as above
            await asyncio.sleep(READY_CHECK_S)
        return connection

    def handle_error_reply(self, number: int, reply: str) -> None:
        """Act on an error that a partition's server replied (`ServerConnections.handle_error_reply`)."""
        if (server := self._cluster.of_partition(number)) is not None:
            server.handle_error_reply(reply)

    @property
    def error(self) -> str:
        """What is wrong, in a line; empty if nothing is."""
        errors = [self._cluster.error]
        errors += [f"{c.address}: {c.error}" if self.is_cluster else c.error for c in self._cluster]
        return "; ".join(filter(None, errors))

    @property
    def connected_to(self) -> list[str]:
        """The addresses of the connected servers, as ip:port."""
        return [server.connected_to for server in self._cluster if server.up]

    @property
    def up(self) -> bool:
        """Every server can be used."""
        return not self._cluster.error and all(server.up for server in self._cluster)

    def _connected(self) -> Iterator[tuple[str, PipelinedConnection | None]]:
        return ((server.address, server.commands if server.up else None) for server in self._cluster)

    def _refresh_map(self) -> None:
        self._cluster.request_refresh()

    def _server_of_key(self, key: str) -> Server | None:
        return self._cluster.server_of(key)
