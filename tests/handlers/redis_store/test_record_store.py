"""Records in a real Redis: the script does what `apply_change` says, all or nothing."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import RedisServer

from maskline.handlers.redis_store import EmittedEntry, Record, RecordChange, RedisRecordStore, apply_change
from maskline.handlers.redis_store import store as store_module
from maskline.schemas.calls.observation import Observation
from maskline.schemas.errors import RedisRefusesError, RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings

SESSION = "s-1"


def store_on(server: RedisServer, namespace: str, ttl_ms: int = 60_000) -> RedisRecordStore:
    return RedisRecordStore(
        Settings(redis_url=server.url, namespace=namespace, partitions=4, group="calls"),
        "test",
        Keys.call_summary,
        Keys.call_summary_due,
        ttl_ms=ttl_ms,
    )


def observation(count: int) -> Observation:
    return Observation(
        idempotency_key=f"{SESSION}:{count}:ab", entry_id=f"{count}-0", event_name="E", number=count
    )


def partition_key(store: RedisRecordStore, kind: str) -> str:
    partition = store._partition(SESSION)
    keys = store.client.keys
    return {
        "record": keys.call_summary(partition, SESSION),
        "stream": keys.callbacks(partition),
        "due": keys.call_summary_due(partition),
    }[kind]


CHANGES = st.builds(
    RecordChange,
    observation=st.none() | st.integers(1, 4).map(observation),
    token=st.integers(0, 3),
    version=st.just(-1) | st.integers(0, 3),
    emissions=st.lists(
        st.builds(
            EmittedEntry, st.sampled_from(["1", "2"]), st.binary(max_size=3), st.sampled_from([b"", b"e"])
        ),
        max_size=2,
    ).map(tuple),
    due_in_ms=st.sampled_from([None, -1, 60_000]),
    only_if_due=st.just(False),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(CHANGES, max_size=8))
def test_script_changes_a_record_as_apply_change_does(redis_server, changes):
    asyncio.run(_compare(redis_server, changes))


async def _compare(server: RedisServer, changes: list[RecordChange]) -> None:
    namespace = f"compare-{id(changes)}"
    store_module.OBSERVATIONS_MAX = 3
    try:
        async with store_on(server, namespace) as store:
            client = server.client()
            record, entries, due = Record(), 0, False
            for change in changes:
                record, said = apply_change(record, change, observations_max=3, now_ms=0)
                stored = await store.change(SESSION, change)
                assert stored._replace(now_ms=0, record=None) == said._replace(record=None)
                if said.status == "changed":
                    assert stored.record == record
                elif said.status != "fenced":
                    entries += sum(bool(one.entry) for one in change.emissions)
                    due = due if change.due_in_ms is None else change.due_in_ms >= 0
            assert await store.read(SESSION) == record
            assert client.xlen(partition_key(store, "stream")) == entries
            assert client.zcard(partition_key(store, "due")) == due
            for key in client.scan_iter(f"{{{namespace}:*"):
                client.delete(key)
    finally:
        store_module.OBSERVATIONS_MAX = 2_000


async def test_due_sessions_are_found_by_the_servers_clock_and_bounded(redis_server, namespace):
    async with store_on(redis_server, namespace) as store:
        for count in range(6):
            await store.change(f"due-{count}", RecordChange(None, due_in_ms=0))
            await store.change(f"later-{count}", RecordChange(None, due_in_ms=60_000))
        assert sorted(await store.due(100)) == [f"due-{count}" for count in range(6)]
        assert len(await store.due(1)) <= 4


async def test_a_sweep_changes_nothing_before_the_session_is_due(redis_server, namespace):
    async with store_on(redis_server, namespace) as store:
        sweep = RecordChange(observation(2), due_in_ms=-1, only_if_due=True)
        assert (await store.change(SESSION, sweep)).status == "early"
        await store.change(SESSION, RecordChange(observation(1), due_in_ms=60_000))
        assert (await store.change(SESSION, sweep)).status == "early"
        await store.change(SESSION, RecordChange(None, due_in_ms=0))
        assert (await store.change(SESSION, sweep)).status == "stored"
        assert (await store.change(SESSION, sweep)).status == "early"


async def test_a_record_expires(redis_server, namespace):
    async with store_on(redis_server, namespace, ttl_ms=60_000) as store:
        await store.change(SESSION, RecordChange(observation(1)))
        assert 0 < redis_server.client().pttl(partition_key(store, "record")) <= 60_000


@pytest.mark.parametrize("kind", ["record", "stream", "due"])
async def test_key_of_another_type_changes_nothing(redis_server, namespace, kind):
    async with store_on(redis_server, namespace) as store:
        client = redis_server.client()
        client.set(partition_key(store, kind), "x")
        change = RecordChange(observation(1), emissions=(EmittedEntry("1", b"v", b"e"),), due_in_ms=5)
        with pytest.raises(RedisRefusesError, match="WRONGTYPE"):
            await store.change(SESSION, change)
        left = {partition_key(store, other) for other in ("record", "stream", "due")} - {
            partition_key(store, kind)
        }
        assert client.exists(*left) == 0


async def test_a_full_server_changes_nothing_and_it_goes_on_when_there_is_room(own_redis, namespace):
    async with store_on(own_redis, namespace) as store:
        client = own_redis.client()
        client.config_set("maxmemory", 1)
        change = RecordChange(observation(1), emissions=(EmittedEntry("1", b"v", b"e"),), due_in_ms=5)
        with pytest.raises(RedisRefusesError, match="OOM"):
            await store.change(SESSION, change)
        client.config_set("maxmemory", 0)
        assert await store.read(SESSION) == Record()
        assert (await store.change(SESSION, change)).status == "stored"


async def test_it_connects_again_after_a_restart_that_forgets_the_scripts(own_redis, namespace):
    async with store_on(own_redis, namespace) as store:
        assert (await store.change(SESSION, RecordChange(observation(1)))).status == "stored"
        own_redis.kill()
        with pytest.raises(RedisUnavailableError):
            await store.change(SESSION, RecordChange(observation(2)))
        own_redis.start()
        async with asyncio.timeout(60):
            while True:
                try:
                    stored = await store.change(SESSION, RecordChange(observation(2)))
                except RedisUnavailableError:
                    await asyncio.sleep(0.05)
                else:
                    break
        assert stored.status == "stored"


async def test_scripts_are_loaded_again_after_script_flush(own_redis, namespace):
    async with store_on(own_redis, namespace) as store:
        own_redis.client().script_flush()
        async with asyncio.timeout(60):
            while True:
                try:
                    await store.change(SESSION, RecordChange(observation(1)))
                except RedisUnavailableError:
                    await asyncio.sleep(0.05)
                else:
                    break
