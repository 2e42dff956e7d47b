"""Handlers that do not end in time, in the loop and in threads; leases and stops."""

import asyncio
import contextlib
import threading

import pytest
from dispatch_kit import (
    AT_ONCE,
    PATIENCE_S,
    Dispatch,
    dispatching,
    every,
    turns,
    until,
)

from maskline import Reject
from maskline.runtime.clock import lease_clock
from maskline.worker.dispatch import time_limits
from maskline.worker.partitions.phase import Phase

# Time limits


async def test_a_time_limit_cancels_and_counts_as_a_failed_attempt():
    ended = []

    @every(retries=1, timeout_ms=20, **AT_ONCE)
    async def handle(event, ctx):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(ctx.attempt)

    async with dispatching(handle, concurrency=1) as d:
        d.feed(("s", 1), ("t", 1))
        await d.until_handled()
        letters = d.letters()
    assert sorted(ended) == [1, 1, 2, 2]
    assert {letter.code for letter in letters} == {"timed_out"}
    assert letters[0].reason == "retries exhausted after 2 attempts: timed out: no end after 20 ms"


async def test_timeout_inside_a_handler_fails_no_attempt():
    @every(retries=0, timeout_ms=60_000)
    async def handle(event, ctx):
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        except TimeoutError:
            await asyncio.sleep(0)

    async with dispatching(handle) as d:
        d.feed(("s", 1), ("s", 2))
        await d.until_handled()
        assert d.letters() == []


async def test_a_handler_that_came_to_its_end_in_spite_of_the_limit_has_handled_the_event():
    ended = []

    @every(timeout_ms=10)
    async def handle(event, ctx):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(ctx.attempt)

    async with dispatching(handle, concurrency=1) as d:
        d.feed(("s", 1), ("s", 2))
        await d.until_handled()
        assert d.letters() == []
    assert ended == [1, 1]


async def test_a_handler_that_ignores_its_cancellation_is_left_to_itself(monkeypatch):
    monkeypatch.setattr(time_limits, "CANCEL_GRACE_S", 0.05)
    release, stubborn, seen = asyncio.Event(), [], []

    @every(name="stubborn", timeout_ms=10, retries=5)
    async def handle(event, ctx):
        if event.sequence_number > 1:
            return
        stubborn.append(event.session_uuid)
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        raise ValueError("nobody looks")

    @every(name="other")
    async def other(event, ctx):
        seen.append((event.session_uuid, event.sequence_number))

    async with dispatching(handle, other, concurrency=1) as d:
        d.feed(("s", 1), ("s", 2), ("t", 1), ("t", 2))
        await d.until_handled()
        assert d.dispatcher.busy == d.partition.running == 0
        letters = d.letters()
        assert stubborn == ["s", "t"]
        assert sorted(seen) == [("s", 1), ("s", 2), ("t", 1), ("t", 2)]
        assert [(letter.code, letter.handler, letter.attempts) for letter in letters] == [
            ("timed_out", "stubborn", 1)
        ] * 2
        assert "nor after it was cancelled" in letters[0].reason
        release.set()
        await turns()
        assert d.letters() == []
        assert d.counters.failed == {"stubborn": 2}


async def test_handler_that_ignores_its_cancellation_does_not_keep_the_dispatcher_from_stopping(monkeypatch):
    monkeypatch.setattr(time_limits, "CANCEL_GRACE_S", 0.05)
    release, begun = asyncio.Event(), asyncio.Event()

    @every()
    async def handle(event, ctx):
        begun.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with dispatching(handle) as d:
        d.feed(("s", 1))
        await begun.wait()
        d.dispatcher.cancel(d.partition, "given back")
        await until(lambda: not d.partition.running)  # so that the partition can be given back
        assert d.partition.unfinished == 1
        async with asyncio.timeout(PATIENCE_S):
            await d.dispatcher.stop(0.05)
        release.set()
        await turns()


# Plain handlers


async def test_plain_handlers_run_in_threads_with_the_loop_free():
    names, gate = set(), threading.Barrier(4)

    @every()
    def handle(event, ctx):
        names.add(threading.current_thread().name)
        gate.wait(PATIENCE_S)

    async with dispatching(handle) as d:
        d.feed(*((f"s{index}", 1) for index in range(4)))
        await d.until_handled()
    assert len(names) == 4
    assert threading.current_thread().name not in names


async def test_a_thread_that_hangs_is_a_dead_letter_at_once_and_stops_nobody():
    release = threading.Event()

    @every(timeout_ms=20, retries=5)
    def handle(event, ctx):
        if event.sequence_number == 1:
            release.wait(PATIENCE_S)

    try:
        async with dispatching(handle, concurrency=1) as d:
            d.feed(("s", 1), ("s", 2), ("t", 1))
            await d.until_handled()
            letters = d.letters()
    finally:
        release.set()
    assert [(letter.code, letter.attempts) for letter in letters] == [("timed_out", 1)] * 2
    assert "cannot be stopped" in letters[0].reason


@pytest.mark.parametrize("fails", [False, True])
async def test_what_a_plain_function_returns_to_be_awaited_is_awaited(fails):
    threads = []

    async def work(event):
        threads.append(threading.current_thread())
        await asyncio.sleep(0)
        if fails:
            raise Reject("no")

    @every()
    def handle(event, ctx):
        threads.append(threading.current_thread())
        return work(event)

    async with dispatching(handle) as d:
        d.feed(("s", 1))
        await d.until_handled()
        assert len(d.letters()) == fails
    assert threads[1] is threading.current_thread() is not threads[0]


# Leases and stops


async def test_nothing_starts_without_a_valid_lease_and_resume_starts_it():
    seen = []

    @every()
    async def handle(event, ctx):
        seen.append((event.session_uuid, event.sequence_number))

    async with dispatching(handle) as d:
        d.partition.lease_until = lease_clock() - 1
        d.feed(("s", 1), ("s", 2), ("t", 1))
        await turns()
        assert seen == []
        d.feed(("s", 3))
        await turns()
        assert seen == []
        d.partition.lease_until = lease_clock() + 60
        d.dispatcher.resume(d.partition)
        d.dispatcher.resume(d.partition)
        await d.until_handled()
    assert sorted(seen) == [("s", 1), ("s", 2), ("s", 3), ("t", 1)]


async def test_lease_is_checked_before_every_session(monkeypatch):
    """It ends between two sessions: over a log line on a slow disk, or a SIGSTOP."""
    calls = []

    @every()
    async def handle(event, _):
        calls.append(event.session_uuid)

    def progressed(_, partition):
        partition.lease_until = lease_clock()

    monkeypatch.setattr(Dispatch, "_progressed", progressed)
    async with dispatching(handle) as d:
        d.feed(("s", 1), ("t", 1))
        await until(lambda: calls)
        await turns()
        assert calls == ["s"]
        d.partition.lease_until = lease_clock() + 60
        d.dispatcher.resume(d.partition)
        await until(lambda: len(calls) == 2)


async def test_lease_is_checked_before_every_handler_of_an_event():
    seen = []

    @every(name="slow")
    async def slow(event, ctx):
        seen.append("slow")
        d.partition.lease_until = lease_clock() - 1  # as though the process had been stopped for a while

    @every(name="second")
    async def second(event, ctx):
        seen.append("second")

    async with dispatching(slow, second) as d:
        d.feed(("s", 1))
        await until(lambda: seen)
        await turns()
        assert seen == ["slow"]
        assert d.partition.unfinished == 1
        assert d.dispatcher.busy == d.partition.running == 0
        d.partition.lease_until = lease_clock() + 60
        d.dispatcher.resume(d.partition)
        await d.until_handled()
    assert seen == ["slow", "second"], "who has handled it runs no second time"


async def test_nothing_of_a_closed_partition_starts_not_even_a_retry():
    seen = []

    @every(retries=5, backoff_ms=1, backoff_max_ms=1)
    async def handle(event, ctx):
        seen.append(ctx.attempt)
        d.partition.move_to(Phase.PAUSED)
        raise ValueError

    async with dispatching(handle) as d:
        d.feed(("s", 1), ("s", 2))
        await until(lambda: seen and not d.dispatcher.busy)
        d.feed(("t", 1))
        await asyncio.sleep(0.02)  # the retry is due by now, and must not come
        assert seen == [1]
        assert d.partition.unfinished == 3


async def test_cancelling_a_partition_leaves_its_events_undone_and_others_alone():
    begun, ended = asyncio.Semaphore(0), []
    gate = asyncio.Event()

    @every()
    async def handle(event, ctx):
        begun.release()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            ended.append(event.session_uuid)
            raise

    async with dispatching(handle) as d, dispatching(handle) as other:
        other.dispatcher = d.dispatcher
        other.partition.number = 4
        d.feed(("s", 1), ("s", 2))
        d.dispatcher.submit(other.arrive(("u", 1)))
        await begun.acquire()
        await begun.acquire()
        d.partition.move_to(Phase.LOST)
        d.dispatcher.cancel(d.partition, "the lease was lost")
        d.dispatcher.cancel(d.partition, "twice")
        await until(lambda: not d.partition.running)
        assert ended == ["s"]
        assert not d.partition.wants_commit
        assert d.partition.unfinished == 2
        assert other.partition.running == 1
        gate.set()
        await until(lambda: not other.partition.unfinished)
        assert ended == ["s"]


async def test_a_stop_starts_nothing_more():
    begun, cancelled = [], []

    @every()
    async def handle(event, ctx):
        begun.append(event.session_uuid)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(event.session_uuid)
            raise

    async with dispatching(handle, concurrency=2) as d:
        d.feed(*((f"s{index}", 1) for index in range(6)))
        await until(lambda: len(begun) == 2)
        d.feed(("late", 1))  # the pump is on its way
        d.dispatcher.cancel(None, "stop")
        await d.dispatcher.stop()
        await turns()
        assert d.dispatcher.busy == d.partition.running == 0
    assert sorted(begun) == sorted(cancelled) == ["s0", "s1"]


def test_closing_the_loop_without_a_stop_does_not_hang():
    async def main():
        @every(retries=3)
        async def handle(event, ctx):
            begun.set()
            await asyncio.sleep(60)

        begun = asyncio.Event()
        Dispatch(handle).feed(("s", 1), ("t", 1))
        await begun.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


async def test_handler_on_the_loop_is_known():
    here = []

    @every(name="first")
    async def first(event, ctx):
        await asyncio.sleep(0)
        here.append(d.dispatcher.handler_on_loop())

    @every(name="second")
    async def second(event, ctx):
        here.append(d.dispatcher.handler_on_loop())

    async with dispatching(first, second) as d:
        assert d.dispatcher.handler_on_loop() == ""
        d.feed(("s", 1), ("t", 1))
        await d.until_handled()
        assert d.dispatcher.handler_on_loop() == ""
    assert sorted(here) == ["first"] * 2 + ["second"] * 2
