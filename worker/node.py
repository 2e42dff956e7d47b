"""Wires a worker process together, and starts and stops its parts in the right order."""

import asyncio
import os
import random
import secrets
import socket
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from time import monotonic
from types import ModuleType
from typing import Final

from prometheus_client import CollectorRegistry

from maskline.runtime.admin.port_notes import Note
from maskline.runtime.admin.server import AdminServer
from maskline.runtime.clock import wall_clock_ms
from maskline.runtime.logs import get_logger
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.keys import Keys
from maskline.schemas.settings import ADMIN_PORTS, Settings
from maskline.worker.api.binding import BoundDeadHandler, Table, bind, bind_dead, event_names
from maskline.worker.api.loading import load_handlers
from maskline.worker.api.resources import Resources
from maskline.worker.connections import WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.dead_letters.calls import DeadLetterCalls
from maskline.worker.dead_letters.sink import DeadLetterSink
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.dispatch.quarantine import Quarantine
from maskline.worker.dispatch.watchdog import Watchdog
from maskline.worker.entries.decode import IN_C, entry_decoder
from maskline.worker.gates.control import HandlerControl
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.jobs.executor import JobExecutor
from maskline.worker.leases.manager import PartitionManager
from maskline.worker.metrics import WorkerCollector
from maskline.worker.node_state import NodeState, ShownParts
from maskline.worker.partitions.committer import Committer
from maskline.worker.partitions.dead_letter_counts import DeadLetterCounts
from maskline.worker.partitions.history_check import HistoryVerifier
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition, arrive_ordinary
from maskline.worker.partitions.retention import Retention
from maskline.worker.poison.sandbox import Sandbox
from maskline.worker.retry_queues.expiry import ParkedQueueExpiry
from maskline.worker.retry_queues.runner import RetryQueueRunner
from maskline.worker.streams.pipeline import StreamPipeline
from maskline.worker.streams.poller_pool import PollerPool

STEP_MAX_S: Final = 0.5
"""How long cancelled tasks may take to end at a stop. Together with the last commits and the resources it must fit into
the grace that a process has after its stop timeout (`runtime.process.run`)."""

_log = get_logger("maskline.worker")


class WorkerNode:
    """A worker of one consumer group.

    `handler_modules`: modules besides those of MASKLINE_HANDLERS. `index`: which of several processes this is; it is
    added to the admin port. `counters`: those of a worker whose place this one takes in the process. Raises ConfigError
    if a handler module is wrong. Redis may be away.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        handler_modules: Sequence[ModuleType] = (),
        index: int = 0,
        counters: Counters | None = None,
    ) -> None:
        self.settings = settings
        self.counters = Counters() if counters is None else counters
        # Letters between the digits: logs must not take the id for a phone number.
        self.worker_id = f"{socket.gethostname()}-p{os.getpid()}-x{secrets.token_hex(3)}"
        self._handlers = load_handlers([*settings.handlers, *handler_modules])
        by_name = load_handlers(settings.handlers) if settings.handlers else None
        self._loadable = frozenset(spec.name for spec in by_name.specs) if by_name else frozenset[str]()
        self._keys = Keys(settings.namespace, settings.group)
        self._index = index
        self._owned = OwnedPartitions(settings.session_cache)
        self._tasks: list[asyncio.Task[None]] = []
        self._opened: AsyncExitStack | None = None
        """Closes what `open` has opened, until `start` has begun to work with it."""
        self._started = False

    async def open(self) -> None:
        """Open resources, and connect: all of `start` that takes time, or fails by fault of a handler module.

        Raises ConfigError; everything is closed again then.
        """
        settings = self.settings
        self.background = BackgroundTasks()
        self._resources = Resources()
        self._connections = WorkerConnections(
            settings,
            self._keys,
            self.background,
            name=f"maskline-worker-{self.worker_id}",
            on_change=self._servers_changed,
            on_open=self._connections_opened,
        )
        self._state = NodeState(self.worker_id, self._connections, self._owned, self.background)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._resources.close)
            opened = await self._resources.open(self._handlers.resources)
            self._bound = bind(self._handlers, opened), bind_dead(self._handlers, opened)
            undo.push_async_callback(self.background.stop)
            undo.push_async_callback(self._connections.stop)
            await self._connections.start()
            self._opened = undo.pop_all()

    async def start(self) -> None:
        """Begin to work, after `open` if need be. Raises ConfigError; everything is closed again then."""
        if self._opened is None:
            await self.open()
        settings, state, undo = self.settings, self._state, self._opened
        assert undo is not None  # noqa: S101 - `open` has set it
        port = ADMIN_PORTS["worker"] if settings.admin_port is None else settings.admin_port
        registry = CollectorRegistry()
        self.admin = AdminServer(
            settings.admin_host,
            port + self._index if port else 0,
            live=state.live,
            ready=state.ready,
            registry=registry,
            search=settings.admin_port is None,
            avoid=settings.port,
            note=Note.of("worker", settings),
        )
        async with undo:
            await self.admin.start()
            undo.pop_all()
        self._opened = None
        self._assemble(*self._bound)
        registry.register(WorkerCollector(self.counters, state.gauges))
        self.background.start("retention", self.retention.run)
        self.background.start("dead letters", self.dead_letters.run)
        self.background.start("handler control", self._control.run)
        self.background.start("retry queues", self._retry_runner.run)
        self.background.start("expiry of parked queues", self._expiry.run)
        if self._dead_letter_sink is not None:
            self.background.start("handlers of dead letters", self._dead_letter_sink.run)
        self.background.start("jobs", self.jobs.run)
        # If one of these ends, the process ends: nothing moves without it, and its work is best begun anew.
        self._tasks = [
            asyncio.create_task(self._keep_leases(), name="leases"),
            asyncio.create_task(self._pollers.run(), name="pollers"),
            asyncio.create_task(self._verifier.run(), name="verification of histories"),
        ]
        self._started = state.working = True
        _log.info(
            "worker started",
            worker=self.worker_id,
            group=settings.group,
            partitions=settings.partitions,
            handlers=list(self.handler_names),
            redis=self._connections.address,
            admin=self.admin_url,
            in_c=arrive_ordinary is not None and IN_C,
        )

    def _assemble(self, table: Table, dead_handlers: Sequence[BoundDeadHandler]) -> None:
        """Make the parts, each from those it needs: the way of an entry is pollers, pipeline, dispatcher, committer."""
        settings, connections, keys, counters = self.settings, self._connections, self._keys, self.counters
        sandbox = Sandbox(settings, self._loadable, counters)
        quarantine = Quarantine(connections, keys, sandbox, counters, self._fenced)
        by_name = {handler.name: handler for bound in table.values() for handler in bound}
        handlers = {name: by_name[name] for name in self.handler_names}  # in calling order
        self.gates = HandlerGates(handlers.values(), wall_ms=wall_clock_ms, chance=random.random)
        self._dispatcher = Dispatcher(
            table,
            concurrency=settings.concurrency,
            late_dead=settings.late == "dead",
            counters=counters,
            on_progress=self._progressed,
            gates=self.gates,
            quarantine=quarantine,
            background=self.background,
            context=self._resources.context,
        )
        self._watchdog = Watchdog(self._dispatcher.handler_on_loop, self._loop_blocked, self.background)
        self._committer = Committer(
            connections,
            keys,
            counters,
            on_fenced=self._fenced,
            on_diverged=self._diverged,
            on_committed=self._committed,
            on_retry_due=self._retry_due,
            on_dead_letters=self._dead_letters_written,
            on_fault=self.background.failed,
        )
        pipeline = StreamPipeline(
            connections,
            keys,
            self._owned,
            self._dispatcher,
            outstanding_max=settings.outstanding_max,
            counters=counters,
            on_progress=self._committer.mark,
            on_fault=self.background.failed,
        )
        self._retry_runner = RetryQueueRunner(
            connections,
            keys,
            self._owned,
            self._dispatcher,
            self.gates,
            handlers=handlers.values(),
            counters=counters,
            on_progress=self._committer.mark,
            on_fenced=self._fenced,
            on_diverged=self._diverged,
        )
        self.jobs = JobExecutor(
            connections,
            keys,
            self._owned,
            self._committer,
            table,
            settings,
            counters=counters,
            on_fault=self.background.failed,
        )
        self._control = HandlerControl(
            connections,
            keys,
            self.gates,
            worker_id=self.worker_id,
            lease_ttl_ms=settings.lease_ttl_ms,
            events=event_names(table),
            on_revision=self.jobs.revision_changed,
        )
        self._expiry = ParkedQueueExpiry(
            connections, keys, self._owned, self._committer, ttl_s=settings.dead_ttl_s
        )
        self._pollers = PollerPool(connections, keys, self._owned, pipeline)
        self._manager = PartitionManager(
            connections,
            keys,
            self._owned,
            settings,
            worker_id=self.worker_id,
            counters=counters,
            dispatcher=self._dispatcher,
            committer=self._committer,
            quarantine=quarantine,
            pipeline=pipeline,
        )
        self._verifier = HistoryVerifier(
            connections, keys, self._owned, on_verified=self._verified, on_diverged=self._diverged
        )
        self.retention = Retention(connections, keys, self._owned, settings, counters)
        self.dead_letters = DeadLetterCounts(
            connections,
            keys,
            self._owned,
            partitions=settings.partitions,
            max_bytes=settings.dead_max_bytes,
        )
        self._dead_letter_sink: DeadLetterSink | None = None
        if dead_handlers:
            decoder = entry_decoder(frozenset(settings.ignored_parameters), settings.group)
            calls = DeadLetterCalls(dead_handlers, self._resources.context, decoder)
            self._dead_letter_sink = DeadLetterSink(connections, keys, self._owned, calls)

        self._state.parts = ShownParts(
            self._manager, self._dispatcher, self.gates, self.retention, self.dead_letters, self._pollers
        )

    async def _keep_leases(self) -> None:
        # An event must not run that a pause holds.
        await self._control.wait_known()
        await self._manager.run()

    async def stop(self) -> None:
        """Let handlers under way end, give the partitions back, close everything.

        If a step fails, that is logged, and everything else is closed all the same.
        """
        if self._opened is not None:
            opened, self._opened = self._opened, None
            await opened.aclose()
        if not self._started:
            return
        self._started = self._state.working = False
        stop_timeout_s = self.settings.stop_timeout_ms / 1000
        deadline = monotonic() + stop_timeout_s
        sink = self._dead_letter_sink
        if sink is not None:
            sink.start_no_more()
        await self._step("leases", self._manager.drain(stop_timeout_s))
        self._watchdog.stop()
        for task in self._tasks:
            task.cancel()
        await self._step("parts", asyncio.wait(self._tasks, timeout=STEP_MAX_S))
        await self._step("handlers", self._dispatcher.stop(STEP_MAX_S))
        if sink is not None:
            await self._step("handlers of dead letters", sink.stop(deadline - monotonic()))
        await self._step("resources", self._resources.close(deadline - monotonic()))
        await self._step("handler control", self._control.stop())
        await self._step("connections", self._connections.stop())
        await self._step("background tasks", self.background.stop())
        await self._step("admin", self.admin.stop())
        _log.info("worker stopped", handled=sum(self.counters.released.values()))

    async def hand_over(self) -> asyncio.Task[None]:
        """Stop in favour of another worker of this process. Returns as soon as that may start: this one has left the
        admin port and the live workers, and its partitions come free one by one, as their handlers end. The task that
        is returned is the rest of the stop.
        """
        await self._step("admin", self.admin.stop())
        rest = asyncio.create_task(self.stop())
        left = asyncio.create_task(self._manager.signed_off.wait())
        await asyncio.wait((rest, left), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        return rest

    def take_free_partitions(self) -> None:
        """Look at once for partitions that are free: another worker of this process has just given some back."""
        if self._started:
            self._manager.look_soon()

    async def _step(self, name: str, step: Awaitable[object]) -> None:
        try:
            await step
        except Exception as error:  # noqa: BLE001 - the rest must be closed whatever it is
            _log.error("worker part stop failed", part=name, exc_info=error)

    async def failed(self) -> None:
        """Wait until a part of the worker has failed, which is a fault in maskline, and log it; return only then."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = None if task.cancelled() else task.exception()
            _log.error("worker part failed", part=task.get_name(), exc_info=error)

    @property
    def handler_names(self) -> tuple[str, ...]:
        """The names of the handlers, in the order of their declaration."""
        return tuple(spec.name for spec in self._handlers.specs)

    # For metrics and health

    @property
    def partitions(self) -> Sequence[Partition]:
        """The partitions that are read."""
        return self._owned.open

    @property
    def owned(self) -> OwnedPartitions:
        """All partitions that this process owns."""
        return self._owned

    @property
    def admin_url(self) -> str:
        """The address of the admin port, as a URL."""
        return self.admin.url

    # What one part tells another

    def _progressed(self, partition: Partition) -> None:
        self._committer.mark(partition)
        self._pollers.progressed()

    def _committed(self) -> None:
        self._pollers.progressed()

    def _retry_due(self, partition: Partition) -> None:
        self._retry_runner.due_changed(partition)

    def _dead_letters_written(self, partition: Partition) -> None:
        if self._dead_letter_sink is not None:
            self._dead_letter_sink.look(partition)

    def _servers_changed(self) -> None:
        if self._started:
            self._verifier.check_soon()
            self._pollers.servers_changed()

    def _connections_opened(self) -> None:
        if self._started:
            self._verifier.check_soon()

    def _verified(self, partition: Partition) -> None:
        self._committer.mark(partition)
        self._pollers.wake()

    def _diverged(self, partition: Partition) -> None:
        self._manager.diverged(partition)

    def _fenced(self, partition: Partition) -> None:
        self._manager.fenced(partition)

    def _loop_blocked(self) -> None:
        self.counters.loop_blocks += 1
