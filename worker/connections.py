"""The worker's connections to all servers: one pair, or with a cluster one pair for each primary."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from maskline.runtime.redis.cluster import Cluster
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.namespace import NamespaceCheck
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.runtime.redis.server_monitor import ServerMonitor
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.connection import ServerConnections
from maskline.worker.partitions.partition import Partition

READY_CHECK_S: Final = 0.05
"""How soon it is noticed that a server is back, by those who wait for it."""


class WorkerConnections:
    """`on_change`: the cluster's partitions are spread otherwise than before. `on_open`: a connection was opened."""

    def __init__(
        self, settings: Settings, keys: Keys, tasks: BackgroundTasks, name: str,
        on_change: Callable[[], None] = lambda: None, on_open: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        store = RedisEndpoint(settings)
        gate = NamespaceCheck(settings, self._keeper_of)
        self._keys = keys
        self.inspection = ServerMonitor(tasks)
        self.is_cluster = store.is_cluster
        self.address = store.address

        def make(server: Server | None) -> ServerConnections:
            return ServerConnections(
                store, server, gate, self.inspection, tasks, name, self._troubled, on_open
            )

        self._cluster: Cluster[ServerConnections] = Cluster(
            store, keys, settings.partitions, tasks, make, on_change
        )

    async def start(self) -> None:
        """Raises ConfigError where the settings are wrong. Call `stop` also then."""
        self.inspection.start(self._links)
        await self._cluster.start()

    async def stop(self) -> None:
        await self.inspection.stop()
        await self._cluster.stop()

    def __iter__(self) -> Iterator[ServerConnections]:
        return iter(self._cluster)

    def of(self, partition: int) -> ServerConnections | None:
        """The server that has the partition; None while nobody knows."""
        return self._cluster.of_partition(partition)

    def link(self, partition: int) -> PipelinedConnection | None:
        """For commands about the partition; None while its server is away."""
        connection = self._cluster.of_partition(partition)
        link = None if connection is None else connection.commands
        return link if link is not None and link.connected else None

    def lease_link(self, partition: int) -> PipelinedConnection | None:
        """For commands about the partition's lease; None while its server is away."""
        connection = self._cluster.of_partition(partition)
        link = None if connection is None else connection.leases
        return link if link is not None and link.connected else None

    def verified_link(self, partition: Partition) -> PipelinedConnection | None:
        """For commits of the partition; None while its server is away, or may lack what was seen of it."""
        connection = self._cluster.of_partition(partition.number)
        if connection is None or partition.verified_at is not connection.incarnation:
            return None
        link = connection.commands
        return link if link is not None and link.connected else None

    @property
    def home(self) -> ServerConnections | None:
        """The server that knows the live workers; None while nobody knows which that is."""
        return self._cluster.of_key(self._keys.workers)

    async def ready(self, partition: int) -> PipelinedConnection:
        """Wait for the partition's server, and for commands about it."""
        while (link := self.link(partition)) is None:  # noqa: ASYNC110 - see below
            await asyncio.sleep(READY_CHECK_S)  # rather than an event for each way in which it may change
        return link

    async def lease_ready(self, partition: int) -> PipelinedConnection:
        """Wait for the partition's server, and for commands about its lease."""
        while (link := self.lease_link(partition)) is None:  # noqa: ASYNC110 - as above
            await asyncio.sleep(READY_CHECK_S)
        return link

    @property
    def trouble(self) -> str:
        """What is wrong, in a line; empty if nothing is."""
        troubles = [self._cluster.trouble]
        troubles += [f"{c.address}: {c.trouble}" if self.is_cluster else c.trouble for c in self._cluster]
        return "; ".join(filter(None, troubles))

    @property
    def connected_to(self) -> list[str]:
        """The addresses, as ip:port."""
        return [connection.connected_to for connection in self._cluster if connection.up]

    @property
    def up(self) -> bool:
        """Every server can be used."""
        return not self._cluster.trouble and all(connection.up for connection in self._cluster)

    def _links(self) -> Iterator[tuple[str, PipelinedConnection | None]]:
        return ((c.address, c.commands if c.up else None) for c in self._cluster)

    def _troubled(self) -> None:
        self._cluster.stale()

    def _keeper_of(self, key: str) -> Server | None:
        return self._cluster.server_of(key)
