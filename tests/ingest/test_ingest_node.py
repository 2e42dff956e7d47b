"""A node as a whole: what it promises while Redis goes and comes back, and while it is stopped or killed."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from ingest_kit import Client, Request, ask, node_settings, stored, until
from ingest_processes import hammer, marks

from maskline.ingest.__main__ import main
from maskline.ingest.node import IngestNode
from maskline.schemas.errors import ConfigError
from maskline.schemas.settings import Settings, load_settings

GOOD = Request()


@contextlib.asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[IngestNode]:
    node = IngestNode(settings)
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def ready(node: IngestNode) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{node.admin_url}/readyz") as response:
        return response.status, await response.json()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_callbacks_answered_200_are_in_the_stream(redis_server, namespace, run_ingest, signum):
    process = run_ingest(redis_url=redis_server.url, namespace=namespace)
    port = await asyncio.to_thread(process.port)
    taken: list[str] = []
    answers: list[str] = []
    clients = [asyncio.create_task(hammer(port, f"c{number}", taken, answers)) for number in range(20)]
    await until(lambda: len(taken) > 500)
    code = await asyncio.to_thread(process.kill, signum)
    await asyncio.gather(*clients)
    assert code == (-signal.SIGKILL if signum == signal.SIGKILL else 0)
    assert set(answers) == {"taken"}
    with redis_server.client() as client:
        assert set(taken) <= marks(client, node_settings("", namespace))


async def test_stop_finishes_requests_under_way(redis_server, namespace):
    node = IngestNode(node_settings(redis_server.url, namespace))
    await node.start()
    whole = GOOD.encode()
    async with await Client.connect(node.port) as client, await Client.connect(node.port) as idle:
        assert (await idle.ask(whole)).status == 200
        client.send(whole[:-1])
        await until(lambda: node.metrics.gauges().requests_under_way == 1)
        stopping = asyncio.create_task(node.stop())
        await until(lambda: not node._listener._sockets)
        client.send(whole[-1:])
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        await stopping
        assert await idle.ended()
        assert await client.ended()


async def test_stop_does_not_wait_for_a_request_that_never_ends(redis_server, namespace):
    node = IngestNode(node_settings(redis_server.url, namespace, stop_timeout_ms=50))
    await node.start()
    async with await Client.connect(node.port) as client:
        client.send(GOOD.encode()[:-1])
        await until(lambda: node.metrics.gauges().requests_under_way == 1)
        await asyncio.wait_for(node.stop(), 5)
        assert await client.ended()


async def test_kill_of_redis_under_load_loses_no_callback(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace)
    async with started(settings) as node:
        assert (await ready(node))[0] == 200
        taken: list[str] = []
        answers: list[str] = []
        clients = [
            asyncio.create_task(hammer(node.port, f"c{number}", taken, answers)) for number in range(10)
        ]
        await until(lambda: len(taken) > 100)
        own_redis.kill()
        before = len(taken)
        await until(lambda: len(taken) > before + 200)
        status, health = await ready(node)
        assert status == 200
        assert (health["redis"]["connected"], health["redis"]["takes"]) == (False, False)
        assert health["redis"]["reason"]
        assert health["spool"]["ok"]
        assert health["spool"]["callbacks"] > 100
        assert health["spool"]["bytes"] > 0
        assert health["spool"]["oldest_age_s"] >= 0
        assert health["spool"]["oldest_at"] is not None
        before = len(taken)
        await asyncio.to_thread(own_redis.start)
        await until(lambda: len(taken) > before + 100)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        assert set(answers) == {"taken"}
        await until(lambda: not node.metrics.gauges().spool_callbacks)
        status, health = await ready(node)
        assert (status, health["redis"]["takes"], health["spool"]["callbacks"]) == (200, True, 0)
        assert health["spool"]["oldest_at"] is None
        with own_redis.client() as client:
            assert set(taken) <= marks(client, settings)


async def test_node_starts_without_redis(own_redis, namespace):
    own_redis.kill()
    settings = node_settings(own_redis.url, namespace)
    async with started(settings) as node:
        assert (await ask(node.port, GOOD)).status == 200
        assert (await ready(node))[0] == 200
        await asyncio.to_thread(own_redis.start)
        await until(lambda: node.metrics.drained == 1)
        assert (await ask(node.port, GOOD)).status == 200
        assert (await ready(node))[0] == 200
        with own_redis.client() as client:
            assert len(stored(client, settings)) == 2


async def test_silent_redis_costs_one_timeout(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace, publish_timeout_ms=1_000)
    async with started(settings) as node:
        own_redis.pause()
        assert (await ask(node.port, GOOD)).status == 200
        assert node.metrics.spooled == {"redis_timeout": 1}
        began = asyncio.get_running_loop().time()
        for _ in range(20):
            assert (await ask(node.port, GOOD)).status == 200
        assert asyncio.get_running_loop().time() - began < 1.0, "one more timeout"
        own_redis.resume()
        await until(lambda: not node.metrics.gauges().spool_callbacks)
        assert (await ask(node.port, GOOD)).status == 200


async def test_full_redis_spools_until_there_is_room(own_redis, namespace):
    settings = node_settings(own_redis.url, namespace)
    async with started(settings) as node:
        with own_redis.client() as client:
            client.config_set("maxmemory", "1")
            for _ in range(10):
                assert (await ask(node.port, GOOD)).status == 200
            assert node.metrics.spooled == {"redis_oom": 10}
            status, health = await ready(node)
            assert (status, health["redis"]["takes"], health["redis"]["reason"]) == (200, False, "redis_oom")
            client.config_set("maxmemory", "0")
            await until(lambda: node.metrics.drained == 10)
            assert len(stored(client, settings)) == 10


async def test_callback_is_answered_503_without_redis_and_spool(own_redis, namespace):
    own_redis.kill()
    async with started(node_settings(own_redis.url, namespace, spool_max_bytes=1 << 20)) as node:
        big = Request(pairs=[("SessionUUID", "s"), ("EventName", "e"), ("x", "y" * 60_000)]).encode()
        answers = [await ask(node.port, big) for _ in range(20)]
        assert answers[0].status == 200
        last = answers[-1]
        assert (last.status, last.error, last.headers["retry-after"]) == (503, "spool_full", "1")
        status, health = await ready(node)
        assert (status, health["spool"]["ok"]) == (503, False)
        assert health["spool"]["reason"] == "MASKLINE_SPOOL_MAX_BYTES is reached"
        assert node.metrics.spool_failures["spool_full"] >= 1
        await asyncio.to_thread(own_redis.start)
        await until(lambda: not node.metrics.gauges().spool_callbacks)
        await until(lambda: node.metrics.gauges().spool_ok)  # found out by itself, without a callback
        assert (await ready(node))[0] == 200


async def test_different_partitions_in_redis_stop_the_start(redis_server, namespace):
    async with started(node_settings(redis_server.url, namespace)):
        pass
    with pytest.raises(ConfigError, match="MASKLINE_PARTITIONS"):
        await IngestNode(node_settings(redis_server.url, namespace, partitions=5)).start()


async def test_different_partitions_found_later_keep_the_node_spooling(own_redis, namespace):
    async with started(node_settings(own_redis.url, namespace)) as node:
        own_redis.kill()
        await until(lambda: not node.metrics.gauges().redis_connected)
        await asyncio.to_thread(own_redis.start)
        await until(lambda: node.metrics.gauges().redis_connected)
        with own_redis.client() as client:
            client.hset(f"{namespace}:layout", "partitions", 5)
            client.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: "MASKLINE_PARTITIONS" in node._pool.details().get("reason", ""))
        assert (await ask(node.port, GOOD)).status == 200
        status, health = await ready(node)
        assert (status, health["spool"]["callbacks"]) == (503, 1)
        assert "MASKLINE_PARTITIONS" in health["redis"]["reason"]


async def test_callbacks_share_round_trips_under_load(redis_server, namespace):
    async with started(node_settings(redis_server.url, namespace)) as node:
        taken: list[str] = []
        clients = [asyncio.create_task(hammer(node.port, f"c{number}", taken, [])) for number in range(50)]
        await until(lambda: len(taken) > 1_000)
        batches = node.metrics.batch_size
        assert batches.total / sum(batches.counts) > 3
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def test_several_processes_share_the_port(redis_server, namespace, run_ingest):
    process = run_ingest("--processes", "2", redis_url=redis_server.url, namespace=namespace)
    ports = [await asyncio.to_thread(process.port) for _ in range(2)]
    assert ports[0] == ports[1]
    for _ in range(20):
        assert (await ask(ports[0], GOOD)).status == 200
    assert await asyncio.to_thread(process.kill, signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"redis_url": ""}, "MASKLINE_REDIS_URL"),
        ({"redis_url": "http://x"}, "MASKLINE_REDIS_URL"),
        ({"redis_url": "rediss://h?ssl_cert_reqs=some"}, "ssl_cert_reqs"),
        ({"max_body_bytes": "some"}, "MASKLINE_MAX_BODY_BYTES"),
    ],
)
async def test_wrong_settings_are_refused_by_name(settings, named):
    """Without a process of its own for each; what the operator sees of it is the next test."""
    given = {"redis_url": "redis://127.0.0.1:1", "auth_tokens": "MA1:token"} | settings
    with pytest.raises(ConfigError, match=named):
        IngestNode(load_settings({f"MASKLINE_{name.upper()}": value for name, value in given.items()}))


@pytest.mark.parametrize(
    ("arguments", "settings", "named"),
    [
        ((), {"auth_tokens": ""}, "MASKLINE_AUTH_TOKENS"),
        (("--processes", "2"), {"redis_url": "redis://h?max_connections=9"}, "max_connections"),
        (("--port", "99999"), {}, "MASKLINE_PORT"),
        ((), {"spool_dir": "/proc/nowhere"}, "MASKLINE_SPOOL_DIR"),
        ((), {"host": "203.0.113.1"}, "MASKLINE_HOST"),
        (("--processes", "2"), {"host": "203.0.113.1"}, "MASKLINE_HOST"),
        (("--processes", "0"), {}, "--processes"),
    ],
)
async def test_wrong_settings_exit_2_with_one_line(redis_server, run_ingest, arguments, settings, named):
    process = run_ingest(*arguments, **({"redis_url": redis_server.url} | settings))
    code, stderr = await asyncio.to_thread(process.ended)
    complaints = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert code == 2, stderr
    assert len(complaints) == 1, stderr
    assert named in complaints[0]


def test_unknown_argument_exits_with_one_line_that_names_it():
    with pytest.raises(ConfigError, match="^ingest: .*--nonsense"):
        main(["--nonsense"])


async def test_node_without_verification_warns(redis_server, namespace, run_ingest):
    process = run_ingest(redis_url=redis_server.url, namespace=namespace, verify="off", auth_tokens="")
    port = await asyncio.to_thread(process.port)
    assert (await ask(port, Request(headers={"X-Plivo-Signature-V3": None}))).status == 200
    assert await asyncio.to_thread(process.kill, signal.SIGTERM) == 0
    assert '"event":"signature verification off"' in process.log


async def test_log_gives_the_reason_and_no_phone_numbers(redis_server, namespace, run_ingest):
    process = run_ingest(redis_url=redis_server.url, namespace=namespace, log_level="debug")
    port = await asyncio.to_thread(process.port)
    for _ in range(5):
        await ask(port, Request(token="wrong", query=[("To", "+447700900123")]))
    await ask(port, Request(target="/callbacks/+447700900123"))
    await ask(port, b"POST +14155550123 +14155550123\r\n+14155550123\r\n\r\n")
    await asyncio.to_thread(process.kill, signal.SIGTERM)
    assert process.log.count('"signature_wrong"') == 1
    assert '"http://hooks.example.com/callbacks"' in process.log
    assert "malformed HTTP" in process.log
    for number in ("4155550123", "7700900123", "Traceback"):
        assert number not in process.log


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - never listened on
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("localhost", "localhost"),
    ],
)
async def test_node_url(host, shown):
    node = IngestNode(node_settings("redis://localhost", "n", host=host, port=8080))
    assert node.url == f"http://{shown}:8080/callbacks"
