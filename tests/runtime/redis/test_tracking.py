"""A connection is told once after each read that a key has changed; where the server refuses, nothing is different."""

import asyncio
from contextlib import asynccontextmanager

from servers import SETTLE_S

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.tracking import changed_keys, track_reads
from maskline.schemas.settings import Settings


@asynccontextmanager
async def connected(url):
    connection = await RedisEndpoint(Settings(redis_url=url)).connect("test")
    try:
        yield connection
    finally:
        connection.close()


async def told(messages):
    async with asyncio.timeout(SETTLE_S):
        while not messages:
            await asyncio.sleep(0.001)
    message, *others = messages
    messages.clear()
    assert not others
    return changed_keys(message)


async def test_change_is_told_once_after_a_read_and_all_changes_when_everything_is_deleted(own_redis):
    messages = []
    async with connected(own_redis.url) as connection:
        assert await track_reads(connection) == ""
        connection.on_push = messages.append
        with own_redis.client() as client:
            for _ in range(2):
                assert await connection.execute("XREAD", "STREAMS", "a", "b", "$", "$") is None
                client.xadd("a", {"c": "1"})
                client.xadd("a", {"c": "2"})
                assert await told(messages) == [b"a"]
            await connection.execute("XREAD", "STREAMS", "a", "b", "$", "$")
            client.flushall()
            assert await told(messages) is None


async def test_messages_between_replies_leave_the_replies_in_their_order(own_redis):
    messages = []
    async with connected(own_redis.url) as connection:
        await track_reads(connection)
        connection.on_push = messages.append
        with own_redis.client() as client:
            for number in range(200):
                echoes = asyncio.gather(*(connection.execute("ECHO", f"{number}-{n}") for n in range(3)))
                read = connection.execute("XREAD", "STREAMS", "a", "$")
                client.xadd("a", {"c": "1"})
                assert await echoes == [f"{number}-{n}".encode() for n in range(3)]
                await read
        assert messages


async def test_refusing_server_is_spoken_to_as_before(own_redis):
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "old", "on", ">pw", "~*", "+@all", "-client|tracking")
        client.xadd("a", {"c": "1"})
    async with connected(own_redis.url.replace("redis://", "redis://old:pw@")) as connection:
        assert (await track_reads(connection)).startswith("NOPERM")
        ((key, entries),) = await connection.execute("XREAD", "STREAMS", "a", "0")
        assert key == b"a"
        assert len(entries) == 1
