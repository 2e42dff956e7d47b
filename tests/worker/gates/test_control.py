"""Pauses reach the workers, and what workers know reaches the next ones: on a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from gates_kit import Handler

from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.handler_control import (
    HandlerReport,
    Pause,
    decode_reports,
    encode_pause,
    encode_reports,
    pause_field,
)
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.connections import WorkerConnections
from maskline.worker.gates import control as control_module
from maskline.worker.gates.breaker import FAILURES_MAX
from maskline.worker.gates.control import HandlerControl
from maskline.worker.gates.gates import HandlerGates

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(control_module, "READ_INTERVAL_S", 0.01)


class Worker:
    """The control task of a worker, with its gates."""

    def __init__(self, connections: WorkerConnections, keys: Keys, worker_id: str) -> None:
        self.keys = keys
        self.revisions: list[int] = []
        self.gates = HandlerGates(
            [Handler("bill"), Handler("a: b%c")], wall_ms=lambda: 9_000, chance=lambda: 0.0
        )
        self.control = HandlerControl(
            connections,
            keys,
            self.gates,
            worker_id=worker_id,
            lease_ttl_ms=5_000,
            on_revision=self.revisions.append,
        )

    async def until(self, condition) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition(self):
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running(server, namespace: str, worker_id: str = "me") -> AsyncIterator[Worker]:
    settings = Settings(redis_url=server.url, namespace=namespace, partitions=2)
    keys, tasks = Keys(namespace, settings.group), BackgroundTasks()
    connections = WorkerConnections(settings, keys, tasks, name="test")
    worker = Worker(connections, keys, worker_id)
    await connections.start()
    tasks.start("handler control", worker.control.run)
    try:
        yield worker
        await worker.control.stop()
    finally:
        await connections.stop()
        await tasks.stop()


def pause(client, keys: Keys, handler: str, record: bytes | None = None) -> None:
    client.hset(
        keys.control, pause_field(handler), encode_pause(Pause(5, "why")) if record is None else record
    )
    client.hincrby(keys.control, "revision", 1)


def reported(client, keys: Keys) -> dict[str, dict[str, HandlerReport]]:
    return {worker.decode(): decode_reports(value) for worker, value in client.hgetall(keys.handlers).items()}


def live(client, keys: Keys, worker_id: str) -> None:
    seconds, micros = client.time()
    client.zadd(keys.workers, {worker_id: seconds * 1000 + micros // 1000})


async def test_pause_and_resume_reach_the_gates(redis_server, namespace) -> None:
    async with running(redis_server, namespace) as worker:
        with redis_server.client() as client:
            await worker.control.wait_known()
            assert not worker.gates.holds
            pause(client, worker.keys, "a: b%c")
            await worker.until(lambda w: w.gates.holds == {"a: b%c"})
            assert worker.gates.paused("a: b%c") == Pause(5, "why")
            client.hdel(worker.keys.control, pause_field("a: b%c"))
            client.hincrby(worker.keys.control, "revision", 1)
            await worker.until(lambda w: w.gates.paused("a: b%c") is None)
            await worker.until(lambda w: w.revisions == [0, 1, 2])


async def test_pauses_are_known_before_anything_is_said_to_be(redis_server, namespace) -> None:
    with redis_server.client() as client:
        pause(client, Keys(namespace, "workers"), "bill")
        async with running(redis_server, namespace) as worker:
            await worker.control.wait_known()
            assert worker.gates.holds == {"bill"}


async def test_pause_that_cannot_be_read_is_a_pause(redis_server, namespace) -> None:
    with redis_server.client() as client:
        pause(client, Keys(namespace, "workers"), "bill", b"\xc1 of a later release")
        async with running(redis_server, namespace) as worker:
            await worker.until(lambda w: w.gates.holds == {"bill"})


async def test_pauses_stay_while_redis_is_away(own_redis, namespace) -> None:
    async with running(own_redis, namespace) as worker:
        with own_redis.client() as client:
            pause(client, worker.keys, "bill")
            await worker.until(lambda w: w.gates.holds)
        own_redis.kill()
        await worker.until(lambda w: not any(server.up for server in w.control._connections))
        assert worker.gates.holds == {"bill"}
        own_redis.start()
        await worker.until(lambda w: all(server.up for server in w.control._connections))
        assert worker.gates.holds == {"bill"}


async def test_nothing_is_known_while_the_server_refuses(redis_server, namespace) -> None:
    keys = Keys(namespace, "workers")
    with redis_server.client() as client:
        client.set(keys.control, "not a hash")
        async with running(redis_server, namespace) as worker:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await worker.control.wait_known()
            client.delete(keys.control)
            async with asyncio.timeout(PATIENCE_S):
                await worker.control.wait_known()


async def test_workers_tell_their_handlers_and_which_are_down(redis_server, namespace) -> None:
    with redis_server.client() as client:
        async with running(redis_server, namespace) as worker:
            await worker.until(lambda w: "me" in reported(client, w.keys))
            well = {"bill": HandlerReport(), "a: b%c": HandlerReport()}
            assert reported(client, worker.keys) == {"me": well}
            for number in range(FAILURES_MAX):
                worker.gates.failed("bill", f"session-{number}")
            await worker.until(lambda w: reported(client, w.keys)["me"]["bill"] == HandlerReport(9_000))
            client.delete(worker.keys.handlers)
            worker.control._publish_at = 0.0
            await worker.until(lambda w: reported(client, w.keys).get("me"))


async def test_last_change_is_told_at_a_stop(redis_server, namespace, monkeypatch) -> None:
    monkeypatch.setattr(control_module, "READ_INTERVAL_S", 600)
    with redis_server.client() as client:
        async with running(redis_server, namespace) as worker:
            await worker.until(lambda w: "me" in reported(client, w.keys))
            for number in range(FAILURES_MAX):
                worker.gates.failed("bill", f"session-{number}")
        assert reported(client, worker.keys)["me"]["bill"].down_since_ms == 9_000


async def test_next_worker_takes_over_and_clears_up(redis_server, namespace) -> None:
    keys = Keys(namespace, "workers")
    with redis_server.client() as client:
        client.hset(keys.handlers, "ended", encode_reports({"bill": HandlerReport(3_000, 1_000)}))
        client.hset(keys.handlers, "lives", encode_reports({"a: b%c": HandlerReport(0, 2_000)}))
        client.hset(keys.handlers, "of a later release", b"\xc1")
        live(client, keys, "lives")
        async with running(redis_server, namespace) as worker:
            await worker.control.wait_known()
            assert worker.gates.holds == {"bill"}
            assert worker.gates.up_since_ms("a: b%c") == 2_000
            async with asyncio.timeout(PATIENCE_S):
                while reported(client, keys).keys() != {"lives", "me"}:
                    await asyncio.sleep(0.01)
            assert reported(client, keys)["me"] == {
                "bill": HandlerReport(3_000, 1_000),
                "a: b%c": HandlerReport(0, 2_000),
            }
