"""The publishers of a process: one, or with a cluster one for each primary. Only the pool maps partitions to
publishers.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import InFlight, OnRefused, fail_all
from maskline.ingest.publish.connection import ConnectionContext, PublisherConnection
from maskline.ingest.publish.linger import Linger
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
        self._partitions = settings.partitions
        self._fallback: OnRefused = fail_all
        self._on_attached: Callable[[], object] = lambda: None
        self._endpoint = RedisEndpoint(settings)
        self._server_monitor = ServerMonitor(tasks)
        self._context = ConnectionContext(
            settings=settings,
            endpoint=self._endpoint,
            namespace_check=NamespaceCheck(settings, self._server_of),
            server_monitor=self._server_monitor,
            metrics=metrics,
            tasks=tasks,
            name=name,
            on_stale=self._on_stale,
        )
        self.linger = Linger(asyncio.get_running_loop())
        # A partition whose server is not known is treated like one whose server is away.
        self._disconnected = Publisher(settings, metrics, in_flight, self.linger)
        self._cluster: Cluster[PublisherConnection] = Cluster(
            self._endpoint, Keys(settings.namespace), settings.partitions, tasks, self._new_connection
        )

    async def start(self) -> None:
        """Connect, or go on trying in the background.

        Raises ConfigError where the settings contradict the namespace in Redis.
        """
        self._server_monitor.start(self._connections_by_address, PipelinedConnection.close)
        await self._cluster.start()

    async def stop(self) -> None:
        """Close all connections."""
        await self._server_monitor.stop()
        await self._cluster.stop()

    def set_fallback(self, on_refused: OnRefused) -> None:
        """Set the callback that takes over what Redis did not take from any publisher, present or future."""
        self._fallback = on_refused
        for publisher in self.publishers:
            publisher.on_refused = on_refused

    def set_on_attached(self, on_attached: Callable[[], object]) -> None:
        """Set what is called when any publisher has a new connection, before it publishes anything over it."""
        self._on_attached = on_attached
        for publisher in self.publishers:
            publisher.on_attached = on_attached

    def publisher_of(self, partition_hash: int) -> Publisher:
        """The publisher of a session's partition; one without a connection while its server is not known.

        `partition_hash`: the CRC-32 of the SessionUUID.
        """
        primary = self._cluster.of_partition(partition_hash % self._partitions)
        return self._disconnected if primary is None else primary.publisher

    def send_beside(self, key: str, command: bytes) -> asyncio.Future[list[Any]] | None:
        """As `Publisher.send_beside`, to the server that has a key of no partition."""
        primary = self._cluster.of_key(key)
        return None if primary is None else primary.publisher.send_beside(command)

    @property
    def publishers(self) -> list[Publisher]:
        """One for each server."""
        return [primary.publisher for primary in self._cluster]

    @property
    def connections(self) -> list[PublisherConnection]:
        """One for each server, connected or not."""
        return list(self._cluster)

    @property
    def ready(self) -> bool:
        """Whether any publisher takes callbacks of requests."""
        return any(publisher.ready for publisher in self.publishers)

    @property
    def accepts_pages(self) -> bool:
        """Whether any publisher takes pages of the spool, however long that takes."""
        return any(publisher.accepts_pages for publisher in self.publishers)

    @property
    def can_drain(self) -> bool:
        """Whether any publisher takes pages of the spool, or may be probed."""
        return any(publisher.accepts_pages or publisher.probe_due for publisher in self.publishers)

    @property
    def all_ready(self) -> bool:
        """Whether callbacks of every partition are taken."""
        return not self._cluster.error and all(publisher.ready for publisher in self.publishers)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to every server."""
        return not self._cluster.error and all(primary.up for primary in self._cluster)

    @property
    def misconfigured(self) -> bool:
        """Whether the settings are known to contradict the namespace in Redis."""
        return any(primary.misconfigured for primary in self._cluster)

    def details(self) -> dict[str, Any]:
        """The member `redis` of /readyz."""
        details: dict[str, Any] = {
            "address": self._endpoint.address,
            "connected_to": [primary.connected_to for primary in self._cluster if primary.up],
            "connected": self.connected,
            "takes": self.all_ready,
            "slow": any(publisher.slow for publisher in self.publishers),
        }
        reasons = [self._cluster.error]
        for primary in self._cluster:
            reason = primary.error or primary.slowness or primary.publisher.breaker.reason
            if reason:
                reasons.append(f"{primary.address}: {reason}" if self._endpoint.is_cluster else reason)
        if reason := "; ".join(filter(None, reasons)):
            details["reason"] = reason
        if doubts := sorted({primary.durability_doubt for primary in self._cluster} - {""}):
            details["durability_doubts"] = doubts
        return details | {"servers": self._server_monitor.details()}

    def _new_connection(self, server: Server | None) -> PublisherConnection:
        publisher = Publisher(self._settings, self._metrics, self._in_flight, self.linger)
        publisher.on_refused, publisher.on_attached = self._fallback, self._on_attached
        return PublisherConnection(self._context, server, publisher)

    def _server_of(self, key: str) -> Server | None:
        return self._cluster.server_of(key)

    def _on_stale(self) -> None:
        self._cluster.request_refresh()

    def _connections_by_address(self) -> Iterator[tuple[str, PipelinedConnection | None]]:
        return ((primary.address, primary.connection) for primary in self._cluster)
