"""Who runs when, and what follows from how a handler ends: the dispatcher itself, with real handlers."""

import asyncio
import contextlib
import random
import threading
from collections import defaultdict
from datetime import UTC, datetime
from time import monotonic

import pytest
from dispatch_kit import PATIENCE_S, RECEIVED_MS, START_MS, Dispatch, dispatching

from schemas import SessionFirstPartyRinging
from worker import Reject, Retry, dispatch, on

AT_ONCE = {"backoff_ms": 0, "backoff_max_ms": 0}


def every(**options):
    return on(SessionFirstPartyRinging, **options)


async def until(condition):
    """Turn the event loop until the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count=50):
    """Let everything run that could run."""
    for _ in range(count):
        await asyncio.sleep(0)


# Order and concurrency


@pytest.mark.parametrize("concurrency", [1, 3, 256])
async def test_a_session_in_order_and_one_event_at_a_time(concurrency):
    seen, running, overlaps = defaultdict(list), set(), []
    rng = random.Random(concurrency)

    @every()
    async def handle(event, ctx):
        overlaps.append(event.session_uuid in running)
        running.add(event.session_uuid)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        running.discard(event.session_uuid)
        seen[event.session_uuid].append(event.sequence_number)

    events = [(f"s{session}", number) for session in range(20) for number in range(1, 9)]
    rng.shuffle(events)
    async with dispatching(handle, concurrency=concurrency) as d:
        for at in range(0, len(events), 16):
            d.feed(*events[at : at + 16])
            await asyncio.sleep(0)
        await d.settled()
        assert d.dispatcher.busy == d.partition.running == 0
    assert seen == {f"s{session}": list(range(1, 9)) for session in range(20)}
    assert not any(overlaps)


@pytest.mark.parametrize(("sessions", "concurrency"), [(10, 4), (3, 8), (40, 40)])
async def test_sessions_at_once_up_to_the_bound_and_no_further(sessions, concurrency):
    running, most, done = 0, 0, asyncio.Event()
    expected = min(sessions, concurrency)

    @every()
    async def handle(event, ctx):
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == expected:
            done.set()
        await done.wait()
        running -= 1

    async with dispatching(handle, concurrency=concurrency) as d:
        d.feed(*((f"s{index}", 1) for index in range(sessions)))
        await d.settled()
    assert most == expected


async def test_handlers_that_never_wait_leave_the_loop_its_turns():
    handled = 0

    @every()
    async def handle(event, ctx):
        nonlocal handled
        handled += 1

    async with dispatching(handle) as d:
        d.feed(*(("one long session", number) for number in range(1, 401)))
        d.feed(*((f"s{index}", 1) for index in range(400)))
        before, longest = 0, 0
        while d.partition.unfinished:
            await asyncio.sleep(0)
            longest, before = max(longest, handled - before), handled
    assert handled == 800
    assert longest <= 2 * dispatch.TURNS_MAX * dispatch.WAKE_MAX


async def test_nor_do_handlers_that_fail_at_once():
    failed = 0

    @every(retries=1, backoff_ms=60_000)
    async def handle(event, ctx):
        nonlocal failed
        failed += 1
        raise ValueError

    async with dispatching(handle) as d:
        d.feed(*((f"s{index}", 1) for index in range(600)))
        before, longest = 0, 0
        while failed < 600:
            await asyncio.sleep(0)
            longest, before = max(longest, failed - before), failed
    assert longest <= 2 * dispatch.TURNS_MAX * dispatch.WAKE_MAX


async def test_a_failing_session_holds_up_only_itself():
    seen = []

    @every(retries=3, backoff_ms=60_000)
    async def handle(event, ctx):
        if event.session_uuid == "bad":
            raise ValueError("no")
        seen.append((event.session_uuid, event.sequence_number))

    async with dispatching(handle, concurrency=1) as d:
        d.feed(("bad", 1), ("bad", 2), ("good", 1), ("fine", 1), ("good", 2))
        await d.settled(left=2)
        assert sorted(seen) == [("fine", 1), ("good", 1), ("good", 2)]
        assert d.dispatcher.busy == 0, "a runner waits for a backoff"


# Failures


async def test_retries_exhausted_become_a_dead_letter_with_everything_to_find_the_fault():
    attempts = []

    @every(retries=2, **AT_ONCE, name="settle")
    async def handle(event, ctx):
        attempts.append(ctx.attempt)
        raise LookupError("no fare for +44 7700 900123")

    async with dispatching(handle) as d:
        d.feed(("s", 1), From="%2B447700900123")
        await d.settled()
        (letter,) = d.letters()
    assert attempts == [1, 2, 3]
    assert (letter.code, letter.handler, letter.attempts) == ("retries_exhausted", "settle", 3)
    assert (letter.session_uuid, letter.sequence_number) == ("s", 1)
    assert (letter.event_name, letter.group) == ("SessionFirstPartyRinging", "workers")
    assert (letter.received_at_ms, letter.entry_id) == (RECEIVED_MS, f"{START_MS}-1")
    assert letter.reason.startswith("retries exhausted after 3 attempts: LookupError: no fare for num_")
    assert letter.traceback is not None
    assert "test_dispatch.py" in letter.traceback
    assert "900123" not in letter.reason + letter.traceback + repr(letter)
    assert b"From=%2B447700900123" in letter.callback
    assert d.stats.failed == {"settle": 3}
    assert d.stats.dead == {"retries_exhausted": 1}


async def test_a_retry_that_succeeds_leaves_nothing_behind():
    @every(retries=1, **AT_ONCE)
    async def handle(event, ctx):
        if ctx.attempt == 1:
            raise ValueError

    async with dispatching(handle) as d:
        (session,) = d.feed(("s", 1), ("s", 2))
        await d.settled()
        assert d.letters() == []
        assert session.progress is None
        assert session.idle


async def test_retry_after_takes_its_time_and_counts_as_one():
    starts = []

    @every(retries=1, backoff_ms=60_000)
    async def handle(event, ctx):
        starts.append(monotonic())
        raise Retry("later", after_ms=40)

    async with dispatching(handle) as d:
        d.feed(("s", 1))
        await d.settled()
        (letter,) = d.letters()
    assert starts[1] - starts[0] >= 0.039
    assert letter.attempts == 2


async def test_reject_is_the_end_at_once():
    @every()
    async def handle(event, ctx):
        raise Reject("no such fare")

    async with dispatching(handle) as d:
        d.feed(("s", 1))
        await d.settled()
        (letter,) = d.letters()
    assert (letter.code, letter.attempts, letter.reason) == ("rejected", 1, "rejected: no such fare")


class OddError(BaseException):
    """As the exceptions of test frameworks are: no Exception."""


class WithoutTextError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "failure",
    [
        SystemExit(1),
        OddError("odd"),
        asyncio.CancelledError("by the handler itself"),
        WithoutTextError(),
        ValueError("a file called \udcff"),
        ExceptionGroup("several", [ValueError(1), KeyError(2)]),
        StopIteration(3),
        RecursionError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("plain", [False, True], ids=["async", "thread"])
async def test_whatever_a_handler_raises_is_a_failed_attempt(failure, plain):
    if plain:

        @every(retries=1, **AT_ONCE)
        def handle(event, ctx):
            raise failure

    else:

        @every(retries=1, **AT_ONCE)
        async def handle(event, ctx):
            raise failure

    async with dispatching(handle, concurrency=1) as d:
        d.feed(("s", 1), ("t", 1))
        await d.settled()
        letters = d.letters()
    assert [letter.attempts for letter in letters] == [2, 2]
    assert {letter.code for letter in letters} == {"retries_exhausted"}


async def test_a_task_cancelled_under_the_handler_is_a_failed_attempt():
    @every(retries=1, **AT_ONCE)
    async def handle(event, ctx):
        shared = asyncio.create_task(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(shared.cancel)
        await shared

    async with dispatching(handle, concurrency=1) as d:
        d.feed(("s", 1), ("s", 2))
        await d.settled()
        assert [letter.attempts for letter in d.letters()] == [2, 2]


@pytest.mark.parametrize("caught", [True, False])
async def test_a_handler_that_cancels_its_own_task_stops_nobody_else(caught):
    seen = []

    @every(retries=1, **AT_ONCE)
    async def handle(event, ctx):
        asyncio.current_task().cancel()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if not caught:
                raise
        seen.append((event.session_uuid, event.sequence_number))

    async with dispatching(handle, concurrency=2) as d:
        d.feed(*((f"s{session}", number) for session in range(5) for number in (1, 2)))
        await d.settled()
        letters = d.letters()
    assert len(seen) == (10 if caught else 0)
    assert len(letters) == (0 if caught else 10)


# Several handlers on one event


async def test_several_handlers_succeed_and_fail_each_by_itself():
    ran = []

    def make(name, failures, **options):
        @every(name=name, **AT_ONCE, **options)
        async def handle(event, ctx):
            ran.append((name, ctx.attempt))
            if ctx.attempt <= failures:
                raise ValueError(name)

        handle.__name__ = name
        return handle

    handlers = make("a", 0), make("b", 2, retries=3), make("c", 9, retries=1), make("d", 0)
    async with dispatching(*handlers) as d:
        d.feed(("s", 1), ("s", 2))
        await d.settled()
        letters = d.letters()
    one_event = [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("b", 2), ("c", 2), ("b", 3)]
    assert ran == one_event * 2
    assert [(letter.handler, letter.attempts, letter.sequence_number) for letter in letters] == [
        ("c", 2, 1),
        ("c", 2, 2),
    ]


async def test_the_next_event_waits_until_every_handler_is_done_with_the_last():
    ran, ready = [], asyncio.Event()

    @every(name="first")
    async def first(event, ctx):
        ran.append(("first", event.sequence_number))

    @every(name="second", retries=1, backoff_ms=1, backoff_max_ms=1)
    async def second(event, ctx):
        if ctx.attempt == 1:
            raise ValueError
        ready.set()
        await asyncio.sleep(0)
        ran.append(("second", event.sequence_number))

    async with dispatching(first, second) as d:
        d.feed(("s", 1), ("s", 2))
        await ready.wait()
        assert ran == [("first", 1)]
        await d.settled()
    assert ran == [("first", 1), ("second", 1), ("first", 2), ("second", 2)]


async def test_a_dead_letter_is_there_while_another_handler_is_still_retried():
    @every(name="hopeless")
    async def hopeless(event, ctx):
        raise Reject("never")

    @every(name="patient", retries=1, backoff_ms=60_000, backoff_max_ms=60_000)
    async def patient(event, ctx):
        raise ValueError

    async with dispatching(hopeless, patient) as d:
        d.feed(("s", 1))
        await d.progress.wait()
        assert [letter.handler for letter in d.letters()] == ["hopeless"]
        assert d.partition.unfinished == 1


async def test_no_handler_wants_the_event():
    @every()
    async def handle(event, ctx):
        raise AssertionError

    async with dispatching(handle) as d:
        d.feed(("s", 1), name="SessionFirstPartyAnswer")
        await d.settled()
        assert d.letters() == []


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
        await d.settled()
        letters = d.letters()
    assert sorted(ended) == [1, 1, 2, 2]
    assert {letter.code for letter in letters} == {"timed_out"}
    assert letters[0].reason == "retries exhausted after 2 attempts: timed out: no end after 20 ms"


async def test_a_handler_s_own_timeout_is_its_own_affair():
    @every(retries=0, timeout_ms=60_000)
    async def handle(event, ctx):
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        except TimeoutError:
            await asyncio.sleep(0)

    async with dispatching(handle) as d:
        d.feed(("s", 1), ("s", 2))
        await d.settled()
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
        await d.settled()
        assert d.letters() == []
    assert ended == [1, 1]


async def test_a_handler_that_ignores_its_cancellation_is_left_to_itself(monkeypatch):
    monkeypatch.setattr(dispatch, "CANCEL_GRACE_S", 0.05)
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
        await d.settled()
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
        assert d.stats.failed == {"stubborn": 2}


async def test_nor_does_it_keep_the_dispatcher_from_stopping(monkeypatch):
    monkeypatch.setattr(dispatch, "CANCEL_GRACE_S", 0.05)
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
            await d.dispatcher.stop()
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
        await d.settled()
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
            await d.settled()
            letters = d.letters()
    finally:
        release.set()
    assert [(letter.code, letter.attempts) for letter in letters] == [("timed_out", 1)] * 2
    assert "cannot be stopped" in letters[0].reason


async def test_waiting_for_a_free_thread_is_no_overtime(monkeypatch):
    monkeypatch.setattr("worker.threads.THREADS_MAX", 1)
    gate = threading.Event()
    seen = []

    @every(timeout_ms=400, retries=0)
    def handle(event, ctx):
        seen.append(event.session_uuid)
        gate.wait(0.06)

    async with dispatching(handle) as d:
        d.feed(*((f"s{index}", 1) for index in range(12)))  # 0.7 s of work, one after the other
        await d.settled()
        assert d.letters() == []
    assert len(seen) == 12


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
        await d.settled()
        assert len(d.letters()) == fails
    assert threads[1] is threading.current_thread() is not threads[0]


# Leases and stops


async def test_nothing_starts_without_a_valid_lease_and_resume_takes_it_up():
    seen = []

    @every()
    async def handle(event, ctx):
        seen.append((event.session_uuid, event.sequence_number))

    async with dispatching(handle) as d:
        d.partition.lease_until = monotonic() - 1
        d.feed(("s", 1), ("s", 2), ("t", 1))
        await turns()
        assert seen == []
        d.feed(("s", 3))
        await turns()
        assert seen == []
        d.partition.lease_until = monotonic() + 60
        d.dispatcher.resume(d.partition)
        d.dispatcher.resume(d.partition)
        await d.settled()
    assert sorted(seen) == [("s", 1), ("s", 2), ("s", 3), ("t", 1)]


async def test_the_lease_is_looked_at_before_every_handler_of_an_event():
    seen = []

    @every(name="slow")
    async def slow(event, ctx):
        seen.append("slow")
        d.partition.lease_until = monotonic() - 1  # as though the process had been stopped for a while

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
        d.partition.lease_until = monotonic() + 60
        d.dispatcher.resume(d.partition)
        await d.settled()
    assert seen == ["slow", "second"], "who has handled it runs no second time"


async def test_nothing_of_a_closed_partition_starts_not_even_a_retry():
    seen = []

    @every(retries=5, backoff_ms=1, backoff_max_ms=1)
    async def handle(event, ctx):
        seen.append(ctx.attempt)
        d.partition.closed = True
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
        d.partition.closed = d.partition.lost = True
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


async def test_who_has_the_loop_is_known():
    here = []

    @every(name="first")
    async def first(event, ctx):
        await asyncio.sleep(0)
        here.append(d.dispatcher.handler_at_work())

    @every(name="second")
    async def second(event, ctx):
        here.append(d.dispatcher.handler_at_work())

    async with dispatching(first, second) as d:
        assert d.dispatcher.handler_at_work() == ""
        d.feed(("s", 1), ("t", 1))
        await d.settled()
        assert d.dispatcher.handler_at_work() == ""
    assert sorted(here) == ["first"] * 2 + ["second"] * 2


# Late events and the context


@pytest.mark.parametrize("late_dead", [False, True])
async def test_late_events(late_dead):
    seen = []

    @every()
    async def handle(event, ctx):
        seen.append((event.sequence_number, ctx.order))

    async with dispatching(handle, late_dead=late_dead) as d:
        d.feed(("s", 1), ("s", 2))
        d.feed(("s", 1), Amount="0.5")
        await d.settled()
        letters = d.letters()
    in_order = [(1, "in_order"), (2, "in_order")]
    if late_dead:
        assert seen == in_order
        (letter,) = letters
        assert (letter.code, letter.handler, letter.attempts, letter.traceback) == ("late", None, 0, None)
    else:
        assert seen == [*in_order, (1, "late")]
        assert letters == []


async def test_all_of_the_context():
    contexts = []

    @every(retries=1, **AT_ONCE, name="handler")
    async def handle(event, ctx):
        contexts.append(ctx)
        assert ctx.log is ctx.log
        if ctx.attempt == 1:
            raise ValueError

    async with dispatching(handle) as d:
        d.feed(("s", 1), ("s", 4))
        gap_over = d.partition.decode((), pending=False, now_ms=0)
        d.dispatcher.submit(d.partition.arrive(gap_over, {}, START_MS + 6_000))
        await d.settled()
    first, again, fourth, _ = contexts
    assert (first.session_uuid, first.sequence_number, first.order) == ("s", 1, "in_order")
    assert (first.missing, first.run, first.replayed, first.fencing_token) == ((), 0, False, 7)
    assert first.entry_id == f"{START_MS}-1"
    assert first.received_at == datetime.fromtimestamp(RECEIVED_MS / 1000, UTC)
    assert (first.attempt, again.attempt) == (1, 2)
    assert (fourth.sequence_number, fourth.order, fourth.missing) == (4, "after_gap", (2, 3))
    assert first.idempotency_key == again.idempotency_key != fourth.idempotency_key
    assert first.log is not again.log


async def test_the_idempotency_key_is_that_of_the_callback_wherever_it_comes_from():
    keys = []

    @every()
    async def handle(event, ctx):
        keys.append((ctx.idempotency_key, ctx.fencing_token))

    for token in (7, 8):  # the second owner gets what the first one did not commit
        async with dispatching(handle) as d:
            d.partition.token = token
            d.feed(("s", 1), From="a", To="b")
            d.feed(("s", 2), To="b", From="a")
            d.feed(("s", 3), From="a", To="c")
            await d.settled()
    first, second = keys[:3], keys[3:]
    assert [key for key, _ in first] == [key for key, _ in second]
    assert len({key for key, _ in keys}) == 3
    assert {token for _, token in first} | {token for _, token in second} == {7, 8}
