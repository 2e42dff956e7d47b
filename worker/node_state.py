"""What a worker process shows of itself: figures for /metrics, and health for probes."""

from typing import Any, NamedTuple

from maskline.runtime.admin.server import Health
from maskline.runtime.admin.vitals import vital_details
from maskline.runtime.tasks import BackgroundTasks
from maskline.worker.connections import WorkerConnections
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.leases.manager import PartitionManager
from maskline.worker.metrics import Gauges, HandlerGauges
from maskline.worker.partitions.dead_letter_counts import DeadLetterCounts, QueuedEvents
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.retention import Retention
from maskline.worker.streams.poller_pool import PollerPool


class ShownParts(NamedTuple):
    """The parts of a worker that are there once it has started."""

    manager: PartitionManager
    dispatcher: Dispatcher
    gates: HandlerGates
    retention: Retention
    dead_letters: DeadLetterCounts
    pollers: PollerPool


class NodeState:
    """The state of one worker."""

    def __init__(
        self,
        worker_id: str,
        connections: WorkerConnections,
        owned: OwnedPartitions,
        background: BackgroundTasks,
    ) -> None:
        self._worker_id = worker_id
        self._connections = connections
        self._owned = owned
        self._background = background
        self.parts: ShownParts | None = None
        """Set before the worker starts."""
        self.working = False
        """It has started, and is not stopping."""

    def gauges(self) -> Gauges:
        """The figures for /metrics. To be called once the parts are set."""
        assert self.parts is not None  # noqa: S101  the collector is registered after that
        manager, dispatcher, gates, retention, dead_letters, _ = self.parts
        partitions = self._owned.open
        return Gauges(
            partitions_owned=len(self._owned),
            live_workers=len(manager.live_workers),
            redis_up=self._connections.up,
            events_unfinished=sum(partition.unfinished for partition in partitions),
            events_held=sum(partition.held for partition in partitions),
            sessions_awaiting_spools=sum(
                partition.gaps.count_waiting_for_spools() for partition in partitions
            ),
            sessions_cached=sum(partition.live_sessions for partition in partitions),
            handlers_running=dispatcher.busy,
            entries_retained=retention.retained,
            held_back_s=retention.held_back_s(),
            dead_letters=dead_letters.count,
            dead_letters_bytes=dead_letters.size_bytes,
            dead_letters_held_bytes=dead_letters.held_bytes,
            dead_letters_max_bytes=dead_letters.max_bytes,
            handlers=_handler_gauges(gates, dead_letters),
            threads=dispatcher.threads(),
            servers=self._connections.monitor.reports,
            background_failures=self._background.failures,
        )

    def live(self) -> Health:
        """The answer of `/healthz`: the process answers, so it lives."""
        return Health(True, {"worker": self._worker_id})

    def ready(self) -> Health:
        """The answer of `/readyz`: whether it works, and Redis is as it should be."""
        monitor = self._connections.monitor
        details: dict[str, Any] = {
            "worker": self._worker_id,
            "redis": self._connections.error or "up",
            "connected_to": self._connections.connected_to,
            "servers": monitor.details(),
            "background": self._background.failing,
            **vital_details(),
        }
        if self.working and self.parts is not None:
            parts = self.parts
            details |= {
                "partitions_owned": len(self._owned),
                "live_workers": len(parts.manager.live_workers),
                "dead_letters": {"count": parts.dead_letters.count, "bytes": parts.dead_letters.size_bytes},
                "reads": parts.pollers.details(),
                "threads": {
                    name: use._asdict() for name, use in parts.dispatcher.threads().items() if any(use)
                },
            }
        return Health(self.working and self._connections.up and not monitor.errors, details)


def _handler_gauges(gates: HandlerGates, dead_letters: DeadLetterCounts) -> dict[str, HandlerGauges]:
    queued = dead_letters.queued
    return {
        name: HandlerGauges(
            *queued.get(name, QueuedEvents()),
            down=gates.state(name) == "down",
            recovering=gates.state(name) == "recovering",
            paused=gates.paused(name) is not None,
        )
        for name in {**dict.fromkeys(gates.handlers), **queued}
    }
