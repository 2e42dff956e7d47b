"""Keeps one poller for each server, as the servers come and go."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from maskline.schemas.keys import Keys
from maskline.worker.connections import ServerConnections, WorkerConnections
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition
from maskline.worker.streams.pipeline import StreamPipeline
from maskline.worker.streams.poller import Poller


class PollerPool:
    """Runs the pollers of a worker process, and wakes them when there is something to read."""

    def __init__(
        self, connections: WorkerConnections, keys: Keys, owned: OwnedPartitions, pipeline: StreamPipeline
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._pipeline = pipeline
        self._pollers: dict[ServerConnections, tuple[Poller, asyncio.Task[None]]] = {}
        self._retired: set[asyncio.Task[None]] = set()
        """Tasks of pollers whose servers are gone."""
        self._changed = asyncio.Event()
        owned.on_change(self.wake)

    async def run(self) -> None:
        """Run until cancelled. Raises the error of a poller that fails, which is a fault in maskline."""
        try:
            while True:
                self._match_servers()
                self._changed.clear()
                changed = asyncio.ensure_future(self._changed.wait())
                running = [*(task for _, task in self._pollers.values()), *self._retired]
                try:
                    done, _ = await asyncio.wait([changed, *running], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                for task in done - {changed}:
                    if task in self._retired:
                        self._retired.discard(task)
                        if task.cancelled():
                            continue
                    task.result()
        finally:
            for task in (*(task for _, task in self._pollers.values()), *self._retired):
                task.cancel()

    @property
    def servers(self) -> list[ServerConnections]:
        """The servers that are read."""
        return list(self._pollers)

    def details(self) -> list[dict[str, Any]]:
        """The state of reading from each server, for /readyz."""
        return [poller.details() for poller, _ in self._pollers.values()]

    def servers_changed(self) -> None:
        """Match the pollers to the servers, which have changed, or have other partitions."""
        self._changed.set()
        self.wake()

    def wake(self) -> None:
        """End reads that wait, as the partitions to read have changed."""
        for poller, _ in self._pollers.values():
            poller.wake()

    def progressed(self) -> None:
        """Wake pollers that wait for room, as something was finished or committed."""
        for poller, _ in self._pollers.values():
            poller.progressed()

    def _released(self, by: ServerConnections, partitions: Sequence[Partition]) -> None:
        """Have partitions read that their poller has released, if they are another server's by now."""
        for partition in partitions:
            server = self._connections.of_partition(partition.number)
            if server is not None and server is not by and server in self._pollers:
                self._pollers[server][0].wake()

    def _match_servers(self) -> None:
        present = set(self._connections)
        for server in [gone for gone in self._pollers if gone not in present]:
            poller, task = self._pollers.pop(server)
            self._retired.add(task)
            poller.retire(task)
        for server in present - self._pollers.keys():
            poller = Poller(
                server,
                self._keys,
                self._pipeline,
                combined=not self._connections.is_cluster,
                on_released=partial(self._released, server),
            )
            self._pollers[server] = poller, asyncio.create_task(poller.run())
