"""Retry queues on real servers, Valkey and Redis: what each operation of a commit changes."""

import asyncio

import hiredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from retry_queues_kit import CLOSED_LIFE_S, LIFE_S, PARTITION, QueueModel, open_store
from servers import RedisServer, binary_of, server_kinds

from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, decode_callback, encode_callback
from maskline.schemas.keys import encode_handler
from maskline.worker.commands import scripts
from maskline.worker.commands.marks import Mark
from maskline.worker.commands.retry_ops import (
    Again,
    Append,
    DeleteJob,
    DeleteLetter,
    GiveUpWaiting,
    Park,
    Pop,
    Requeue,
    Unpark,
    Untake,
    WriteJob,
)
from maskline.worker.ordering.state import HandlerRetries, SessionState, encode_state

HANDLER_NAMES = ("h", "other handler: 50%")
STATE = SessionState(retries={"h": HandlerRetries(waiting=1)})
CALLBACK = RawCallback("POST", b"a=1", "text/plain", b"x" * 40, 1_767_225_600_000, "MA1")

pytestmark = pytest.mark.server


@pytest.fixture(scope="module", params=server_kinds())
def server(request, tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("server"), binary=binary_of(request.param)).start()
    yield server
    server.stop()


@pytest.fixture
async def store(server):
    with server.client() as client:
        store = await open_store(server, client)
        yield store
        store.connection.close()


# Operations


HANDLERS = st.sampled_from(HANDLER_NAMES)
SESSIONS = st.sampled_from(["s", "t u", "{x}:é"])
DELAYS = st.sampled_from([0, 5_000, 3_600_000])
ITEMS = st.binary(min_size=1, max_size=3)
QUEUES = {"handler": HANDLERS, "session": SESSIONS}
OPS = st.one_of(
    st.builds(Append, **QUEUES, delay_ms=DELAYS, item=ITEMS),
    st.builds(Append, **QUEUES, delay_ms=DELAYS, item=ITEMS),
    st.builds(Again, **QUEUES, delay_ms=DELAYS, item=ITEMS),
    st.builds(Pop, **QUEUES),
    st.builds(Park, **QUEUES),
    st.builds(Unpark, **QUEUES, letter_id=st.just("1-0"), item=st.one_of(st.none(), ITEMS)),
    st.builds(Untake, **QUEUES),
    st.builds(GiveUpWaiting, **QUEUES, events=st.integers(0, 3)),
)
COMMITS = st.lists(st.lists(OPS, min_size=1, max_size=5), max_size=12)


def assert_as_model(store, model, before_ms):
    """`before_ms`: before the last commit was sent."""
    now_ms = store.now_ms()
    for (handler, session), queue in model.queues.items():
        assert store.queue(handler, session) == queue
    for handler in HANDLER_NAMES:
        due = model.sessions(handler, model.due_in_ms)
        parked = model.sessions(handler, model.parked)
        assert store.due(handler).keys() == due
        assert store.parked(handler).keys() == parked
        assert store.since(handler).keys() == due | parked
        for session, at_ms in store.due(handler).items():
            if (handler, session) in model.scheduled:
                in_ms = model.due_in_ms[handler, session]
                assert before_ms + in_ms <= at_ms <= now_ms + in_ms
        for times, began in ((store.parked(handler), model.parked_now), (store.since(handler), model.begun)):
            for session, at_ms in times.items():
                assert (before_ms <= at_ms) == ((handler, session) in began)
                assert at_ms <= now_ms
    assert store.counts() == model.counts()
    lists = set(store.client.scan_iter(match=f"*{store.keys.namespace}*:retry:*", count=1000))
    assert len(lists) == sum(bool(queue) for queue in model.queues.values())
    expected = {
        f"{encode_handler(handler)} {session}": f"{n} me" for (handler, session), n in model.taken.items()
    }
    assert store.taken() == expected


def tick(store):
    """Wait for the server's next millisecond, so that what happens now can be told from what happened before."""
    before_ms = store.now_ms()
    while (now_ms := store.now_ms()) == before_ms:
        pass
    return now_ms


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=COMMITS, take=st.booleans())
def test_operations_do_what_they_do_to_lists_and_sets(server, commits, take):
    async def run():
        with server.client() as client:
            store, model = await open_store(server, client), QueueModel()
            for ops in commits:
                before_ms = tick(store)
                await store.commit(*ops)
                model.begin_commit()
                for op in ops:
                    model.apply(op)
                assert_as_model(store, model, before_ms)
                for handler in HANDLER_NAMES if take else ():
                    for queue in (await store.take(handler)).queues:
                        model.taken[handler, queue.session] = 1
            store.connection.close()

    asyncio.run(run())


async def test_a_failing_event_goes_through_its_life(store):
    await store.commit(Append("h", "s", 0, b"1"), Append("h", "s", 9, b"2"), Append("h", "s", 9, b"3"))
    taken = await store.take()
    assert taken.queues == [scripts.TakenQueue("s", 1, None, [b"1", b"2", b"3"], 3)]
    await store.commit(Again("h", "s", 60_000, b"1 failed"))
    taken = await store.take()
    assert taken.queues == []
    assert 0 < taken.next_due_ms <= 60_000
    await store.commit(Park("h", "s"), dead=[b"letter"])
    (letter,) = store.letters()
    assert store.counts() == {"waiting h": 2, "parked h": 2}
    await store.commit(Unpark("h", "s", letter, b"1 again"))
    assert store.letters() == []
    assert (await store.take()).queues[0].items == [b"1 again", b"2", b"3"]
    for _ in range(3):
        await store.commit(Pop("h", "s"))
    assert (await store.take()) == scripts.Taken([], None)
    assert not store.client.keys(f"*{store.keys.namespace}:{PARTITION}*:retry*"), "nothing is left behind"


async def test_a_commit_does_everything_at_once_and_once(store):
    """All that a commit may bring, so that each part finds its arguments."""
    ids = [
        store.client.xadd(store.keys.callbacks(PARTITION), {"c": "x"}, id=f"{n}-0").decode() for n in (1, 2)
    ]
    await store.commit(cursor="1-0", moved=True, waiting=ids[:1])
    await store.run(scripts.mark(store.keys, PARTITION, store.value, [("1-0 h", Mark(1, "running"))]))
    closed = SessionState(closed=True, retries={"h": HandlerRetries(skipped=(1,))})
    lasting = SessionState(closed=True, retries={"h": HandlerRetries(parked=True)})
    commit = store.next_commit(
        Append("h", "s", 0, b"1"),
        Append("g", "s", 0, b"1"),
        Append("h", "t", 0, b"1"),
        WriteJob("j", b"record"),
        cursor="2-0",
        moved=True,
        waiting=ids[1:],
        done=ids[:1],
        dead=[b"letter", b"another"],
        states={"s": STATE, "closed": closed, "lasting": lasting, "plain": SessionState()},
        lasting={"s", "lasting"},
        unmarked=["1-0 h"],
    )
    assert await store.send(commit) == scripts.COMMITTED
    lives = {session: store.client.ttl(store.keys.session(PARTITION, session)) for session in commit.states}
    assert lives["s"] == lives["lasting"] == -1
    assert 0 < lives["closed"] <= CLOSED_LIFE_S < lives["plain"] <= LIFE_S
    for session, state in commit.states.items():
        assert store.client.get(store.keys.session(PARTITION, session)) == encode_state(state)
    (pending,) = store.client.xpending_range(store.keys.callbacks(PARTITION), "workers", "-", "+", 10)
    assert pending["message_id"] == b"2-0"
    assert not store.client.exists(store.keys.marks(PARTITION))
    assert len(store.letters()) == 2
    assert store.counts() == {"waiting h": 2, "parked h": 0, "waiting g": 1, "parked g": 0}

    before = store.dump()
    assert await store.send(commit) == scripts.COMMITTED, "the repeat of a commit whose reply was lost"
    assert store.dump() == before


@pytest.mark.parametrize("session_closed", [False, True])
async def test_a_state_lasts_while_the_commit_says_so(store, session_closed):
    state = SessionState(closed=session_closed, retries=STATE.retries)
    key = store.keys.session(PARTITION, "s")
    await store.commit(states={"s": state}, lasting={"s", "another"})
    assert store.client.ttl(key) == -1
    await store.commit(states={"s": state})
    assert 0 < store.client.ttl(key) <= (CLOSED_LIFE_S if session_closed else LIFE_S)


# Fencing


async def test_operations_of_a_fenced_or_diverged_commit_change_nothing(store):
    await store.commit(Append("h", "s", 0, b"1"), dead=[b"letter"])
    (letter,) = store.letters()
    former = store.value
    ops = Pop("h", "s"), Append("h", "t", 0, b"2"), DeleteLetter(letter), WriteJob("j", b"record")
    ahead = store.next_commit(*ops)
    ahead = store.next_commit(*ops)
    before = store.dump()
    assert await store.send(ahead) == scripts.DIVERGED
    assert store.dump() == before
    await store.own_anew("other")
    before = store.dump()
    for number in range(3):
        store.number = number
        assert await store.send(store.next_commit(*ops), former) == scripts.FENCED
    assert await store.try_to_take(value=former, count=1, items=1) is None
    assert store.dump() == before


async def test_a_lease_that_lapsed_and_that_nobody_took_is_still_good_for_queues(store):
    store.client.delete(store.keys.lease(PARTITION))
    await store.commit(Append("h", "s", 0, b"1"))
    assert [queue.session for queue in (await store.take()).queues] == ["s"]


# What somebody has damaged


async def test_a_queue_that_is_due_no_more_is_due_again_with_its_next_event(store):
    await store.commit(Append("h", "s", 0, b"1"))
    store.client.delete(store.keys.retry_due(PARTITION, "h"))
    assert (await store.take()).queues == []
    await store.commit(Append("h", "s", 0, b"2"))
    assert (await store.take()).queues[0].items == [b"1", b"2"]


@pytest.mark.parametrize("damage", [{"waiting h": 0}, {"waiting h": "x"}, {"parked h": -5}, {}], ids=str)
async def test_counts_never_fall_below_zero_and_are_right_once_nothing_waits(store, damage):
    await store.commit(Append("h", "s", 0, b"1"), Append("h", "s", 0, b"2"))
    store.client.delete(store.keys.retry_counts(PARTITION))
    if damage:
        store.client.hset(store.keys.retry_counts(PARTITION), mapping=damage)
    await store.commit(Pop("h", "s"))
    assert store.counts() == {"waiting h": 0, "parked h": 0}
    await store.commit(Pop("h", "s"))
    assert store.counts() == {}


async def test_a_queue_whose_list_was_deleted_is_dropped_and_hides_no_other(store):
    await store.commit(*(Append("h", f"s{n}", 0, b"1") for n in range(8)))
    for n in range(7):
        store.client.delete(store.keys.retry_queue(PARTITION, "h", f"s{n}"))
    taken, looks = await store.take(count=2), 0
    while not taken.queues:
        assert taken.next_due_ms == 0
        taken, looks = await store.take(count=2), looks + 1
    assert [queue.session for queue in taken.queues] == ["s7"]
    assert looks < 4
    assert store.since().keys() == store.due().keys() == {"s7"}
    await store.commit(Pop("h", "s7"))
    assert store.counts() == {}


async def test_an_attempt_of_a_queue_whose_list_was_deleted_is_not_lost(store):
    await store.commit(Append("h", "s", 0, b"1"))
    store.client.delete(store.keys.retry_queue(PARTITION, "h", "s"))
    await store.commit(Again("h", "s", 0, b"1 failed"))
    assert (await store.take()).queues[0].items == [b"1 failed"]


# Dead letters and jobs


@pytest.mark.parametrize("letter_id", ["x", "", "1-2-3", "99999999999999999999-1", "1-1"])
async def test_letter_that_is_not_there_is_no_reason_to_stop(store, letter_id):
    await store.commit(dead=[b"letter"])
    await store.commit(
        DeleteLetter(letter_id),
        Requeue(letter_id, encode_callback(CALLBACK)),
        Unpark("h", "s", letter_id, b"1"),
    )
    assert store.queue("h", "s") == [b"1"]
    assert len(store.letters()) == 1
    assert not store.client.xlen(store.keys.callbacks(PARTITION))


async def test_a_letter_s_callback_is_put_back_as_ingest_writes_it_and_flagged(store):
    await store.commit(dead=[b"letter", b"another"])
    letter, another = store.letters()
    await store.commit(Requeue(letter, encode_callback(CALLBACK)), Requeue(another, b"foreign"))
    await store.commit(Requeue(letter, encode_callback(CALLBACK)))
    entries = store.client.xrange(store.keys.callbacks(PARTITION))
    (fields, foreign) = [fields for _, fields in entries]
    found = decode_callback(fields.pop(CALLBACK_FIELD))
    assert not fields
    assert found == RawCallback(
        *(getattr(CALLBACK, name) for name in RawCallback.__struct_fields__[:6]), replayed=True
    )
    assert foreign == {CALLBACK_FIELD: b"foreign"}
    assert store.letters() == []


async def test_progress_of_jobs_is_written_with_the_commit(store):
    await store.commit(WriteJob("j1", b"record"), WriteJob("j2", b"\xff"), WriteJob("j1", b"newer"))
    jobs = store.keys.partition_jobs(PARTITION)
    assert store.client.hgetall(jobs) == {b"j1": b"newer", b"j2": b"\xff"}
    await store.commit(DeleteJob("j1"), DeleteJob("j3"))
    assert store.client.hgetall(jobs) == {b"j2": b"\xff"}


# All or nothing


EVERY_OP = (
    Append("h", "s", 0, b"1"),
    Append("h", "s", 0, b"2"),
    Again("h", "s", 0, b"1"),
    Park("h", "s"),
    Unpark("h", "s", "1-1", b"1"),
    Pop("h", "s"),
    WriteJob("j", b"record"),
    Requeue("1-1", encode_callback(CALLBACK)),
)


@pytest.mark.parametrize(
    "key",
    [
        lambda keys: keys.dead(PARTITION),
        lambda keys: keys.retry_counts(PARTITION),
        lambda keys: keys.retry_taken(PARTITION),
        lambda keys: keys.partition_jobs(PARTITION),
        lambda keys: keys.retry_due(PARTITION, "h"),
        lambda keys: keys.retry_parked(PARTITION, "h"),
        lambda keys: keys.retry_since(PARTITION, "h"),
        lambda keys: keys.retry_queue(PARTITION, "h", "s"),
    ],
    ids=["dead", "counts", "taken", "jobs", "due", "parked", "since", "queue"],
)
async def test_where_a_key_is_of_another_type_nothing_is_written(store, key):
    store.client.set(key(store.keys), "foreign")
    before = store.dump()
    reply = await store.send(store.next_commit(*EVERY_OP, states={"s": STATE}))
    assert isinstance(reply, hiredis.ReplyError)
    assert str(reply).startswith("WRONGTYPE")
    assert store.dump() == before


@pytest.mark.parametrize(
    "denied",
    [
        "rpush",
        "lpush",
        "lset",
        "ltrim",
        "llen",
        "zadd",
        "zrem",
        "zscore",
        "zcard",
        "hset",
        "hdel",
        "xadd",
        "xdel",
    ],
)
async def test_where_a_right_is_missing_nothing_is_written(store, denied):
    """As the rights that an older release was given: tried again and again, nothing may be done twice."""
    commit = store.next_commit(*EVERY_OP, dead=[b"letter"], states={"s": STATE})
    before = store.dump()
    store.client.execute_command("ACL", "SETUSER", "default", f"-{denied}")
    try:
        reply = await store.send(commit)
    finally:
        store.client.execute_command("ACL", "SETUSER", "default", "+@all")
    assert isinstance(reply, hiredis.ReplyError)
    assert denied in str(reply).lower()
    assert store.dump() == before
    assert await store.send(commit) == scripts.COMMITTED


# Size


async def test_ten_thousand_events_of_one_queue_and_of_as_many_queues(store):
    count = 10_000
    await store.commit(*(Append("h", "s", 0, b"%d" % n) for n in range(count)))
    await store.commit(*(Append("g", f"s{n}", 0, b"x") for n in range(count)))
    assert store.counts() == {"waiting h": count, "parked h": 0, "waiting g": count, "parked g": 0}
    (queue,) = (await store.take(items=2)).queues
    assert (queue.items, queue.waiting) == ([b"0", b"1"], count)
    taken = await store.take("g", count=100, items=1)
    assert (len(taken.queues), taken.next_due_ms) == (100, 0)
    await store.commit(Park("h", "s"))
    assert store.counts()["parked h"] == count - 1
    await store.commit(GiveUpWaiting("h", "s", count - 2), dead=[b"letter"] * (count - 2))
    assert store.queue("h", "s") == [b"%d" % (count - 1)]
    assert len(store.letters()) == count - 2
    await store.commit(*(Pop("g", f"s{n}") for n in range(count)), Pop("h", "s"))
    assert store.counts() == {}


async def test_nothing_is_taken_where_the_last_commit_is_missing(store):
    await store.commit(Append("h", "s", 0, b"1"))
    confirmed = store.number
    for commits in ((confirmed + 1, confirmed + 1), (confirmed - 1, confirmed - 1)):
        packed = scripts.take_due(store.keys, PARTITION, store.value, "h", count=1, items=1, commits=commits)
        assert await store.run(packed) == scripts.DIVERGED
    assert (await store.take(commits=(confirmed - 1, confirmed))).queues[0].items == [b"1"], (
        "one is under way"
    )
