"""The same callbacks through a harness and through a real worker on a real server, and what handlers made of them.

Time is the stream's. In the worker it is decided by the IDs of entries, which lie far in the future: a stream whose IDs
are ahead of the server's clock goes on from its last ID. So a gap of twenty seconds ends with the next entry whose ID
is twenty seconds later, and nobody waits. Real time passes as well, some milliseconds: no step may come near the end of
a gap by less than a second.
"""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode

import redis
from dispatch_kit import PATIENCE_S, until

from maskline import Reject, on
from maskline.events import RecordingEvent, SessionParamUpdate, StatusEvent
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.handler_control import REVISION_FIELD
from maskline.schemas.jobs import (
    Job,
    JobKind,
    PartitionJob,
    Selection,
    decode_partition_job,
    encode_job,
    encode_partition_job,
)
from maskline.schemas.keys import Keys
from maskline.schemas.parameters import FORM_TYPE
from maskline.schemas.session_export import (
    ExportedCallback,
    ExportSettings,
    SessionExport,
    decode_export,
    encode_export,
)
from maskline.schemas.settings import Settings
from maskline.testing import Harness
from maskline.worker.entries.dead_letter import DEAD_FIELD, DeadLetter, decode_dead_letter, public_id
from maskline.worker.node import WorkerNode
from maskline.worker.testing.harness import START_MS

GAP_TIMEOUT_MS = 20_000
STEPS_S = (0, 6, 11, 25)
"""Times between steps. No sum of them is near the gap timeout."""
FLUSH_S = 3_600
"""After the last step: every gap is given up."""
AHEAD_MS = 10**10
"""How far the IDs are ahead of the server's clock."""
TICK = "tick-"

Parameters = Mapping[str, str] | RawCallback


class Step(NamedTuple):
    """Callbacks that come at one time, `after_s` seconds after those before."""

    after_s: int
    callbacks: Sequence[Parameters]


class Scenario(NamedTuple):
    """Callbacks, and what an operator does after the last of them, one thing after the other.

    Replays and discards are of all dead letters; what runs again is the first session.
    """

    steps: Sequence[Step]
    done_later: Sequence[Literal["replay", "discard", "run again"]] = ()


class Outcome(NamedTuple):
    """What became of the callbacks of an example."""

    calls: dict[tuple[str, str], list[tuple[Any, ...]]]
    """By session and handler, every attempt in its order."""
    letters: list[tuple[Any, ...]]
    parked: int


class Recorder:
    """Handlers that fail by plan, and note what they are called with. The plan stands in the callback: `Plan=3` fails
    three attempts, `Plan=reject` all, unless an operator replays it; `Plan=again` fails always.
    """

    def __init__(self) -> None:
        self.calls: defaultdict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)

        @on.every(name="keeper", retries=2, backoff_ms=0)
        async def keeper(event, ctx):
            self._call("keeper", event, ctx)

        @on(StatusEvent, name="skipper", retries=1, backoff_ms=0, on_give_up="skip")
        async def skipper(event, ctx):
            await asyncio.sleep(0)
            self._call("skipper", event, ctx)

        @on(RecordingEvent, SessionParamUpdate, name="plain", retries=1, backoff_ms=0)
        def plain(event, ctx):
            self._call("plain", event, ctx)

        self.module = ModuleType("planned_handlers")
        vars(self.module).update(keeper=keeper, skipper=skipper, plain=plain)

    def _call(self, handler, event, ctx):
        given = (
            event.event_name,
            ctx.sequence_number,
            ctx.order,
            ctx.missing,
            ctx.skipped,
            ctx.run,
            ctx.attempt,
            ctx.replayed,
            ctx.idempotency_key,
        )
        self.calls[ctx.session_uuid, handler].append(given)
        plan = event.extra.get("Plan", "0")
        if plan == "again" or (plan == "reject" and not ctx.replayed):
            raise Reject("by plan")
        if plan.isdecimal() and ctx.attempt <= int(plan) and not ctx.replayed:
            raise ValueError("by plan")

    def of_sessions(self, prefix: str) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
        return {key: calls for key, calls in self.calls.items() if key[0].startswith(prefix)}


async def through_harness(
    scenario: Scenario, prefix: str, *, retry_waits: bool = False, crashes: bool = False, **settings: Any
) -> Outcome:
    """`crashes`: the worker crashes after every step, which must make no difference: all is committed then."""
    recorder = Recorder()
    harness = Harness(recorder.module, gap_timeout_ms=GAP_TIMEOUT_MS, retry_waits=retry_waits, **settings)
    async with harness:
        for step in scenario.steps:
            await harness.pass_time(step.after_s)
            await harness.feed(*step.callbacks)
            if crashes:
                await harness.restart()
        await harness.pass_time(FLUSH_S)
        for doing in scenario.done_later:
            if doing == "run again":
                await harness.run_again(f"{prefix}s0")
            else:
                deal_with = harness.replay if doing == "replay" else harness.discard
                await deal_with(*harness.dead_letters)
        letters = sorted(map(_letter, harness.dead_letters), key=repr)
        return Outcome(recorder.of_sessions(prefix), letters, harness.parked)


async def through_file(scenario: Scenario, prefix: str, **settings: Any) -> Outcome:
    """As an exported session, which brings its times and settings along. Operators do nothing."""
    recorder, at_ms, callbacks = Recorder(), START_MS - 10**9, []
    for step in scenario.steps:
        at_ms += step.after_s * 1000
        callbacks += [ExportedCallback(at_ms=at_ms, callback=raw(one)) for one in step.callbacks]
    exported = ExportSettings(gap_timeout_ms=GAP_TIMEOUT_MS, **settings)
    export = SessionExport(session_uuid=prefix, callbacks=tuple(callbacks), settings=exported)
    async with Harness(recorder.module) as harness:
        await harness.replay(decode_export(encode_export(export)))
        letters = sorted(map(_letter, harness.dead_letters), key=repr)
        return Outcome(recorder.of_sessions(prefix), letters, harness.parked)


class RealWorker:
    """A worker in this process, and one partition on a server."""

    def __init__(self, url: str, namespace: str, client: redis.Redis, **settings: Any) -> None:
        self._settings = Settings(
            redis_url=url,
            namespace=namespace,
            partitions=1,
            admin_port=0,
            handlers=(),
            gap_timeout_ms=GAP_TIMEOUT_MS,
            gap_spool_ms=0,
            lease_ttl_ms=60_000,  # between two examples its event loop stands still
            **settings,
        )
        self._keys = Keys(namespace, self._settings.group)
        self._client = client
        self._recorder = Recorder()
        self._ticks = itertools.count(1)
        self._letters_before: list[str] = []
        """IDs of those that earlier examples have left."""
        self._parked_before = 0

    async def start(self) -> None:
        self._node = WorkerNode(self._settings, handler_modules=[self._recorder.module])
        await self._node.start()
        await until(lambda: len(self._node.partitions) == 1)
        seconds, _ = self._client.time()
        self._at_ms = int(seconds) * 1000 + AHEAD_MS
        for _ in range(3):
            await self._tick(*[self._ticked() for _ in range(50)])  # so that reads are large from now on

    async def stop(self) -> None:
        await self._node.stop()

    async def through(self, scenario: Scenario, prefix: str) -> Outcome:
        self._at_ms += 10 * FLUSH_S * 1000  # beyond whatever real time has passed
        await self._tick()
        for step in scenario.steps:
            if step.after_s:
                self._at_ms += step.after_s * 1000
                await self._tick()
            await self._tick(*map(raw, step.callbacks))
        self._at_ms += FLUSH_S * 1000
        await self._tick()
        await until(self._is_quiet)
        for doing in scenario.done_later:
            if doing == "run again":
                ((last, _),) = self._client.xrevrange(self._keys.callbacks(0), count=1)
                await self._carry_out("callbacks", Selection(session=f"{prefix}s0"), last.decode())
            elif ids := [letter_id for letter_id, _ in self._letters()]:
                named = Selection(ids=tuple(public_id(0, letter_id) for letter_id in ids))
                await self._carry_out("dead" if doing == "replay" else "discard", named, ids[-1])
            await self._tick()  # what was put back into the stream is read
            await until(self._is_quiet)
        letters = self._letters()
        outcome = Outcome(
            self._recorder.of_sessions(prefix),
            sorted((_letter(letter) for _, letter in letters), key=repr),
            self._parked() - self._parked_before,
        )
        self._parked_before = self._parked()
        self._letters_before += [letter_id for letter_id, _ in letters]
        return outcome

    def _letters(self) -> list[tuple[str, DeadLetter]]:
        """The dead letters of the example, with their IDs."""
        found = self._client.xrange(self._keys.dead(0))
        known = {*self._letters_before}
        return [
            (letter_id.decode(), decode_dead_letter(fields[DEAD_FIELD]))
            for letter_id, fields in found
            if letter_id.decode() not in known
        ]

    def _parked(self) -> int:
        counts = self._client.hgetall(self._keys.retry_counts(0))
        return sum(int(count) for field, count in counts.items() if field.startswith(b"parked "))

    async def _carry_out(self, kind: JobKind, selected: Selection, end: str) -> None:
        """Have a job done, as a command does, and wait until that is so. `end`: the last entry that it looks at."""
        now_ms = time.time_ns() // 1_000_000
        job = Job(f"job{next(self._ticks)}", kind, selected, now_ms, (0,), by="ops@test")
        record = encode_partition_job(PartitionJob(now_ms, end))
        self._client.hset(self._keys.partition_jobs(0), job.id, record)
        self._client.hset(self._keys.jobs, job.id, encode_job(job))
        self._node.jobs.revision_changed(self._client.hincrby(self._keys.control, REVISION_FIELD, 1))
        jobs = self._keys.partition_jobs(0)
        await until(lambda: decode_partition_job(self._client.hget(jobs, job.id)).state == "done")
        self._client.hdel(self._keys.jobs, job.id)

    def _is_quiet(self) -> bool:
        partition = self._node.partitions[0]
        if partition.unfinished or partition.retry_queues or partition.uncommitted:
            return False
        counts = self._client.hgetall(self._keys.retry_counts(0))
        waiting = {field: int(count) for field, count in counts.items()}
        return all(
            waiting.get(field.replace(b"waiting", b"parked"), 0) == count
            for field, count in waiting.items()
            if field.startswith(b"waiting ")
        )

    async def _tick(self, *callbacks: RawCallback) -> None:
        """Append callbacks at the present time, by one transaction; wait until all of it was read and put in order."""
        last = self._ticked()
        with self._client.pipeline(transaction=True) as pipe:
            for one in (*callbacks, last):
                pipe.xadd(
                    self._keys.callbacks(0), {CALLBACK_FIELD: encode_callback(one)}, id=f"{self._at_ms}-*"
                )
            pipe.execute()
        session = dict(part.split("=") for part in last.body.decode().split("&"))["SessionUUID"]
        async with asyncio.timeout(PATIENCE_S):
            while (session, "keeper") not in self._recorder.calls:
                await asyncio.sleep(0)

    def _ticked(self) -> RawCallback:
        """A callback that is handled at once, by every handler: so none of them goes down."""
        return raw({"EventName": "SessionParamUpdate", "SessionUUID": f"{TICK}{next(self._ticks)}"})


def raw(given: Parameters) -> RawCallback:
    if isinstance(given, RawCallback):
        return given
    return RawCallback("POST", b"", FORM_TYPE, urlencode(given).encode(), 1, "")


def _letter(letter: Any) -> tuple[Any, ...]:
    return (
        letter.session_uuid,
        letter.event_name,
        letter.sequence_number,
        letter.handler,
        letter.code,
        letter.attempts,
        letter.parked,
        letter.order,
        letter.run,
        letter.missing,
    )
