"""trim.lua on real servers: it takes all that may go, and never what a group has not handled."""

import random
import uuid
from typing import NamedTuple

import pytest
from servers import RedisServer, redis_binary, valkey_binary

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts

BINARIES = {"valkey": valkey_binary, "redis": redis_binary}
MINUTE_MS = 60_000
FOR_EVER_MS = 10**15
MANY = 10**12


@pytest.fixture(scope="module", params=BINARIES)
def server(request, tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp(request.param), binary=BINARIES[request.param]()).start()
    yield server
    server.stop()


class Group(NamedTuple):
    name: str
    cursor: str
    pending: list[str]

    def handled(self, entry_id):
        return key(entry_id) <= key(self.cursor) and entry_id not in self.pending


class Stream:
    """A stream with an entry a minute, the last one half a minute old, and groups that stand where a test says."""

    def __init__(self, connection, client):
        self.connection = connection
        self.client = client
        self.keys = Keys(f"test-{uuid.uuid4().hex[:12]}")
        self.name = self.keys.callbacks(3)
        self.groups: list[Group] = []

    def fill(self, count, *, body="x", node=None):
        if node:
            self.client.config_set("stream-node-max-entries", node)
        seconds, micros = self.client.time()
        newest_ms = seconds * 1000 + micros // 1000 - MINUTE_MS // 2
        ids = [f"{newest_ms - (count - 1 - index) * MINUTE_MS}-{index}" for index in range(count)]
        with self.client.pipeline(transaction=False) as pipe:
            for entry_id in ids:
                pipe.xadd(self.name, {"c": body}, id=entry_id)
            pipe.execute()
        return ids

    def group(self, name, cursor, pending=()):
        self.client.xgroup_create(self.name, name, "0", mkstream=True)
        if pending:
            self.client.xclaim(self.name, name, "maskline", 0, list(pending), force=True, justid=True)
        self.client.xgroup_setid(self.name, name, cursor)
        self.groups.append(Group(name, cursor, list(pending)))

    async def trim(self, *, minutes=None, keep=MANY, at_most=10_000):
        """`minutes`: how many of the newest entries are young enough to stay."""
        retention_ms = FOR_EVER_MS if minutes is None else minutes * MINUTE_MS
        (reply,) = await self.connection.send(
            scripts.trim(self.keys, 3, retention_ms=retention_ms, keep=keep, at_most=at_most), 1
        )
        return scripts.read_trimmed(reply)

    async def trim_all(self, **how):
        """Trim until there is no more to trim; how many entries went."""
        total = 0
        while (trimmed := await self.trim(**how)).trimmed:
            total += trimmed.trimmed
        assert trimmed.left == self.client.xlen(self.name)
        return total

    def left(self):
        return [entry_id.decode() for entry_id, _ in self.client.xrange(self.name)]


def key(entry_id):
    return tuple(map(int, entry_id.split("-")))


@pytest.fixture
async def stream(server):
    connection = await RedisEndpoint(Settings(redis_url=server.url)).connect("test")
    await scripts.load_scripts(connection)
    with server.client() as client:
        client.config_set("stream-node-max-entries", 100)
        yield Stream(connection, client)
    connection.close()


@pytest.mark.parametrize("seed", range(25))
async def test_every_handled_entry_past_retention_is_trimmed_and_no_other(stream, seed):
    """Random groups, bounds, sizes of nodes: what is left is the least that retention and the groups allow."""
    rng = random.Random(seed)
    count = rng.choice([1, 7, 60, 400])
    ids = stream.fill(count, body="x" * rng.choice([1, 200]), node=rng.choice([1, 5, 100]))
    for name in ("workers", "audit", "old")[: rng.choice([1, 1, 2, 3])]:
        read = rng.choice([0, count, count, rng.randrange(count + 1)])
        done = ids[:read]
        stream.group(name, done[-1] if done else "0-0", rng.sample(done, min(rng.choice([0, 0, 3]), read)))
    how = {
        "minutes": rng.choice([None, 0, rng.randrange(count + 1)]),
        "keep": rng.choice([MANY, 0, rng.randrange(count + 1)]),
        "at_most": rng.choice([10_000, 150]),
    }
    young = count if how["minutes"] is None else how["minutes"]
    wanted = min(young, how["keep"], count)
    handled = 0
    while handled < count and all(group.handled(ids[handled]) for group in stream.groups):
        handled += 1
    gone = min(handled, count - wanted)
    assert await stream.trim_all(**how) == gone
    assert stream.left() == ids[gone:]


async def test_a_stream_without_groups_is_left_alone(stream):
    ids = stream.fill(50)
    assert await stream.trim_all(minutes=0, keep=0) == 0
    assert stream.left() == ids


async def test_partition_without_a_stream_trims_nothing(stream):
    assert await stream.trim(minutes=0) == (0, 0, -1, ())
    stream.group("workers", "0-0")
    assert await stream.trim(minutes=0) == (0, 0, -1, ())


async def test_one_call_trims_at_most_as_many_as_asked(stream):
    ids = stream.fill(3_000)
    stream.group("workers", ids[-1])
    assert 0 < (await stream.trim(minutes=0, at_most=500)).trimmed <= 500
    assert 0 < (await stream.trim(keep=0, at_most=500)).trimmed <= 500
    assert await stream.trim_all(minutes=0, at_most=500) >= 2_000
    assert stream.left() == []


async def test_without_retention_even_what_a_clock_ahead_has_stamped_goes(stream):
    stream.client.xadd(stream.name, {"c": "x"}, id="99999999999999-0")
    stream.group("workers", "99999999999999-0")
    assert await stream.trim_all(minutes=0) == 1


async def test_counters_beyond_a_lua_number_are_not_rounded(stream):
    top = 2**64 - 1
    ids = [f"5-{top - 2}", f"5-{top - 1}", f"5-{top}"]
    for entry_id in ids:
        stream.client.xadd(stream.name, {"c": "x"}, id=entry_id)
    stream.group("workers", ids[1])
    assert await stream.trim_all(minutes=0) == 1
    assert stream.left() == ids[1:], "the cursor's own entry may stay, the one after it must"


async def test_trimming_leaves_the_groups_lag_right(stream):
    ids = stream.fill(300)
    stream.client.xgroup_create(stream.name, "workers", "0", entries_read=0)
    stream.client.execute_command("XGROUP", "SETID", stream.name, "workers", ids[249], "ENTRIESREAD", 250)
    await stream.trim_all(minutes=0)
    (group,) = stream.client.xinfo_groups(stream.name)
    assert (group["lag"], group["entries-read"]) == (50, 250)


async def test_reply_names_the_groups_that_hold_trimming_back(stream):
    ids = stream.fill(60)
    stream.group("workers", ids[-1])
    stream.group("asleep", ids[9], pending=[ids[4]])
    stream.group("gone", "0-0")
    stream.group("retrying", ids[-1], pending=[ids[20]])
    seen = await stream.trim(minutes=40)
    assert (seen.trimmed, seen.left) == (0, 60)
    assert seen.oldest_ms == key(ids[0])[0]
    held = {name.group: name for name in seen.held}
    assert held.keys() == {"asleep", "gone"}, "whose oldest is young enough holds nothing back"
    assert held["asleep"].outstayed_ms == pytest.approx((60 - 4 - 40 - 0.5) * MINUTE_MS, abs=20_000)
    assert held["gone"].outstayed_ms == pytest.approx((60 - 40 - 0.5) * MINUTE_MS, abs=20_000)
    assert held["gone"].waiting in (60, -1)
    stream.client.xgroup_destroy(stream.name, "gone")
    await stream.trim_all(minutes=40)
    assert stream.left() == ids[4:]
    stream.client.xack(stream.name, "asleep", ids[4])
    stream.client.xgroup_setid(stream.name, "asleep", ids[-1])
    assert await stream.trim_all(minutes=40) == 16
    assert (await stream.trim(minutes=40)).held == ()


async def test_excess_entries_are_held_back_by_the_group_that_keeps_the_oldest(stream):
    ids = stream.fill(60)
    stream.group("workers", ids[39])
    stream.group("asleep", ids[9])
    await stream.trim_all(keep=30)
    seen = await stream.trim(keep=30)
    assert (seen.left, [held.group for held in seen.held]) == (50, ["asleep"])
    assert seen.held[0].outstayed_ms == pytest.approx(49.5 * MINUTE_MS, abs=20_000)


async def test_a_group_that_is_up_to_date_holds_nothing_back_however_old_its_last_entry(stream):
    ids = stream.fill(60)
    stream.group("workers", ids[29])
    seen = await stream.trim(minutes=30)
    assert seen.held == ()
    stream.client.xtrim(stream.name, minid=ids[-1], approximate=False)
    assert (await stream.trim(minutes=30)).held == (), "the next entry has only just come"


async def test_entries_deleted_under_a_pending_list_do_not_stop_it(stream):
    ids = stream.fill(30)
    stream.group("workers", ids[-1], pending=[ids[10]])
    stream.client.xdel(stream.name, ids[10])
    assert await stream.trim_all(minutes=0) == 10
    stream.client.xack(stream.name, "workers", ids[10])
    assert await stream.trim_all(minutes=0) == 19


async def test_key_of_another_type_is_an_error_reply(stream):
    stream.client.set(stream.name, "foreign")
    with pytest.raises(RedisUnavailableError, match="WRONGTYPE"):
        await stream.trim(minutes=0)


async def test_server_out_of_memory_is_trimmed(stream):
    ids = stream.fill(200)
    stream.group("workers", ids[-1])
    stream.client.config_set("maxmemory", 1)
    try:
        assert await stream.trim_all(minutes=0) == 200
    finally:
        stream.client.config_set("maxmemory", 0)
