"""Real workers on a real server, killed while sessions run: one chain of revisions for each call, and the last one is
what follows from all that arrived. Longer: CALL_KILL_SESSIONS=2000 CALL_KILLS=30.
"""

import asyncio
import os
import random
from collections import defaultdict
from pathlib import Path

from process_kit import Fleet
from servers import wait_until

from maskline.console.simulate.plan import PlanOptions, interleave, plan_sessions
from maskline.console.simulate.sessions import SessionOptions
from maskline.events import CallSummary
from maskline.handlers.redis_store import Record, RedisRecordStore
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, decode_callback, encode_callback
from maskline.schemas.calls.assembly import assemble
from maskline.schemas.emission import emitted_summary
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings

SESSIONS = int(os.environ.get("CALL_KILL_SESSIONS", "30"))
KILLS = int(os.environ.get("CALL_KILLS", "2"))
SEED = int(os.environ.get("SEED", "11"))
PATIENCE_S = 60.0

MODULES = f"maskline.handlers.call_summary,{Path(__file__).with_name('collecting_handlers.py')}"
OPTIONS = PlanOptions(
    seed=SEED,
    sessions=SESSIONS,
    losses=0.08,
    duplicates=0.1,
    session=SessionOptions(calls_min=1, calls_max=3),
)


def launch(crew: Fleet) -> None:
    crew.launch(handlers=MODULES, gap_timeout_ms=200, lease_ttl_ms=300, call_silence_s=2)


def put(crew: Fleet, sends) -> None:
    for send in sends:
        raw = RawCallback(
            send.method, send.query.encode(), send.content_type, send.body, 1_767_600_000_000, ""
        )
        stream = crew.stream(send.event.session_uuid)
        crew.client.xadd(stream, {CALLBACK_FIELD: encode_callback(raw)})


def emitted(crew: Fleet) -> dict[str, list[CallSummary]]:
    """All summaries in the streams, by call, in the order of the stream."""
    found: dict[str, list[CallSummary]] = defaultdict(list)
    for partition in range(crew.partitions):
        for _, fields in crew.client.xrange(crew.keys.callbacks(partition)):
            callback = decode_callback(fields[CALLBACK_FIELD])
            if callback.method == "EMIT":
                summary = emitted_summary(callback)
                found[summary.call_key].append(summary)
    return found


async def records(crew: Fleet, sessions: set[str]) -> dict[str, Record]:
    settings = Settings(redis_url=crew.server.url, namespace=crew.namespace, partitions=crew.partitions)
    store = RedisRecordStore(settings, "test", Keys.call_summary, Keys.call_summary_due, ttl_ms=10**6)
    async with store:
        return {session: await store.read(session) for session in sessions}


def test_each_call_has_one_chain_of_revisions_however_often_workers_are_killed(crew):
    rng = random.Random(SEED)
    sends = list(interleave(plan_sessions(OPTIONS), OPTIONS))
    launch(crew)
    launch(crew)
    share = -(-len(sends) // (KILLS + 1))
    for begin in range(0, len(sends), share):
        put(crew, sends[begin : begin + share])
        if begin + share < len(sends):
            handled = len(crew.lines())
            wait_until(lambda: len(crew.lines()) > handled, within_s=PATIENCE_S, what="a summary")  # noqa: B023
            running = [worker for worker in crew.workers if worker.process.poll() is None]
            rng.choice([worker for worker in running if worker.logged("partitions owned")]).kill()
            launch(crew)  # nobody waits for it: the other one goes on
    due = [crew.keys.call_summary_due(partition) for partition in range(crew.partitions)]
    settled = lambda: crew.drained() and not crew.client.exists(*due)  # noqa: E731
    wait_until(settled, within_s=PATIENCE_S, what="all calls to be over")

    chains, kept = emitted(crew), asyncio.run(records(crew, {send.event.session_uuid for send in sends}))
    sent = defaultdict(set)
    for send in sends:
        sent[send.event.session_uuid].add(id(send.event))
    calls = 0
    for session, record in kept.items():
        real = [one for one in record.observations.values() if not one.event_name.startswith("(")]
        assert len(real) == len(sent[session])
        for call in assemble(record.observations.values()).calls:
            chain = chains.pop(call.call_key)
            assert [one.revision for one in chain] == list(range(1, len(chain) + 1))
            assert chain[-1] == call.summary(len(chain))
            calls += 1
    # A call that there is no more is empty.
    assert all(chain[-1].amount is None and not chain[-1].answered for chain in chains.values())
    assert calls > SESSIONS
    handled = {(line["call_key"], line["revision"]) for line in crew.lines()}
    assert handled == {(one.call_key, one.revision) for chain in emitted(crew).values() for one in chain}
    assert not crew.dead_letters()
