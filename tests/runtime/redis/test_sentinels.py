"""Whose word about the primary counts."""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sentinel_kit import Sentinel, SentinelServers
from servers import SETTLE_S, RedisServer, valkey_binary, wait_until

from maskline.runtime.redis import sentinels
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.sentinels import NO_EPOCH, SentinelReply, by_majority
from maskline.runtime.redis.url import Server
from maskline.schemas.errors import RedisRefusesError, RedisUnavailableError
from maskline.schemas.settings import Settings

sys.path.append(str(Path(__file__).parents[2] / "chaos"))
from proxy import Proxy

OLD, NEW = Server("10.0.0.1", 1), Server("10.0.0.2", 2)
SERVICE = "rides"


@pytest.mark.parametrize(
    ("said", "configured", "primary"),
    [
        ([(NEW, 2), (NEW, 2), (NEW, 2)], 3, NEW),
        ([(OLD, 1), (NEW, 2), (NEW, 2)], 3, NEW),
        ([(OLD, 1), (NEW, NO_EPOCH), (NEW, NO_EPOCH)], 3, NEW),
        ([(OLD, 1), (OLD, 1), (NEW, 2)], 3, None),  # a failover that spreads
        ([(OLD, NO_EPOCH), (OLD, NO_EPOCH), (NEW, 2)], 3, OLD),
        ([(NEW, 2), (NEW, 2)], 3, NEW),
        ([(NEW, 2), (NEW, 2)], 4, None),
        ([(OLD, 1), (NEW, 2)], 2, None),
        ([(OLD, 1)], 3, None),
        ([(OLD, 1)], 2, None),
        ([(OLD, 1)], 1, OLD),
        ([], 1, None),
    ],
)
def test_majority_names_the_primary_unless_another_has_a_newer_epoch(said, configured, primary):
    answers = [
        SentinelReply(Server("s", number), server, epoch)
        for number, (server, epoch) in enumerate(said, start=1)
    ]
    for order in itertools.permutations(answers):
        assert by_majority(order, configured) == primary


# Sentinels that are stood in for, with real servers behind them


class StandIn:
    """Says whatever a test wants, in a Sentinel's words; `silent`: takes connections and says nothing."""

    def __init__(self, primary: RedisServer | Proxy | None, epoch: int = 1, host: str = "127.0.0.1") -> None:
        self.primary = primary
        self.host = host.encode()
        self.epoch = epoch
        self.silent = False
        self.refusal = b""
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                word = line.strip().upper()
                if self.silent:
                    continue
                if word in (b"GET-MASTER-ADDR-BY-NAME", b"MASTER"):
                    writer.write(self.refusal or self.reply(word))
        finally:
            writer.transport.abort()

    def reply(self, word: bytes) -> bytes:
        if self.primary is None:
            return b"*-1\r\n" if word != b"MASTER" else b"-ERR No such master with that name\r\n"
        if word == b"MASTER":
            return _array(b"name", SERVICE.encode(), b"config-epoch", b"%d" % self.epoch)
        return _array(self.host, b"%d" % self.primary.port)


def _array(*items: bytes) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(b"$%d\r\n%b\r\n" % (len(item), item) for item in items)


@contextlib.asynccontextmanager
async def asking(*standing: StandIn) -> AsyncIterator[RedisEndpoint]:
    async with contextlib.AsyncExitStack() as stack:
        for one in standing:
            server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
            stack.callback(server.close)
            one.port = server.sockets[0].getsockname()[1]
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in standing)
        yield RedisEndpoint(Settings(redis_url=f"redis+sentinel://{hosts}/{SERVICE}/0"))


async def led_to(endpoint: RedisEndpoint) -> int:
    connection = await endpoint.connect("test")
    assert connection.server_address is not None
    connection.close()
    return connection.server_address.server.port


@pytest.fixture
def other(tmp_path: Path) -> Iterator[RedisServer]:
    """Another server that says that it is a primary."""
    server = RedisServer(tmp_path / "other").start()
    yield server
    server.stop()


async def test_one_sentinel_that_names_the_old_primary_is_not_believed(redis_server, other):
    for order in itertools.permutations(
        (StandIn(other, 1), StandIn(redis_server, 2), StandIn(redis_server, 2))
    ):
        async with asking(*order) as endpoint:
            assert await led_to(endpoint) == redis_server.port


@pytest.mark.parametrize(
    "forms", [("localhost", "127.0.0.1"), ("::ffff:127.0.0.1", "localhost", "127.0.0.1")]
)
async def test_name_and_an_address_may_mean_one_server(redis_server, other, forms):
    async with asking(*(StandIn(redis_server, host=host) for host in forms)) as endpoint:
        assert await led_to(endpoint) == redis_server.port
    async with asking(StandIn(other, host="localhost"), StandIn(redis_server)) as endpoint:
        with pytest.raises(RedisUnavailableError, match="do not agree"):
            await endpoint.connect("test")


async def test_slow_primary_is_still_used(redis_server):
    proxy = Proxy(redis_server.port)
    await proxy.start()
    proxy.delay(0.7)  # each way
    try:
        async with asking(StandIn(proxy)) as endpoint:
            assert await led_to(endpoint) == proxy.port
    finally:
        await proxy.stop()


async def test_without_agreement_no_primary_is_used(redis_server, other, monkeypatch):
    monkeypatch.setattr(sentinels, "SENTINELS_TIMEOUT_S", 0.5)
    silent = StandIn(redis_server)
    silent.silent = True
    for standing in (
        (StandIn(other, 1), StandIn(other, 1), StandIn(redis_server, 2)),
        (StandIn(other, 1), StandIn(redis_server, 2)),
        (StandIn(other, 1), silent, StandIn(redis_server, 2)),
        (StandIn(other, 1), StandIn(None), StandIn(None)),
    ):
        async with asking(*standing) as endpoint:
            with pytest.raises(RedisUnavailableError, match="do not agree.*names"):
                await endpoint.connect("test")


async def test_silent_sentinel_is_waited_for_no_longer_than_it_matters(redis_server):
    silent = StandIn(redis_server)
    silent.silent = True
    async with asking(silent, StandIn(redis_server), StandIn(redis_server)) as endpoint:
        async with asyncio.timeout(sentinels.SENTINELS_TIMEOUT_S / 2):
            assert await led_to(endpoint) == redis_server.port


async def test_last_sentinel_is_believed_about_a_primary_that_has_a_replica(own_redis, other, monkeypatch):
    monkeypatch.setattr(sentinels, "SENTINELS_TIMEOUT_S", 0.5)
    silent = StandIn(own_redis)
    silent.silent = True
    async with asking(StandIn(own_redis), silent, silent) as endpoint:
        with pytest.raises(RedisUnavailableError, match="has no replica, and only a minority"):
            await endpoint.connect("test")
        with other.client() as client, own_redis.client() as primary:
            client.replicaof("127.0.0.1", own_redis.port)
            await asyncio.to_thread(
                wait_until, lambda: primary.role()[2], within_s=SETTLE_S, what="the replica to be there"
            )
        assert await led_to(endpoint) == own_redis.port


async def test_sentinels_that_refuse_the_log_in_raise_redis_refuses(redis_server):
    refusing = StandIn(redis_server)
    refusing.refusal = b"-NOAUTH Authentication required.\r\n"
    async with asking(refusing, StandIn(None)) as endpoint:
        with pytest.raises(RedisRefusesError, match="NOAUTH"):
            await endpoint.connect("test")


async def test_without_the_right_to_see_epochs_the_majority_counts(redis_server, other):
    standing = [StandIn(other), StandIn(redis_server), StandIn(redis_server)]
    for one in standing:
        one.reply = lambda word, one=one: (  # type: ignore[method-assign,misc]
            b"-NOPERM\r\n" if word == b"MASTER" else StandIn.reply(one, word)
        )
    async with asking(*standing) as endpoint:
        assert await led_to(endpoint) == redis_server.port


# The real ones


async def test_sentinel_that_missed_the_failover_is_outvoted(tmp_path, other):
    servers = await asyncio.to_thread(SentinelServers(tmp_path / "group", service=SERVICE).start)
    stale = Sentinel(tmp_path / "stale", valkey_binary(), SERVICE, other.port)
    try:
        await asyncio.to_thread(stale.start)
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in (stale, *servers.sentinels))
        endpoint = RedisEndpoint(Settings(redis_url=f"redis+sentinel://{hosts}/{SERVICE}/0"))
        assert await led_to(endpoint) == servers.primary().port
        servers.kill_primary()
        heir = await asyncio.to_thread(servers.until_failed_over)
        assert await led_to(endpoint) == heir.port
    finally:
        stale.kill()
        servers.stop()
