"""The layout all nodes agree on, and the gate that lets nothing pass before it."""

import asyncio

import pytest
from servers import free_port

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.namespace import LAYOUT_VERSION, TOKEN_KEY_BYTES, NamespaceCheck, check_namespace
from maskline.runtime.redis.url import Server
from maskline.schemas import privacy
from maskline.schemas.errors import ConfigError, RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.settings import load_settings


@pytest.fixture(autouse=True)
def token_key(monkeypatch):
    """The process's own key of number tokens comes back after each test."""
    monkeypatch.setattr(privacy, "_token_key", privacy._token_key)


async def agree(server, namespace, **settings):
    made = load_settings({}, redis_url=server.url, namespace=namespace, **settings)
    connection = await RedisEndpoint(made).connect("test-layout")
    try:
        await check_namespace(connection, made)
    finally:
        connection.close()
    return privacy._token_key


async def test_first_node_writes_the_layout_and_the_others_take_it_over(redis_server, namespace):
    first = await agree(redis_server, namespace, partitions=8)
    privacy.set_token_key(b"x" * 32)
    assert await agree(redis_server, namespace, partitions=8) == first
    with redis_server.client() as client:
        layout = client.hgetall(Keys(namespace).layout)
    assert layout == {b"partitions": b"8", b"version": b"%d" % LAYOUT_VERSION, b"token_key": first}
    assert len(first) == TOKEN_KEY_BYTES
    assert await agree(redis_server, f"{namespace}-other", partitions=9) != first


async def test_nodes_that_start_together_agree(redis_server, namespace):
    keys = await asyncio.gather(*(agree(redis_server, namespace, partitions=8) for _ in range(10)))
    assert len(set(keys)) == 1


async def test_other_partitions_are_refused(redis_server, namespace):
    await agree(redis_server, namespace, partitions=8)
    privacy.set_token_key(b"x" * 32)
    with pytest.raises(ConfigError) as caught:
        await agree(redis_server, namespace, partitions=16)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert "MASKLINE_PARTITIONS is 16" in text
    assert "laid out with 8" in text
    assert privacy._token_key == b"x" * 32


async def test_newer_layout_is_refused(redis_server, namespace):
    with redis_server.client() as client:
        client.hset(Keys(namespace).layout, "version", LAYOUT_VERSION + 1)
    with pytest.raises(ConfigError, match="newer maskline"):
        await agree(redis_server, namespace, partitions=8)


@pytest.mark.parametrize("field", ["partitions", "version", "token_key"])
async def test_damaged_layout_is_unavailable_and_no_crash(redis_server, namespace, field):
    await agree(redis_server, namespace, partitions=8)
    with redis_server.client() as client:
        client.hset(Keys(namespace).layout, field, "damaged")
    with pytest.raises(RedisUnavailableError, match="its layout is damaged"):
        await agree(redis_server, namespace, partitions=8)


async def test_server_that_refuses_writes_is_unavailable(own_redis, namespace):
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(RedisUnavailableError, match="OOM"):
            await agree(own_redis, namespace)
        client.config_set("maxmemory", 0)
        client.execute_command("REPLICAOF", "127.0.0.1", free_port())
        with pytest.raises(RedisUnavailableError, match=r"READONLY|MASTERDOWN"):
            await agree(own_redis, namespace)


async def test_full_server_with_the_layout_is_accepted(own_redis, namespace):
    key = await agree(own_redis, namespace, partitions=8)
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        assert await agree(own_redis, namespace, partitions=8) == key
        with pytest.raises(ConfigError):
            await agree(own_redis, namespace, partitions=9)


async def test_no_connection_is_used_before_the_layout_is_checked(redis_server, namespace):
    """In a cluster one node keeps the layout, and the others may be there before it."""
    settings = load_settings({}, redis_url=redis_server.url, namespace=namespace, partitions=8)
    layout_server, other = Server("layout_server", 1), Server("other", 2)
    gate = NamespaceCheck(settings, {Keys(namespace).layout: layout_server}.get)
    connection = await RedisEndpoint(settings).connect("test-gate")
    try:
        with pytest.raises(RedisUnavailableError, match="has not answered yet"):
            await gate.check(connection, other)
        await gate.check(connection, layout_server)
        await gate.check(connection, other)
        with redis_server.client() as client:
            client.hset(Keys(namespace).layout, "partitions", 9)
        await gate.check(connection, other)
        with pytest.raises(ConfigError):
            await gate.check(connection, layout_server)
    finally:
        connection.close()
