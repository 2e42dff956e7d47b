"""Real processes through outages, kill -9, a full disk: every callback answered 200 is in the stream in the end."""

import asyncio
import random
import re
import resource
import signal
import statistics
import time

import pytest
from ingest_kit import Client, Request, ask, node_settings, until
from ingest_processes import hammer, marks
from servers import wait_until

OUTAGE_S = 4.0
PUBLISH_TIMEOUT_MS = 1_500
"""Longer than any answer takes that does not wait for Redis, also on a busy machine."""
GOOD = Request()


async def port_of(process):
    return await asyncio.to_thread(process.port)


async def stopped(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def everything_arrives(server, settings, taken, *, within_s=60):
    with server.client() as client:
        wait_until(
            lambda: set(taken) <= marks(client, settings), within_s=within_s, what="all that was answered 200"
        )


def spooled_by(directory):
    return [path for path in directory.iterdir() if path.suffix == ".db"]


async def test_kill_while_spooling_loses_no_callback(own_redis, namespace, run_ingest, spool_of_its_own):
    own_redis.kill()
    settings = node_settings(own_redis.url, namespace)
    taken: list[str] = []
    for life in range(3):
        process = run_ingest(redis_url=own_redis.url, namespace=namespace)
        port = await port_of(process)
        enough = len(taken) + 300 + random.Random(life).randrange(100)
        clients = [asyncio.create_task(hammer(port, f"l{life}c{n}", taken, [])) for n in range(20)]
        await until(lambda enough=enough: len(taken) > enough)
        await asyncio.to_thread(process.kill)
        await asyncio.gather(*clients)
        assert len(spooled_by(spool_of_its_own)) == 1  # each life finds the file of the one before
    await asyncio.to_thread(own_redis.start)
    process = run_ingest(redis_url=own_redis.url, namespace=namespace)
    await port_of(process)
    await asyncio.to_thread(everything_arrives, own_redis, settings, taken)
    assert await asyncio.to_thread(process.kill, signal.SIGTERM) == 0
    assert "spool drained" in process.log
    assert list(spool_of_its_own.iterdir()) == []


async def test_kill_while_draining_loses_no_callback(own_redis, namespace, run_ingest):
    settings = node_settings(own_redis.url, namespace)
    own_redis.kill()
    process = run_ingest(redis_url=own_redis.url, namespace=namespace, spool_drain_per_s=500)
    port = await port_of(process)
    taken: list[str] = []
    clients = [asyncio.create_task(hammer(port, f"c{n}", taken, [])) for n in range(20)]
    await until(lambda: len(taken) > 1000)
    await stopped(clients)
    await asyncio.to_thread(own_redis.start)
    with own_redis.client() as client:
        await asyncio.to_thread(wait_until, lambda: len(marks(client, settings)) > 100)
        await asyncio.to_thread(process.kill)
        assert len(marks(client, settings)) < len(taken)
    process = run_ingest(redis_url=own_redis.url, namespace=namespace)
    await port_of(process)
    await asyncio.to_thread(everything_arrives, own_redis, settings, taken)


async def test_files_of_several_killed_processes_are_drained_by_one(
    own_redis, namespace, run_ingest, spool_of_its_own
):
    settings = node_settings(own_redis.url, namespace)
    own_redis.kill()
    process = run_ingest("--processes", "3", redis_url=own_redis.url, namespace=namespace)
    ports = [await port_of(process) for _ in range(3)]
    taken: list[str] = []
    clients = [asyncio.create_task(hammer(ports[0], f"c{n}", taken, [])) for n in range(60)]
    await until(lambda: len(taken) > 1000)
    assert len(spooled_by(spool_of_its_own)) == 3
    await asyncio.to_thread(process.kill, signal.SIGKILL)  # the kernel stops its children
    await asyncio.gather(*clients)
    await until(lambda: len(spooled_by(spool_of_its_own)) >= 2)
    await asyncio.to_thread(own_redis.start)
    process = run_ingest(redis_url=own_redis.url, namespace=namespace)
    await port_of(process)
    await asyncio.to_thread(everything_arrives, own_redis, settings, taken)
    assert await asyncio.to_thread(process.kill, signal.SIGTERM) == 0
    assert list(spool_of_its_own.iterdir()) == []


async def timed_hammer(port, name, taken, answers):
    """As `hammer`, noting when each answer came and how long it took."""
    number = 0
    async with await Client.connect(port) as client:
        while True:
            number += 1
            mark = f"{name}-{number}"
            began = time.monotonic()
            response = await client.ask(Request(pairs=[("SessionUUID", mark), ("EventName", "e")]).encode())
            answers.append((began, time.monotonic() - began, response.status))
            if response.status == 200:
                taken.append(mark)


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_outage_of_redis_under_load_is_answered_200_in_time(own_redis, namespace, run_ingest, fault):
    settings = node_settings(own_redis.url, namespace)
    process = run_ingest(redis_url=own_redis.url, namespace=namespace, publish_timeout_ms=PUBLISH_TIMEOUT_MS)
    port = await port_of(process)
    taken: list[str] = []
    answers: list[tuple[float, float, int]] = []
    clients = [asyncio.create_task(timed_hammer(port, f"c{n}", taken, answers)) for n in range(16)]
    await until(lambda: len(taken) > 200)
    began = time.monotonic()
    getattr(own_redis, fault)()
    await until(lambda: time.monotonic() > began + OUTAGE_S)
    await asyncio.to_thread(own_redis.start if fault == "kill" else own_redis.resume)
    back = time.monotonic()
    after = len(taken)
    await until(lambda: len(taken) > after + 200)
    await stopped(clients)
    assert {status for _, _, status in answers} == {200}
    during = [lasted for at, lasted, _ in answers if began + 2 < at < back]
    assert len(during) > 100
    assert statistics.quantiles(during, n=100)[98] < PUBLISH_TIMEOUT_MS / 1000, "none waits for Redis"
    await asyncio.to_thread(everything_arrives, own_redis, settings, taken)


async def test_full_disk_is_answered_503_until_there_is_room(
    own_redis, namespace, run_ingest, spool_of_its_own
):
    settings = node_settings(own_redis.url, namespace)
    own_redis.kill()
    process = run_ingest(redis_url=own_redis.url, namespace=namespace)
    port = await port_of(process)
    admin = re.search(r'"admin":"http://127.0.0.1:(\d+)"', process.log)
    ready = b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n"
    taken: list[str] = []
    answers: list[str] = []
    clients = [asyncio.create_task(hammer(port, f"c{n}", taken, answers)) for n in range(10)]
    await until(lambda: len(taken) > 100)
    sizes = [path.stat().st_size for path in spool_of_its_own.iterdir()]
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (max(sizes), resource.RLIM_INFINITY))
    # It has said no, and a second time after that, so that no commit is under way any more.
    await until(lambda: len(answers) > len(taken) + 100)
    assert (await ask(int(admin[1]), ready)).status == 503
    refused = await ask(port, GOOD)
    assert (refused.status, refused.error[:6]) == (503, "spool_")
    resource.prlimit(
        process.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    before = len(taken)
    await until(lambda: len(taken) > before + 100)
    assert (await ask(int(admin[1]), ready)).status == 200
    await stopped(clients)
    await asyncio.to_thread(process.kill)
    await asyncio.to_thread(own_redis.start)
    process = run_ingest(redis_url=own_redis.url, namespace=namespace)
    await port_of(process)
    await asyncio.to_thread(everything_arrives, own_redis, settings, taken)


async def test_log_says_when_and_why_callbacks_are_spooled_and_left(own_redis, namespace, run_ingest):
    own_redis.kill()
    process = run_ingest(redis_url=own_redis.url, namespace=namespace)
    port = await port_of(process)
    for _ in range(5):
        assert (await ask(port, GOOD)).status == 200
    assert await asyncio.to_thread(process.kill, signal.SIGTERM) == 0
    lines = process.log.splitlines()
    assert len([line for line in lines if "spooling started" in line and '"redis_away"' in line]) == 1
    (stays,) = [line for line in lines if "callbacks left in spool" in line]
    assert '"warning"' in stays
    assert '"callbacks":5' in stays
    assert "4155550123" not in process.log
