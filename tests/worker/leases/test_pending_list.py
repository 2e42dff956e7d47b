"""What the last owner left in the pending list is taken up first: released, held in a gap again, or a dead letter."""

from dispatch_kit import until
from worker_parts_kit import add, worker_parts

from maskline import on
from maskline.worker.leases.pending_list import PendingListReader
from maskline.worker.partitions.phase import Phase


def deliver(client, parts, number, ids):
    """Put entries into the group's pending list, as a commit of the last owner does, with the cursor at the last."""
    stream, group = parts.keys.callbacks(number), parts.settings.group
    client.xgroup_create(stream, group, "0-0")
    client.xreadgroup(group, "maskline", {stream: ">"}, count=len(ids))


def pages_read(client) -> int:
    return client.info("commandstats").get("cmdstat_xautoclaim", {}).get("calls", 0)


def reader(parts) -> PendingListReader:
    return PendingListReader(parts.connections, parts.keys, parts.pipeline, parts.committer)


async def test_pending_entries_are_handled_in_order_and_leave_the_list(redis_server, namespace):
    handled = []

    @on.every
    async def handler(event, ctx):
        handled.append((event.session_uuid, ctx.sequence_number))

    async with worker_parts(redis_server, namespace, handler) as parts:
        with redis_server.client() as client:
            ids = add(client, parts.keys, 0, "s", 2, 1, 3)
            deliver(client, parts, 0, ids)
            partition, lease = await parts.acquire(0)
            assert lease.pending == 3
            assert await reader(parts).read(partition)
            await until(lambda: handled == [("s", 1), ("s", 2), ("s", 3)] and not partition.uncommitted)
            assert client.xpending(parts.keys.callbacks(0), parts.settings.group)["pending"] == 0


async def test_list_of_several_pages_is_read_to_its_end(redis_server, namespace):
    count = 40
    async with worker_parts(redis_server, namespace) as parts:
        with redis_server.client() as client:
            deliver(client, parts, 0, add(client, parts.keys, 0, "s", *range(2, count + 2)))
            partition, _ = await parts.acquire(0)
            before = pages_read(client)
            assert await reader(parts).read(partition)
            assert pages_read(client) > before + 1
        assert partition.held == count, "number 1 is missing: all of them wait"


async def test_deleted_pending_entry_becomes_a_dead_letter(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        with redis_server.client() as client:
            ids = add(client, parts.keys, 0, "s", 1, 2)
            deliver(client, parts, 0, ids)
            client.xdel(parts.keys.callbacks(0), ids[0])
            partition, _ = await parts.acquire(0)
            assert await reader(parts).read(partition)
            await until(lambda: client.xlen(parts.keys.dead(0)) == 1)
            assert parts.counters.dead["entry_gone"] == 1


async def test_nothing_is_read_once_the_partition_is_paused_or_lost(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        with redis_server.client() as client:
            deliver(client, parts, 0, add(client, parts.keys, 0, "s", 2, 3))
            partition, _ = await parts.acquire(0)
            parts.owned.move(partition, Phase.PAUSED)
            assert await reader(parts).read(partition)
        assert partition.held == 0


async def test_list_that_redis_refuses_to_read_is_reported(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        with redis_server.client() as client:
            deliver(client, parts, 0, add(client, parts.keys, 0, "s", 1))
            partition, _ = await parts.acquire(0)
            client.set(parts.keys.callbacks(0), "another type of key")
            assert not await reader(parts).read(partition)
