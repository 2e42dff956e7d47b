"""MASKLINE_DURABILITY against servers that can, cannot, and cannot for now."""

import asyncio
import contextlib
import re
import time
from statistics import median

import pytest
from delivery_kit import delivering, streams
from ingest_kit import node_settings, until
from servers import ONLY_SERVER, RedisServer, binary_of, has_waitaof, wait_until

from maskline.ingest.publish import connection as connector_module
from maskline.ingest.publish.durability import Durability, check_durability, known_early
from maskline.runtime.redis.connect import RedisEndpoint

VALUES = [b"%03d" % n for n in range(100)]


@pytest.fixture
def always(own_redis):
    own_redis.options += ("--appendfsync", "always")
    own_redis.restart()
    return own_redis


@pytest.fixture
def replica(own_redis, tmp_path):
    """A second server, not a replica of the first yet."""
    server = RedisServer(tmp_path / "replica").start()
    yield server
    server.stop()


def follow(replica, server):
    with replica.client() as client, server.client() as origin:
        client.replicaof("127.0.0.1", str(server.port))
        wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        wait_until(lambda: origin.info("replication")["connected_slaves"] == 1)
        origin.execute_command("WAIT", "1", "5000")


async def spools(it, error):
    """Started all the same, it keeps what it is given, says why, and sends nothing."""
    assert re.search(error, it.connection.error)
    assert not it.pool.misconfigured
    assert await it.store("s", b"kept") == ""
    assert it.metrics.spooled == {"redis_away": 1}


@pytest.mark.parametrize(
    ("level", "command", "reached", "missed"),
    [
        ("memory", b"", [], []),
        (
            "fsync",
            b"*4\r\n$7\r\nWAITAOF\r\n$1\r\n1\r\n$1\r\n0\r\n$3\r\n125\r\n",
            [[1, 0], [1, 3]],
            [[0, 0], None],
        ),
        ("replicas:2", b"*3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$3\r\n125\r\n", [2, 5], [0, 1, None]),
    ],
)
def test_level_adds_its_command_to_a_batch_and_reads_the_reply(level, command, reached, missed):
    durability = Durability(level, 500)
    assert durability.command == command
    assert all(durability.reached(reply) for reply in reached)
    assert not any(durability.reached(reply) for reply in missed)


def test_short_timeout_never_becomes_an_endless_wait():
    assert Durability("fsync", 1).command.endswith(b"$1\r\n1\r\n")


@pytest.mark.waitaof
async def test_fsync_is_confirmed_once_a_batch(always, namespace):
    settings = node_settings(always.url, namespace, durability="fsync")
    async with delivering(settings) as it:
        with always.client() as client:
            client.config_resetstat()
            assert await it.store_all("s", VALUES) == {""}
            assert client.info("commandstats")["cmdstat_waitaof"]["calls"] == 1
            assert streams(client, settings) == VALUES
        assert not it.metrics.spooled


@pytest.fixture
def everysec(tmp_path):
    """A server by its kind, which fsyncs once a second."""
    with contextlib.ExitStack() as stack:

        def start(kind):
            options = ("--appendfsync", "everysec")
            server = RedisServer(tmp_path / kind, binary=binary_of(kind), options=options).start()
            stack.callback(server.stop)
            return server

        yield start


only_here = pytest.mark.skipif(bool(ONLY_SERVER), reason="names its servers")


@only_here
async def test_server_that_confirms_before_the_fsync_is_not_used_until_mended(everysec, namespace):
    """Valkey does so with everysec. It is used as soon as that is mended."""
    server = everysec("valkey")
    settings = node_settings(server.url, namespace, durability="fsync", publish_timeout_ms=6_000)
    async with delivering(settings) as it:
        assert await it.store_all("s", VALUES) == {""}
        assert it.spool.callbacks == len(VALUES)
        assert "confirms before the fsync" in it.pool.details()["reason"]
        with server.client() as client:
            assert not client.info("commandstats").get("cmdstat_xadd", {}).get("calls", 0) > 10
            client.config_set("appendfsync", "always")
            await until(lambda: it.metrics.drained == len(VALUES))
            assert streams(client, settings) == VALUES


@only_here
async def test_later_change_of_appendfsync_is_noticed(own_redis, namespace, monkeypatch):
    monkeypatch.setattr(connector_module, "RECHECK_S", 0.05)
    with own_redis.client() as client:
        client.config_set("appendfsync", "always")
        async with delivering(node_settings(own_redis.url, namespace, durability="fsync")) as it:
            assert await it.store("s", b"a") == ""
            assert not it.metrics.spooled
            client.config_set("appendfsync", "everysec")
            await until(lambda: "confirms before the fsync" in it.connection.error)
            assert await it.store("s", b"b") == ""
            assert it.spool.callbacks == 1
            client.config_set("appendfsync", "no")
            await until(lambda: "never fsyncs" in it.connection.error)


@only_here
async def test_appendfsync_everysec_is_used_where_the_timeout_allows_it(everysec, namespace):
    """And many are confirmed at once: nobody waits for more than two fsyncs."""
    server = everysec("redis")
    settings = node_settings(server.url, namespace, durability="fsync", publish_timeout_ms=6_000)
    async with delivering(settings) as it:
        assert it.connection.durability_doubt == ""
        waited = []

        async def store(number):
            await asyncio.sleep(number * 0.01)  # they come evenly, through two seconds
            started = time.monotonic()
            assert await it.store(f"s{number}", b"%d" % number) == ""
            waited.append(time.monotonic() - started)

        await asyncio.gather(*(store(number) for number in range(200)))
        assert not it.metrics.spooled
        assert median(waited) < 2.2
        with server.client() as client:
            assert len(streams(client, settings)) == 200


@only_here
async def test_appendfsync_everysec_with_a_short_timeout_spools(everysec, namespace):
    settings = node_settings(everysec("redis").url, namespace, durability="fsync", publish_timeout_ms=200)
    async with delivering(settings) as it:
        for number in range(10):
            assert await it.store(f"s{number}", b"%d" % number) == ""
        assert it.metrics.spooled["not_durable"] >= 1
        assert "redis_timeout" not in it.metrics.batch_failures
        (durability_doubt,) = it.pool.details()["durability_doubts"]
        assert "MASKLINE_PUBLISH_TIMEOUT_MS" in durability_doubt


@pytest.mark.parametrize(
    ("info", "early"),
    [
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.7"}, False),
        ({"redis_version": "7.2.4"}, False),
        ({"redis_version": "7.4.1"}, True),
        ({"redis_version": "8.2.3"}, False),
        ({}, False),
    ],
)
def test_versions_known_to_confirm_before_the_fsync(info, early):
    assert known_early(info) is early


@pytest.mark.waitaof
async def test_fsync_without_append_only_file_is_spooled(own_redis, namespace):
    with own_redis.client() as client:
        client.config_set("appendonly", "no")
    async with delivering(node_settings(own_redis.url, namespace, durability="fsync")) as it:
        await spools(it, "MASKLINE_DURABILITY=fsync: .*appendonly")


@pytest.mark.waitaof
async def test_append_only_file_switched_off_later_is_noticed(always, namespace):
    settings = node_settings(always.url, namespace, durability="fsync")
    async with delivering(settings) as it:
        assert await it.store("s", b"a") == ""
        with always.client() as client:
            client.config_set("appendonly", "no")
            assert await it.store("s", b"b") == ""
            assert it.metrics.spooled == {"not_durable": 1}
            await until(lambda: "appendonly" in it.connection.error)
            assert not it.connection.misconfigured
            client.config_set("appendonly", "yes")
            await until(lambda: it.metrics.drained == 1)
            assert set(streams(client, settings)) == {b"a", b"b"}


@pytest.mark.waitaof
async def test_fsync_not_permitted_is_spooled_and_config_is_not_needed(always, namespace):
    with always.client() as client:
        client.acl_setuser(
            "plain", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-config"]
        )
        client.acl_setuser(
            "less", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-waitaof"]
        )
    settings = node_settings(always.url.replace("//", "//plain:x@"), namespace, durability="fsync")
    async with delivering(settings) as it:
        assert await it.store("s", b"a") == ""
        assert not it.metrics.spooled
    less = node_settings(always.url.replace("//", "//less:x@"), namespace, durability="fsync")
    async with delivering(less) as it:
        await spools(it, "MASKLINE_DURABILITY=fsync.*permit")


async def test_server_before_7_2_gets_no_callbacks(own_redis, namespace):
    """What it says to WAITAOF; the command is taken away here, unless this is an old server."""
    if has_waitaof(own_redis.binary):
        own_redis.options += ("--rename-command", "WAITAOF", "")
        own_redis.restart()
    async with delivering(node_settings(own_redis.url, namespace, durability="fsync")) as it:
        await spools(it, r"MASKLINE_DURABILITY=fsync.*7\.2")
    async with delivering(node_settings(own_redis.url, namespace)) as it:
        assert await it.store("s", b"a") == ""


async def test_replicas_confirm(own_redis, replica, namespace):
    follow(replica, own_redis)
    settings = node_settings(own_redis.url, namespace, durability="replicas:1")
    async with delivering(settings) as it:
        assert await it.store_all("s", VALUES) == {""}
        assert not it.metrics.spooled
        with replica.client() as client:
            assert streams(client, settings) == VALUES  # at once: that is what was waited for


async def test_missing_replicas_are_used_once_they_connect(own_redis, replica, namespace):
    settings = node_settings(own_redis.url, namespace, durability="replicas:1")
    async with delivering(settings) as it:
        assert await it.store_all("s", VALUES) == {""}
        assert it.metrics.spooled == {"not_durable": 100}
        assert it.metrics.connects == 1  # the connection is good
        await asyncio.to_thread(follow, replica, own_redis)
        await until(lambda: it.metrics.drained == 100)
        assert await it.store("s", b"straight") == ""
        assert it.metrics.spooled == {"not_durable": 100}
        with replica.client() as client:
            assert set(streams(client, settings)) == {*VALUES, b"straight"}


async def test_callbacks_are_spooled_while_a_replica_does_not_answer(own_redis, replica, namespace):
    follow(replica, own_redis)
    settings = node_settings(own_redis.url, namespace, durability="replicas:1")
    async with delivering(settings) as it:
        replica.pause()
        for number in range(5):
            assert await it.store(f"s{number}", b"%d" % number) == ""
        assert it.metrics.batch_failures["not_durable"] >= 1
        assert "redis_timeout" not in it.metrics.batch_failures
        replica.resume()
        await until(lambda: not it.spool.callbacks)


async def test_memory_level_sends_no_confirmation_command(own_redis, namespace):
    redis = await RedisEndpoint(node_settings(own_redis.url, namespace)).connect("test")
    with own_redis.client() as client:
        client.config_resetstat()
        assert await check_durability(redis, node_settings(own_redis.url, namespace), set()) == ""
        assert not {"cmdstat_wait", "cmdstat_waitaof"} & client.info("commandstats").keys()
    redis.close()
