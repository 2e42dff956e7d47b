"""Every script on a server that is out of memory: what workers do there is what makes room again."""

import uuid

import hiredis
import pytest
import redis
from servers import RedisServer, binary_of, server_kinds

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts
from maskline.worker.commands.commit import Commit
from maskline.worker.commands.lua_sources import SOURCES
from maskline.worker.commands.marks import Mark
from maskline.worker.commands.retry_ops import Append
from maskline.worker.ordering.state import LaneState, SessionState

TTL_MS = 60_000
STATE = SessionState(status=LaneState(2, 0, 1, bytes(16), 1_767_225_600_000_000))

pytestmark = pytest.mark.server


class Crowded:
    """A partition, its owner, and what was under way when the memory ran out."""

    def __init__(self, connection, client):
        self.connection, self.client = connection, client
        self.keys = Keys(f"test-{uuid.uuid4().hex[:12]}", "workers")
        self.value = ""

    async def reply(self, packed):
        (reply,) = await self.connection.send(packed, 1)
        return reply

    async def own(self):
        for number in range(1, 201):
            self.client.xadd(self.keys.callbacks(3), {"c": b"x" * 1_000}, id=f"{number}-0")
        acquired = scripts.read_acquired(await self.reply(scripts.acquire(self.keys, 3, "me", TTL_MS)))
        self.value = scripts.lease_value(acquired.token, "me")

    async def commit(self, number, cursor, entries_read, **what):
        commit = Commit(
            number,
            cursor,
            entries_read,
            what.get("waiting", ()),
            (),
            what.get("dead", ()),
            {"s": STATE},
            3_600,
            100,
            retry_ops=what.get("retry_ops", ()),
            lasting=what.get("lasting", ()),
        )
        return await self.reply(scripts.commit(self.keys, 3, self.value, commit))


async def acquire(it):
    return scripts.read_acquired(await it.reply(scripts.acquire(it.keys, 4, "me", TTL_MS))) is not None


async def renew(it):
    return await it.reply(scripts.renew(it.keys, 3, it.value, TTL_MS))


async def renew_lapsed(it):
    it.client.delete(it.keys.lease(3))
    return await renew(it)


async def release(it):
    return await it.reply(scripts.release(it.keys, 3, it.value))


async def heartbeat(it):
    live, _ = scripts.read_heartbeat(await it.reply(scripts.heartbeat(it.keys, "me", TTL_MS)))
    return live == ("me",)


async def commit(it):
    return await it.commit(1, "200-0", 200, waiting=("7-0",), dead=(b"a letter" * 100,))


async def mark(it):
    return await it.reply(scripts.mark(it.keys, 3, it.value, [("7-0 handler", Mark(1, "running"))]))


async def trim(it):
    await it.commit(1, "200-0", 200)
    packed = scripts.trim(it.keys, 3, retention_ms=0, keep=10**9, at_most=10_000)
    before = it.client.info("memory")["used_memory_dataset"]
    trimmed = scripts.read_trimmed(await it.reply(packed))
    assert it.client.info("memory")["used_memory_dataset"] < before
    return trimmed.trimmed == 200


async def commit_retry_op(it):
    op = Append("handler", "s", 0, b"an event" * 100)
    return await it.commit(1, "200-0", 200, retry_ops=(op,), lasting={"s"})


async def take(it):
    await commit_retry_op(it)
    packed = scripts.take_due(it.keys, 3, it.value, "handler", count=1, items=1, commits=(1, 1))
    taken = scripts.read_taken(await it.reply(packed))
    return 0 if taken is None else len(taken.queues)


async def retry_index(it):
    await commit_retry_op(it)
    return len(scripts.read_retry_index(await it.reply(scripts.retry_index(it.keys, 3))))


async def take_runs(it):
    return await it.reply(scripts.take_runs(it.keys, "job", 1_000, 1)) == 0


async def dead_seen(it):
    known = (await it.reply(scripts.dead_seen(it.keys, 3, age_ms=0))).decode()
    new = "9-0 - 0 7"
    return await it.reply(scripts.dead_seen(it.keys, 3, age_ms=0, known=known, new=new)) == new.encode()


CALLS = {
    "acquire": [acquire],
    "renew": [renew, renew_lapsed],
    "release": [release],
    "heartbeat": [heartbeat],
    "commit": [commit, commit_retry_op],
    "mark": [mark],
    "trim": [trim],
    "take": [take],
    "retry_index": [retry_index],
    "take_runs": [take_runs],
    "dead_seen": [dead_seen],
}


@pytest.fixture(scope="module", params=server_kinds())
def server(request, tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("server"), binary=binary_of(request.param)).start()
    yield server
    server.stop()


@pytest.fixture
async def crowded(server):
    connection = await RedisEndpoint(Settings(redis_url=server.url)).connect("test")
    await scripts.load_scripts(connection)
    with server.client() as client:
        it = Crowded(connection, client)
        await it.own()
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.OutOfMemoryError):
            client.set("anything", "more")
        yield it
        client.config_set("maxmemory", 0)
    connection.close()


@pytest.mark.parametrize("script", [*SOURCES])
async def test_a_script_does_its_work_out_of_memory(crowded, script):
    assert script in CALLS, f"{script}.lua has no call here: say what it must do where there is no memory"
    for call in CALLS[script]:
        assert await call(crowded) == 1


# A lease that has lapsed, and that nobody has taken since


@pytest.mark.parametrize("script", [renew, commit, commit_retry_op, take, mark, release])
async def test_a_lease_that_lapsed_and_that_nobody_took_is_still_its_owner_s(crowded, script):
    crowded.client.delete(crowded.keys.lease(3))
    assert await script(crowded) == 1


@pytest.mark.parametrize("script", [renew, commit, commit_retry_op, take, mark, release])
@pytest.mark.parametrize("since", ["taken", "taken and lapsed", "given back"])
async def test_lapsed_lease_that_another_worker_had_since_is_lost(crowded, script, since):
    if since == "given back":
        assert await release(crowded) == 1
    else:
        crowded.client.delete(crowded.keys.lease(3))
        assert await crowded.reply(scripts.acquire(crowded.keys, 3, "other", TTL_MS)) != 0
        if since == "taken and lapsed":
            crowded.client.delete(crowded.keys.lease(3))
    before = crowded.client.hgetall(crowded.keys.fence(3))
    reply = await script(crowded)
    assert reply == 0, str(reply) if isinstance(reply, hiredis.ReplyError) else reply
    assert crowded.client.hgetall(crowded.keys.fence(3)) == before
    assert not crowded.client.exists(
        crowded.keys.marks(3), *crowded.client.keys(f"{{{crowded.keys.namespace}:3}}:retry*")
    )
