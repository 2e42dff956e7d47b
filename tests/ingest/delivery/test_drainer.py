"""From the spool to Redis: order, rate, what is refused, and the end."""

import asyncio
import time

import pytest
from delivery_kit import delivering, stream, streams
from ingest_kit import node_settings, until
from servers import SETTLE_S

VALUES = [b"%04d" % n for n in range(1000)]


async def fill(it, own_redis, values, session="s"):
    """Have the spool hold these while Redis is away, and bring Redis back."""
    own_redis.kill()
    await until(lambda: not it.publisher.connected)
    assert await it.store_all(session, values) == {""}
    await asyncio.to_thread(own_redis.start)


async def test_spooled_callbacks_are_drained_in_order_and_once(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, partitions=1, spool_drain_per_s=100_000)
    async with delivering(settings) as it:
        await fill(it, own_redis, VALUES)
        await until(lambda: not it.spool.callbacks)
        assert it.metrics.drained == 1000
        with own_redis.client() as client:
            assert stream(client, settings, 0) == VALUES


async def test_drain_rate_is_bounded(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, spool_drain_per_s=500)
    async with delivering(settings) as it:
        await fill(it, own_redis, VALUES[:600])
        await until(lambda: it.metrics.drained)
        began = time.monotonic()
        await until(lambda: it.metrics.drained == 600)
        assert time.monotonic() - began > 0.8


async def test_spool_gets_empty_although_new_callbacks_queue_behind(own_redis, namespace):
    """More comes for sessions in the spool than the rate allows to drain."""
    per_s = 200
    settings = node_settings(own_redis.url, namespace, partitions=1, spool_drain_per_s=per_s)
    async with delivering(settings) as it:
        await fill(it, own_redis, VALUES[:300])
        await until(lambda: it.publisher.ready)
        sent = 0
        began = time.monotonic()
        # Of a session that never pauses the last few are always on their way.
        while it.spool.callbacks > 100 and time.monotonic() < began + SETTLE_S:
            assert await it.store_all("s", [b"more"] * 20) == {""}
            sent += 20
            await asyncio.sleep(0.02)
        assert it.spool.callbacks <= 100
        assert sent > per_s * (time.monotonic() - began), "too few came to show anything"
        await until(lambda: not it.spool.callbacks)
        assert it.metrics.spooled["behind"] > 0
        with own_redis.client() as client:
            assert len(streams(client, settings)) == 300 + sent


async def test_broken_stream_holds_up_only_its_partition(own_redis, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.delivery.drainer.RETRY_REFUSED_S", 0.2)
    settings = node_settings(own_redis.url, namespace, partitions=2)
    async with delivering(settings) as it:
        with own_redis.client() as client:
            own_redis.pause()
            waiting = [asyncio.create_task(it.store(f"s{n % 7}", b"%d" % n)) for n in range(700)]
            assert set(await asyncio.gather(*waiting)) == {""}
            own_redis.resume()
            client.set(f"{{{namespace}:1}}:callbacks", "not a stream")
            await until(lambda: it.spool.callbacks and it.metrics.drained)
            await until(lambda: stream(client, settings, 0) and it.spool.callbacks < 500)
            drained = it.metrics.drained
            assert await it.store("s0", b"more") == ""
            assert await it.store("s1", b"more") == ""
            assert await it.store("s2", b"more") == ""
            client.delete(f"{{{namespace}:1}}:callbacks")
            await until(lambda: not it.spool.callbacks)
            assert it.metrics.drained > drained
            for partition in range(2):
                numbers = [int(v) for v in dict.fromkeys(stream(client, settings, partition)) if v != b"more"]
                assert numbers == sorted(numbers)
            assert set(streams(client, settings)) == {b"%d" % n for n in range(700)} | {b"more"}


async def test_drain_survives_repeated_loss_of_redis(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, partitions=1, spool_drain_per_s=700)
    async with delivering(settings) as it:
        await fill(it, own_redis, VALUES)
        for _ in range(3):
            before = it.metrics.drained
            await until(lambda before=before: it.metrics.drained > before)
            own_redis.kill()
            await asyncio.to_thread(own_redis.start)
        await until(lambda: not it.spool.callbacks)
        with own_redis.client() as client:
            # What was published and not confirmed comes twice; nothing is missing, nothing out of order.
            assert list(dict.fromkeys(stream(client, settings, 0))) == VALUES


async def test_refusing_redis_is_probed_with_one_callback(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace)
    async with delivering(settings) as it:
        with own_redis.client() as client:
            client.config_set("maxmemory", "1")
            assert await it.store_all("s", VALUES[:100]) == {""}
            client.config_resetstat()
            await until(lambda: it.metrics.batch_failures["redis_oom"] >= 3)
            asked = client.info("commandstats").get("cmdstat_xadd", {})
            assert asked.get("calls", 0) + asked.get("rejected_calls", 0) <= 3
            client.config_set("maxmemory", "0")
            await until(lambda: it.metrics.drained == 100)


async def test_finish_drains_within_its_timeout(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, spool_drain_per_s=1000)
    async with delivering(settings) as it:
        await fill(it, own_redis, VALUES)
        await until(lambda: it.publisher.ready)
        await it.drainer.finish(10)
        assert it.spool.callbacks == 0
    async with delivering(settings) as it:
        await fill(it, own_redis, VALUES)
        await until(lambda: it.publisher.ready)
        began = time.monotonic()
        await it.drainer.finish(0.2)
        assert time.monotonic() - began < 1.0
        assert it.spool.callbacks > 100


async def test_finish_does_not_wait_for_unavailable_redis(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace)
    async with delivering(settings) as it:
        own_redis.kill()
        await until(lambda: not it.publisher.connected)
        assert await it.store("s", b"v") == ""
        await asyncio.wait_for(it.drainer.finish(60), 5)
        assert it.spool.callbacks == 1


async def test_files_of_dead_processes_are_drained(own_redis, namespace, spool_of_its_own):
    settings = node_settings(own_redis.url, namespace, partitions=1)
    own_redis.kill()
    async with delivering(settings) as first, delivering(settings) as second:
        assert await first.store_all("s", VALUES[:500]) == {""}
        assert await second.store_all("t", VALUES[500:]) == {""}
    async with delivering(settings) as it:
        assert it.spool.callbacks == 1000
        await asyncio.to_thread(own_redis.start)
        await until(lambda: not it.spool.callbacks)
        with own_redis.client() as client:
            found = stream(client, settings, 0)
            assert sorted(found) == VALUES
            for part in (VALUES[:500], VALUES[500:]):
                assert [value for value in found if value in set(part)] == part
    assert list(spool_of_its_own.iterdir()) == []


@pytest.mark.parametrize("timeout_ms", [100])
async def test_redis_that_answers_too_late_gets_few_duplicates(own_redis, namespace, timeout_ms, monkeypatch):
    monkeypatch.setattr("maskline.ingest.publish.publisher.SILENCE_TIMEOUTS_S", (0.2, 0.4, 0.8))
    settings = node_settings(own_redis.url, namespace, publish_timeout_ms=timeout_ms)
    async with delivering(settings) as it:
        own_redis.pause()
        assert await it.store_all("s", VALUES) == {""}
        for _ in range(3):
            failed = it.metrics.batch_failures["redis_timeout"]
            own_redis.resume()
            await until(lambda: it.publisher.connected)
            own_redis.pause()
            await until(
                lambda failed=failed: (
                    it.metrics.batch_failures["redis_timeout"] > failed
                    or it.metrics.drained
                    or not it.publisher.connected  # lost before it was paused: no answer of it comes too late
                )
            )
        own_redis.resume()
        await until(lambda: not it.spool.callbacks, within_s=60)
        with own_redis.client() as client:
            assert set(streams(client, settings)) == set(VALUES)
