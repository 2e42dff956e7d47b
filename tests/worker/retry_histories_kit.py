"""Plays histories at a real worker: events that fail as a history says, operators, crashes and clean stops.

The worker is a `WorkerNode` in this process. A crash drops it with what it had in memory and had not committed, and its
lease is gone at once; so many histories take little time, and several may be played beside each other.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import redis.asyncio
from dispatch_kit import PATIENCE_S, module_of
from node_kit import crash_node
from process_kit import callback
from retry_model import RETRIES, Lane

from maskline import Context, Reject, Retry, on
from maskline.events import Event
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.handler_control import REVISION_FIELD, pause_field
from maskline.schemas.jobs import (
    Job,
    JobKind,
    PartitionJob,
    Selection,
    decode_partition_job,
    encode_job,
    encode_partition_job,
)
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.settings import Settings
from maskline.worker.node import WorkerNode

PARTITIONS = 2
SESSIONS = ("s0", "s1", "s2")
HANDLERS = ("parks", "skips", "lasts")
"""The last gives nothing up but what it rejects."""

QUICK = {
    "api.retry_schedule.INLINE_WINDOW_MS": 4,
    "api.retry_schedule.BACKOFF_MIN_MS": 1,
    "partitions.retry_ledger.JOINED_DELAY_MS": 4,
    "retry_queues.runner.TAKE_AGAIN_MS": 2,
    "gates.control.READ_INTERVAL_S": 0.01,
    "gates.gates.RECOVERING_RETRY_MS": 2,
    "gates.breaker.GROWTH_MIN_S": 0.002,
    "connections.READY_CHECK_S": 0.002,
    "jobs.job_run.CHECK_S": 0.005,
    "jobs.letter_scan.SESSION_BUSY_S": 0.002,
}
"""Waits of a worker that are as short here as a history needs them."""

Fate = str
"""What a handler does with an event, one letter a call: `f` fails, `w` asks for another try, `r` rejects, `s` takes its
time; after that it succeeds. `F` and `R`: for ever, until it is mended."""


class Step(NamedTuple):
    """One step of a history: what happens, and to what."""

    do: str
    """`put`, `run`, `settle`, `crash`, `stop`, `pause`, `resume`, `replay`, `discard`, `mend`."""
    what: Any = None
    """`put`: a session, and the fates of its events by handler; `run`, `crash`, `stop`: after how many ms; the others:
    a handler, None for all."""


class World:
    """One namespace, its worker, and the model of each handler in each session."""

    def __init__(self, url: str, namespace: str, client: "redis.asyncio.Redis") -> None:
        self._url = url
        self._client = client
        self._keys = Keys(namespace, "workers")
        self._settings = Settings(
            redis_url=url,
            namespace=namespace,
            partitions=PARTITIONS,
            admin_port=0,
            handlers=(),
            gap_timeout_ms=600_000,
            stop_timeout_ms=500,
        )
        self._node: WorkerNode | None = None
        self._fates: dict[tuple[str, str, int], list[str]] = {}
        self._mended = False
        self._paused: set[str] = set()
        self._may_be_paused: set[str] = set()
        """Of late: a failure need not count."""
        self._next = dict.fromkeys(SESSIONS, 1)
        self._names = (f"job{number}" for number in itertools.count())
        self.error: BaseException | None = None
        """What the model said of a call."""
        self.lanes = {
            (handler, session): Lane(
                f"{handler} {session}", skips=handler == "skips", counts=handler != "lasts"
            )
            for handler in HANDLERS
            for session in SESSIONS
        }

    # The worker

    @property
    def node(self) -> WorkerNode:
        assert self._node is not None
        return self._node

    async def start(self) -> None:
        functions = [self._function(name) for name in HANDLERS]
        self._node = WorkerNode(self._settings, handler_modules=[module_of(*functions)])
        await self._node.start()
        await self._until(lambda: len(self.node.partitions) == PARTITIONS, "the partitions to be open")

    async def stop(self) -> None:
        """A clean stop: everything is handed over."""
        if self._node is not None:
            node, self._node = self._node, None
            await node.stop()

    async def crash(self) -> None:
        """Drop the worker as a kill would, and let its leases lapse."""
        node, self._node = self.node, None
        await crash_node(node)
        for lane in self.lanes.values():
            lane.crashed()
        await self._client.delete(*(self._keys.lease(number) for number in range(PARTITIONS)))
        await self._client.zrem(self._keys.workers, node.worker_id)

    # Handlers

    def _function(self, name: str) -> Callable[..., Any]:
        options: dict[str, Any] = {"backoff_ms": 4, "backoff_max_ms": 8}
        if name != "lasts":
            options |= {"retries": RETRIES, "on_give_up": "skip" if name == "skips" else "park"}

        async def handle(event: Event, ctx: Context) -> None:
            lane, number = self.lanes[name, event.session_uuid], ctx.sequence_number
            assert number is not None
            try:
                assert name not in self._paused, f"{lane.name}: called for {number} while it is paused"
                lane.began(number, ctx.attempt, replayed=ctx.replayed, skipped=ctx.skipped)
            except AssertionError as error:
                self.error = self.error or error
                return
            outcome = "cut"
            try:
                outcome = await self._meet_fate((name, event.session_uuid, number))
            finally:
                if lane.running is not None:  # else the worker has crashed meanwhile
                    lane.ended(outcome, attempt=ctx.attempt, held=name in self._may_be_paused)
            if outcome == "rejected":
                raise Reject("as the history says")
            if outcome == "failed":
                raise RuntimeError("as the history says")
            if outcome == "waits":
                raise Retry(after_ms=2)

        handle.__name__ = name
        return on.every(name=name, **options)(handle)

    async def _meet_fate(self, event: tuple[str, str, int]) -> str:
        await asyncio.sleep(0)
        fate = [] if self._mended else self._fates.get(event, [])
        if not fate:
            return "done"
        letter = fate[0] if fate[0].isupper() else fate.pop(0)
        if letter == "s":
            await asyncio.sleep(0.005)
            return "done"
        return "rejected" if letter in "rR" else "failed"

    # Steps

    async def play(self, steps: Sequence[Step]) -> None:
        """Play a history, mend everything, replay all dead letters, and see that all is well in the end."""
        try:
            await self.start()
            for step in steps:
                await self._take(step)
                self.check()
            await self._finish()
        except BaseException as error:
            error.add_note(f"the history: {steps}")
            raise
        finally:
            await self.stop()

    def check(self) -> None:
        """Raises what the model said of a call."""
        if self.error is not None:
            raise self.error

    async def _take(self, step: Step) -> None:
        match step.do:
            case "put":
                session, fates = step.what
                await self._put(session, fates)
            case "run":
                await asyncio.sleep(step.what / 1000)
            case "settle":
                await self._settle()
            case "crash":
                await asyncio.sleep(step.what / 1000)
                await self.crash()
                await self.start()
            case "stop":
                await asyncio.sleep(step.what / 1000)
                await self.stop()
                await self.start()
            case "pause":
                await self._pause(step.what)
            case "resume":
                await self._resume(step.what)
            case "replay":
                await self._ask("dead", step.what)
            case "discard":
                await self._ask("discard", step.what)
            case "mend":
                self._mended = True
            case _:
                raise ValueError(f"no such step: {step}")

    async def _put(self, session: str, fates: Sequence[dict[str, Fate]]) -> None:
        """Add one event of a session for each, with its fate by handler."""
        stream = self._keys.callbacks(partition_of(session, PARTITIONS))
        for fate in fates:
            number = self._next[session]
            self._next[session] += 1
            for handler in HANDLERS:
                self._fates[handler, session, number] = [*fate.get(handler, "")]
                self.lanes[handler, session].numbers.append(number)
            await self._client.xadd(stream, {CALLBACK_FIELD: callback(session, number)})

    async def _pause(self, handler: str) -> None:
        self._may_be_paused.add(handler)
        await self._client.hset(self._keys.control, pause_field(handler), b"\x80")
        await self._until(lambda: self.node.gates.paused(handler), "the pause to take effect")
        # An attempt that has begun goes on: after a crash, its mark is written to Redis before its handler is called.
        await self._until(lambda: not self.node._dispatcher.busy, "what is under way to end")
        self._paused.add(handler)

    async def _resume(self, handler: str) -> None:
        self._paused.discard(handler)
        await self._client.hdel(self._keys.control, pause_field(handler))
        await self._until(lambda: not self.node.gates.paused(handler), "the pause to end")

    async def _ask(self, kind: JobKind, handler: str | None) -> Job:
        """Create a job for the dead letters of a handler, or of all. It is carried out while the history goes on."""
        for lane in self.lanes.values():
            if handler is None or lane.name.startswith(handler):
                (lane.may_replay if kind == "dead" else lane.may_discard).update(lane.numbers)
        now_ms = time.time_ns() // 1_000_000
        job = Job(
            next(self._names),
            kind,
            Selection(handler=handler),
            now_ms,
            tuple(range(PARTITIONS)),
            by="ops@test",
        )
        for number in job.partitions:
            last = await self._client.xrevrange(self._keys.dead(number), count=1)
            record = PartitionJob(now_ms, last[0][0].decode() if last else "0-0")
            await self._client.hsetnx(self._keys.partition_jobs(number), job.id, encode_partition_job(record))
        await self._client.hset(self._keys.jobs, job.id, encode_job(job))
        await self._client.hincrby(self._keys.control, REVISION_FIELD, 1)
        return job

    async def _settle(self) -> None:
        """Wait for a moment at which everything is read, and whatever has happened is committed."""
        await self._until_read()

        def settled() -> bool:
            node = self.node
            return self.error is not None or (
                not node._dispatcher.busy
                and not any(p.uncommitted or p.unfinished or p.retry_queues for p in node.partitions)
            )

        await self._until(settled, "everything to be committed")
        for lane in self.lanes.values():
            lane.durable()

    async def _until_read(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.error is None and any([await self._unread(p) for p in range(PARTITIONS)]):
                await asyncio.sleep(0.001)

    async def _unread(self, partition: int) -> bool:
        stream = self._keys.callbacks(partition)
        if not await self._client.exists(stream):
            return False
        (group,) = await self._client.xinfo_groups(stream)
        return bool(group["lag"] or group["pending"])

    # The end

    async def _finish(self) -> None:
        self._mended = True
        for handler in HANDLERS:
            await self._resume(handler)
        await self._until_read()
        async with asyncio.timeout(PATIENCE_S):
            while self.error is None and await self._left():
                if await self._letters():
                    job = await self._ask("dead", None)
                    while self.error is None and not await self._ended(job):
                        await asyncio.sleep(0.002)
                await asyncio.sleep(0.002)
        await self._settle()
        self.check()
        for lane in self.lanes.values():
            lane.check_finished()

    async def _left(self) -> bool:
        counts = [await self._client.hgetall(self._keys.retry_counts(p)) for p in range(PARTITIONS)]
        return any(int(count) for one in counts for count in one.values()) or bool(await self._letters())

    async def _letters(self) -> int:
        return sum([await self._client.xlen(self._keys.dead(number)) for number in range(PARTITIONS)])

    async def _ended(self, job: Job) -> bool:
        values = [await self._client.hget(self._keys.partition_jobs(p), job.id) for p in job.partitions]
        return all(value is not None and decode_partition_job(value).ended for value in values)

    async def _until(self, condition: Callable[[], Any], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(f"waited {PATIENCE_S} s for {what}") from None
