"""A partition is given back with everything committed, when its handlers have ended or the stop timeout is over."""

import asyncio

from dispatch_kit import PATIENCE_S, until
from worker_parts_kit import add, worker_parts

from maskline import on
from maskline.worker.leases import handover as handover_module
from maskline.worker.leases.handover import PartitionHandover
from maskline.worker.partitions.phase import Phase


def handover(parts, released, *, stop_timeout_s=PATIENCE_S) -> PartitionHandover:
    def forget(partition):
        released.append(partition)
        parts.owned.remove(partition)

    return PartitionHandover(
        parts.connections,
        parts.keys,
        parts.owned,
        parts.dispatcher,
        parts.committer,
        stop_timeout_s=stop_timeout_s,
        on_released=forget,
    )


async def started(parts, client, number=0):
    """A partition with one event, whose handler has been submitted."""
    partition, _ = await parts.acquire(number)
    parts.owned.move(partition, Phase.OPEN)
    (entry_id,) = add(client, parts.keys, number, "s", 1)
    ((_, fields),) = client.xrange(parts.keys.callbacks(number), entry_id, entry_id)
    entries = [(entry_id, [part for pair in fields.items() for part in pair])]
    await parts.pipeline.process(parts.pipeline.receive([(partition, entries)], 10, 0))
    return partition


async def test_partition_is_given_back_when_its_handler_has_ended_and_its_commit_is_through(
    redis_server, namespace
):
    running, go_on = asyncio.Event(), asyncio.Event()

    @on.every
    async def handler(event, ctx):
        running.set()
        await go_on.wait()

    async with worker_parts(redis_server, namespace, handler) as parts:
        with redis_server.client() as client:
            partition = await started(parts, client)
            await running.wait()
            released = []
            task = asyncio.create_task(handover(parts, released).give_back(partition))
            await until(lambda: partition.phase is Phase.PAUSED)
            assert client.exists(parts.keys.lease(0)), "its handler is at work"
            go_on.set()
            await asyncio.wait_for(task, PATIENCE_S)
            assert released == [partition]
            assert partition.lost
            assert not client.exists(parts.keys.lease(0))
            (group,) = client.xinfo_groups(parts.keys.callbacks(0))
            assert (group["lag"], group["pending"]) == (0, 0), "what was done is committed"


async def test_lease_is_kept_until_what_was_done_is_committed(redis_server, namespace):
    done = asyncio.Event()

    @on.every
    async def handler(event, ctx):
        done.set()

    async with worker_parts(redis_server, namespace, handler) as parts:
        with redis_server.client() as client:
            partition = await started(parts, client)
            verified_at, partition.verified_at = partition.verified_at, None  # no commit is sent meanwhile
            await done.wait()
            await until(lambda: partition.uncommitted and not partition.running)
            released = []
            task = asyncio.create_task(handover(parts, released).give_back(partition))
            await asyncio.wait([task], timeout=0.3)
            assert client.exists(parts.keys.lease(0))
            partition.verified_at = verified_at
            await asyncio.wait_for(task, PATIENCE_S)
            assert released == [partition]
            assert (parts.counters.commits, parts.fenced) == (1, [])


async def test_handler_is_cancelled_once_the_stop_timeout_is_over(redis_server, namespace):
    running, ended = asyncio.Event(), []

    @on.every
    async def handler(event, ctx):
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async with worker_parts(redis_server, namespace, handler) as parts:
        with redis_server.client() as client:
            partition = await started(parts, client)
            await running.wait()
            released = []
            hand = handover(parts, released, stop_timeout_s=0.05)
            await asyncio.wait_for(hand.give_back(partition), PATIENCE_S)
            assert (released, ended) == ([partition], ["cancelled"])
            assert not client.exists(parts.keys.lease(0))


async def test_partition_with_a_handler_at_work_is_opened_again_between_two_tries(
    redis_server, namespace, monkeypatch
):
    monkeypatch.setattr(handover_module, "PAUSE_S", 0.02)
    monkeypatch.setattr(handover_module, "OPEN_AGAIN_S", 0.02)
    running, go_on = asyncio.Event(), asyncio.Event()

    @on.every
    async def handler(event, ctx):
        running.set()
        await go_on.wait()

    async with worker_parts(redis_server, namespace, handler) as parts:
        with redis_server.client() as client:
            partition = await started(parts, client)
            await running.wait()
            phases, released = [], []
            parts.owned.on_change(lambda: phases.append(partition.phase))
            task = asyncio.create_task(handover(parts, released).hand_over(partition))
            await until(lambda: phases.count(Phase.OPEN) >= 2)
            assert released == []
            go_on.set()
            await asyncio.wait_for(task, PATIENCE_S)
            assert released == [partition]


async def test_lease_that_was_lost_meanwhile_is_not_released(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        with redis_server.client() as client:
            partition, _ = await parts.acquire(0)
            client.set(parts.keys.lease(0), "9 other")
            parts.owned.move(partition, Phase.LOST)
            parts.owned.remove(partition)
            released = []
            await asyncio.wait_for(handover(parts, released).give_back_lost(partition), PATIENCE_S)
            assert released == []
            assert client.get(parts.keys.lease(0)) == b"9 other"
