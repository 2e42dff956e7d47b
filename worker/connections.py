"""The worker's connections to all servers: one pair, or with a cluster one pair for each primary."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from maskline.runtime.redis.cluster import Shards
from maskline.runtime.redis.connect import Store
from maskline.runtime.redis.namespace import LayoutGate
from maskline.runtime.redis.pipeline import Link
from maskline.runtime.redis.server_monitor import Inspection
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.connection import Connection
from maskline.worker.partitions.partition import Partition

READY_CHECK_S: Final = 0.05
"""How soon it is noticed that a server is back, by those who wait for it."""


class Connections:
    """`on_change`: the cluster's partitions are spread otherwise than before. `on_open`: a connection was opened."""

    def __init__(
        self, settings: Settings, keys: Keys, tasks: BackgroundTasks, name: str,
        on_change: Callable[[], None] = lambda: None, on_open: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        store = Store(settings)
        gate = LayoutGate(settings, self._keeper_of)
        self._keys = keys
        self.inspection = Inspection(tasks)
        self.is_cluster = store.is_cluster
        self.address = store.address

        def make(server: Server | None) -> Connection:
            return Connection(store, server, gate, self.inspection, tasks, name, self._troubled, on_open)

        self._shards: Shards[Connection] = Shards(store, keys, settings.partitions, tasks, make, on_change)

    async def start(self) -> None:
        """Raises ConfigError where the settings are wrong. Call `stop` also then."""
        self.inspection.start(self._links)
        await self._shards.start()

    async def stop(self) -> None:
        await self.inspection.stop()
        await self._shards.stop()

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._shards)

    def of(self, partition: int) -> Connection | None:
        """The server that has the partition; None while nobody knows."""
        return self._shards.of_partition(partition)

    def link(self, partition: int) -> Link | None:
        """For commands about the partition; None while its server is away."""
        connection = self._shards.of_partition(partition)
        link = None if connection is None else connection.commands
        return link if link is not None and link.connected else None

    def lease_link(self, partition: int) -> Link | None:
        """For commands about the partition's lease; None while its server is away."""
        connection = self._shards.of_partition(partition)
        link = None if connection is None else connection.leases
        return link if link is not None and link.connected else None

    def verified_link(self, partition: Partition) -> Link | None:
        """For commits of the partition; None while its server is away, or may lack what was seen of it."""
        connection = self._shards.of_partition(partition.number)
        if connection is None or partition.verified_at is not connection.incarnation:
            return None
        link = connection.commands
        return link if link is not None and link.connected else None

    @property
    def home(self) -> Connection | None:
        """The server that knows the live workers; None while nobody knows which that is."""
        return self._shards.of_key(self._keys.workers)

    async def ready(self, partition: int) -> Link:
        """Wait for the partition's server, and for commands about it."""
        while (link := self.link(partition)) is None:  # noqa: ASYNC110 - see below
            await asyncio.sleep(READY_CHECK_S)  # rather than an event for each way in which it may change
        return link

    async def lease_ready(self, partition: int) -> Link:
        """Wait for the partition's server, and for commands about its lease."""
        while (link := self.lease_link(partition)) is None:  # noqa: ASYNC110 - as above
            await asyncio.sleep(READY_CHECK_S)
        return link

    @property
    def trouble(self) -> str:
        """What is wrong, in a line; empty if nothing is."""
        troubles = [self._shards.trouble]
        troubles += [f"{c.address}: {c.trouble}" if self.is_cluster else c.trouble for c in self._shards]
        return "; ".join(filter(None, troubles))

    @property
    def connected_to(self) -> list[str]:
        """The addresses, as ip:port."""
        return [connection.connected_to for connection in self._shards if connection.up]

    @property
    def up(self) -> bool:
        """Every server can be used."""
        return not self._shards.trouble and all(connection.up for connection in self._shards)

    def _links(self) -> Iterator[tuple[str, Link | None]]:
        return ((c.address, c.commands if c.up else None) for c in self._shards)

    def _troubled(self) -> None:
        self._shards.stale()

    def _keeper_of(self, key: str) -> Server | None:
        return self._shards.server_of(key)
