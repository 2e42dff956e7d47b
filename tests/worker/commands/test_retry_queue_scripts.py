"""Retry queues on real servers, Valkey and Redis: what each operation of a commit changes, and what is taken."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from retry_queues_kit import PARTITION, QueueModel, QueueStore
from servers import RedisServer, binary_of, server_kinds

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts
from maskline.worker.commands.retry_ops import (
    Again,
    Append,
    GiveUpWaiting,
    Park,
    Pop,
    Unpark,
    Untake,
)

pytestmark = pytest.mark.server


@pytest.fixture(scope="module", params=server_kinds())
def server(request, tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("server"), binary=binary_of(request.param)).start()
    yield server
    server.stop()


async def connected(server, client):
    connection = await RedisEndpoint(Settings(redis_url=server.url)).connect("test")
    await scripts.load_scripts(connection)
    store = QueueStore(connection, client)
    await store.own()
    return store


@pytest.fixture
async def store(server):
    with server.client() as client:
        store = await connected(server, client)
        yield store
        store.connection.close()


# Operations


HANDLERS = st.sampled_from(["h", "other handler: 50%"])
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


def assert_as_model(store, model, began_ms):
    places = {*model.due_in_ms, *model.parked}
    for handler, session in model.queues:
        assert store.queue(handler, session) == model.queues[handler, session]
    for handler in ("h", "other handler: 50%"):
        due = {session for at, session in model.due_in_ms if at == handler}
        parked = {session for at, session in model.parked if at == handler}
        assert store.due(handler).keys() == due
        assert store.parked(handler).keys() == parked
        assert store.since(handler).keys() == due | parked
        for session, at_ms in store.due(handler).items():
            in_ms = model.due_in_ms[handler, session]
            assert began_ms + in_ms <= at_ms <= store.now_ms() + in_ms
        for times in (store.parked(handler), store.since(handler)):
            assert all(began_ms <= at_ms <= store.now_ms() for at_ms in times.values())
    assert store.counts() == model.counts()
    lists = set(store.client.scan_iter(match=f"*{store.keys.namespace}*:retry:*", count=1000))
    assert len(lists) == sum(bool(queue) for queue in model.queues.values())
    assert {place for place, queue in model.queues.items() if queue} <= places


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=COMMITS)
def test_operations_do_what_they_do_to_lists_and_sets(server, commits):
    async def run():
        with server.client() as client:
            store, model = await connected(server, client), QueueModel()
            began_ms = store.now_ms()
            for ops in commits:
                await store.commit(*ops)
                for op in ops:
                    model.apply(op)
                assert_as_model(store, model, began_ms)
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
    left = store.client.keys(f"*{store.keys.namespace}:{PARTITION}*:retry*")
    assert left == [], "a queue that is done leaves nothing behind"
