"""`handlers.timeline`: what it keeps in a real Redis, fed by a harness."""

import re

import pytest

from maskline.handlers import timeline
from maskline.handlers.redis_store import RedisRecordStore
from maskline.handlers.timeline import Timelines
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.privacy import number_token
from maskline.schemas.settings import Settings
from maskline.testing import SESSION_UUID, Harness, callback

NUMBER, SECOND = "+14155550123", "+447700900456"
PARTITIONS = 4


@pytest.fixture
async def store(redis_server, namespace):
    settings = Settings(redis_url=redis_server.url, namespace=namespace, partitions=PARTITIONS)
    records = RedisRecordStore(settings, "timeline", Keys.timeline, Keys.call_summary_due, ttl_ms=60_000)
    async with records:
        yield records


@pytest.fixture
def key(namespace):
    return Keys(namespace, "workers").timeline(partition_of(SESSION_UUID, PARTITIONS), SESSION_UUID)


def harness_on(store):
    return Harness(timeline, resources={"timelines": Timelines(store, recording_shared=False)})


def one(name, number=None, **values):
    return callback(name, sequence_number=number, from_number=NUMBER, second_party=SECOND, **values)


async def test_each_event_is_kept_once_with_tokens_for_numbers(redis_server, store, key):
    async with harness_on(store) as harness:
        answer, hangup = one("SessionVirtualNumberAnswer", 1), one("SessionPartiesHangup", 3, amount="0.02")
        await harness.feed(answer, hangup, answer)
        await harness.pass_time(5)
        await harness.feed(one("SessionSecondPartyAnswer", 2))
    record = await store.read(SESSION_UUID)
    kept = sorted(record.observations.values(), key=lambda it: it.number)
    assert [(it.number, it.order, it.missing) for it in kept] == [
        (1, "in_order", ()), (2, "late", ()), (3, "after_gap", (2,)),
    ]  # fmt: skip
    assert (kept[0].first_party, kept[0].second_party) == (number_token(NUMBER), number_token(SECOND))
    assert (kept[2].amount, record.count) == ("0.02", 3)
    with redis_server.client() as client:
        assert 0 < client.pttl(key) <= 60_000
        stored = b" ".join(part for pair in client.hgetall(key).items() for part in pair)
    assert not re.search(rb"4155550123|7700900456", stored)


async def test_no_number_is_kept_wherever_an_event_has_one(redis_server, store, key):
    async with harness_on(store) as harness:
        spread = {"virtual_number": NUMBER, "plivo_hangup_cause": f"no answer of {NUMBER}"}
        await harness.feed(one("SessionFirstPartyHangup", 1, **spread), one(f"SessionOf{NUMBER}", 2))
    kept = (await store.read(SESSION_UUID)).observations.values()
    assert [it.virtual_number for it in kept if it.number == 1] == [number_token(NUMBER)]
    with redis_server.client() as client:
        stored = b" ".join(part for pair in client.hgetall(key).items() for part in pair)
    assert b"4155550123" not in stored


async def test_an_event_that_comes_again_changes_nothing(redis_server, store, key):
    async with harness_on(store) as harness:
        await harness.feed(one("SessionVirtualNumberAnswer", 1))
    with redis_server.client() as client:
        before = client.hgetall(key)
    async with harness_on(store) as again:
        await again.feed(one("SessionVirtualNumberAnswer", 1))
    with redis_server.client() as client:
        assert client.hgetall(key) == before


async def test_a_worker_that_has_lost_the_session_writes_nothing(redis_server, store, key):
    async with harness_on(store) as harness:
        await harness.feed(one("SessionVirtualNumberAnswer", 1))
        with redis_server.client() as client:
            client.hset(key, "token", 1_000)
        await harness.feed(one("SessionPartiesHangup", 2))
        assert not harness.dead_letters
    assert [it.number for it in (await store.read(SESSION_UUID)).observations.values()] == [1]


async def test_a_store_that_refuses_parks_no_session(redis_server, store, key):
    with redis_server.client() as client:
        client.set(key, "of another type")
    async with harness_on(store) as harness:
        await harness.feed(one("SessionVirtualNumberAnswer", 1))
        assert harness.dead_letters
        with redis_server.client() as client:
            client.delete(key)
        await harness.feed(one("SessionPartiesHangup", 2))
        assert harness.parked == 0
    (kept,) = (await store.read(SESSION_UUID)).observations.values()
    assert (kept.number, kept.skipped) == (2, (1,))


async def test_it_works_in_a_harness_without_redis():
    async with Harness("maskline.handlers.timeline") as harness:
        await harness.feed(one("SessionVirtualNumberAnswer", 1), one("SessionPartiesHangup", 2))
        assert [call.error for call in harness.calls] == [None, None]
