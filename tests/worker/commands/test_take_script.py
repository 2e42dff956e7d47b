"""Which retry queues a worker is given to run, on real servers; how often one was taken; and what waits, counted."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot
from retry_queues_kit import PARTITION, open_store
from servers import RedisServer, binary_of, plain_reply, server_kinds, wait_until

from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands import scripts
from maskline.worker.commands.retry_ops import Again, Append, GiveUpWaiting, Park, Pop, Untake, WriteJob
from maskline.worker.ordering.state import SessionState, decode_state

HOUR_MS = 3_600_000

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


def sessions(taken):
    return [queue.session for queue in taken.queues]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    due_ms=st.lists(st.integers(-9, 3), max_size=12),
    excluded=st.sets(st.integers(0, 14)),
    count=st.integers(0, 14),
    items=st.integers(1, 3),
)
def test_queues_that_are_due_longest_are_taken_and_the_rest_says_when(server, due_ms, excluded, count, items):
    """`due_ms`: when each queue is due, in hours from now."""

    async def run():
        with server.client() as client:
            store = await open_store(server, client)
            lengths = {f"s{place}": place % 4 + 1 for place in range(len(due_ms))}
            await store.commit(*(Append("h", name, 0, b"1") for name, n in lengths.items() for _ in range(n)))
            now_ms, due = store.now_ms(), store.keys.retry_due(PARTITION, "h")
            scores = {f"s{place}": now_ms + hours * HOUR_MS for place, hours in enumerate(due_ms)}
            if scores:
                client.zadd(due, scores)
            left_out = {f"s{place}" for place in excluded}
            taken = await store.take(count=count, items=items, excluded=left_out)
            candidates = sorted((score, name) for name, score in scores.items() if name not in left_out)
            expected = [name for score, name in candidates if score <= now_ms][:count]
            assert sessions(taken) == expected
            for queue in taken.queues:
                assert queue.waiting == lengths[queue.session]
                assert len(queue.items) == min(items, queue.waiting)
            rest = [score for score, name in candidates if name not in expected]
            if not rest:
                assert taken.next_due_ms is None
            else:
                assert max(min(rest) - store.now_ms(), 0) <= taken.next_due_ms <= max(min(rest) - now_ms, 0)
            assert store.due().keys() == scores.keys(), "a queue stays due while it is taken"
            store.connection.close()

    asyncio.run(run())


async def test_a_queue_comes_with_its_session_s_state(store):
    state = SessionState(closed=True)
    await store.commit(Append("h: 1", "s:é", 0, b"1"), states={"s:é": state})
    ((session, takes, encoded, items, waiting),) = (await store.take("h: 1")).queues
    assert (session, takes, items, waiting) == ("s:é", 1, [b"1"], 1)
    assert decode_state(encoded) == state


async def test_queues_of_other_handlers_and_groups_are_not_taken(store):
    await store.commit(Append("h", "s", 0, b"1"))
    assert (await store.take("g")) == scripts.Taken([], None)
    store.keys = Keys(store.keys.namespace, "audit")
    await store.own()
    assert (await store.take("h")) == scripts.Taken([], None)
    assert await store.index() == {}


# How often it was taken


async def test_a_worker_counts_once_and_the_next_one_more(store):
    """A worker that takes a queue again has not got the reply, or has lost the partition: it has not died."""
    await store.commit(Append("h", "s", 0, b"1"))
    for worker, takes in (("me", 1), ("me", 1), ("other", 2), ("third", 3)):
        await store.own_anew(worker)
        for _ in range(2):
            assert [queue.takes for queue in (await store.take()).queues] == [takes]


@pytest.mark.parametrize(
    ("op", "takes"),
    [
        (Again("h", "s", 0, b"1 failed"), 1),
        (Pop("h", "s"), 1),
        (Untake("h", "s"), 1),
        (Append("h", "s", 0, b"3"), 2),
        (GiveUpWaiting("h", "s", 1), 2),
        (Append("g", "s", 0, b"1"), 2),
    ],
    ids=str,
)
async def test_end_of_a_run_starts_the_count_anew(store, op, takes):
    await store.commit(Append("h", "s", 0, b"1"), Append("h", "s", 0, b"2"))
    await store.take()
    await store.commit(op)
    await store.own_anew("other")
    assert [queue.takes for queue in (await store.take()).queues] == [takes]


async def test_a_count_that_somebody_has_damaged_starts_anew(store):
    await store.commit(Append("h", "s", 0, b"1"))
    store.client.hset(store.keys.retry_taken(PARTITION), "h s", "x")
    assert [queue.takes for queue in (await store.take()).queues] == [1]


async def test_an_error_reply_is_an_error(store):
    store.client.set(store.keys.retry_due(PARTITION, "h"), "foreign")
    with pytest.raises(RedisUnavailableError, match="WRONGTYPE"):
        await store.take()
    store.client.set(store.keys.retry_counts(PARTITION), "foreign")
    with pytest.raises(RedisUnavailableError, match="WRONGTYPE"):
        await store.index()


# What waits, counted


async def test_the_index_counts_by_handler(store):
    assert await store.index() == {}
    name = "settle: 50%"
    await store.commit(
        *(
            Append(name, session, delay, b"1")
            for session, delay in (("s", 0), ("t", HOUR_MS), ("u", HOUR_MS))
        ),
        Append(name, "s", 0, b"2"),
        Append("later", "s", HOUR_MS, b"1"),
        Append("parked", "s", 0, b"1"),
        Park("parked", "s"),
        Append("parked", "s", 0, b"2"),
        Append("parked", "s", 0, b"3"),
        Append("parked", "t", 0, b"1"),
        Park("parked", "t"),
    )
    since_ms = store.now_ms()
    wait_until(lambda: store.now_ms() > since_ms)
    index = await store.index()
    elapsed_ms = store.now_ms() - since_ms
    assert index.keys() == {name, "later", "parked"}
    mine, later, parked = index[name], index["later"], index["parked"]
    assert mine[1:4] == (4, 0, 0)
    assert (mine.queues, mine.due_queues, mine.parked_queues) == (3, 1, 0)
    assert 0 < mine.oldest_ms <= elapsed_ms + 1_000
    assert mine.parked_oldest_ms is None
    assert HOUR_MS - 60_000 < later.next_due_ms <= HOUR_MS
    assert (parked.waiting, parked.parked, parked.next_due_ms) == (2, 2, None)
    assert (parked.queues, parked.due_queues, parked.parked_queues) == (2, 0, 2)
    assert 0 < parked.parked_oldest_ms <= parked.oldest_ms


# Redis Cluster


def test_all_keys_that_a_session_s_queues_touch_are_in_one_slot():
    keys = Keys("masking", "workers")
    touched = [
        *(value for value in keys.of(7)),
        keys.retry_queue(7, "{other}: handler", "{session}"),
        keys.retry_due(7, "{other}: handler"),
        keys.session(7, "{session}"),
    ]
    assert len({key_slot(key.encode()) for key in touched}) == 1


@pytest.mark.parametrize("kind", server_kinds())
async def test_scripts_run_on_a_cluster(kind, tmp_path):
    """Keys made of a prefix are in its slot: a server that is part of a cluster refuses any other."""
    server = RedisServer(
        tmp_path / "node", binary=binary_of(kind), options=("--cluster-enabled", "yes")
    ).start()
    try:
        plain_reply(server.port, "CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        wait_until(lambda: b"cluster_state:ok" in plain_reply(server.port, "CLUSTER", "INFO"))
        with server.client() as client:
            store = await open_store(server, client)
            for session in ("s", "{other}"):
                await store.commit(
                    Append("{h}: 1", session, 0, b"1"),
                    WriteJob("j", b"record"),
                    states={session: SessionState()},
                )
            taken = await store.take("{h}: 1")
            assert sorted(sessions(taken)) == ["s", "{other}"]
            assert all(queue.state for queue in taken.queues)
            assert (await store.index())["{h}: 1"].waiting == 2
            store.connection.close()
    finally:
        server.stop()
