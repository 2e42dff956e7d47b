import asyncio

import pytest
import recording_handlers
from dispatch_kit import turns, until
from process_kit import assert_complete_and_in_order, fleet

from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.gates.control import HandlerControl
from maskline.worker.node import WorkerNode
from maskline.worker.streams.lookups import Lookups
from maskline.worker.streams.pipeline import StreamPipeline


@pytest.mark.parametrize("ticks", range(6))
async def test_lease_task_woken_just_before_its_cancellation_stops(
    redis_server, namespace, tmp_path, monkeypatch, ticks
):
    monkeypatch.setenv("RECORD_FILE", str(tmp_path / "calls"))
    settings = Settings(redis_url=redis_server.url, namespace=namespace, partitions=2, admin_port=0)
    node = WorkerNode(settings, handler_modules=[recording_handlers])
    await node.start()
    while len(node.owned) < 2:
        await asyncio.sleep(0.01)
    node._manager._early.set()  # as a lost lease does
    for _ in range(ticks):
        await asyncio.sleep(0)
    leases, *_ = node._tasks
    leases.cancel()
    done, _ = await asyncio.wait([leases], timeout=60)
    await node.stop()
    assert done
    assert leases.cancelled()


@pytest.mark.parametrize("stays", [False, True], ids=["goes", "stays"])
@pytest.mark.parametrize(
    ("part", "step"), [(StreamPipeline, "_order"), (Lookups, "receive")], ids=["decoded", "asked"]
)
async def test_entries_read_are_handled_although_their_partition_moves_to_another_server(
    own_redis, namespace, tmp_path, monkeypatch, part, step, stays
):
    """As on a cluster: another poller goes on with the partitions, and the server goes (a failover) or not (a slot)."""
    monkeypatch.setenv("RECORD_FILE", str(tmp_path / "calls"))
    monkeypatch.setattr(
        "maskline.worker.streams.pipeline.SLICE_ENTRIES", 8
    )  # a slice of its own for each partition
    settings = Settings(redis_url=own_redis.url, namespace=namespace, partitions=2, admin_port=0)
    node = WorkerNode(settings, handler_modules=[recording_handlers])
    await node.start()
    with fleet(own_redis, namespace, tmp_path, partitions=2) as crew:
        crew.record_file = tmp_path / "calls"
        await until(lambda: len(node.partitions) == 2)
        cluster = node._connections._cluster
        reached, go_on = asyncio.Event(), asyncio.Event()
        real = getattr(part, step)

        async def held(*arguments):
            reached.set()
            await go_on.wait()
            return await real(*arguments)

        monkeypatch.setattr(part, step, held)
        first = [(f"s{session}", number) for session in range(20) for number in (1, 2)]
        crew.put_all(first)
        await asyncio.wait_for(reached.wait(), 10)

        gone, heir = cluster._only, cluster._make_primary(None)
        heir.start()
        await heir.wait_first_attempt()
        cluster._of_partition = [heir] * 2
        if stays:
            monkeypatch.setattr(cluster, "of_key", lambda _: heir)
            cluster._only, cluster._by_server = None, {"gone": gone, "heir": heir}
        else:
            cluster._only = heir
        node._servers_changed()
        await until(lambda: set(node._pollers.servers) == set(cluster))
        if not stays:
            await gone.stop()
        second = [(f"s{session}", number) for session in range(20) for number in (3, 4)]
        crew.put_all(second)
        await turns()
        go_on.set()
        await until(lambda: len(crew.calls()) >= len(first + second) and crew.drained())
        await node.stop()
        assert_complete_and_in_order(crew.calls(), first + second)
        assert {call.order for call in crew.calls()} == {"in_order"}


async def test_worker_acquires_nothing_before_it_knows_which_handlers_are_paused(
    redis_server, namespace, tmp_path, monkeypatch
):
    monkeypatch.setenv("RECORD_FILE", str(tmp_path / "calls"))
    settings = Settings(redis_url=redis_server.url, namespace=namespace, partitions=2, admin_port=0)
    node, keys = WorkerNode(settings, handler_modules=[recording_handlers]), Keys(namespace, settings.group)
    refused = asyncio.Event()
    monkeypatch.setattr(HandlerControl, "_log_refused", lambda *_: refused.set())
    with redis_server.client() as client:
        client.set(keys.control, "cannot be read")
        await node.start()
        async with asyncio.timeout(60):
            await refused.wait()
        await turns()
        assert not node.owned
        assert not client.exists(keys.workers, keys.lease(0), keys.lease(1))
        client.delete(keys.control)
        await until(lambda: len(node.partitions) == 2)
    await node.stop()
