import asyncio
import urllib.request

import msgspec
import pytest
from console_kit import PARTITIONS, command, handler_module, publish, settings_for

from maskline.console.redis_reader import open_reader
from maskline.console.status import (
    PartitionStatus,
    RedisStatus,
    Status,
    find_dead_bound,
    find_problems,
    find_shortages,
    find_warnings,
    read_status,
)
from maskline.schemas.errors import ConfigError, RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.node import WorkerNode
from maskline.worker.partitions.dead_letter_counts import WAITING_BYTES_MIN, held_bytes


async def status_of(settings):
    reader = await open_reader(settings)
    try:
        return await read_status(reader)
    finally:
        reader.close()


async def until(settings, condition):
    async with asyncio.timeout(60):
        while True:
            status = await status_of(settings)
            if condition(status):
                return status
            await asyncio.sleep(0.01)


def one_event(session="s1", number="1"):
    return [("EventName", "SessionTimeout"), ("SessionUUID", session), ("SequenceNumber", number)]


def waits_for_a_number():
    return [("EventName", "SessionParamUpdate"), ("SessionUUID", "s3"), ("SequenceNumber", "7")]


async def test_status_with_a_live_worker_is_healthy(redis_server, namespace):
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


def test_waiting_callbacks_without_a_worker_are_a_problem(redis_server, namespace, monkeypatch, capsys):
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


def test_unreachable_redis_is_an_error(own_redis, namespace, monkeypatch):
    own_redis.kill()
    with pytest.raises(RedisUnavailableError, match="cannot be reached"):
        command(monkeypatch, own_redis, namespace, "status")


def test_missing_redis_url_is_a_config_error(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MASKLINE_REDIS_URL", raising=False)
    from maskline.console.main import main

    with pytest.raises(ConfigError, match="no maskline dev runs in this directory"):
        main(["status"])


def partition(number=0, owner="w", unread=0, pending=0):
    return PartitionStatus(number, owner, 1, 1000, 5, unread, pending, 9)


def test_problems_are_no_worker_and_waiting_partitions_without_owner():
    assert list(find_problems({"w": 1}, [partition(unread=5), partition(1, pending=5)])) == []
    assert list(find_problems({"w": 1}, [partition(owner=None)])) == []
    assert list(find_problems({}, [])) == ["no worker is alive"]
    (stuck,) = find_problems({"w": 1}, [partition(owner=None, unread=2), partition(1, owner=None, pending=1)])
    assert stuck == "3 callbacks wait in 2 partitions that nobody owns"


MIB = 2**20


def test_dead_letters_near_their_bound_are_a_problem():
    assert list(find_dead_bound(79 * MIB, 100 * MIB)) == []
    (line,) = find_dead_bound(85 * MIB, 100 * MIB)
    assert "85.0 MiB, 85% of MASKLINE_DEAD_MAX_BYTES" in line


def test_what_waits_behind_dead_letters_counts_like_them():
    assert held_bytes(0, 0, 0) == 0
    assert held_bytes(10, 20_000, 0) == 20_000
    assert held_bytes(10, 20_000, 5) == 30_000
    assert held_bytes(10, None, 10) == 2 * held_bytes(10, None, 0)
    assert held_bytes(0, 0, 3) == 3 * WAITING_BYTES_MIN


def redis_with(used, limit):
    return RedisStatus(
        **dict.fromkeys(RedisStatus.__struct_fields__, "")
        | {"used_memory_bytes": used * MIB, "maxmemory_bytes": limit * MIB}
    )


def dead_of(letters, mib):
    return msgspec.structs.replace(partition(), dead_letters=letters, dead_bytes=int(mib * MIB))


@pytest.mark.parametrize(
    ("used", "limit", "dead_mib", "problems"),
    [
        (89, 100, 1, 0),
        (91, 100, 1, 1),
        (50, 100, 24, 0),
        (50, 100, 26, 1),
        (95, 100, 30, 2),
        (950, 0, 900, 0),
    ],
)
def test_nearly_full_redis_is_a_problem(used, limit, dead_mib, problems):
    found = list(
        find_shortages(redis_with(used, limit), [dead_of(5, dead_mib / 2), dead_of(5, dead_mib / 2)])
    )
    assert len(found) == problems


def test_dead_letters_are_a_warning_with_their_count_and_size():
    (warning,) = find_warnings(redis_with(1, 100), [dead_of(1_000, 1.5), dead_of(234, 1)])
    assert warning.startswith("1,234 dead letters, 2.5 MiB")
    unknown = msgspec.structs.replace(partition(), dead_bytes=None)
    assert "MiB" not in next(find_warnings(redis_with(1, 100), [unknown, dead_of(1, 1)]))


def test_dead_letters_beyond_a_share_of_maxmemory_show_in_status_health_and_metrics(
    own_redis, namespace, monkeypatch, capsys
):
    with own_redis.client() as client:
        used = client.info("memory")["used_memory"]
        for number in range(PARTITIONS):
            with client.pipeline(transaction=False) as pipe:
                for _ in range(100):
                    pipe.xadd(Keys(namespace).dead(number), {"d": bytes(20_000)})
                pipe.execute()
        client.config_set("maxmemory", 2 * used + 20 * MIB)

    async def health():
        settings = settings_for(own_redis, namespace)
        worker = WorkerNode(settings, handler_modules=[handler_module(lambda event, ctx: None)])
        await worker.start()
        try:
            async with asyncio.timeout(60):
                while len(worker.owned) < PARTITIONS or worker.dead_letters.count < 100 * PARTITIONS:
                    await asyncio.sleep(0.01)
                    await worker.dead_letters.refresh()
            return worker._state.ready().details, await asyncio.to_thread(read, f"{worker.admin_url}/metrics")
        finally:
            await worker.stop()

    def read(url):
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 our own
            return response.read().decode()

    details, metrics = asyncio.run(health())
    assert details["dead_letters"]["count"] == 100 * PARTITIONS
    assert 0.8 * 8_000_000 < details["dead_letters"]["bytes"] < 1.4 * 8_000_000
    (server,) = details["servers"].values()
    assert server["memory"]["max_bytes"] == 2 * used + 20 * MIB
    for name in (
        "dead_letters_stored",
        "dead_letters_bytes",
        "dead_letters_held_bytes",
        "dead_letters_max_bytes",
        "redis_memory_used_bytes",
        "redis_memory_max_bytes",
    ):
        assert f"maskline_worker_{name}" in metrics
    assert command(monkeypatch, own_redis, namespace, "status") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "dead letters take" in shown
    assert "400 dead letters" in shown
