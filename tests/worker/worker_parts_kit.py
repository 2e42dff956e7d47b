"""The parts of a worker one by one, connected to a real server: pipeline, committer, owned partitions."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dispatch_kit import PATIENCE_S, gates_of, module_of, partition_of_test
from process_kit import callback
from servers import RedisServer

from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.api.binding import bind
from maskline.worker.api.loading import load_handlers
from maskline.worker.commands import scripts
from maskline.worker.connections import ServerConnections, WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.entries.dead_letter import DeadLetter, decode_dead_letter
from maskline.worker.leases.acquisition import Acquisition, LeaseAcquirer
from maskline.worker.ordering.reorder import Policy
from maskline.worker.partitions.committer import Committer
from maskline.worker.partitions.ledger import GroupPosition, Lease
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition, PartitionSettings
from maskline.worker.partitions.phase import Phase
from maskline.worker.retry_queues.runner import RetryQueueRunner
from maskline.worker.streams.pipeline import ReadEntries, StreamPipeline

WORKER_ID = "me"


class Parts:
    """What a worker of one group is made of, without the loops that drive it."""

    def __init__(self, connections: WorkerConnections, keys: Keys, settings: Settings, functions) -> None:
        self.connections = connections
        self.keys = keys
        self.settings = settings
        self.counters = Counters()
        self.owned = OwnedPartitions(settings.session_cache)
        self.fenced: list[Partition] = []
        self.diverged: list[Partition] = []
        self.committer = Committer(
            connections,
            keys,
            self.counters,
            on_fenced=self.fenced.append,
            on_diverged=self.diverged.append,
            on_committed=lambda: None,
            on_retry_due=self._retry_due,
        )
        self._runner: RetryQueueRunner | None = None
        self.table = table = bind(load_handlers([module_of(*functions)]), {}) if functions else {}
        self.gates = gates_of(table)
        self.dispatcher = Dispatcher(
            table,
            concurrency=settings.concurrency,
            late_dead=False,
            counters=self.counters,
            on_progress=self.committer.mark,
            gates=self.gates,
        )
        self.pipeline = StreamPipeline(
            connections,
            keys,
            self.owned,
            self.dispatcher,
            outstanding_max=settings.outstanding_max,
            counters=self.counters,
            on_progress=self.committer.mark,
        )

    @property
    def server(self) -> ServerConnections:
        """The only server there is."""
        (server,) = self.connections
        return server

    def retry_runner(self) -> RetryQueueRunner:
        """The runner of the retry queues; whoever wants it to run starts it."""
        self._runner = RetryQueueRunner(
            self.connections,
            self.keys,
            self.owned,
            self.dispatcher,
            self.gates,
            handlers={one.name: one for bound in self.table.values() for one in bound}.values(),
            counters=self.counters,
            on_progress=self.committer.mark,
            on_fenced=self.fenced.append,
            on_diverged=self.diverged.append,
        )
        return self._runner

    def _retry_due(self, partition: Partition) -> None:
        if self._runner is not None:
            self._runner.due_changed(partition)

    def own(self, number: int) -> Partition:
        """An open partition without a lease in Redis: it may be read, and not committed."""
        partition = partition_of_test(number, counters=self.counters)
        partition.verified_at = self.server.incarnation
        self.owned.add(partition)
        self.owned.move(partition, Phase.OPEN)
        return partition

    async def acquire(self, number: int) -> tuple[Partition, scripts.AcquiredLease]:
        """A partition just acquired from Redis: owned, and not open yet."""
        acquired: list[Acquisition] = []
        acquirer = LeaseAcquirer(
            self.connections,
            self.keys,
            worker_id=WORKER_ID,
            lease_ttl_ms=self.settings.lease_ttl_ms,
            on_acquired=acquired.append,
            spawn=asyncio.create_task,
        )
        await acquirer.acquire([number])
        (acquisition,) = acquired
        lease = acquisition.lease
        policy = Policy(
            self.settings.gap_timeout_ms,
            self.settings.first_sequence,
            self.settings.held_max,
            self.settings.gap_spool_ms,
        )
        partition = Partition(
            Lease(number, lease.token, scripts.lease_value(lease.token, WORKER_ID)),
            GroupPosition(lease.cursor, lease.entries_read),
            PartitionSettings(self.settings.group, policy, False, 86_400),
            self.counters,
        )
        partition.lease_until = math.inf
        partition.session_cache = 1_000
        partition.verified_at = acquisition.incarnation
        self.owned.add(partition)
        return partition, lease


@asynccontextmanager
async def worker_parts(
    redis_server: RedisServer, namespace: str, *functions, **settings: Any
) -> AsyncIterator[Parts]:
    """Connected parts, with the handlers of a test."""
    values = {"partitions": 2, "gap_timeout_ms": 600_000, "lease_ttl_ms": 60_000} | settings
    wanted = Settings(redis_url=redis_server.url, namespace=namespace, **values)
    keys, tasks = Keys(namespace, wanted.group), BackgroundTasks()
    connections = WorkerConnections(wanted, keys, tasks, name="test")
    await connections.start()
    parts = Parts(connections, keys, wanted, functions)
    try:
        yield parts
    finally:
        async with asyncio.timeout(PATIENCE_S):
            parts.dispatcher.cancel(None, "the test is over")
            await parts.dispatcher.stop()
            await connections.stop()
            await tasks.stop()


def add(client, keys: Keys, number: int, session: str, *sequence_numbers: int) -> list[bytes]:
    """Add callbacks to the stream of a partition, whatever the session's own partition is; the IDs."""
    return [
        client.xadd(keys.callbacks(number), {CALLBACK_FIELD: callback(session, sequence_number)})
        for sequence_number in sequence_numbers
    ]


def letters_of(client, parts: Parts) -> list[DeadLetter]:
    return [decode_dead_letter(fields[b"d"]) for _, fields in client.xrange(parts.keys.dead(0))]


async def owned_with(client, parts: Parts, *numbers: int) -> Partition:
    """Partition 0, with events of session `s` read and released."""
    partition, _ = await parts.acquire(0)
    parts.owned.move(partition, Phase.OPEN)
    if numbers:
        await feed(client, parts, partition, *numbers)
    return partition


async def feed(client, parts: Parts, partition, *numbers: int) -> None:
    ids = add(client, parts.keys, 0, "s", *numbers)
    entries = [
        (entry_id, [part for pair in fields.items() for part in pair])
        for entry_id, fields in client.xrange(parts.keys.callbacks(0), ids[0], ids[-1])
    ]
    await parts.pipeline.process([ReadEntries(partition, entries, 0)])
