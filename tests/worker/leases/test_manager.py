"""A worker keeps its partitions: acquires and opens them, loses and regains them, and gives them back at a stop."""

from contextlib import asynccontextmanager

from dispatch_kit import module_of, until
from worker_parts_kit import add

from maskline import on
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.node import WorkerNode

PARTITIONS = 4


@asynccontextmanager
async def working(server, namespace, handler, **settings):
    values = {"partitions": PARTITIONS, "admin_port": 0, "handlers": [], "gap_timeout_ms": 600_000} | settings
    node = WorkerNode(
        Settings(redis_url=server.url, namespace=namespace, **values), handler_modules=[module_of(handler)]
    )
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


def recorder():
    handled = []

    @on.every
    async def handler(event, ctx):
        handled.append((event.session_uuid, ctx.sequence_number, ctx.fencing_token))

    return handled, handler


async def test_single_worker_acquires_and_opens_every_partition(redis_server, namespace):
    _, handler = recorder()
    async with working(redis_server, namespace, handler) as node:
        await until(lambda: len(node.partitions) == PARTITIONS)
        keys = Keys(namespace, "workers")
        with redis_server.client() as client:
            holders = client.mget([keys.lease(number) for number in range(PARTITIONS)])
        tokens = {partition.number: partition.token for partition in node.owned}
        assert holders == [f"{tokens[n]} {node.worker_id}".encode() for n in range(PARTITIONS)]
        assert node.counters.leases_gained == PARTITIONS


async def test_pending_list_of_the_last_owner_is_handled_before_the_stream(redis_server, namespace):
    handled, handler = recorder()
    keys = Keys(namespace, "workers")
    with redis_server.client() as client:
        add(client, keys, 0, "s", 2, 1)
        client.xgroup_create(keys.callbacks(0), "workers", "0-0")
        client.xreadgroup("workers", "maskline", {keys.callbacks(0): ">"})
        add(client, keys, 0, "s", 3)
        async with working(redis_server, namespace, handler):
            await until(lambda: [number for _, number, _ in handled] == [1, 2, 3])


async def test_partition_whose_lease_is_anothers_is_lost_and_acquired_again_once_it_is_free(
    redis_server, namespace
):
    handled, handler = recorder()
    keys = Keys(namespace, "workers")
    async with working(redis_server, namespace, handler, lease_ttl_ms=500) as node:
        await until(lambda: len(node.partitions) == PARTITIONS)
        lost = node.owned.get(0)
        with redis_server.client() as client:
            client.set(keys.lease(0), "9 other", px=1_000)
            await until(lambda: node.counters.leases_lost == 1)
            assert lost.lost
            assert lost not in node.owned
            add(client, keys, 0, "s", 1)
            await until(lambda: handled)
        again = node.owned.get(0)
        assert handled == [("s", 1, again.token)]
        assert again.token > lost.token


async def test_partition_whose_server_lost_a_commit_is_given_back_and_acquired_again(redis_server, namespace):
    handled, handler = recorder()
    keys = Keys(namespace, "workers")
    async with working(redis_server, namespace, handler, lease_ttl_ms=500) as node:
        await until(lambda: len(node.partitions) == PARTITIONS)
        before = node.owned.get(0)
        with redis_server.client() as client:
            add(client, keys, 0, "s", 1)
            await until(lambda: handled and not before.uncommitted)
            client.hset(keys.fence(0), "commit", "7")  # a number that the worker has never given
            add(client, keys, 0, "s", 2)
            await until(lambda: node.counters.diverged == 1)
            await until(
                lambda: node.owned.get(0) not in (None, before) and node.owned.get(0) in node.partitions
            )
            assert before.lost
            await until(lambda: len(handled) >= 2)


async def test_stop_releases_every_lease_and_removes_the_heartbeat(redis_server, namespace):
    _, handler = recorder()
    keys = Keys(namespace, "workers")
    async with working(redis_server, namespace, handler, lease_ttl_ms=60_000) as node:
        await until(lambda: len(node.partitions) == PARTITIONS)
        with redis_server.client() as client:
            assert client.zscore(keys.workers, node.worker_id) is not None
    with redis_server.client() as client:
        assert client.mget([keys.lease(number) for number in range(PARTITIONS)]) == [None] * PARTITIONS
        assert client.zscore(keys.workers, node.worker_id) is None
    assert len(node.owned) == 0
