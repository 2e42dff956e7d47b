"""A node says which partitions it holds spooled callbacks of: ahead of what it publishes, until all is drained."""

import asyncio
import threading
from contextlib import contextmanager
from zlib import crc32

from delivery_kit import delivering, stream
from ingest_kit import node_settings, until
from structlog.testing import capture_logs
from test_drainer import VALUES, fill

from maskline.ingest.outcome import AWAY
from maskline.schemas.keys import Keys
from maskline.schemas.spool_notices import read_notice


def notices(client, settings, partition=0):
    return [
        read_notice(entry_id, [part for pair in fields.items() for part in pair])
        for entry_id, fields in client.xrange(Keys(settings.namespace).spooled(partition))
    ]


def said(client, settings, partition=0):
    """Whether something is held, as each notice says, repeats left out."""
    held = [notice.held_ms is not None for notice in notices(client, settings, partition)]
    return [it for at, it in enumerate(held) if not at or held[at - 1] != it]


@contextmanager
def commands(server):
    """The commands that a server is given meanwhile: their keys, in order."""
    keys, watching = [], threading.Event()
    client = server.client()

    def watch():
        with client.monitor() as monitor:
            watching.set()
            for command in monitor.listen():
                if command["command"] == "GET the-end":
                    return
                keys.append(command["command"])

    thread = threading.Thread(target=watch)
    thread.start()
    assert watching.wait(10)
    try:
        yield keys
    finally:
        with server.client() as other:
            other.get("the-end")
        thread.join(10)
        client.close()


async def test_after_an_outage_the_notice_comes_before_anything_else(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, partitions=2)
    fresh = next(f"f{n}" for n in range(99) if crc32(b"f%d" % n) % 2 == crc32(b"s") % 2)
    async with delivering(settings, draining=False, notices=True) as it:
        await fill(it, own_redis, VALUES[:3])
        await until(lambda: it.publisher.ready)
        with own_redis.client() as client:
            partition = crc32(b"s") % 2
            assert await it.store(fresh, b"fresh") == ""
            assert stream(client, settings, partition) == [b"fresh"]
            (first,) = client.xrange(Keys(namespace).callbacks(partition))
            (notice,) = notices(client, settings, partition)
            assert notice.at_ms <= int(first[0].partition(b"-")[0])
            assert notice.held_ms > 0
            assert not client.exists(Keys(namespace).spooled(1 - partition)), "of partitions that it holds"


async def test_first_spooled_callback_is_said_over_a_connection_that_is_there(own_redis, namespace):
    """Redis stands still: the notice waits for it in front of whatever is published next."""
    settings = node_settings(own_redis.url, namespace, partitions=1, publish_timeout_ms=100)
    async with delivering(settings, notices=True) as it:
        with own_redis.client() as client, commands(own_redis) as given:
            own_redis.pause()
            assert await it.store("s", b"late") == ""
            assert it.spool.callbacks == 1
            own_redis.resume()
            await until(lambda: not it.spool.callbacks)
            assert await it.store("t", b"fresh") == ""
            await until(lambda: said(client, settings) == [True, False])
    spooled = next(at for at, command in enumerate(given) if ":spooled" in command)
    published = [
        at for at, command in enumerate(given) if command.startswith("XADD") and ":callbacks" in command
    ]
    assert published[0] < spooled < published[1], "the first is what timed out, and was carried out late"


async def test_first_spooled_callback_of_a_partition_is_said_at_once(own_redis, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.delivery.spool_notices.CHECK_S", 60.0)
    settings = node_settings(own_redis.url, namespace, partitions=2)
    async with delivering(settings, draining=False, notices=True) as it:
        with own_redis.client() as client:
            for partition_hash in (0, 1):
                writes = [it.spool.write(AWAY, partition_hash, value) for value in VALUES[:20]]
                await asyncio.gather(*writes)
                await until(lambda of=partition_hash: notices(client, settings, of))
                assert len(notices(client, settings, partition_hash)) == 1


async def test_it_is_said_until_the_last_one_is_drained(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, partitions=1, spool_drain_per_s=500)
    async with delivering(settings, notices=True) as it:
        await fill(it, own_redis, VALUES)
        with own_redis.client() as client:
            await until(lambda: it.metrics.drained)
            assert said(client, settings) == [True]
            await until(lambda: said(client, settings) == [True, False])
            assert len(stream(client, settings, 0)) == len(VALUES)
            drained_at = notices(client, settings)[-1].at_ms
            last_id = client.xrevrange(Keys(namespace).callbacks(0), count=1)[0][0]
            assert drained_at >= int(last_id.partition(b"-")[0])


async def test_next_process_says_what_it_finds_under_the_same_name(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, partitions=1)
    async with delivering(settings, draining=False, notices=True) as it:
        assert await it.spool.write(AWAY, 0, b"left") is None
        with own_redis.client() as client:
            await until(lambda: said(client, settings) == [True])
    with own_redis.client() as client:
        assert said(client, settings) == [True], "what is left stays said"
        async with delivering(settings, draining=False, notices=True) as it:
            first, second = notices(client, settings)
            assert second.node == first.node == it.spool.name
            assert second.held_ms >= second.at_ms - first.at_ms - 5, "since it was spooled"
        async with delivering(settings, notices=True) as it:
            await until(lambda: said(client, settings) == [True, False])


async def test_callbacks_of_a_dead_process_are_said_by_the_one_that_adopts_them(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, partitions=1)
    async with delivering(settings, draining=False) as first, delivering(settings, draining=False) as second:
        assert await second.spool.write(AWAY, 0, b"left") is None
        assert first.spool.name != second.spool.name
        left_by = second.spool.name
    # The lowest slot is free and its file is gone: this process takes it, and adopts the other's.
    async with delivering(settings, notices=True) as it:
        assert it.spool.name != left_by
        with own_redis.client() as client:
            await until(lambda: said(client, settings) == [True, False])
            assert {notice.node for notice in notices(client, settings)} == {it.spool.name}
            assert stream(client, settings, 0) == [b"left"]


async def test_partition_of_an_adopted_file_is_said_until_it_is_drained(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, partitions=2)
    async with delivering(settings, draining=False), delivering(settings, draining=False) as second:
        for partition_hash in (0, 1):
            assert await second.spool.write(AWAY, partition_hash, b"left") is None
    with own_redis.client() as client:
        client.set(Keys(namespace).callbacks(1), "not a stream")
        async with delivering(settings, notices=True):
            await until(lambda: said(client, settings, 0) == [True, False])
            assert said(client, settings, 1) == [True]


async def test_refused_notice_costs_no_callback_and_is_tried_again(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, partitions=1)
    with capture_logs() as lines:
        async with delivering(settings, draining=False, notices=True) as it:
            client = own_redis.client()
            client.set(Keys(namespace).spooled(0), "not a stream")
            assert await it.spool.write(AWAY, 0, b"spooled") is None
            await until(lambda: any(line["event"] == "spool notice refused" for line in lines))
            assert it.publisher.ready
            assert await it.store("s", b"fresh") == ""
            client.delete(Keys(namespace).spooled(0))
            await until(lambda: said(client, settings) == [True])
            client.close()


async def test_node_that_holds_nothing_says_nothing(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, partitions=1)
    async with delivering(settings, notices=True) as it:
        with own_redis.client() as client:
            assert await it.store_all("s", VALUES[:50]) == {""}
            await asyncio.sleep(0)
            assert client.keys(f"{{{namespace}:*}}:spooled") == []
