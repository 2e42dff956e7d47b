"""The worker's three connections to a server: for reads, which block; for leases; and for everything else.

Leases have one of their own, so that no reply of megabytes is in the way of their renewal. All of them live and die
together: when one is lost, they are opened anew, with backoff. What was under way fails with
RedisUnavailableError, and whoever sent it decides what to do when `ready` returns again. One server needs one of these,
a cluster one for each primary (`runtime.redis.cluster`).
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

from redis.exceptions import ResponseError

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.connect import (
    CONNECT_TIMEOUT_S,
    MOVED_AWAY,
    WRONG_SERVER,
    RedisEndpoint,
    reconnect_delay_s,
)
from maskline.runtime.redis.namespace import NamespaceCheck
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.runtime.redis.server_monitor import ServerMonitor
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import ConfigError, MasklineError, RedisRefusesError
from maskline.worker.commands.scripts import load_scripts

SAY_AGAIN_S: Final = 60.0
"""Between log lines about one and the same reason: who looks into the log of an hour's outage finds it."""

_log = get_logger("maskline.worker")


class ServerConnections:
    """Keeps the connections to one server open.

    `server`: the cluster's node, None for the only server there is. `on_trouble`: called when the connection is lost or
    cannot be opened, and when the server says that a key is somewhere else. `on_open`: a connection is there again.
    """

    def __init__(
        self, store: RedisEndpoint, server: Server | None, gate: NamespaceCheck, inspection: ServerMonitor, tasks:
        BackgroundTasks, name: str, on_trouble: Callable[[], None] = lambda: None,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._store = store
        self._server = server
        self._gate = gate
        self._inspection = inspection
        self._tasks = tasks
        self._name = name
        self._on_trouble = on_trouble
        self._on_open = on_open
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._tried = asyncio.Event()
        self._say_again_at = 0.0
        self._wrong: ConfigError | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.commands: PipelinedConnection | None = None
        self.reads: PipelinedConnection | None = None
        self.leases: PipelinedConnection | None = None
        """For whatever is said about leases and who lives, in this order."""
        self.reads_id = 0
        """The client ID of the reading connection, to end a blocking read early."""
        self.incarnation = object()
        """Another one for every connection that is opened. The server behind it may have lost what was seen before."""
        self.trouble = "not connected yet"
        """Why there is no connection; empty while there is one."""

    @property
    def address(self) -> str:
        return str(self._server) if self._server is not None else self._store.address

    @property
    def connected_to(self) -> str:
        """Which of the name's addresses the connections lead to, as ip:port; empty while there are none."""
        return "" if self.commands is None or self.commands.route is None else self.commands.route.address

    @property
    def up(self) -> bool:
        return self._up.is_set()

    def start(self) -> None:
        """Connect, and stay connected, in the background."""
        if self._keeper is None:
            self._keeper = self._tasks.start("connection to Redis", self._keep)

    async def tried(self) -> None:
        """Wait for the first try, CONNECT_TIMEOUT_S at most.

        Raises ConfigError where the settings contradict the layout in Redis; even then it goes on trying until `stop`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._tried.wait()
        if self._wrong is not None:
            raise self._wrong

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._close()

    async def ready(self) -> tuple[PipelinedConnection, PipelinedConnection]:
        """Wait for the connections, and return those for commands and for reads."""
        while True:
            await self._up.wait()
            if self.commands is not None and self.reads is not None:
                return self.commands, self.reads

    def refused(self, reply: str) -> None:
        """The server has replied with an error. Some say that it is the wrong one, or has forgotten our scripts."""
        if reply.startswith(MOVED_AWAY):
            self._on_trouble()
        elif self.commands is not None and reply.startswith(("NOSCRIPT", *WRONG_SERVER)):
            # SCRIPT FLUSH, or a failover: the next connection loads the scripts again.
            self.commands.close()

    async def _keep(self) -> None:
        failures = 0
        while True:
            try:
                await self._open()
                self._wrong = None
            except (MasklineError, ResponseError) as error:
                self._wrong = error if isinstance(error, ConfigError) else None
                if self._wrong is None or self._tried.is_set():  # else the start ends, with this line alone
                    self._note(str(error), error)
            except Exception as error:
                self._close()
                self._note(f"a fault in maskline: {type(error).__name__}")
                raise
            finally:
                self._tried.set()
            if self._up.is_set():
                failures = 0
                await self._lost.wait()
                self._close()
                self._note("the connection was lost")
            # Random to spread the load; it guards nothing.
            await asyncio.sleep(reconnect_delay_s(failures, random.random()))  # noqa: S311
            failures += 1

    async def _open(self) -> None:
        self._lost.clear()
        try:
            self.commands = await self._store.connect(self._name, self._lost.set, server=self._server)
            reads = await self._open_others(self.commands)
            await self._gate.pass_(self.commands, self._server)
            await self._inspection.accept(self.commands, self.address)
            await load_scripts(self.commands)
            self.reads_id = int(await reads.execute("CLIENT", "ID"))
        except BaseException:
            self._close()
            raise
        if self.trouble:
            _log.info("connected to Redis", redis=self.address, address=self.connected_to)
        self.trouble = ""
        self.incarnation = object()
        self._up.set()
        self._on_open()

    async def _open_others(self, commands: PipelinedConnection) -> PipelinedConnection:
        """For reads, which is returned, and for leases. Both at a time: through a slow link each round trip counts."""
        others = await asyncio.gather(
            *(
                self._store.connect(f"{self._name}:{use}", self._lost.set, beside=commands)
                for use in ("reads", "leases")
            ),
            return_exceptions=True,
        )
        # Each where the other may have failed: all of them are closed together.
        self.reads, self.leases = (
            other if isinstance(other, PipelinedConnection) else None for other in others
        )
        for other in others:
            if isinstance(other, BaseException):
                raise other
        return cast("PipelinedConnection", self.reads)

    def _close(self) -> None:
        self._up.clear()
        for link in (self.commands, self.reads, self.leases):
            if link is not None:
                link.close()
        self.commands = self.reads = self.leases = None

    def _note(self, trouble: str, error: Exception | None = None) -> None:
        now = monotonic()
        if trouble != self.trouble or now >= self._say_again_at:
            log = _log.error if isinstance(error, (ConfigError, RedisRefusesError)) else _log.warning
            log("no connection to Redis, trying again", redis=self.address, reason=trouble)
            self._say_again_at = now + SAY_AGAIN_S
        self.trouble = trouble
        self._on_trouble()
