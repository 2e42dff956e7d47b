"""The ways to Redis: one, or with a cluster one for each primary. The only place that knows which has a partition."""

from collections.abc import Iterator
from typing import Any

from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import InFlight, OnRefused
from maskline.ingest.publish.connection import PublisherConnection
from maskline.ingest.publish.publisher import Publisher
from maskline.runtime.redis.cluster import Cluster
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.namespace import NamespaceCheck
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.runtime.redis.server_monitor import ServerMonitor
from maskline.runtime.redis.url import Server
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings


class PublisherPool:
    """Publishers, and their connections from `start` to `stop`. `name`: of the connections, in CLIENT LIST."""

    def __init__(
        self, settings: Settings, metrics: Metrics, in_flight: InFlight, tasks: BackgroundTasks, *, name: str
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._in_flight = in_flight
        self._tasks = tasks
        self._name = name
        self._partitions = settings.partitions
        self._on_refused: OnRefused | None = None
        self._endpoint = RedisEndpoint(settings)
        self._namespace_check = NamespaceCheck(settings, self._server_of)
        self._monitor = ServerMonitor(tasks)
        # Of a partition whose server is not known it is the same as of one whose server is away.
        self._nowhere = Publisher(settings, metrics, in_flight)
        self._cluster: Cluster[PublisherConnection] = Cluster(
            self._endpoint, Keys(settings.namespace), settings.partitions, tasks, self._new_connection
        )

    async def start(self) -> None:
        """Connect, or go on trying in the background.

        Raises ConfigError where the settings contradict the layout in Redis.
        """
        self._monitor.start(self._links, PipelinedConnection.close)
        await self._cluster.start()

    async def stop(self) -> None:
        await self._monitor.stop()
        await self._cluster.stop()

    def set_fallback(self, on_refused: OnRefused) -> None:
        """Hand on what a publisher was given and Redis did not take."""
        self._on_refused = on_refused
        for publisher in self.publishers:
            publisher.on_refused = on_refused

    def of(self, partition_hash: int) -> Publisher:
        """The publisher that has the partition of this route."""
        connection = self._cluster.of_partition(partition_hash % self._partitions)
        return self._nowhere if connection is None else connection.publisher

    @property
    def publishers(self) -> list[Publisher]:
        return [connection.publisher for connection in self._cluster]

    @property
    def connections(self) -> list[PublisherConnection]:
        return list(self._cluster)

    @property
    def ready(self) -> bool:
        """Whether any of them takes callbacks."""
        return any(publisher.ready for publisher in self.publishers)

    @property
    def accepts_pages(self) -> bool:
        """Whether any of them takes pages of the spool, in whatever time."""
        return any(publisher.accepts_pages for publisher in self.publishers)

    @property
    def all_ready(self) -> bool:
        """Whether every partition's callbacks are taken."""
        return not self._cluster.error and all(publisher.ready for publisher in self.publishers)

    @property
    def can_drain(self) -> bool:
        """Whether any of them takes pages of the spool, or may be probed."""
        return any(publisher.accepts_pages or publisher.probe_due for publisher in self.publishers)

    @property
    def connected(self) -> bool:
        """To every server there is."""
        return not self._cluster.error and all(connection.up for connection in self._cluster)

    @property
    def misconfigured(self) -> bool:
        """The settings are known to contradict the layout in Redis."""
        return any(connection.misconfigured for connection in self._cluster)

    def details(self) -> dict[str, Any]:
        """For /readyz."""
        details: dict[str, Any] = {
            "address": self._endpoint.address,
            "connected_to": [connection.connected_to for connection in self._cluster if connection.up],
            "connected": self.connected,
            "takes": self.all_ready,
            "slow": any(publisher.slow for publisher in self.publishers),
        }
        reasons = [self._cluster.error]
        for connection in self._cluster:
            reason = connection.error or connection.slowness or connection.publisher.breaker.reason
            if reason:
                reasons.append(f"{connection.address}: {reason}" if self._endpoint.is_cluster else reason)
        if reason := "; ".join(filter(None, reasons)):
            details["reason"] = reason
        if doubts := sorted(
            {connection.durability_doubt for connection in self._cluster if connection.durability_doubt}
        ):
            details["durability_doubts"] = doubts
        return details | {"servers": self._monitor.details()}

    # Inside

    def _new_connection(self, server: Server | None) -> PublisherConnection:
        publisher = Publisher(self._settings, self._metrics, self._in_flight)
        if self._on_refused is not None:
            publisher.on_refused = self._on_refused
        return PublisherConnection(
            self._settings, self._endpoint, server, self._namespace_check, self._monitor, publisher, self._metrics,
            self._tasks, name=self._name, on_trouble=self._request_refresh,
        )  # fmt: skip

    def _server_of(self, key: str) -> Server | None:
        return self._cluster.server_of(key)

    def _request_refresh(self) -> None:
        self._cluster.request_refresh()

    def _links(self) -> Iterator[tuple[str, PipelinedConnection | None]]:
        return ((connection.address, connection.redis) for connection in self._cluster)
