import asyncio

import pytest
import recording_handlers

from schemas.settings import Settings
from worker.node import WorkerNode


@pytest.mark.parametrize("ticks", range(6))
async def test_a_part_woken_the_moment_before_stops_all_the_same(
    redis_server, namespace, tmp_path, monkeypatch, ticks
):
    monkeypatch.setenv("RECORD_FILE", str(tmp_path / "calls"))
    settings = Settings(redis_url=redis_server.url, namespace=namespace, partitions=2, admin_port=0)
    node = WorkerNode(settings, handler_modules=[recording_handlers])
    await node.start()
    while node.owned < 2:
        await asyncio.sleep(0.01)
    node._leases._soon.set()  # as a lost lease does
    for _ in range(ticks):
        await asyncio.sleep(0)
    leases, *_ = node._tasks
    leases.cancel()
    done, _ = await asyncio.wait([leases], timeout=5)
    await node.stop()
    assert done
    assert leases.cancelled()
