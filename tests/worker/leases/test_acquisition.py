"""Leases are granted to one worker at a time, with growing tokens; a server that hangs holds up no other lease."""

import asyncio

import pytest
import recording_handlers
from dispatch_kit import until
from process_kit import PATIENCE_S
from worker_parts_kit import WORKER_ID, worker_parts

from maskline.runtime.clock import lease_clock
from maskline.schemas.settings import Settings
from maskline.worker.leases.acquisition import LeaseAcquirer
from maskline.worker.node import WorkerNode

LEASE_MS = 500


def acquirer(parts, granted, worker_id=WORKER_ID) -> LeaseAcquirer:
    return LeaseAcquirer(
        parts.connections,
        parts.keys,
        worker_id=worker_id,
        lease_ttl_ms=parts.settings.lease_ttl_ms,
        on_acquired=granted.append,
        spawn=asyncio.create_task,
    )


async def test_free_lease_is_granted_and_a_held_one_is_not(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        mine, others = [], []
        await acquirer(parts, mine).acquire([0])
        before = lease_clock()
        await acquirer(parts, others, "other").acquire([0, 1])
        (first,), (second,) = mine, others
        assert (first.number, second.number) == (0, 1)
        assert first.incarnation is parts.server.incarnation
        assert first.sent_at <= before <= second.sent_at
        with redis_server.client() as client:
            assert client.get(parts.keys.lease(0)).decode() == f"{first.lease.token} {WORKER_ID}"


async def test_token_grows_with_every_acquisition(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        granted = []
        one = acquirer(parts, granted)
        with redis_server.client() as client:
            client.hset(parts.keys.fence(0), "token", 10**15)  # far ahead of the clock that tokens begin at
            for _ in range(3):
                await one.acquire([0])
                client.delete(
                    parts.keys.lease(0), parts.keys.fence(0)
                )  # as though the server had lost its data
        tokens = [acquisition.lease.token for acquisition in granted]
        assert tokens == sorted(set(tokens))
        assert len(tokens) == 3


async def test_partition_with_a_foreign_key_is_left_out_and_the_others_are_granted(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        granted = []
        with redis_server.client() as client:
            client.set(parts.keys.callbacks(0), "foreign")
        await acquirer(parts, granted).acquire([0, 1])
        assert [acquisition.number for acquisition in granted] == [1]


@pytest.mark.parametrize("stops", [False, True], ids=["goes on", "stops"])
async def test_server_that_hangs_while_a_lease_is_acquired_lets_no_other_lease_lapse(
    redis_server, namespace, tmp_path, monkeypatch, stops
):
    monkeypatch.setenv("RECORD_FILE", str(tmp_path / "calls"))
    real, hanging = LeaseAcquirer._acquire_from, asyncio.Event()

    async def acquire_from(self, server, numbers):
        """As two servers, of which one takes what it is sent and says nothing."""
        if here := [number for number in numbers if number != 1]:
            await real(self, server, here)
        if 1 in numbers:
            hanging.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(LeaseAcquirer, "_acquire_from", acquire_from)
    settings = Settings(
        redis_url=redis_server.url, namespace=namespace, partitions=2, admin_port=0, lease_ttl_ms=LEASE_MS,
        stop_timeout_ms=200,
    )  # fmt: skip
    node = WorkerNode(settings, handler_modules=[recording_handlers])
    await node.start()
    try:
        await hanging.wait()
        await until(lambda: len(node.owned) == 1)
        (partition,) = node.owned
        if not stops:
            until_then, lapses = partition.lease_until, []
            while partition.lease_until < until_then + 4 * LEASE_MS / 1000:
                lapses.append(partition.lease_until <= lease_clock())
                await asyncio.sleep(0.01)
            assert not any(lapses)
            assert not partition.lost
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await node.stop()
