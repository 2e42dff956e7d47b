"""A Redis that takes everything, later than a request waits; and a loop that stood still beside one that is well."""

import asyncio
import contextlib
import time
from collections import Counter
from zlib import crc32

import pytest
import uvloop
from delivery_kit import delivering, streams
from ingest_kit import node_settings, until
from proxy import Proxy

from maskline.ingest.delivery.rate_limiter import PAGE_ROWS_MAX
from maskline.ingest.publish.publisher import COPIES_MAX
from maskline.ingest.spool.errors import SpoolError

VALUES = [b"%04d" % number for number in range(300)]


@contextlib.asynccontextmanager
async def behind_proxy(server, namespace, **changes):
    proxy = Proxy(server.port)
    await proxy.start()
    try:
        settings = node_settings(f"redis://127.0.0.1:{proxy.port}/0", namespace, **changes)
        async with delivering(settings) as it:
            await until(lambda: it.publisher.connected)
            yield it, proxy
    finally:
        await proxy.stop()


@pytest.mark.parametrize("delay_s", [0.1, 0.5])
async def test_slow_redis_gets_everything_through_the_spool(redis_server, namespace, delay_s):
    async with behind_proxy(redis_server, namespace, publish_timeout_ms=100) as (it, proxy):
        proxy.delay(delay_s)
        for begin in range(0, 300, 50):
            assert await it.store_all("s", VALUES[begin : begin + 50]) == {""}
        await until(lambda: not it.spool.callbacks)
        with redis_server.client() as client:
            copies = Counter(streams(client, it.settings))
        assert set(copies) == set(VALUES)
        assert max(copies.values()) <= 2
        assert it.metrics.connects == 1  # nobody has cut it
        details = it.pool.details()
        assert (details["takes"], details["slow"]) == (False, True)
        assert details["reason"].startswith("Redis is slow")
        assert it.metrics.batch_failures == {"redis_timeout": 1}
        await proxy.heal()
        assert await it.store("s", b"the drain finds out that it is quick again") == ""
        await until(lambda: it.publisher.ready)
        assert not it.pool.details()["slow"]
        await until(lambda: not it.spool.holds(crc32(b"s")))
        spooled = sum(it.metrics.spooled.values())
        assert await it.store("s", b"straight") == ""
        assert sum(it.metrics.spooled.values()) == spooled


async def test_redis_that_is_slow_but_in_time_gets_larger_pages(redis_server, namespace, monkeypatch):
    values = [b"%05d" % number for number in range(4 * PAGE_ROWS_MAX)]
    async with behind_proxy(redis_server, namespace) as (it, proxy):
        await proxy.cut()
        await until(lambda: not it.publisher.connected)
        assert await it.store_all("s", values) == {""}
        pages = []
        publish_page = it.publisher.publish_page
        monkeypatch.setattr(
            it.publisher, "publish_page", lambda rows: pages.append(len(rows)) or publish_page(rows)
        )
        await proxy.heal()
        proxy.delay(0.1)  # each way, and a request waits 500 ms
        await until(lambda: not it.spool.callbacks)
        assert it.publisher.ready
        assert max(pages) > 2 * PAGE_ROWS_MAX
        with redis_server.client() as client:
            assert streams(client, it.settings) == values


async def test_redis_slower_than_the_silence_timeout_gets_few_copies(redis_server, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.publish.publisher.SILENCE_TIMEOUTS_S", (0.3, 0.6, 1.2, 2.4, 4.8))
    async with behind_proxy(redis_server, namespace, publish_timeout_ms=50) as (it, proxy):
        proxy.delay(0.35)
        assert await it.store_all("s", VALUES) == {""}
        await until(lambda: not it.spool.callbacks, within_s=60)
        with redis_server.client() as client:
            copies = Counter(streams(client, it.settings))
        assert set(copies) == set(VALUES)
        assert max(copies.values()) <= COPIES_MAX


async def test_error_says_who_closed_a_mute_connection(redis_server, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.publish.publisher.SILENCE_TIMEOUTS_S", (0.3,))
    async with behind_proxy(redis_server, namespace, publish_timeout_ms=50) as (it, proxy):
        proxy.half_open()
        assert await it.store("s", b"a") == ""
        await until(lambda: "this process has closed the connection" in it.pool.details().get("reason", ""))
        await proxy.heal()
        await until(lambda: not it.spool.callbacks, within_s=60)


async def test_unconfirmed_callback_is_appended_once_a_connection(redis_server, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.publish.durability.PAGE_CONFIRM_MS", 50)
    monkeypatch.setattr("maskline.ingest.publish.circuit_breaker.BACKOFF_MAX_S", 0.1)
    settings = node_settings(redis_server.url, namespace, durability="replicas:1")
    async with delivering(settings) as it:
        assert await it.store_all("s", VALUES[:3]) == {""}
        await until(lambda: it.metrics.batch_failures["not_durable"] >= 8)
        with redis_server.client() as client:
            copies = Counter(streams(client, settings))
        assert max(copies.values()) == 2  # of the request, and of the drain
        assert it.spool.callbacks == 3


async def test_slow_redis_is_awaited_while_the_spool_is_unhealthy(redis_server, namespace):
    async with behind_proxy(redis_server, namespace, publish_timeout_ms=50) as (it, proxy):
        proxy.delay(0.1)
        assert await it.store("s", b"a") == ""
        await until(lambda: it.publisher.slow and not it.spool.callbacks)
        it.spool.error = SpoolError("spool_failed", "as if the disk had failed")
        assert await it.store("s", b"b") == ""
        with redis_server.client() as client:
            assert streams(client, it.settings).count(b"b") == 1


@pytest.mark.parametrize("stall", ["before it is sent", "after it is sent", "again and again"])
def test_blocked_event_loop_is_not_mistaken_for_a_slow_redis(redis_server, namespace, stall):
    async def run():
        settings = node_settings(redis_server.url, namespace, publish_timeout_ms=100)
        async with delivering(settings) as it:
            for _ in range(2):
                keeping = asyncio.gather(*(it.store("s", value) for value in VALUES))
                await asyncio.sleep(0)
                while stall != "before it is sent" and not it.publisher.batches_under_way:
                    await asyncio.sleep(0)
                for _ in range(3 if stall == "again and again" else 1):
                    time.sleep(0.25)  # noqa: ASYNC251 - that is the fault
                    await asyncio.sleep(0)
                assert set(await keeping) == {""}
            assert it.publisher.ready
            assert it.metrics.connects == 1
            assert not it.metrics.spooled
            assert not it.metrics.batch_failures

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run())


def test_blocked_event_loop_is_not_mistaken_for_a_slow_disk(redis_server, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.spool.spool.WRITE_TIMEOUT_S", 0.1)

    async def run():
        async with delivering(node_settings(redis_server.url, namespace), draining=False) as it:
            completion = it.spool.write("x", 1, b"a")
            while it.spool._gathering:
                await asyncio.sleep(0)
            time.sleep(0.4)  # noqa: ASYNC251 - that is the fault
            await completion
            assert it.spool.error is None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
