"""A worker process: its parts put together, started and stopped in the right order."""

import asyncio
import os
import secrets
import socket
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from time import monotonic
from types import ModuleType
from typing import Any, Final

from prometheus_client import CollectorRegistry

from maskline.runtime.admin.port_notes import Note
from maskline.runtime.admin.server import AdminServer, Health
from maskline.runtime.admin.vitals import vital_details
from maskline.runtime.logs import get_logger
from maskline.runtime.redis.server_checks import ServerReport
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.keys import Keys
from maskline.schemas.settings import ADMIN_PORTS, Settings
from maskline.worker.api.binding import bind
from maskline.worker.api.loading import load_handlers
from maskline.worker.api.resources import Resources
from maskline.worker.connections import WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.dispatch.quarantine import Quarantine
from maskline.worker.dispatch.thread_shares import ThreadUse
from maskline.worker.dispatch.watchdog import Watchdog
from maskline.worker.entries.decode import IN_C
from maskline.worker.leases.manager import PartitionManager
from maskline.worker.metrics import WorkerCollector
from maskline.worker.partitions.committer import Committer
from maskline.worker.partitions.dead_letter_counts import DeadLetters
from maskline.worker.partitions.history_check import HistoryVerifier
from maskline.worker.partitions.partition import Partition, arrive_ordinary
from maskline.worker.partitions.retention import Retention
from maskline.worker.poison.sandbox import Sandbox
from maskline.worker.streams.pipeline import Reader
from maskline.worker.streams.poller import Pollers

STEP_MAX_S: Final = 0.5
"""For what was cancelled to end, at a stop: with the last commits and the resources it must fit into the grace that a
process has after its stop timeout (`runtime.process.run`)."""

_log = get_logger("maskline.worker")


class WorkerNode:
    """A worker of one consumer group.

    `handler_modules`: modules besides those of MASKLINE_HANDLERS. `index`: which of several processes this is; it is
    added to the admin port. `start` raises ConfigError where settings or handler modules are wrong; Redis may be away.
    """

    def __init__(
        self, settings: Settings, *, handler_modules: Sequence[ModuleType] = (), index: int = 0
    ) -> None:
        self.settings = settings
        self.counters = Counters()
        # Letters between the digits: logs must not take the id for a phone number.
        self.worker_id = f"{socket.gethostname()}-p{os.getpid()}-x{secrets.token_hex(3)}"
        self._handlers = load_handlers([*settings.handlers, *handler_modules])
        by_name = load_handlers(settings.handlers) if settings.handlers else None
        self._loadable = frozenset(spec.name for spec in by_name.specs) if by_name else frozenset[str]()
        self._keys = Keys(settings.namespace, settings.group)
        self._index = index
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False

    async def start(self) -> None:
        settings = self.settings
        self.background = BackgroundTasks()
        self._resources = Resources()
        self._connections = WorkerConnections(
            settings,
            self._keys,
            self.background,
            name=f"maskline-worker-{self.worker_id}",
            on_change=self._servers_changed,
            on_open=self._verify,
        )
        port = ADMIN_PORTS["worker"] if settings.admin_port is None else settings.admin_port
        registry = CollectorRegistry()
        self.admin = AdminServer(
            settings.admin_host, port + self._index if port else 0,
            live=self._live, ready=self._ready, registry=registry,
            search=settings.admin_port is None, avoid=settings.port, note=Note.of("worker", settings),
        )  # fmt: skip
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._resources.close)
            table = bind(self._handlers, await self._resources.open(self._handlers.resources))
            undo.push_async_callback(self.background.stop)
            undo.push_async_callback(self._connections.stop)
            await self._connections.start()
            await self.admin.start()
            undo.pop_all()
        sandbox = Sandbox(settings, self._loadable, self.counters)
        quarantine = Quarantine(self._connections, self._keys, sandbox, self.counters, self._fenced)
        self._dispatcher = Dispatcher(
            table, concurrency=settings.concurrency, late_dead=settings.late == "dead", counters=self.counters,
            on_progress=self._progressed, quarantine=quarantine, background=self.background,
            context=self._resources.context,
        )  # fmt: skip
        self._committer = Committer(
            self._connections, self._keys, self.counters, on_fenced=self._fenced, on_diverged=self._diverged,
            on_committed=self._committed, on_fault=self.background.failed,
        )  # fmt: skip
        self._leases = PartitionManager(
            self._connections,
            self._keys,
            self._dispatcher,
            self._committer,
            settings,
            self.worker_id,
            self.counters,
        )
        self._reader = self._leases.reader = Reader(
            self._connections, self._keys, self._dispatcher, self._leases.opened,
            outstanding_max=settings.outstanding_max, counters=self.counters, on_progress=self._committer.mark,
            on_fault=self.background.failed,
        )  # fmt: skip
        self._leases.quarantine = quarantine
        self._pollers = self._leases.pollers = Pollers(self._connections, self._keys, self._reader)
        self._verifier = HistoryVerifier(
            self._connections, self._keys, lambda: self._leases.partitions,
            on_same=self._verified, on_diverged=self._diverged,
        )  # fmt: skip
        self.retention = Retention(
            self._connections, self._keys, self._leases.opened, settings, self.counters
        )
        registry.register(WorkerCollector(self))
        self._watchdog = Watchdog(self._dispatcher.handler_on_loop, self._blocked, self.background)
        self.dead_letters = DeadLetters(self._connections, self._keys, self._leases.opened)
        self.background.start("retention", self.retention.run)
        self.background.start("dead letters", self.dead_letters.run)
        # Without these nothing moves, and what they had under way is best begun anew: their end is the process's.
        self._tasks = [
            asyncio.create_task(self._leases.run(), name="leases"),
            asyncio.create_task(self._pollers.run(), name="pollers"),
            asyncio.create_task(self._verifier.run(), name="verification of histories"),
        ]
        self._started = True
        _log.info(
            "worker started", worker=self.worker_id, group=settings.group, partitions=settings.partitions,
            handlers=[spec.name for spec in self._handlers.specs], redis=self._connections.address,
            admin=self.admin_url, in_c=arrive_ordinary is not None and IN_C,
        )  # fmt: skip

    async def stop(self) -> None:
        """Finish what is under way, hand the rest back, give the leases back, close everything.

        Whatever fails meanwhile is logged, and keeps nothing else from being closed.
        """
        if not self._started:
            return
        self._started = False
        stop_timeout_s = self.settings.stop_timeout_ms / 1000
        deadline = monotonic() + stop_timeout_s
        await self._step("leases", self._leases.drain(stop_timeout_s))
        self._watchdog.stop()
        for task in self._tasks:
            task.cancel()
        await self._step("parts", asyncio.wait(self._tasks, timeout=STEP_MAX_S))
        await self._step("handlers", self._dispatcher.stop(STEP_MAX_S))
        await self._step("resources", self._resources.close(deadline - monotonic()))
        await self._step("connections", self._connections.stop())
        await self._step("background tasks", self.background.stop())
        await self._step("admin", self.admin.stop())
        _log.info("worker stopped", handled=sum(self.counters.released.values()))

    async def _step(self, name: str, step: Awaitable[object]) -> None:
        try:
            await step
        except Exception as error:  # noqa: BLE001 - whatever it is, the rest is to be closed as well
            _log.error("worker part stop failed", part=name, exc_info=error)

    async def failed(self) -> None:
        """Wait until a part of the worker has failed, which is a fault in maskline, and log it; return only then."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = None if task.cancelled() else task.exception()
            _log.error("worker part failed", part=task.get_name(), exc_info=error)

    # For metrics and health

    @property
    def partitions(self) -> Sequence[Partition]:
        return self._leases.opened()

    @property
    def admin_url(self) -> str:
        return self.admin.url

    @property
    def owned(self) -> int:
        return self._leases.owned

    @property
    def live_workers(self) -> int:
        return len(self._leases.workers)

    @property
    def connected(self) -> bool:
        return self._connections.up

    @property
    def servers(self) -> Mapping[str, ServerReport]:
        """What the servers said of themselves, by address."""
        return self._connections.monitor.reports

    @property
    def busy(self) -> int:
        return self._dispatcher.busy

    @property
    def threads(self) -> Mapping[str, ThreadUse]:
        """How the plain handlers stand, by name."""
        return self._dispatcher.threads()

    def _live(self) -> Health:
        return Health(True, {"worker": self.worker_id})

    def _ready(self) -> Health:
        monitor = self._connections.monitor
        details: dict[str, Any] = {
            "worker": self.worker_id,
            "redis": self._connections.error or "up",
            "connected_to": self._connections.connected_to,
            "servers": monitor.details(),
            "background": self.background.failing,
            **vital_details(),
        }
        if self._started:
            details |= {"partitions_owned": self.owned, "live_workers": self.live_workers}
            letters = self.dead_letters
            details["dead_letters"] = {"count": letters.count, "bytes": letters.size_bytes}
            details["reads"] = self._pollers.details()
            details["threads"] = {name: use._asdict() for name, use in self.threads.items() if any(use)}
        return Health(self._started and self._connections.up and not monitor.errors, details)

    # Inside

    def _progressed(self, partition: Partition) -> None:
        self._committer.mark(partition)
        self._pollers.progressed()

    def _committed(self) -> None:
        self._pollers.progressed()

    def _servers_changed(self) -> None:
        if self._started:
            self._verifier.want()
            self._pollers.change()

    def _verify(self) -> None:
        if self._started:
            self._verifier.want()

    def _verified(self, partition: Partition) -> None:
        self._committer.mark(partition)
        self._pollers.wake()

    def _diverged(self, partition: Partition) -> None:
        self._leases.diverged(partition)

    def _fenced(self, partition: Partition) -> None:
        self._leases.fenced(partition)

    def _blocked(self) -> None:
        self.counters.loop_blocks += 1
