"""A node as a whole: what it promises while Redis goes and comes back, and while it is stopped or killed."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from ingest_kit import MAIN, MAIN_TOKEN, Client, Request, ask, node_settings, stored, until

from ingest.__main__ import main
from ingest.node import IngestNode
from schemas.errors import ConfigError
from schemas.settings import Settings

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


class Process:
    """`python -m ingest` with settings in its environment."""

    def __init__(self, *arguments: str, **settings: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASKLINE_")}
        defaults = {
            "auth_tokens": f"{MAIN}:{MAIN_TOKEN}", "host": "127.0.0.1", "port": "0", "admin_port": "0",
            "partitions": "4", "log_format": "json",
        }  # fmt: skip
        environment |= {f"MASKLINE_{name.upper()}": value for name, value in (defaults | settings).items()}
        self.log = ""
        """What it has written so far, as far as it was read."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ingest", *arguments], env=environment, stderr=subprocess.PIPE, text=True
        )

    def port(self) -> int:
        """The port, once it takes callbacks."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if found := re.search(r'takes callbacks.*"url":"http://127.0.0.1:(\d+)/', line):
                return int(found[1])
        raise AssertionError("it ended before it took callbacks")

    def kill(self, signum: int = signal.SIGKILL) -> int:
        self.process.send_signal(signum)
        return self.ended()[0]

    def ended(self) -> tuple[int, str]:
        _, rest = self.process.communicate(timeout=20)
        self.log += rest
        return self.process.returncode, rest


@pytest.fixture
def run_ingest() -> Iterator[Any]:
    processes: list[Process] = []

    def run(*arguments: str, **settings: str) -> Process:
        processes.append(Process(*arguments, **settings))
        return processes[-1]

    yield run
    for process in processes:
        if process.process.poll() is None:
            process.kill()


async def hammer(port: int, name: str, taken: list[str], answers: list[str]) -> None:
    """Send numbered callbacks one after the other until the connection ends; note those that were answered 200."""
    number = 0
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with await Client.connect(port) as client:
            while True:
                number += 1
                mark = f"{name}-{number}"
                response = await client.ask(
                    Request(pairs=[("SessionUUID", mark), ("EventName", "e")]).encode()
                )
                answers.append("taken" if response.status == 200 else f"{response.status} {response.body!r}")
                if response.status == 200:
                    taken.append(mark)
                if response.headers.get("connection") == "close":
                    return


def marks(client: Any, settings: Settings) -> set[str]:
    return {
        re.search(rb"SessionUUID=([\w-]+)", callback.body)[1].decode()
        for callback in stored(client, settings)
    }


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_everything_answered_200_is_in_the_stream(redis_server, namespace, run_ingest, signum):
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


async def test_a_request_under_way_at_the_stop_is_finished(redis_server, namespace):
    node = IngestNode(node_settings(redis_server.url, namespace))
    await node.start()
    whole = GOOD.encode()
    async with await Client.connect(node.port) as client, await Client.connect(node.port) as idle:
        assert (await idle.ask(whole)).status == 200
        client.send(whole[:-1])
        await until(lambda: node.metrics.gauges().requests_under_way == 1)
        stopping = asyncio.create_task(node.stop())
        await until(lambda: node._listener is not None and not node._listener.is_serving())
        client.send(whole[-1:])
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        await stopping
        assert await idle.ended()
        assert await client.ended()


async def test_a_request_that_never_ends_does_not_hold_the_stop(redis_server, namespace):
    node = IngestNode(node_settings(redis_server.url, namespace, stop_timeout_ms=50))
    await node.start()
    async with await Client.connect(node.port) as client:
        client.send(GOOD.encode()[:-1])
        await until(lambda: node.metrics.gauges().requests_under_way == 1)
        await asyncio.wait_for(node.stop(), 5)
        assert await client.ended()


async def test_redis_killed_under_load_and_back(own_redis, namespace):
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
        await until(lambda: len(answers) - len(taken) > 100)
        response = await ask(node.port, GOOD)
        assert (response.status, response.error, response.headers["retry-after"]) == (503, "redis_away", "1")
        status, health = await ready(node)
        assert (status, health["redis"]["connected"]) == (503, False)
        assert health["redis"]["reason"]
        before = len(taken)
        await asyncio.to_thread(own_redis.start)
        await until(lambda: len(taken) > before + 100)
        assert (await ready(node))[0] == 200
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        refused = set(answers) - {"taken"}
        assert all(answer.startswith("503 ") and "redis_" in answer for answer in refused), refused
        # What was taken after the restart is there; what went with the killed server is MASKLINE_DURABILITY's matter.
        with own_redis.client() as client:
            assert set(taken[before:]) <= marks(client, settings)


async def test_redis_away_at_the_start(own_redis, namespace):
    own_redis.kill()
    async with started(node_settings(own_redis.url, namespace)) as node:
        assert (await ask(node.port, GOOD)).status == 503
        assert (await ready(node))[0] == 503
        await asyncio.to_thread(own_redis.start)
        await until(lambda: node.metrics.gauges().redis_connected)
        assert (await ask(node.port, GOOD)).status == 200
        assert (await ready(node))[0] == 200


async def test_a_silent_redis_is_503_within_the_timeout(own_redis, namespace):
    async with started(node_settings(own_redis.url, namespace, publish_timeout_ms=100)) as node:
        own_redis.pause()
        assert (await asyncio.wait_for(ask(node.port, GOOD), 2)).status == 503
        own_redis.resume()
        await until(lambda: node.metrics.gauges().redis_connected)
        assert (await ask(node.port, GOOD)).status == 200


async def test_a_full_redis_is_503(own_redis, namespace):
    async with started(node_settings(own_redis.url, namespace)) as node:
        with own_redis.client() as client:
            client.config_set("maxmemory", "1")
        response = await ask(node.port, GOOD)
        assert (response.status, response.error) == (503, "redis_oom")


async def test_other_partitions_stop_the_start(redis_server, namespace):
    async with started(node_settings(redis_server.url, namespace)):
        pass
    with pytest.raises(ConfigError, match="MASKLINE_PARTITIONS"):
        await IngestNode(node_settings(redis_server.url, namespace, partitions=5)).start()


async def test_other_partitions_found_later_refuse_callbacks(own_redis, namespace):
    async with started(node_settings(own_redis.url, namespace)) as node:
        own_redis.kill()
        await until(lambda: not node.metrics.gauges().redis_connected)
        await asyncio.to_thread(own_redis.start)
        await until(lambda: node.metrics.gauges().redis_connected)
        with own_redis.client() as client:
            client.hset(f"{namespace}:layout", "partitions", 5)
            client.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: "MASKLINE_PARTITIONS" in node._connector.trouble)
        assert (await ask(node.port, GOOD)).status == 503
        status, health = await ready(node)
        assert status == 503
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
    ("arguments", "settings", "named"),
    [
        ((), {"auth_tokens": ""}, "MASKLINE_AUTH_TOKENS"),
        ((), {"redis_url": ""}, "MASKLINE_REDIS_URL"),
        ((), {"redis_url": "http://x"}, "MASKLINE_REDIS_URL"),
        (("--port", "99999"), {}, "MASKLINE_PORT"),
        ((), {"max_body_bytes": "some"}, "MASKLINE_MAX_BODY_BYTES"),
        ((), {"host": "203.0.113.1"}, "MASKLINE_HOST"),
        (("--processes", "2"), {"host": "203.0.113.1"}, "MASKLINE_HOST"),
        (("--processes", "0"), {}, "--processes"),
    ],
)
async def test_wrong_settings_end_with_2_and_one_line(redis_server, run_ingest, arguments, settings, named):
    process = run_ingest(*arguments, **({"redis_url": redis_server.url} | settings))
    code, stderr = await asyncio.to_thread(process.ended)
    complaints = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert code == 2, stderr
    assert len(complaints) == 1, stderr
    assert named in complaints[0]


def test_unknown_arguments_are_one_line_that_names_them():
    with pytest.raises(ConfigError, match="^ingest: .*--nonsense"):
        main(["--nonsense"])


async def test_unverified_nodes_warn(redis_server, namespace, run_ingest):
    process = run_ingest(redis_url=redis_server.url, namespace=namespace, verify="off", auth_tokens="")
    port = await asyncio.to_thread(process.port)
    assert (await ask(port, Request(headers={"X-Plivo-Signature-V3": None}))).status == 200
    assert await asyncio.to_thread(process.kill, signal.SIGTERM) == 0
    assert "MASKLINE_VERIFY=off" in process.log


async def test_the_log_tells_why_and_no_numbers(redis_server, namespace, run_ingest):
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
async def test_the_url_of_a_node(host, shown):
    node = IngestNode(node_settings("redis://localhost", "n", host=host, port=8080))
    assert node.url == f"http://{shown}:8080/callbacks"
