"""The Lua scripts on real servers, Valkey and Redis: what they change, and that fenced off they change nothing."""

import asyncio
import uuid

import hiredis
import pytest
import redis
from servers import RedisServer, binary_of, server_kinds, wait_until

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.pipeline import pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts
from maskline.worker.commands.commit import Commit
from maskline.worker.ordering.state import LaneState, SessionState, encode_state

TTL_MS = 60_000
LIFE_S = 3_600
CLOSED_LIFE_S = 100
STATE = SessionState(status=LaneState(2, 0, 1, bytes(16), 1_767_225_600_000_000))
ENDED = SessionState(closed=True)

pytestmark = pytest.mark.server


@pytest.fixture(scope="module", params=server_kinds())
def server(request, tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("server"), binary=binary_of(request.param)).start()
    yield server
    server.stop()


class PartitionStore:
    """One partition on a server: scripts as the worker sends them, and what they left behind."""

    def __init__(self, connection, client, group="workers"):
        self.connection = connection
        self.client = client
        self.namespace = f"test-{uuid.uuid4().hex[:12]}"
        self.keys = Keys(self.namespace, group)
        self.stream = self.keys.callbacks(3)

    async def run(self, packed):
        (reply,) = await self.connection.send(packed, 1)
        return reply

    async def acquire(self, worker="a", *, keys=None, ttl_ms=TTL_MS, token_over=0):
        packed = scripts.acquire(keys or self.keys, 3, worker, ttl_ms, token_over=token_over)
        return scripts.read_acquired(await self.run(packed))

    async def commit(self, token, worker="a", *, keys=None, **what):
        commit = Commit(
            what.pop("number", 1),
            what.pop("cursor", "0-0"),
            what.pop("entries_read", 0),
            what.pop("waiting", ()),
            what.pop("done", ()),
            what.pop("dead", ()),
            what.pop("states", {}),
            LIFE_S,
            CLOSED_LIFE_S,
            moved=what.pop("moved", True),
        )
        assert not what
        return await self.run(
            scripts.commit(keys or self.keys, 3, scripts.lease_value(token, worker), commit)
        )

    def add(self, count, first=1):
        ids = [f"{number}-0" for number in range(first, first + count)]
        for entry_id in ids:
            self.client.xadd(self.stream, {"c": "x"}, id=entry_id)
        return ids

    def group(self):
        """(last delivered, entries read, lag, pending IDs)"""
        (group,) = [g for g in self.client.xinfo_groups(self.stream) if g["name"] == self.keys.group.encode()]
        pending = self.client.xpending_range(self.stream, self.keys.group, "-", "+", 100_000)
        ids = [entry["message_id"].decode() for entry in pending]
        assert group["pending"] == len(ids)
        return group["last-delivered-id"].decode(), group["entries-read"], group["lag"], ids

    def dump(self):
        """All that there is under the namespace, byte for byte."""
        keys = sorted(self.client.scan_iter(match=f"*{self.namespace}*", count=1000))
        return {key: self.client.dump(key) for key in keys}


def assert_kept(store, session, state):
    key, life_s = store.keys.session(3, session), CLOSED_LIFE_S if state.closed else LIFE_S
    assert store.client.get(key) == encode_state(state)
    assert life_s - 10 <= store.client.ttl(key) <= life_s


@pytest.fixture
async def store(server):
    connection = await RedisEndpoint(Settings(redis_url=server.url)).connect("test")
    await scripts.load_scripts(connection)
    with server.client() as client:
        yield PartitionStore(connection, client)
    connection.close()


# acquire, renew, release


async def test_acquiring_an_untouched_partition_makes_stream_and_group(store):
    acquired = await store.acquire()
    assert (acquired.cursor, acquired.entries_read, acquired.pending) == ("0-0", 0, 0)
    assert store.group() == ("0-0", 0, 0, [])
    lease = store.keys.lease(3)
    assert store.client.get(lease).decode() == f"{acquired.token} a"
    assert 0 < store.client.pttl(lease) <= TTL_MS
    assert await store.acquire("b") is None
    assert await store.acquire("a") is None, "not even its holder gets it twice"


async def test_a_group_made_late_begins_at_the_first_entry_there_is(store):
    store.add(5)
    store.client.xtrim(store.stream, minid="3-0", approximate=False)
    acquired = await store.acquire()
    assert (acquired.cursor, acquired.entries_read) == ("0-0", 2)
    assert store.group() == ("0-0", 2, 3, [])


async def test_a_takeover_finds_where_the_last_owner_stood(store):
    ids = store.add(5)
    first = await store.acquire()
    assert await store.commit(first.token, cursor="4-0", entries_read=4, waiting=(ids[1], ids[3])) == 1
    assert await store.run(scripts.release(store.keys, 3, scripts.lease_value(first.token, "a"))) == 1
    second = await store.acquire("b")
    assert (second.cursor, second.entries_read, second.pending) == ("4-0", 4, 2)
    assert second.token > first.token


async def test_leases_of_two_groups_are_independent(store):
    other = Keys(store.namespace, "audit")
    store.add(2)
    mine, theirs = await store.acquire(), await store.acquire("z", keys=other)
    assert mine is not None
    assert theirs is not None
    assert await store.commit(mine.token, cursor="2-0", entries_read=2) == 1
    assert (await store.commit(theirs.token, "z", keys=other, cursor="1-0", entries_read=1)) == 1
    assert store.group()[:3] == ("2-0", 2, 0)


async def test_tokens_grow_whatever_becomes_of_the_fence(store):
    tokens = []
    for change in (None, "delete", "future", "garbage", None):
        if change == "delete":
            store.client.delete(store.keys.fence(3))
        elif change == "future":  # a server whose clock was ahead
            store.client.hset(store.keys.fence(3), "token", tokens[-1] + 10**9)
        elif change == "garbage":
            store.client.hset(store.keys.fence(3), "token", "?")
        acquired = await store.acquire()
        tokens.append(acquired.token)
        store.client.delete(store.keys.lease(3))
        if change == "future":
            assert acquired.token == tokens[-2] + 10**9 + 1
            tokens.pop()
            store.client.hset(store.keys.fence(3), "token", tokens[-1])
        seconds, micros = store.client.time()
        wait_until(
            lambda now=seconds * 1000 + micros // 1000: (
                store.client.time() > (now // 1000, now % 1000 * 1000 + 999)
            )
        )
    assert tokens == sorted(set(tokens))


async def test_a_renewal_keeps_only_my_lease(store):
    mine = await store.acquire(ttl_ms=1_000)
    value = scripts.lease_value(mine.token, "a")
    assert await store.run(scripts.renew(store.keys, 3, value, 90_000)) == 1
    assert store.client.pttl(store.keys.lease(3)) > 60_000
    before = store.dump()
    for wrong in (scripts.lease_value(mine.token, "b"), scripts.lease_value(mine.token + 1, "a"), ""):
        assert await store.run(scripts.renew(store.keys, 3, wrong, 10)) == 0
        assert await store.run(scripts.release(store.keys, 3, wrong)) == 0
    assert store.dump() == before
    assert store.client.pttl(store.keys.lease(3)) > 60_000
    assert await store.run(scripts.release(store.keys, 3, value)) == 1
    assert store.client.exists(store.keys.lease(3)) == 0
    assert await store.run(scripts.renew(store.keys, 3, value, 90_000)) == 0
    assert await store.run(scripts.release(store.keys, 3, value)) == 0


async def test_a_lease_that_lapsed_and_that_nobody_took_is_still_mine(store):
    """As after a time in which the server stood still: nobody else has begun, so nothing need be done again."""
    ids = store.add(2)
    mine = await store.acquire()
    value = scripts.lease_value(mine.token, "a")
    store.client.delete(store.keys.lease(3))
    for wrong in (scripts.lease_value(mine.token, "b"), scripts.lease_value(mine.token - 1, "a")):
        assert await store.run(scripts.renew(store.keys, 3, wrong, TTL_MS)) == 0
    assert await store.commit(mine.token, number=1, cursor=ids[0], entries_read=1) == 1
    assert not store.client.exists(store.keys.lease(3)), "a commit is no renewal"
    assert await store.run(scripts.renew(store.keys, 3, value, TTL_MS)) == 1
    assert 0 < store.client.pttl(store.keys.lease(3)) <= TTL_MS
    assert await store.acquire("b") is None
    store.client.delete(store.keys.lease(3))
    theirs = await store.acquire("b")
    assert theirs.token > mine.token
    assert await store.run(scripts.renew(store.keys, 3, value, TTL_MS)) == 0
    assert await store.commit(mine.token, number=2, cursor=ids[1], entries_read=2) == 0
    store.client.delete(store.keys.lease(3))
    assert await store.run(scripts.renew(store.keys, 3, value, TTL_MS)) == 0, "taken and lapsed again"


async def test_a_lease_ends_by_itself(store):
    await store.acquire(ttl_ms=30)
    wait_until(lambda: not store.client.exists(store.keys.lease(3)))
    assert await store.acquire("b") is not None


async def test_a_stream_key_of_another_type_leaves_no_lease_behind(store):
    store.client.set(store.stream, "foreign")
    with pytest.raises(RedisUnavailableError, match="WRONGTYPE"):
        await store.acquire()
    assert not store.client.exists(store.keys.lease(3))


# heartbeat


async def test_heartbeats_list_who_lives_and_forget_who_does_not(store):
    first = await store.run(scripts.heartbeat(store.keys, "b", TTL_MS))
    assert scripts.read_heartbeat(first) == (("b",), None)
    for worker in ("a", "b"):
        live, next_lapse_ms = scripts.read_heartbeat(
            await store.run(scripts.heartbeat(store.keys, worker, TTL_MS))
        )
    assert sorted(live) == ["a", "b"]
    assert 0 < next_lapse_ms <= TTL_MS
    seconds, _ = store.client.time()
    store.client.zadd(
        store.keys.workers, {"gone": seconds * 1000 - TTL_MS - 1, "slow": seconds * 1000 - TTL_MS + 30_000}
    )
    live, next_lapse_ms = scripts.read_heartbeat(await store.run(scripts.heartbeat(store.keys, "a", TTL_MS)))
    assert sorted(live) == ["a", "b", "slow"]
    assert 0 < next_lapse_ms <= TTL_MS
    store.client.zadd(store.keys.workers, {"slow": seconds * 1000 - TTL_MS + 10_000})
    _, next_lapse_ms = scripts.read_heartbeat(await store.run(scripts.heartbeat(store.keys, "a", TTL_MS)))
    assert 0 < next_lapse_ms <= 10_000
    assert store.client.pttl(store.keys.workers) > TTL_MS


# commit


async def test_a_commit_writes_everything_and_once(store):
    ids = store.add(6)
    mine = await store.acquire()
    states = {"s1": STATE, "s 2": ENDED}
    what = {
        "cursor": "5-0",
        "entries_read": 5,
        "waiting": (ids[0], ids[2], ids[4]),
        "dead": (b"letter 1", b"\xff"),
        "states": states,
    }
    assert await store.commit(mine.token, number=1, **what) == 1
    assert store.group() == ("5-0", 5, 1, [ids[0], ids[2], ids[4]])
    assert [fields[b"d"] for _, fields in store.client.xrange(store.keys.dead(3))] == [b"letter 1", b"\xff"]
    for session, state in states.items():
        assert_kept(store, session, state)

    before = store.dump()
    assert await store.commit(mine.token, number=1, **what) == 1, (
        "the repeat of a commit whose reply was lost"
    )
    assert store.dump() == before

    assert await store.commit(mine.token, number=2, cursor="6-0", entries_read=6, done=(ids[0], ids[4])) == 1
    assert store.group() == ("6-0", 6, 0, [ids[2]])
    assert await store.commit(mine.token, number=3, cursor="6-0", entries_read=6, done=(ids[2],)) == 1
    assert store.group() == ("6-0", 6, 0, [])


@pytest.mark.parametrize(
    "how", ["other worker", "other token", "given back", "given back and taken", "expired and taken"]
)
async def test_fenced_commit_changes_nothing(store, how):
    ids = store.add(4)
    mine = await store.acquire()
    assert await store.commit(mine.token, number=1, cursor="2-0", entries_read=2, waiting=(ids[0],)) == 1
    token, worker = mine.token, "a"
    if how == "other worker":
        worker = "b"
    elif how == "other token":
        token += 1
    else:
        if how == "expired and taken":
            store.client.delete(store.keys.lease(3))
        else:
            released = scripts.release(store.keys, 3, scripts.lease_value(mine.token, "a"))
            assert await store.run(released) == 1
        if how.endswith("taken"):
            assert await store.acquire("b") is not None
            if how == "given back and taken":
                store.client.delete(store.keys.lease(3))
    before = store.dump()
    for number in (1, 2):
        reply = await store.commit(
            token,
            worker,
            number=number,
            cursor="4-0",
            entries_read=4,
            waiting=(ids[2],),
            done=(ids[0],),
            dead=(b"letter",),
            states={"s": STATE},
        )
        assert reply == 0
    assert store.dump() == before


async def test_a_new_owner_s_first_commit_is_no_repeat_of_the_last_one_s(store):
    store.add(2)
    first = await store.acquire()
    assert await store.commit(first.token, number=1, cursor="1-0", entries_read=1) == 1
    store.client.delete(store.keys.lease(3))
    second = await store.acquire()
    assert await store.commit(second.token, number=1, cursor="2-0", entries_read=2) == 1
    assert store.group()[0] == "2-0"


@pytest.mark.parametrize("loss", ["the last commit", "all of the fence"])
async def test_commit_diverges_where_redis_lost_the_one_before(store, loss):
    ids = store.add(3)
    mine = await store.acquire()
    assert await store.commit(mine.token, number=1, cursor="1-0", entries_read=1, waiting=(ids[0],)) == 1
    if loss == "the last commit":
        number = 3
    else:
        number = 2
        store.client.delete(store.keys.fence(3))
    before = store.dump()
    what = {"cursor": "3-0", "entries_read": 3, "done": (ids[0],), "dead": (b"letter",)}
    assert await store.commit(mine.token, number=number, **what) == scripts.DIVERGED
    assert store.dump() == before


@pytest.mark.parametrize(
    "lost",
    [
        {"cursor": "9-0", "entries_read": 9},
        {"cursor": "3-1", "entries_read": 3},
        {"cursor": "3-0", "entries_read": 3, "waiting": ("2-0", "2-5")},
        {"cursor": "3-0", "entries_read": 3, "waiting": ("9-0",)},
    ],
    ids=["cursor beyond the stream", "cursor at no entry", "one of those that wait", "all that wait"],
)
async def test_a_commit_on_entries_that_redis_has_lost_changes_nothing(store, lost):
    ids = store.add(3)
    mine = await store.acquire()
    assert await store.commit(mine.token, number=1, cursor="1-0", entries_read=1, waiting=(ids[0],)) == 1
    before = store.group(), store.dump().keys()
    what = {"done": (ids[0],), "dead": (b"letter",), "states": {"s": STATE}}
    assert await store.commit(mine.token, number=2, **lost, **what) == scripts.DIVERGED
    assert (store.group(), store.dump().keys()) == before
    assert await store.commit(mine.token, number=2, cursor="3-0", entries_read=3, **what) == 1


async def test_a_cursor_that_has_not_moved_needs_no_entry(store):
    """Retention may have taken it meanwhile."""
    ids = store.add(2)
    mine = await store.acquire()
    assert await store.commit(mine.token, number=1, cursor="2-0", entries_read=2, waiting=(ids[0],)) == 1
    store.client.xdel(store.stream, ids[1])
    unmoved = {"cursor": "2-0", "entries_read": 2, "moved": False, "done": (ids[0],)}
    assert await store.commit(mine.token, number=2, **unmoved) == 1
    assert store.group() == ("2-0", 2, 0, [])


async def test_a_cursor_beyond_the_stream_begins_again_at_the_first_entry(store):
    """As an older release left it after a failover whose server's clock was behind: all that came was skipped."""
    ids = store.add(4)
    first = await store.acquire()
    assert await store.commit(first.token, number=1, cursor="3-0", entries_read=3, waiting=ids[:2]) == 1
    store.client.delete(store.keys.lease(3))
    store.client.xgroup_setid(store.stream, "workers", "9-5")
    trimmed = scripts.read_trimmed(
        await store.run(scripts.trim(store.keys, 3, retention_ms=0, keep=0, at_most=100))
    )
    assert (trimmed.trimmed, trimmed.left) == (0, 4), "nobody knows what was handled"
    second = await store.acquire()
    assert (second.cursor, second.pending, second.reset) == ("0-0", 0, True)
    assert store.group() == ("0-0", 0, 4, [])
    store.client.delete(store.keys.lease(3))
    assert not (await store.acquire()).reset


async def test_a_worker_s_tokens_grow_where_a_failover_has_lost_them_and_the_clock_is_behind(store):
    seconds, _ = store.client.time()
    had = (seconds + 1_000) * 1_000
    assert (await store.acquire(token_over=had)).token == had + 1


async def test_commit_takes_more_entries_than_lua_can_unpack(store):
    count = 8_500
    ids = [f"{number}-0" for number in range(1, count + 1)]
    with store.client.pipeline(transaction=False) as pipe:
        for entry_id in ids:
            pipe.xadd(store.stream, {"c": "x"}, id=entry_id)
        pipe.execute()
    mine = await store.acquire()
    states = {f"s{index}": STATE for index in range(count)}
    dead = (b"letter",) * count
    reply = await store.commit(
        mine.token, number=1, cursor=ids[-1], entries_read=count, waiting=tuple(ids), dead=dead, states=states
    )
    assert reply == 1
    assert store.group() == (ids[-1], count, 0, ids)
    assert store.client.xlen(store.keys.dead(3)) == count
    assert_kept(store, f"s{count - 1}", STATE)
    assert await store.commit(mine.token, number=2, cursor=ids[-1], entries_read=count, done=tuple(ids)) == 1
    assert store.group() == (ids[-1], count, 0, [])


async def test_an_unknown_count_leaves_the_lag_to_the_server(store):
    store.add(3)
    mine = await store.acquire()
    assert await store.commit(mine.token, cursor="2-0", entries_read=-1) == 1
    assert store.group()[0] == "2-0"


async def test_entries_that_retention_or_somebody_has_deleted_do_no_harm(store):
    ids = store.add(4)
    mine = await store.acquire()
    assert (
        await store.commit(mine.token, number=1, cursor="2-0", entries_read=2, waiting=(ids[0], ids[1])) == 1
    )
    store.client.xdel(store.stream, ids[0], ids[1])
    assert await store.commit(mine.token, number=2, cursor="4-0", entries_read=4, done=(ids[0], ids[1])) == 1
    assert store.group()[3] == []


@pytest.mark.parametrize("denied", ["xclaim", "set", "xgroup|setid"])
async def test_where_a_right_is_missing_no_callback_is_passed_over(store, denied):
    """An ACL written by hand: the script fails halfway, and its owner may die before anybody mends it."""
    ids = store.add(3)
    mine = await store.acquire()
    told = {"cursor": ids[2], "entries_read": 3, "waiting": ids[:1], "states": {"s": STATE}}
    store.client.execute_command("ACL", "SETUSER", "default", f"-{denied}")
    try:
        assert isinstance(await store.commit(mine.token, **told), hiredis.ReplyError)
        assert store.group()[0] == "0-0", "whoever comes next reads them"
    finally:
        store.client.execute_command("ACL", "SETUSER", "default", "+@all")
    assert await store.commit(mine.token, **told) == 1
    assert store.group() == (ids[2], 3, 0, ids[:1])


@pytest.mark.parametrize(
    "kept", [(STATE, STATE, STATE), (STATE, ENDED, STATE), (ENDED, STATE, STATE), (ENDED, ENDED, ENDED)]
)
async def test_a_closed_session_s_state_has_a_life_of_its_own(store, kept):
    ids = store.add(3)
    mine = await store.acquire()
    states = {f"s{place}": state for place, state in enumerate(kept)}
    told = {"cursor": "3-0", "entries_read": 3, "waiting": ids[:1], "states": states}
    assert await store.commit(mine.token, number=1, **told) == 1
    for session, state in states.items():
        assert_kept(store, session, state)
    states = dict(reversed(states.items()))
    told = {"cursor": "3-0", "entries_read": 3, "done": ids[:1], "states": states}
    assert await store.commit(mine.token, number=2, **told) == 1
    assert store.group() == ("3-0", 3, 0, [])
    for session, state in states.items():
        assert_kept(store, session, state)


@pytest.mark.parametrize("what", ["group", "stream", "dead letters"])
async def test_what_cannot_be_committed_whole_is_not_committed_at_all(store, what):
    ids = store.add(3)
    mine = await store.acquire()
    if what == "group":
        store.client.xgroup_destroy(store.stream, store.keys.group)
    elif what == "stream":
        store.client.delete(store.stream)
    else:
        store.client.set(store.keys.dead(3), "foreign")
    before = store.dump()
    reply = await store.commit(
        mine.token,
        number=1,
        cursor="3-0",
        entries_read=3,
        waiting=(ids[1],),
        dead=(b"letter",),
        states={"s": STATE},
    )
    assert isinstance(reply, hiredis.ReplyError)
    assert str(reply).startswith("WRONGTYPE" if what == "dead letters" else "NOGROUP")
    assert store.dump() == before


@pytest.mark.parametrize("kind", server_kinds())
async def test_out_of_memory_stops_callbacks_and_no_commit(tmp_path, kind):
    """Only what is committed can be trimmed."""
    server = RedisServer(tmp_path / "server", binary=binary_of(kind)).start()
    try:
        connection = await RedisEndpoint(Settings(redis_url=server.url)).connect("test")
        await scripts.load_scripts(connection)
        with server.client() as client:
            store = PartitionStore(connection, client)
            ids = store.add(3)
            mine = await store.acquire()
            what = {
                "number": 1,
                "cursor": "3-0",
                "entries_read": 3,
                "waiting": (ids[1],),
                "dead": (b"letter",),
                "states": {"s": STATE},
            }
            client.config_set("maxmemory", 1)
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                client.xadd(store.stream, {"c": "x"})
            value = scripts.lease_value(mine.token, "a")
            assert await store.run(scripts.renew(store.keys, 3, value, TTL_MS)) == 1
            live, _ = scripts.read_heartbeat(await store.run(scripts.heartbeat(store.keys, "a", TTL_MS)))
            assert live == ("a",)
            assert await store.commit(mine.token, **what) == 1
            assert store.group() == ("3-0", 3, 0, [ids[1]])
            assert await store.run(scripts.release(store.keys, 3, value)) == 1
            assert await store.acquire("b") is not None
        connection.close()
    finally:
        server.stop()


async def test_scripts_are_gone_after_a_flush_and_loaded_again(store):
    store.client.script_flush()
    reply = await store.run(scripts.heartbeat(store.keys, "a", TTL_MS))
    assert str(reply).startswith("NOSCRIPT")
    await scripts.load_scripts(store.connection)
    assert (await store.run(scripts.heartbeat(store.keys, "a", TTL_MS)))[0] == [b"a"]


async def test_a_server_that_refuses_scripts_is_unavailable(store):
    user = f"u{uuid.uuid4().hex[:8]}"
    store.client.execute_command("ACL", "SETUSER", user, "on", ">secret", "~*", "+@all", "-script")
    try:
        assert await store.connection.execute("AUTH", user, "secret") == b"OK"
        with pytest.raises(RedisUnavailableError, match="NOPERM"):
            await scripts.load_scripts(store.connection)
    finally:
        store.client.acl_deluser(user)


async def test_many_partitions_travel_in_one_trip(store):
    partitions = range(50)
    packed = [scripts.acquire(store.keys, number, "a", TTL_MS) for number in partitions]
    async with asyncio.timeout(60):
        replies = await store.connection.send(b"".join(packed) + pack("PING"), len(packed) + 1)
    assert replies.pop() == b"PONG"
    assert all(scripts.read_acquired(reply) is not None for reply in replies)
    assert store.client.get(store.keys.lease(49)).endswith(b" a")
