"""The delivery side of an ingest node without HTTP: router, publishers, spool and drainer against a real server.

Spool notices only on request: they are commands more, which most tests do not expect.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from zlib import crc32

from maskline.ingest.delivery.drainer import Drainer
from maskline.ingest.delivery.rate_limiter import RateLimiter
from maskline.ingest.delivery.router import DeliveryRouter
from maskline.ingest.delivery.spool_notices import SpoolNotices
from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import InFlight, NotStoredError
from maskline.ingest.publish.connection import PublisherConnection
from maskline.ingest.publish.pool import PublisherPool
from maskline.ingest.publish.publisher import Publisher
from maskline.ingest.spool.spool import Spool
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings

FINISH_S = 5.0


class Delivery:
    """Router, publishers, spool and drainer, wired as in a node."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.in_flight = InFlight()
        self.tasks = BackgroundTasks()
        self.pool = PublisherPool(settings, self.metrics, self.in_flight, self.tasks, name="test")
        self.spool = Spool(settings, self.metrics, self.in_flight, self.tasks)
        self.rate_limiter = RateLimiter(settings.spool_drain_per_s)
        self.drainer = Drainer(settings, self.spool, self.pool, self.tasks, self.rate_limiter)
        self.router = DeliveryRouter(settings, self.in_flight, self.pool, self.spool, self.rate_limiter)

    @property
    def connection(self) -> PublisherConnection:
        (connection,) = self.pool.connections
        return connection

    @property
    def publisher(self) -> Publisher:
        return self.connection.publisher

    async def store(self, session: str, value: bytes) -> str:
        """Store a callback. Returns the code of the failure, empty where it was stored."""
        try:
            await self.router.store(crc32(session.encode()), value)
        except NotStoredError as error:
            return error.code
        return ""

    async def store_all(self, session: str, values: list[bytes]) -> set[str]:
        return set(await asyncio.gather(*(self.store(session, value) for value in values)))


@contextlib.asynccontextmanager
async def delivering(
    settings: Settings, *, draining: bool = True, notices: bool = False
) -> AsyncIterator[Delivery]:
    it = Delivery(settings)
    spoken = SpoolNotices(settings, it.spool, it.pool, it.tasks) if notices else None
    await it.spool.start()
    try:
        await it.pool.start()
        if spoken is not None:
            spoken.start()
        if draining:
            it.drainer.start()
        yield it
    finally:
        await it.drainer.finish(FINISH_S)
        if spoken is not None:
            await spoken.stop()
        await it.pool.stop()
        await it.spool.stop()
        await it.tasks.stop()


def stream(client: Any, settings: Settings, partition: int) -> list[bytes]:
    return [fields[b"c"] for _, fields in client.xrange(Keys(settings.namespace).callbacks(partition))]


def streams(client: Any, settings: Settings) -> list[bytes]:
    return [
        value for partition in range(settings.partitions) for value in stream(client, settings, partition)
    ]
