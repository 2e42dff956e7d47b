"""The worker's two connections: one for reads, which block, and one for everything else.

They live and die together: when one is lost, both are opened anew, with backoff. What was under way fails with
RedisUnavailableError, and whoever sent it decides what to do when `ready` returns again.
"""

import asyncio
import random

from redis.exceptions import ResponseError

from runtime.link import Link
from runtime.logs import get_logger
from runtime.store import Store, check_layout, reconnect_delay_s
from schemas.errors import MasklineError, RedisUnavailableError
from schemas.settings import Settings
from worker.scripts import load_scripts

_log = get_logger("maskline.worker")


class Connection:
    """Keeps the connections open. `start` fails only for what a restart cannot mend: wrong settings."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._store = Store(settings)
        self._name = name
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.commands: Link | None = None
        self.reads: Link | None = None
        self.reads_id = 0
        """The client ID of the reading connection, to end a blocking read early."""
        self.trouble = "not connected yet"
        """Why there is no connection; empty while there is one."""

    @property
    def address(self) -> str:
        return self._store.address

    @property
    def up(self) -> bool:
        return self._up.is_set()

    async def start(self) -> None:
        """Try once, and from then on in the background. Raises ConfigError where the settings are wrong."""
        try:
            await self._open()
        except (RedisUnavailableError, ResponseError) as error:
            self._note(str(error))
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._close()

    async def ready(self) -> tuple[Link, Link]:
        """Wait for the connections: for commands, for reads."""
        while True:
            await self._up.wait()
            if self.commands is not None and self.reads is not None:
                return self.commands, self.reads

    async def _keep(self) -> None:
        failures = 0
        while True:
            if self._up.is_set():
                failures = 0
                await self._lost.wait()
                self._close()
                self._note("the connection was lost")
            try:
                await self._open()
            except (MasklineError, ResponseError) as error:
                self._note(str(error))
                # Random to spread the load; it guards nothing.
                await asyncio.sleep(reconnect_delay_s(failures, random.random()))  # noqa: S311
                failures += 1

    async def _open(self) -> None:
        self._lost.clear()
        try:
            self.commands = await self._store.connect(f"{self._name}", self._lost.set)
            self.reads = await self._store.connect(f"{self._name}:reads", self._lost.set)
            await check_layout(self.commands, self._settings)
            await load_scripts(self.commands)
            self.reads_id = int(await self.reads.execute("CLIENT", "ID"))
        except BaseException:
            self._close()
            raise
        if self.trouble:
            _log.info("connected to Redis", address=self.address)
        self.trouble = ""
        self._up.set()

    def _close(self) -> None:
        self._up.clear()
        for link in (self.commands, self.reads):
            if link is not None:
                link.close()
        self.commands = self.reads = None

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble:
            _log.warning("no connection to Redis, trying again", reason=trouble)
        self.trouble = trouble
