"""Real workers with `handlers.timeline` on a real server, killed while sessions run: every event is kept, once, as it
was in order. Longer: TIMELINE_KILL_SESSIONS=2000 TIMELINE_KILLS=30.
"""

import asyncio
import os
import random
from collections import defaultdict

from process_kit import Fleet
from servers import wait_until

from maskline.console.simulate.plan import PlanOptions, interleave, plan_sessions
from maskline.console.simulate.sessions import SessionOptions
from maskline.handlers.redis_store import Record, RedisRecordStore
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.settings import Settings

SESSIONS = int(os.environ.get("TIMELINE_KILL_SESSIONS", "25"))
KILLS = int(os.environ.get("TIMELINE_KILLS", "1"))
SEED = int(os.environ.get("SEED", "5"))
PATIENCE_S = 60.0
OPTIONS = PlanOptions(
    seed=SEED, sessions=SESSIONS, duplicates=0.1, session=SessionOptions(calls_min=1, calls_max=3)
)


def start(crew: Fleet) -> None:
    crew.start(handlers="maskline.handlers.timeline", lease_ttl_ms=300)


def put(crew: Fleet, sends) -> None:
    for send in sends:
        raw = RawCallback(
            send.method, send.query.encode(), send.content_type, send.body, 1_767_600_000_000, ""
        )
        stream = crew.stream(send.event.session_uuid)
        crew.client.xadd(stream, {CALLBACK_FIELD: encode_callback(raw)})


async def records(crew: Fleet, sessions) -> dict[str, Record]:
    settings = Settings(redis_url=crew.server.url, namespace=crew.namespace, partitions=crew.partitions)
    store = RedisRecordStore(settings, "test", Keys.timeline, Keys.call_summary_due, ttl_ms=10**6)
    async with store:
        return {session: await store.read(session) for session in sessions}


def kept(crew: Fleet, sessions) -> int:
    pipeline = crew.client.pipeline(transaction=False)
    for session in sessions:
        pipeline.hget(crew.keys.timeline(partition_of(session, crew.partitions), session), "count")
    return sum(int(count or 0) for count in pipeline.execute())


def test_each_event_is_kept_once_however_often_workers_are_killed(crew):
    rng = random.Random(SEED)
    sends = list(interleave(plan_sessions(OPTIONS), OPTIONS))
    sent = defaultdict(set)
    for send in sends:
        sent[send.event.session_uuid].add(id(send.event))
    start(crew)
    start(crew)
    share = -(-len(sends) // (KILLS + 1))
    for begin in range(0, len(sends), share):
        before = kept(crew, sent)
        put(crew, sends[begin : begin + share])
        if begin + share < len(sends):
            wait_until(lambda: kept(crew, sent) > before, within_s=PATIENCE_S, what="an event")  # noqa: B023
            rng.choice([worker for worker in crew.workers if worker.process.poll() is None]).kill()
            start(crew)
    wait_until(crew.drained, within_s=PATIENCE_S, what="the streams to be drained")

    for session, record in asyncio.run(records(crew, sent)).items():
        assert (record.count, len(record.observations)) == (len(sent[session]),) * 2
        assert (record.beyond, record.unreadable) == (0, 0)
        orders = {one.order for one in record.observations.values()}
        assert orders <= {"in_order", "unsequenced"}
        assert len({one.entry_id for one in record.observations.values()}) == record.count
    assert not crew.dead_letters()
