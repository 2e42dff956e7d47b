"""A worker with handlers that fail as a test says, and jobs as a command would create them."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from dispatch_kit import module_of, until
from node_kit import crash_node
from process_kit import callback
from servers import RedisServer

from maskline import Context, Reject, on
from maskline.events import Event
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.handler_control import REVISION_FIELD
from maskline.schemas.jobs import (
    NOTHING_SELECTED,
    Job,
    JobKind,
    JobTotals,
    PartitionJob,
    Selection,
    decode_job,
    decode_partition_job,
    encode_job,
    encode_partition_job,
    sum_up,
)
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.settings import Settings
from maskline.worker.entries.dead_letter import DeadLetter, decode_dead_letter, public_id
from maskline.worker.node import WorkerNode

PARTITIONS = 2

_names = (f"job{number}" for number in itertools.count())


class Seen(NamedTuple):
    """What a handler was told of an event that it handled."""

    number: int | None
    order: str
    replayed: bool = False
    skipped: tuple[int, ...] = ()


class Handlers:
    """Three handlers of every event: one parks a session, one skips, one never fails."""

    def __init__(self) -> None:
        self.failing: set[tuple[str, str, int | None]] = set()
        """Handler, session and number: these are rejected, at once and for good."""
        self.seen: dict[tuple[str, str], list[Seen]] = {}
        """What was handled, by handler and session."""
        self.hold: asyncio.Event | None = None
        """No call ends before this."""
        self.keys: dict[tuple[str, str, int | None], set[str]] = {}
        """The idempotency keys under which an event came."""

    def fail(self, handler: str, session: str, *numbers: int | None) -> None:
        """Let a handler reject these numbers of a session."""
        self.failing |= {(handler, session, number) for number in numbers}

    def mend(self) -> None:
        """Let everything succeed."""
        self.failing.clear()

    def of(self, handler: str, session: str) -> list[Seen]:
        """What a handler has handled of a session."""
        return self.seen.get((handler, session), [])

    def numbers(self, handler: str, session: str) -> list[int | None]:
        """Its numbers."""
        return [one.number for one in self.of(handler, session)]

    def functions(self, names: Iterable[str]) -> list[Callable[..., Any]]:
        """The handlers themselves: `parks`, `skips`, `well`."""
        return [self._function(name) for name in names]

    def _function(self, name: str) -> Callable[..., Any]:
        give_up = "skip" if name == "skips" else "park"

        async def handle(event: Event, ctx: Context) -> None:
            number, session = ctx.sequence_number, event.session_uuid
            self.keys.setdefault((name, session, number), set()).add(ctx.idempotency_key)
            if self.hold is not None:
                await self.hold.wait()
            if (name, session, number) in self.failing:
                raise Reject("as the test says")
            seen = Seen(number, ctx.order, ctx.replayed, ctx.skipped)
            self.seen.setdefault((name, session), []).append(seen)

        handle.__name__ = name  # as a module has it
        return on.every(name=name, on_give_up=give_up)(handle)


class JobWorker:
    """A worker node in this process, the callbacks in its streams, and the jobs that it carries out."""

    def __init__(self, server: RedisServer, namespace: str, node: WorkerNode, handlers: Handlers) -> None:
        self.client = server.client()
        self.keys = Keys(namespace, "workers")
        self.node = node
        self.handlers = handlers

    async def crash(self) -> None:
        """Drop the worker with what it had not committed; its leases lapse at once."""
        await crash_node(self.node)
        self.client.delete(*(self.keys.lease(partition) for partition in range(PARTITIONS)))
        self.client.zrem(self.keys.workers, self.node.worker_id)

    # Callbacks

    async def put(self, session: str, *numbers: int | None, **more: str) -> None:
        """Add callbacks of a session, and wait until all of them are done or set aside."""
        stream = self.keys.callbacks(partition_of(session, PARTITIONS))
        for number in numbers:
            self.client.xadd(stream, {CALLBACK_FIELD: callback(session, number, **more)})
        await self.until_read()

    async def until_read(self) -> None:
        """Wait until nothing in the streams is unread or under way."""

        def done() -> bool:
            groups = [
                self.client.xinfo_groups(self.keys.callbacks(p)) for p in range(PARTITIONS) if self._has(p)
            ]
            return all(group["lag"] == 0 and group["pending"] == 0 for (group,) in groups)

        await until(done)

    def _has(self, partition: int) -> bool:
        return bool(self.client.exists(self.keys.callbacks(partition)))

    # Dead letters

    def letters(self) -> list[tuple[str, DeadLetter]]:
        """The dead letters, with their public ids."""
        return [
            (public_id(partition, entry_id.decode()), decode_dead_letter(fields[b"d"]))
            for partition in range(PARTITIONS)
            for entry_id, fields in self.client.xrange(self.keys.dead(partition))
        ]

    def letter_numbers(self, handler: str | None = None) -> list[int | None]:
        """The numbers of the dead letters, of one handler or of all."""
        return [one.sequence_number for _, one in self.letters() if handler in (None, one.handler)]

    # Jobs

    def create(self, kind: JobKind, selection: Selection = NOTHING_SELECTED, rate: float = 0) -> Job:
        """Create a job, as a command does."""
        now_ms = time.time_ns() // 1_000_000
        job = Job(next(_names), kind, selection, now_ms, tuple(range(PARTITIONS)), rate=rate, by="ops@test")
        for partition in job.partitions:
            of_kind = self.keys.callbacks if kind == "callbacks" else self.keys.dead
            last = self.client.xrevrange(of_kind(partition), count=1)
            record = PartitionJob(now_ms, last[0][0].decode() if last else "0-0")
            self.client.hsetnx(self.keys.partition_jobs(partition), job.id, encode_partition_job(record))
        self.write(job)
        return job

    def write(self, job: Job) -> None:
        """Write a job, and tell the worker at once rather than within a second."""
        self.client.hset(self.keys.jobs, job.id, encode_job(job))
        self.node.jobs.revision_changed(self.client.hincrby(self.keys.control, REVISION_FIELD, 1))

    def job(self, job: Job) -> Job:
        """The job as Redis has it now."""
        return decode_job(self.client.hget(self.keys.jobs, job.id))

    def records(self, job: Job) -> list[PartitionJob]:
        """The job's progress, by partition."""
        values = [
            self.client.hget(self.keys.partition_jobs(partition), job.id) for partition in job.partitions
        ]
        return [decode_partition_job(value) for value in values if value is not None]

    def totals(self, job: Job) -> JobTotals:
        """The job's counts."""
        return sum_up(self.records(job))

    async def until_ended(self, job: Job) -> JobTotals:
        """Wait until the job has ended in all partitions; its counts, which must add up."""
        await until(lambda: self.totals(job).ended)
        totals = self.totals(job)
        assert totals.selected == sum(totals[3:]), totals
        return totals

    async def carry_out(
        self, kind: JobKind, selection: Selection = NOTHING_SELECTED, rate: float = 0
    ) -> JobTotals:
        """Create a job, and wait until it has ended."""
        return await self.until_ended(self.create(kind, selection, rate))


@asynccontextmanager
async def job_worker(
    server: RedisServer,
    namespace: str,
    *names: str,
    handlers: Handlers | None = None,
    **settings: Any,
) -> AsyncIterator[JobWorker]:
    """A worker with the handlers of these names, that owns all partitions."""
    handlers = handlers or Handlers()
    values = {"partitions": PARTITIONS, "gap_timeout_ms": 200, "admin_port": 0, "handlers": ()} | settings
    wanted = Settings(redis_url=server.url, namespace=namespace, **values)
    node = WorkerNode(wanted, handler_modules=[module_of(*handlers.functions(names or ("parks", "well")))])
    await node.start()
    worker = JobWorker(server, namespace, node, handlers)
    try:
        await until(lambda: len(node.partitions) == PARTITIONS)
        yield worker
    finally:
        await node.stop()
        worker.client.close()
