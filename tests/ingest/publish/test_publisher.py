"""Group commit against a real server."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from ingest_kit import node_settings, until
from proxy import Proxy

from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import InFlight, NotStoredError
from maskline.ingest.publish.pool import PublisherPool
from maskline.ingest.publish.publisher import BATCHES_MAX, Publisher
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings


@asynccontextmanager
async def publishing(settings: Settings) -> AsyncIterator[tuple[Publisher, Metrics]]:
    metrics = Metrics()
    pool = PublisherPool(settings, metrics, InFlight(), BackgroundTasks(), name="test")
    await pool.start()
    try:
        (publisher,) = pool.publishers
        yield publisher, metrics
    finally:
        await pool.stop()


async def test_concurrent_callbacks_share_batches(redis_server, namespace):
    settings = node_settings(redis_server.url, namespace)
    async with publishing(settings) as (publisher, metrics):
        for _ in range(2):
            await asyncio.gather(*(publisher.publish(n % 4, b"value %d" % n) for n in range(500)))
        assert metrics.batch_size.total == 1000
        assert sum(metrics.batch_size.counts) == 2  # each gather is one loop tick
        assert (
            publisher.in_flight.callbacks,
            publisher.in_flight.size_bytes,
            publisher.batches_under_way,
        ) == (0, 0, 0)
    with redis_server.client() as client:
        keys = Keys(namespace)
        for partition in range(4):
            found = [fields[b"c"] for _, fields in client.xrange(keys.callbacks(partition))]
            assert found == [b"value %d" % n for n in range(500) if n % 4 == partition] * 2


async def test_callbacks_gather_while_batches_are_under_way(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, publish_timeout_ms=10_000)
    async with publishing(settings) as (publisher, metrics):
        under_way: list[int] = []
        completions: list[asyncio.Future[None]] = []
        own_redis.pause()  # else it may answer every batch within the tick that sends it
        for _ in range(200):
            completions.append(publisher.publish(0, b"v"))
            await asyncio.sleep(0)
            under_way.append(publisher.batches_under_way)
        own_redis.resume()
        await asyncio.gather(*completions)
        assert max(under_way) == BATCHES_MAX
        assert sum(metrics.batch_size.counts) == BATCHES_MAX + 1
        assert metrics.batch_size.total == 200


async def test_refused_callback_does_not_fail_the_rest_of_its_batch(redis_server, namespace):
    with redis_server.client() as client:
        client.set(Keys(namespace).callbacks(1), "not a stream")
    async with publishing(node_settings(redis_server.url, namespace)) as (publisher, metrics):
        outcomes = await asyncio.gather(
            *(publisher.publish(partition, b"v") for partition in (0, 1, 2)), return_exceptions=True
        )
        assert outcomes[0] is outcomes[2] is None
        assert isinstance(outcomes[1], NotStoredError)
        assert outcomes[1].code == "redis_wrongtype"
        assert metrics.batch_failures == {"redis_wrongtype": 1}
        await publisher.publish(0, b"still connected")
        assert metrics.connects == 1


async def test_full_server_refuses_and_takes_callbacks_again(own_redis, namespace):
    async with publishing(node_settings(own_redis.url, namespace)) as (publisher, _):
        with own_redis.client() as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(NotStoredError, match="redis_oom"):
                await publisher.publish(0, b"v")
            client.config_set("maxmemory", "0")
        await publisher.publish(0, b"v")


async def test_read_only_server_is_disconnected_and_connected_again(own_redis, namespace):
    async with publishing(node_settings(own_redis.url, namespace)) as (publisher, metrics):
        with own_redis.client() as client:
            client.replicaof("127.0.0.1", "1")
            with pytest.raises(NotStoredError, match="redis_readonly"):
                await publisher.publish(0, b"v")
            await until(lambda: not publisher.connected)
            with pytest.raises(NotStoredError):
                publisher.publish(0, b"v")
            client.replicaof("NO", "ONE")
        await until(lambda: publisher.connected)
        await publisher.publish(0, b"v")
        assert metrics.connects == 2


async def test_silent_server_fails_what_is_under_way_and_what_gathers(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, publish_timeout_ms=100)
    async with publishing(settings) as (publisher, metrics):
        own_redis.pause()
        completions = []
        for _ in range(BATCHES_MAX + 2):  # the last ones find all batches under way
            completions.append(publisher.publish(0, b"v"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert publisher.batches_under_way == BATCHES_MAX
        outcomes = await asyncio.wait_for(asyncio.gather(*completions, return_exceptions=True), 5)
        assert all(isinstance(outcome, NotStoredError) for outcome in outcomes), outcomes
        assert metrics.batch_failures["redis_timeout"] >= 1
        assert (publisher.in_flight.callbacks, publisher.in_flight.size_bytes) == (0, 0)
        assert publisher.batches_under_way == BATCHES_MAX  # nobody waits, but their replies will tell
        own_redis.resume()
        await until(lambda: publisher.accepts_pages and not publisher.batches_under_way)
        assert metrics.connects == 1
        await publisher.publish(0, b"v")


async def test_killed_server_fails_everything_at_once_and_is_found_again(own_redis, namespace):
    async with publishing(node_settings(own_redis.url, namespace)) as (publisher, _):
        own_redis.kill()
        with pytest.raises(NotStoredError):
            await publisher.publish(0, b"v")
        await until(lambda: not publisher.connected)
        own_redis.start()
        await until(lambda: publisher.connected)
        await publisher.publish(0, b"v")


async def test_publisher_survives_a_server_that_is_no_redis(redis_server, namespace):
    """An echo is what a connection to oneself looks like, which the kernel makes of a port nobody listens on."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    await proxy.start()
    settings = node_settings(f"redis://127.0.0.1:{proxy.port}/0", namespace)
    pool = PublisherPool(settings, Metrics(), InFlight(), BackgroundTasks(), name="test")
    try:
        await pool.start()
        await until(lambda: "no Redis answers" in pool.details().get("reason", ""))
        assert not pool.connected
        proxy.server_port = redis_server.port
        await until(lambda: pool.connected)
    finally:
        await pool.stop()
        await proxy.stop()
        server.close()


async def test_cancelled_completion_does_not_disturb_its_batch(redis_server, namespace):
    async with publishing(node_settings(redis_server.url, namespace)) as (publisher, _):
        completions = [publisher.publish(0, b"v") for _ in range(3)]
        completions[1].cancel()
        await asyncio.gather(completions[0], completions[2])
        assert publisher.in_flight.callbacks == 0


async def test_metrics_render_as_prometheus_text(redis_server, namespace):
    from prometheus_client import CollectorRegistry, generate_latest

    async with publishing(node_settings(redis_server.url, namespace)) as (publisher, metrics):
        await asyncio.gather(*(publisher.publish(0, b"v") for _ in range(7)))
        registry = CollectorRegistry()
        registry.register(metrics)
        text = generate_latest(registry).decode()
    assert 'maskline_ingest_batch_size_bucket{le="5"} 0.0' in text
    assert 'maskline_ingest_batch_size_bucket{le="10"} 1.0' in text
    assert "maskline_ingest_batch_size_sum 7.0" in text
    assert re.search(r'publish_seconds_bucket\{le="\+Inf"\} 1\.0', text)
