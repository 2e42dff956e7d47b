import asyncio

import msgspec
import pytest
from console_kit import PARTITIONS, command, handler_module, publish, settings_for

from console.inquiry import Inquiry, Servers
from console.status import PartitionStatus, Status, find_problems, read_status
from runtime.store import Store
from schemas.errors import ConfigError, RedisUnavailableError
from worker.node import WorkerNode


async def status_of(settings):
    store = Store(settings)
    link = await store.connect("test")
    try:
        return await read_status(
            Inquiry(Servers({None: link}, None), settings, settings.partitions, store.address)
        )
    finally:
        link.close()


async def until(settings, condition):
    async with asyncio.timeout(10):
        while True:
            status = await status_of(settings)
            if condition(status):
                return status
            await asyncio.sleep(0.01)


def one_event(session="s1", number="1"):
    return [("EventName", "SessionTimeout"), ("SessionUUID", session), ("SequenceNumber", number)]


def waits_for_a_number():
    return [("EventName", "SessionParamUpdate"), ("SessionUUID", "s3"), ("SequenceNumber", "7")]


async def test_with_a_live_worker(redis_server, namespace):
    settings = settings_for(redis_server, namespace)
    seen = []
    worker = WorkerNode(settings, handler_modules=[handler_module(lambda event, _: seen.append(event))])
    await worker.start()
    try:
        publish(redis_server, namespace, *one_event())
        status = await until(settings, lambda s: s.stored == 1 and not s.unread and not s.pending)
        assert len(seen) == 1
        status = await until(settings, lambda s: all(p.owner for p in s.partitions))
        assert status.healthy
        assert status.problems == []
        assert status.workers == {worker.worker_id: PARTITIONS}
        for partition in status.partitions:
            assert partition.owner == worker.worker_id
            assert partition.fencing_token > 0
            assert 0 < partition.lease_ms <= settings.lease_ttl_ms
        # A gap: the event waits until the missing numbers are given up.
        publish(redis_server, namespace, *waits_for_a_number())
        status = await until(settings, lambda s: s.stored == 2)
        assert status.unread + status.pending == 1
        assert status.healthy
    finally:
        await worker.stop()
    status = await status_of(settings)
    assert status.workers == {}
    assert "no worker is alive" in status.problems


def test_nobody_works(redis_server, namespace, monkeypatch, capsys):
    publish(redis_server, namespace, *one_event())
    publish(redis_server, namespace, *one_event("s2"))
    options = {"MASKLINE_PARTITIONS": str(PARTITIONS)}
    assert command(monkeypatch, redis_server, namespace, "status", "--json", **options) == 1
    status = msgspec.json.decode(capsys.readouterr().out, type=Status)
    assert (status.stored, status.unread, status.pending) == (2, 2, 0)
    assert not status.healthy
    assert status.problems[0] == "no worker is alive"
    assert "2 callbacks wait" in status.problems[1]
    assert status.redis.version.startswith(("Valkey 9", "Redis "))
    assert status.redis.maxmemory_policy == "noeviction"
    assert len(status.partitions) == PARTITIONS

    assert command(monkeypatch, redis_server, namespace, "status") == 1
    shown = capsys.readouterr().out
    assert "nobody" in shown
    assert "PROBLEM     no worker is alive" in shown
    assert "\x1b" not in shown


def test_partitions_are_those_in_redis(redis_server, namespace, monkeypatch, capsys):
    with redis_server.client() as client:
        client.hset(f"{namespace}:layout", mapping={"partitions": 3})
    assert command(monkeypatch, redis_server, namespace, "status", "--json") == 1
    assert len(msgspec.json.decode(capsys.readouterr().out)["partitions"]) == 3
    # Asking leaves no trace.
    with redis_server.client() as client:
        assert client.keys(f"*{namespace}*") == [f"{namespace}:layout".encode()]


def test_redis_away(own_redis, namespace, monkeypatch):
    own_redis.kill()
    with pytest.raises(RedisUnavailableError, match="cannot be reached"):
        command(monkeypatch, own_redis, namespace, "status")


def test_no_redis_set(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MASKLINE_REDIS_URL", raising=False)
    from console.main import main

    with pytest.raises(ConfigError, match="no maskline dev runs in this directory"):
        main(["status"])


def partition(number=0, owner="w", unread=0, pending=0):
    return PartitionStatus(number, owner, 1, 1000, 5, unread, pending, 9)


def test_what_is_a_problem():
    assert list(find_problems({"w": 1}, [partition(unread=5), partition(1, pending=5)])) == []
    assert list(find_problems({"w": 1}, [partition(owner=None)])) == []
    assert list(find_problems({}, [])) == ["no worker is alive"]
    (stuck,) = find_problems({"w": 1}, [partition(owner=None, unread=2), partition(1, owner=None, pending=1)])
    assert stuck == "3 callbacks wait in 2 partitions that nobody owns"
