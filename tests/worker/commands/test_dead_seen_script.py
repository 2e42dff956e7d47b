"""How far handlers of dead letters have come, in Redis: the first start, and who moves it on."""

import uuid

import pytest
from servers import RedisServer

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts
from maskline.worker.dead_letters.seen import Seen

pytestmark = pytest.mark.server

OLD, NEW = Seen("5-0", None, 0, 7).encode(), Seen("5-0", "6-0", 1, 8).encode()


@pytest.fixture
async def dead_seen(redis_server: RedisServer):
    connection = await RedisEndpoint(Settings(redis_url=redis_server.url)).connect("test")
    await scripts.load_scripts(connection)
    keys = Keys(f"test-{uuid.uuid4().hex[:12]}", "workers")

    async def call(**named):
        (reply,) = await connection.send(scripts.dead_seen(keys, 3, **{"age_ms": 0} | named), 1)
        return reply.decode()

    call.client, call.key = redis_server.client(), keys.dead_seen(3)
    yield call
    call.client.close()
    connection.close()


@pytest.mark.parametrize("age_ms", [0, 1, 86_400_000])
async def test_the_first_call_sets_it_to_when_the_worker_had_the_handlers(dead_seen, age_ms):
    seconds, microseconds = dead_seen.client.time()
    seen = Seen.read((await dead_seen(age_ms=age_ms)).encode())
    assert (seen.begun, seen.starts, seen.token) == (None, 0, 0)
    started_ms = seconds * 1000 + microseconds // 1000 - age_ms
    assert started_ms <= int(seen.done.removesuffix("-0")) <= started_ms + 60_000
    assert await dead_seen(age_ms=5) == seen.encode(), "and no later one moves it"
    assert dead_seen.client.ttl(dead_seen.key) == -1


async def test_an_age_beyond_the_server_s_clock_is_no_negative_id(dead_seen):
    assert await dead_seen(age_ms=10**15) == "0-0 - 0 0"


async def test_only_who_knows_the_present_value_moves_it_on(dead_seen):
    dead_seen.client.set(dead_seen.key, OLD)
    assert await dead_seen(known="4-0 - 0 7", new=NEW) == OLD
    assert await dead_seen(known=OLD, new=NEW) == NEW
    assert await dead_seen(known=OLD, new="9-0 - 0 7") == NEW
    assert await dead_seen() == NEW


async def test_a_call_that_is_repeated_because_its_reply_was_lost_finds_itself(dead_seen):
    dead_seen.client.set(dead_seen.key, OLD)
    for _ in range(2):
        assert await dead_seen(known=OLD, new=NEW) == NEW
