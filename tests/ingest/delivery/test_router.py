"""Where callbacks go: Redis, the spool, or back."""

import asyncio

from delivery_kit import delivering, stream, streams
from ingest_kit import node_settings, until

VALUES = [b"%03d" % n for n in range(100)]


async def test_nothing_is_spooled_while_redis_is_healthy(redis_server, namespace):
    settings = node_settings(redis_server.url, namespace)
    async with delivering(settings) as it:
        assert await it.store_all("s", VALUES) == {""}
        assert not it.metrics.spooled
        assert sum(it.metrics.commit_s.counts) == 0
        with redis_server.client() as client:
            assert streams(client, settings) == VALUES


async def test_callbacks_refused_by_redis_are_spooled(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace)
    async with delivering(settings) as it:
        with own_redis.client() as client:
            client.config_set("maxmemory", "1")
            assert await it.store_all("s", VALUES) == {""}
            assert it.metrics.spooled == {"redis_oom": 100}
            assert streams(client, settings) == []
            assert it.metrics.batch_failures["redis_oom"] == 1  # the breaker is open: the others do not ask
            client.config_set("maxmemory", "0")
            await until(lambda: it.metrics.drained == 100)
            assert streams(client, settings) == VALUES


async def test_broken_stream_does_not_open_the_breaker(redis_server, namespace):
    settings = node_settings(redis_server.url, namespace, partitions=1)
    with redis_server.client() as client:
        client.set(f"{{{namespace}:0}}:callbacks", "not a stream")
        async with delivering(settings) as it:
            assert await it.store("s", b"a") == ""
            assert it.metrics.spooled == {"redis_wrongtype": 1}
            assert it.publisher.ready
            client.delete(f"{{{namespace}:0}}:callbacks")
            assert await it.store("s", b"b") == ""
            await until(lambda: it.metrics.drained == 2, within_s=60)
            assert streams(client, settings) == [b"a", b"b"]  # the second waited behind the first


async def test_callbacks_of_a_session_queue_behind_those_in_the_spool(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, partitions=1)
    async with delivering(settings, draining=False) as it:
        own_redis.kill()
        await until(lambda: not it.publisher.connected)
        assert await it.store_all("s", VALUES[:50]) == {""}
        await asyncio.to_thread(own_redis.start)
        await until(lambda: it.publisher.ready)
        assert await it.store("another", b"past") == ""
        assert await it.store_all("s", VALUES[50:]) == {""}
        assert it.metrics.spooled == {"redis_away": 50, "behind": 50}
        it.drainer.start()
        await until(lambda: not it.spool.callbacks)
        assert await it.store("s", b"straight") == ""
        assert it.metrics.spooled["behind"] == 50
        with own_redis.client() as client:
            assert stream(client, settings, 0) == [b"past", *VALUES, b"straight"]


async def test_callback_queued_behind_others_goes_to_redis_if_the_spool_fails(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, spool_max_bytes=1 << 20)
    async with delivering(settings, draining=False) as it:
        own_redis.kill()
        await until(lambda: not it.publisher.connected)
        while await it.store("s", bytes(50_000)) == "":
            pass
        await asyncio.to_thread(own_redis.start)
        await until(lambda: it.publisher.ready)
        it.spool.error = None  # as if it were not known yet
        assert await it.store("s", bytes(50_000)) == ""
        assert await it.store("s", bytes(50_000)) == ""
        assert "behind" not in it.metrics.spooled
        with own_redis.client() as client:
            assert streams(client, settings) == [bytes(50_000)] * 2


async def test_error_code_says_why_neither_redis_nor_spool_took_it(own_redis, namespace):
    own_redis.kill()
    async with delivering(node_settings(own_redis.url, namespace, spool_max_bytes=1 << 20)) as it:
        codes = [await it.store("s", bytes(50_000)) for _ in range(20)]
        assert codes[0] == ""
        assert codes[-1] == "spool_full"


async def test_request_probes_redis_while_the_drainer_has_nothing_to_probe_with(
    own_redis, namespace, monkeypatch
):
    """The drain is the usual probe; here it has nothing to probe with."""
    async with delivering(node_settings(own_redis.url, namespace), draining=False) as it:
        with own_redis.client() as client:
            client.config_set("maxmemory", "1")
            assert await it.store("s", b"a") == ""
            (own,) = it.spool.files()
            await it.spool.delete(own, await it.spool.page(own, 0, 10))
            client.config_set("maxmemory", "0")
        await until(lambda: it.publisher.probe_due)
        assert await it.store("s", b"b") == ""
        assert it.publisher.ready
        assert it.metrics.spooled == {"redis_oom": 1}


async def test_callbacks_over_the_in_flight_limit_are_refused_at_once(own_redis, namespace):
    async with delivering(node_settings(own_redis.url, namespace, in_flight_max=10)) as it:
        outcomes = await asyncio.gather(*(it.store("s", b"v") for _ in range(11)))
        assert outcomes == [""] * 10 + ["busy"]
        own_redis.kill()
        await until(lambda: not it.publisher.connected)
        outcomes = await asyncio.gather(*(it.store("s", b"v") for _ in range(11)))
        assert outcomes == [""] * 10 + ["busy"]
        assert await it.store("s", b"v") == ""
        await until(lambda: (it.in_flight.callbacks, it.in_flight.size_bytes) == (0, 0))


async def test_callbacks_over_the_in_flight_bytes_are_refused_at_once(redis_server, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.delivery.router.IN_FLIGHT_MAX_BYTES", 100)
    async with delivering(node_settings(redis_server.url, namespace)) as it:
        outcomes = await asyncio.gather(it.store("s", bytes(101)), it.store("s", b"v"))
        assert outcomes == ["", "busy"]
        assert await it.store("s", b"v") == ""


async def test_silent_redis_sends_all_callbacks_to_the_spool(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, publish_timeout_ms=100)
    async with delivering(settings) as it:
        own_redis.pause()
        waiting = []
        for number in range(50):
            waiting.append(asyncio.create_task(it.store(f"s{number}", b"%d" % number)))
            await asyncio.sleep(0)
        assert set(await asyncio.wait_for(asyncio.gather(*waiting), 5)) == {""}
        assert it.metrics.spooled == {"redis_timeout": 50}
        own_redis.resume()
        await until(lambda: not it.spool.callbacks, within_s=60)
        with own_redis.client() as client:
            assert set(streams(client, settings)) == {b"%d" % number for number in range(50)}
