"""Handlers start under a lease that is surely held, even after the machine was suspended."""

import asyncio

from dispatch_kit import dispatching, every, turns, until

from maskline.runtime.clock import lease_clock


async def test_no_handler_starts_after_a_suspension_under_a_lease_that_lapsed_meanwhile(monkeypatch):
    """The machine slept while a handler waited: `time.monotonic()` has not seen it, and the lease is over."""
    slept_s, calls, go_on = 0.0, [], asyncio.Event()
    for part in ("dispatcher", "event_runner"):
        monkeypatch.setattr(f"maskline.worker.dispatch.{part}.lease_clock", lambda: lease_clock() + slept_s)

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
        await d.until_handled()
        assert calls == [("first", 1), ("second", 1), ("first", 2), ("second", 2)]
