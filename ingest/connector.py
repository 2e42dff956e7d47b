"""Keeps the publisher connected: opens the link, agrees on the layout, opens the next one when it is lost."""

import asyncio
import random
from typing import Final

from ingest.durability import check_durability
from ingest.metrics import Metrics
from ingest.publisher import Publisher
from runtime.layout import check_layout
from runtime.link import Link
from runtime.logs import get_logger
from runtime.store import Store, reconnect_delay_s
from schemas.errors import ConfigError, RedisUnavailableError
from schemas.settings import Settings

START_TIMEOUT_S: Final = 2.0
"""How long the start waits for the first connection before the node listens without it."""

_log = get_logger("maskline.ingest")


class Connector:
    """Owns the link of a publisher."""

    def __init__(self, settings: Settings, publisher: Publisher, metrics: Metrics, *, name: str) -> None:
        self._settings = settings
        self._store = Store(settings)
        self._publisher = publisher
        self._metrics = metrics
        self._name = name
        self._link: Link | None = None
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.trouble = "not connected yet"
        """Why there is no connection to Redis, empty while there is."""
        self.misconfigured = False
        """The settings contradict what is in Redis: no waiting mends that."""

    @property
    def address(self) -> str:
        return self._store.address

    async def start(self) -> None:
        """Connect, or go on trying in the background where Redis is away.

        Raises ConfigError where waiting cannot help: refused credentials, another number of partitions, a
        durability that the server does not know.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._connect()
        except (RedisUnavailableError, TimeoutError) as error:
            self._away(str(error) or f"no answer within {START_TIMEOUT_S:g} s")
        self._task = asyncio.create_task(self._keep_connected())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._link is not None:
            self._link.close()

    async def _connect(self) -> None:
        self._lost.clear()
        link = await self._store.connect(self._name, self._lost.set)
        try:
            await check_layout(link, self._settings)
            await check_durability(link, self._settings)
        except BaseException:
            link.close()
            raise
        if self._lost.is_set():
            raise RedisUnavailableError("the connection to Redis was lost at once")
        self._link = link
        self.trouble = ""
        self.misconfigured = False
        self._publisher.attach(link)
        self._metrics.connects += 1
        _log.info("connected to Redis", redis=self.address)

    async def _keep_connected(self) -> None:
        attempt = 0
        while True:
            if self._publisher.attached:
                attempt = 0
                await self._lost.wait()
                self._away("the connection to Redis was lost")
            await asyncio.sleep(reconnect_delay_s(attempt, random.random()))  # noqa: S311 - spreads load, guards nothing
            attempt += 1
            try:
                await self._connect()
            except (RedisUnavailableError, ConfigError) as error:
                self._away(str(error), misconfigured=isinstance(error, ConfigError))

    def _away(self, trouble: str, *, misconfigured: bool = False) -> None:
        self._publisher.detach()
        self.misconfigured = misconfigured
        if trouble != self.trouble:  # once per reason, not once per try
            _log.warning("callbacks cannot go to Redis", redis=self.address, reason=trouble)
        self.trouble = trouble
