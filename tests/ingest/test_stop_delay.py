"""A rolling update: after SIGTERM ingest says that it goes, and takes callbacks until the load balancer knows."""

import asyncio
import re
import signal
import time

import pytest
from ingest_kit import Client, Request, ask, node_settings, stored, until

GOOD = Request().encode()
READY = b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n"
WRONG = Request(token="wrong").encode()
DELAY_MS = 3_000
BUSY_SHARE = 0.4
"""Of the delay: what follows has the rest of it, also on a busy machine."""


async def started(run_ingest, *arguments, **settings):
    """A process, its port and its admin port."""
    process = run_ingest(*arguments, **settings)
    port = await asyncio.to_thread(process.port)
    admin = re.search(r'"admin":"http://127.0.0.1:(\d+)"', process.log)
    return process, port, int(admin[1])


async def until_it_stops(admin):
    """Wait until /readyz is 503."""
    async with asyncio.timeout(60):
        while (answer := await ask(admin, READY)).status == 200:
            await asyncio.sleep(0.01)
    assert answer.status == 503
    assert b'"stopping":true' in answer.body


@pytest.mark.parametrize("arguments", [(), ("--processes", "1"), ("--processes", "2")])
async def test_callbacks_are_taken_for_the_delay_after_sigterm(
    redis_server, namespace, run_ingest, arguments
):
    settings = {"redis_url": redis_server.url, "namespace": namespace, "stop_timeout_ms": 100}
    process, port, admin = await started(run_ingest, *arguments, stop_delay_ms=DELAY_MS, **settings)
    async with await Client.connect(port) as idle, await Client.connect(port) as general:
        assert (await idle.ask(GOOD)).status == 200
        assert (await general.ask(WRONG)).status == 403  # from here on aiohttp's
        assert b'"stopping":false' in (await ask(admin, READY)).body
        process.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        await until_it_stops(admin)
        assert (await ask(admin, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")).status == 200
        taken = 1
        while time.monotonic() < began + DELAY_MS / 1000 * BUSY_SHARE:
            async with await Client.connect(port) as fresh:
                answer = await fresh.ask(GOOD)
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await fresh.ended()
                taken += 1
            await asyncio.sleep(0.02)
        # They were open all the while, and end with their next answer.
        for client, request, status in ((idle, GOOD, 200), (general, WRONG, 403)):
            answer = await client.ask(request)
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert await client.ended()
    assert (await asyncio.to_thread(process.ended))[0] == 0
    assert time.monotonic() - began >= DELAY_MS / 1000
    with redis_server.client() as client:
        assert len(stored(client, node_settings("", namespace))) == taken + 1
    with pytest.raises(OSError):  # noqa: PT011 - however it is refused
        await Client.connect(port)


@pytest.mark.parametrize("arguments", [(), ("--processes", "2")])
async def test_second_signal_ends_the_delay_at_once(redis_server, namespace, run_ingest, arguments):
    process, _, admin = await started(
        run_ingest, *arguments, redis_url=redis_server.url, namespace=namespace, stop_delay_ms=60_000
    )
    process.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    await until_it_stops(admin)
    await until(lambda: time.monotonic() > began + 0.6)  # closer together they are one wish
    process.process.send_signal(signal.SIGTERM)
    assert (await asyncio.to_thread(process.ended))[0] == 130


async def test_stop_begins_at_once_without_a_delay_and_readyz_says_so(redis_server, namespace, run_ingest):
    process, port, admin = await started(
        run_ingest, redis_url=redis_server.url, namespace=namespace, stop_timeout_ms=20_000
    )
    async with await Client.connect(port) as slow:
        slow.send(GOOD[:-1])
        async with await Client.connect(port) as idle:
            assert (await idle.ask(GOOD)).status == 200
            process.process.send_signal(signal.SIGTERM)
            await until_it_stops(admin)
            with pytest.raises(OSError):  # noqa: PT011 - however it is refused
                await Client.connect(port)
        slow.send(GOOD[-1:])
        assert (await slow.response()).status == 200
    assert (await asyncio.to_thread(process.ended))[0] == 0
