"""A worker's leases, where a server hangs or the machine was suspended: the real node on a real server."""

import asyncio

import pytest
import recording_handlers
from dispatch_kit import dispatching, every, turns, until

from maskline.runtime.clock import lease_clock
from maskline.schemas.settings import Settings
from maskline.worker.leases.acquisition import LeaseAcquirer
from maskline.worker.node import WorkerNode

LEASE_MS = 500


@pytest.mark.parametrize("stops", [False, True], ids=["goes on", "stops"])
async def test_a_server_that_hangs_while_a_lease_is_taken_lets_no_lease_elsewhere_lapse(
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
        async with asyncio.timeout(10):
            await node.stop()


async def test_after_a_suspension_no_handler_starts_under_a_lease_that_lapsed_meanwhile(monkeypatch):
    """The machine slept while a handler waited: `time.monotonic()` has not seen it, and the lease is over."""
    slept_s, calls, go_on = 0.0, [], asyncio.Event()
    monkeypatch.setattr("maskline.worker.dispatch.dispatcher.lease_clock", lambda: lease_clock() + slept_s)

    @every(name="first")
    async def first(event, ctx):
        calls.append(("first", ctx.sequence_number))
        await go_on.wait()

    @every(name="second")
    async def second(event, ctx):
        calls.append(("second", ctx.sequence_number))

    async with dispatching(first, second) as d:
        d.partition.lease_until = lease_clock() + 60
        d.feed(("s", 1), ("s", 2))
        await until(lambda: calls)
        slept_s = 3_600.0
        go_on.set()
        await turns()
        assert calls == [("first", 1)]
        d.partition.lease_until += 3_600
        d.dispatcher.resume(d.partition)
        await d.settled()
        assert calls == [("first", 1), ("second", 1), ("first", 2), ("second", 2)]
