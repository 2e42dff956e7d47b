"""A backlog behind a thin pipe: workers and operator's commands get on, however long a reply takes."""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from process_kit import PATIENCE_S, Fleet, callback, fleet
from proxy import Proxy
from servers import RedisServer

from maskline.runtime.redis.pipeline import REPLY_TIMEOUT_S
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.worker.entries.dead_letter import DEAD_FIELD, DeadLetter, encode_dead_letter

MASKLINE = str(Path(sys.executable).with_name("maskline"))
PIPE_BYTES_S = 300_000
PARTITIONS = 64
PADDING = "x" * 8_000
SESSIONS, EVENTS = 50, 5
"""Two megabytes: one read of all, as the server answers it, takes more than REPLY_TIMEOUT_S. And so few of them come
quickly that the partitions take turns."""
DEAD = 130
"""As much, if all are read at once."""


@pytest.fixture
async def pipe(redis_server: RedisServer) -> AsyncIterator[Proxy]:
    proxy = Proxy(redis_server.port)
    await proxy.start()
    proxy.thin(PIPE_BYTES_S)
    yield proxy
    await proxy.stop()


def put_backlog(crew: Fleet) -> int:
    """Bytes of it."""
    pipeline, size_bytes = crew.client.pipeline(transaction=False), 0
    for number in range(1, EVENTS + 1):
        for session in range(SESSIONS):
            value = callback(f"s{session}", number, Padding=PADDING)
            pipeline.xadd(crew.stream(f"s{session}"), {CALLBACK_FIELD: value})
            size_bytes += len(value)
    pipeline.execute()
    return size_bytes


def put_dead(crew: Fleet) -> None:
    value = callback("s", 1, Padding=PADDING)
    letter = DeadLetter(
        group="workers",
        entry_id="1-1",
        code="failed",
        reason="a test",
        failed_at_ms=1_700_000_000_000,
        callback=value,
        traceback="x" * 6_000,
    )
    for _ in range(DEAD):
        crew.client.xadd(crew.keys.dead(0), {DEAD_FIELD: encode_dead_letter(letter)})


def readiness(admin: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{admin}/readyz", timeout=60) as response:  # noqa: S310 our own
        return dict(json.load(response))


async def test_a_backlog_behind_a_thin_pipe_is_worked_off(
    redis_server: RedisServer, pipe: Proxy, namespace: str, tmp_path: Path
):
    with fleet(redis_server, namespace, tmp_path, partitions=PARTITIONS) as crew:
        size_bytes = put_backlog(crew)
        assert size_bytes / PIPE_BYTES_S > REPLY_TIMEOUT_S
        worker = await asyncio.to_thread(crew.start, redis_url=f"redis://127.0.0.1:{pipe.port}/0")
        started = worker.logged("worker started")
        assert started is not None
        seen: list[dict[str, Any]] = []
        deadline = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(crew.drained):
            seen += (await asyncio.to_thread(readiness, started["admin"]))["reads"]
            assert time.monotonic() < deadline, worker.log
            await asyncio.sleep(0.05)
        assert len(await asyncio.to_thread(crew.calls)) == SESSIONS * EVENTS
        assert any(reads["slow"] for reads in seen)
        assert not seen[-1]["reads_cut"], "no read was in vain"
        assert not worker.logged("lease lost"), "renewals got through"


async def test_dead_letters_are_listed_through_a_thin_pipe(
    redis_server: RedisServer, pipe: Proxy, namespace: str, tmp_path: Path
):
    with fleet(redis_server, namespace, tmp_path, partitions=1) as crew:
        put_dead(crew)
        environment = crew.environment(redis_url=f"redis://127.0.0.1:{pipe.port}/0")
        listing = await asyncio.to_thread(
            subprocess.run,
            [MASKLINE, "dead", "list", "--json"],
            env=environment,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert listing.returncode == 0, listing.stderr.decode()
        assert len(json.loads(listing.stdout)) == DEAD
