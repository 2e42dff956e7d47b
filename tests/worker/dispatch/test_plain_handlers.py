"""Plain handlers: a session that waits for a thread holds up no other, and hung threads are bounded and logged."""

import asyncio
import itertools
import json
import random
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from dispatch_kit import AT_ONCE, PATIENCE_S, dispatching, every, turns, until
from servers import wait_until
from structlog.testing import capture_logs

from maskline import Retry, on
from maskline.runtime.clock import lease_clock
from maskline.schemas.events import SessionPartiesHangup, SessionTimeout
from maskline.worker.dispatch import plain_handlers, thread_shares, threads
from maskline.worker.partitions.phase import Phase

HANGUP = "SessionPartiesHangup"


@contextmanager
def opening():
    """A gate for threads that opens in the end, so that none outlives the test."""
    gate = threading.Event()
    try:
        yield gate
    finally:
        gate.set()


@pytest.fixture
def few(monkeypatch):
    """Two threads, two more that may hang, and two of one handler."""
    monkeypatch.setattr(threads, "THREADS_MAX", 2)
    monkeypatch.setattr(thread_shares, "HUNG_MAX", 2)
    monkeypatch.setattr(thread_shares, "HANDLER_THREADS_MAX", 2)


@pytest.mark.parametrize("concurrency", [1, 256])
async def test_sessions_that_wait_for_threads_hold_up_no_async_handler(concurrency):
    seen, done = [], []
    with opening() as gate:

        @every()
        def slow(event, ctx):
            assert gate.wait(PATIENCE_S)
            done.append(event.session_uuid)

        @on(SessionPartiesHangup)
        async def quick(event, ctx):
            await asyncio.sleep(0)
            seen.append(event.session_uuid)

        async with dispatching(slow, quick, concurrency=concurrency) as d:
            d.feed(*((f"s{index}", 1) for index in range(2_000)))
            await turns()
            d.feed(*((f"t{index}", 1) for index in range(50)), name=HANGUP)
            await until(lambda: len(seen) == 50)
            assert done == []
            assert d.partition.running <= min(concurrency, threads.THREADS_MAX)
            gate.set()
            await d.until_handled()
            assert d.letters() == []
    assert sorted(done) == sorted(f"s{index}" for index in range(2_000))


@pytest.mark.usefixtures("few")
async def test_sessions_that_wait_for_threads_hold_up_no_async_handler_of_the_same_event():
    seen = []
    with opening() as gate:

        @every(name="slow")
        def slow(event, ctx):
            gate.wait(PATIENCE_S)
            seen.append(("slow", event.session_uuid))

        @every(name="retried", retries=3, **AT_ONCE)
        async def retried(event, ctx):
            seen.append((ctx.attempt, event.session_uuid))
            if ctx.attempt < 4:
                raise Retry(after_ms=0)

        async with dispatching(slow, retried) as d:
            d.feed(*((f"s{index}", 1) for index in range(20)))
            # Of two that are in threads nobody knows whether the other handler ran before.
            await until(lambda: sum(one[0] == 4 for one in seen) >= 18)
            assert not any(one[0] == "slow" for one in seen)
            gate.set()
            await d.until_handled()
            assert d.letters() == []
    assert sorted(map(str, seen)) == sorted(
        str((what, f"s{index}")) for what in ("slow", 1, 2, 3, 4) for index in range(20)
    )


@pytest.mark.usefixtures("few")
async def test_hung_threads_are_bounded_and_logged_and_leave_other_handlers_theirs():
    used, seen = [], []
    with opening() as gate, capture_logs() as logs:
        # Longer than a busy machine takes to start a thread: what times out before it has begun hangs nowhere.
        @every(name="hangs", timeout_ms=300, retries=5)
        def hangs(event, ctx):
            used.append(threading.current_thread())
            gate.wait(PATIENCE_S)

        @on(SessionPartiesHangup, name="well")
        def well(event, ctx):
            seen.append(event.session_uuid)

        async with dispatching(hangs, well) as d:
            d.feed(*((f"s{index}", 1) for index in range(10)))
            await until(lambda: d.dispatcher.threads()["hangs"].hung == 2)
            d.feed(*((f"t{index}", 1) for index in range(20)), name=HANGUP)
            await d.until_handled(left=8)
            assert len(seen) == 20
            assert d.dispatcher.threads() == {"hangs": (0, 2, 8), "well": (0, 0, 0)}
            assert len(used) == 2
            assert [(letter.code, letter.attempts) for letter in d.letters()] == [("timed_out", 1)] * 2
            assert d.dispatcher.busy == d.partition.running == 0
            gate.set()
            await d.until_handled()
            # They waited and were no attempts meanwhile; what hung is of use again.
            assert d.letters() == []
            await until(lambda: not d.dispatcher.threads()["hangs"].hung)
    assert len(used) == 10
    assert len({thread.name for thread in used}) <= 4
    assert d.counters.handled == {"hangs": 8, "well": 20}
    lines = {line["event"]: line for line in logs if line["log_level"] == "warning"}
    assert lines["plain handler waits for hung threads"]["handler"] == "hangs"
    assert lines["plain handler waits for hung threads"]["hung"] == 2
    assert lines["handler thread hung"]["handler"] == "hangs"


async def test_a_slow_handler_leaves_another_one_its_thread(few):
    with opening() as gate:

        @every(name="slow")
        def slow(event, ctx):
            gate.wait(PATIENCE_S)

        @on(SessionPartiesHangup, name="well")
        def well(event, ctx):
            pass

        async with dispatching(slow, well) as d:
            d.feed(*((f"s{index}", 1) for index in range(10)))
            await until(lambda: d.dispatcher.threads()["slow"].under_way)
            d.feed(*((f"t{index}", 1) for index in range(10)), name=HANGUP)
            await d.until_handled(left=10)
            assert d.dispatcher.threads()["slow"] == (1, 0, 9)
            gate.set()
            await d.until_handled()


async def test_handlers_take_turns(monkeypatch):
    monkeypatch.setattr(threads, "THREADS_MAX", 1)
    order = []
    with opening() as gate:

        @every(name="many")
        def many(event, ctx):
            gate.wait(PATIENCE_S)
            order.append("many")

        @on(SessionPartiesHangup, name="one")
        def one(event, ctx):
            order.append("one")

        async with dispatching(many, one) as d:
            d.feed(*((f"s{index}", 1) for index in range(40)))
            await turns()
            d.feed(("t", 1), name=HANGUP)
            await turns()
            gate.set()
            await d.until_handled()
    assert order.index("one") <= 2
    assert len(order) == 41


async def test_a_time_limit_begins_with_the_function(monkeypatch):
    monkeypatch.setattr(threads, "THREADS_MAX", 1)
    with opening() as gate:

        @every(name="first", timeout_ms=60_000)
        def first(event, ctx):
            gate.wait(PATIENCE_S)

        @on(SessionPartiesHangup, name="second", timeout_ms=500, retries=0)
        def second(event, ctx):
            pass

        async with dispatching(first, second) as d:
            d.feed(("s", 1))
            await until(lambda: d.dispatcher.threads()["first"].under_way)
            d.feed(("t", 1), name=HANGUP)
            for _ in range(15):  # the time limit and more
                await asyncio.sleep(0.05)
            assert d.dispatcher.threads()["second"].waiting == 1
            gate.set()
            await d.until_handled()
            assert d.letters() == []


@pytest.mark.usefixtures("few")
async def test_session_that_waits_for_a_thread_holds_up_no_partition_and_no_stop():
    begun = []
    with opening() as gate:

        @every(timeout_ms=60_000)
        def slow(event, ctx):
            begun.append(event.session_uuid)
            gate.wait(PATIENCE_S)

        async with dispatching(slow) as d:
            ready = d.feed(*((f"s{index}", 1) for index in range(10)))
            await until(lambda: len(begun) == 2)
            assert d.partition.running == 2
            # Closed for a while, as where it may go to another worker: who is called then waits for `resume`.
            d.partition.move_to(Phase.PAUSED)
            gate.set()
            await until(lambda: not d.partition.running)
            assert len(begun) == 2
            assert d.partition.unfinished == 8
            gate.clear()
            d.partition.move_to(Phase.OPEN)
            d.dispatcher.resume(d.partition)
            await until(lambda: len(begun) == 4)
            d.partition.move_to(Phase.PAUSED)
            d.dispatcher.forget(d.partition)
            (use,) = d.dispatcher.threads().values()
            assert use.waiting == 0
            d.dispatcher.cancel(d.partition, "given back")
            await until(lambda: not d.partition.running)
            async with asyncio.timeout(PATIENCE_S):
                await d.dispatcher.stop()
            assert d.partition.unfinished == 8
            assert ready
            gate.set()
            await turns()
    assert len(begun) == 4


async def test_without_a_lease_nothing_starts_in_a_thread(few):
    seen = []
    with opening() as gate:

        @every()
        def handle(event, ctx):
            seen.append(event.session_uuid)
            gate.wait(PATIENCE_S)

        async with dispatching(handle) as d:
            d.feed(*((f"s{index}", 1) for index in range(6)))
            await until(lambda: len(seen) == 2)
            d.partition.lease_until = lease_clock() - 1
            gate.set()
            await until(lambda: not any(d.dispatcher.threads()["test_plain_handlers." + handle.__qualname__]))
            assert len(seen) == 2
            d.partition.lease_until = lease_clock() + 600
            d.dispatcher.resume(d.partition)
            await d.until_handled()
    assert len(seen) == 6


async def test_where_no_thread_can_be_started_plain_handlers_wait_and_others_go_on(monkeypatch):
    refused, plainly, seen = [], [], []

    def refuse(thread):
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    @every(name="plain", retries=0)
    def handle(event, ctx):
        plainly.append(event.session_uuid)

    @on(SessionTimeout, name="async")
    async def other(event, ctx):
        seen.append(event.session_uuid)

    with monkeypatch.context() as short:
        async with dispatching(handle, other, concurrency=2) as d:
            short.setattr(threading.Thread, "start", refuse)
            d.feed(*((f"s{index}", 1) for index in range(300)))
            await until(lambda: len(refused) >= 2)
            d.feed(*((f"t{index}", 1) for index in range(20)), name="SessionTimeout")
            await d.until_handled(left=300)
            assert len(seen) == 20
            assert plainly == []
            short.undo()
            await d.until_handled()
            assert d.letters() == []
            assert d.counters.failed == {}
    assert len(plainly) == 300


async def test_a_thread_that_is_there_is_used_though_no_other_can_be_started(monkeypatch):
    monkeypatch.setattr(plain_handlers, "START_RETRY_S", 3_600.0)
    start, plainly = threading.Thread.start, []

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    def start_one(thread):
        monkeypatch.setattr(threading.Thread, "start", refuse)
        start(thread)

    @every(name="one", retries=1, **AT_ONCE)
    def one(event, ctx):
        if ctx.attempt == 1 and event.session_uuid.endswith("7"):
            raise Retry
        plainly.append(event.session_uuid)

    @every(name="other")
    def other(event, ctx):
        plainly.append(event.session_uuid)

    async with dispatching(one, other) as d:
        monkeypatch.setattr(threading.Thread, "start", start_one)
        d.feed(*((f"s{index}", 1) for index in range(100)))
        await d.until_handled()
        assert d.letters() == []
    assert len(plainly) == 200


async def test_what_a_function_returned_is_awaited_without_a_thread(monkeypatch):
    monkeypatch.setattr(threads, "THREADS_MAX", 1)
    waiting, gate = [], asyncio.Event()

    async def work(event):
        waiting.append(event.session_uuid)
        await gate.wait()

    @every()
    def handle(event, ctx):
        return work(event)

    async with dispatching(handle, concurrency=5) as d:
        d.feed(*((f"s{index}", 1) for index in range(8)))
        await until(lambda: len(waiting) == 5)
        await turns()
        assert len(waiting) == d.partition.running == 5
        gate.set()
        await d.until_handled()
    assert len(waiting) == 8


async def test_many_handlers_of_many_events_all_run_once_and_in_order(monkeypatch):
    """Two plain ones and two async ones of each event, of which some fail first: nothing is lost in the lines."""
    monkeypatch.setattr(threads, "THREADS_MAX", 3)
    seen = {name: [] for name in ("a", "b", "c", "d")}

    def note(name, event, ctx):
        if ctx.attempt == 1 and (event.sequence_number + len(event.session_uuid) + ord(name)) % 3 == 0:
            raise ValueError
        seen[name].append((event.session_uuid, event.sequence_number))

    @every(name="a", **AT_ONCE)
    def a(event, ctx):
        note("a", event, ctx)

    @every(name="b", backoff_ms=1, backoff_max_ms=1)
    async def b(event, ctx):
        await asyncio.sleep(0.001)
        note("b", event, ctx)

    @every(name="c", backoff_ms=1, backoff_max_ms=1)
    def c(event, ctx):
        note("c", event, ctx)

    @every(name="d", **AT_ONCE)
    async def d_(event, ctx):
        note("d", event, ctx)

    sessions = ["s" * count for count in range(1, 41)]
    async with dispatching(a, b, c, d_, concurrency=4) as d:
        d.feed(*((session, number) for number in range(1, 6) for session in sessions))
        await d.until_handled()
        assert d.letters() == []
    for name, handled in seen.items():
        assert len(handled) == len(set(handled)) == 200, name
        for session in sessions:
            assert [number for one, number in handled if one == session] == [1, 2, 3, 4, 5], name


@pytest.mark.parametrize("seed", range(3))
async def test_no_request_for_a_thread_is_lost_whatever_happens_to_its_partition(monkeypatch, seed):
    """It is closed and opened again, its lease comes and goes, threads hang and cannot be started."""
    chance = random.Random(seed)
    monkeypatch.setattr(threads, "THREADS_MAX", chance.choice([1, 2, 4]))
    monkeypatch.setattr(thread_shares, "HUNG_MAX", 2)
    monkeypatch.setattr(thread_shares, "HANDLER_THREADS_MAX", 2)
    monkeypatch.setattr(plain_handlers, "START_RETRY_S", 0.01)
    start, short, seen = threading.Thread.start, [False], {}

    def start_sometimes(thread):
        if short[0] and thread.name.startswith("maskline-handler"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_sometimes)
    with opening() as gate:

        def handle(name, event, ctx):
            if name == "hangs" and event.session_uuid == "s7":
                gate.wait(PATIENCE_S)
            if chance.random() < 0.2:
                raise Retry(after_ms=0)
            seen.setdefault((name, event.session_uuid), []).append(event.sequence_number)

        @every(name="hangs", timeout_ms=15, **AT_ONCE)
        def hangs(event, ctx):
            handle("hangs", event, ctx)

        @every(name="waits", backoff_ms=1, backoff_max_ms=1, retries=50)
        async def waits(event, ctx):
            await asyncio.sleep(0.001)
            handle("waits", event, ctx)

        @every(name="well", backoff_ms=1, backoff_max_ms=1, retries=50)
        def well(event, ctx):
            handle("well", event, ctx)

        async with dispatching(hangs, waits, well, concurrency=chance.choice([1, 3, 64])) as d:
            for number in (1, 2, 3):
                d.feed(*((f"s{index}", number) for index in range(20)))
                for _ in range(4):
                    short[0] = chance.random() < 0.3
                    d.partition.move_to(Phase.PAUSED if chance.random() < 0.5 else Phase.OPEN)
                    d.partition.lease_until = lease_clock() + chance.choice([-1, 600])
                    await asyncio.sleep(chance.random() / 100)
                    d.partition.move_to(Phase.OPEN)
                    d.partition.lease_until = lease_clock() + 600
                    d.dispatcher.resume(d.partition)
            short[0] = False
            await until(lambda: not d.partition.unfinished or d.dispatcher.threads()["hangs"].hung)
            gate.set()
            await d.until_handled()
            await until(lambda: not any(map(any, d.dispatcher.threads().values())))
            assert d.dispatcher.busy == d.partition.running == 0
            letters = d.letters()
    # On a busy machine an attempt of `hangs` may take longer than its 15 ms in any session.
    given_up = {(letter.handler, letter.session_uuid, letter.sequence_number) for letter in letters}
    assert {handler for handler, *_ in given_up} <= {"hangs"}
    for key in itertools.product(("hangs", "waits", "well"), (f"s{index}" for index in range(20))):
        kept = {number for number in (1, 2, 3) if (*key, number) not in given_up}
        numbers = [number for number in seen.get(key, ()) if number in kept]
        assert numbers == sorted(kept) or key == ("hangs", "s7"), key


HANDLERS = """
import threading
from maskline.events import Event, SessionTimeout
from maskline import on
from recording_handlers import write

@on.every(name="hangs", timeout_ms=TIMEOUT_MS)
def hangs(event, ctx):
    if event.session_uuid.startswith("hangs"):
        threading.Event().wait()

@on.every(name="well")
async def well(event, ctx):
    write(what="well", session=event.session_uuid)
"""


def test_worker_whose_threads_hang_logs_it_goes_on_and_stops(crew, tmp_path):
    module = tmp_path / "users_handlers.py"
    module.write_text(HANDLERS.replace("TIMEOUT_MS", "50"))
    worker = crew.start(
        handlers=str(module), stop_timeout_ms=1_000, PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[1]}"
    )
    hanging = [f"hangs{index}" for index in range(thread_shares.HANDLER_THREADS_MAX + 8)]
    crew.put_all([(session, 1) for session in hanging])
    wait_until(
        lambda: (
            worker.metric("handler_threads", handler="hangs", state="hung")
            == thread_shares.HANDLER_THREADS_MAX
        ),
        within_s=PATIENCE_S,
    )
    crew.put_all([("t1", 1), ("t2", 1)])
    wait_until(lambda: len(crew.lines()) == len(hanging) + 2, within_s=PATIENCE_S)
    assert worker.metric("handlers_running") == 0
    admin = worker.logged("worker started")["admin"]
    with urllib.request.urlopen(f"{admin}/readyz", timeout=60) as answer:  # noqa: S310 our own
        shown = json.load(answer)["threads"]
    assert shown["hangs"]["under_way"] == 0
    assert shown["hangs"]["hung"] == thread_shares.HANDLER_THREADS_MAX
    line = worker.logged("plain handler waits for hung threads")
    assert line["handler"] == "hangs"
    assert worker.terminate() == 0
    assert worker.logged("worker stopped") is not None
    assert len(crew.dead_letters()) == thread_shares.HANDLER_THREADS_MAX


def test_stop_waits_for_no_thread_and_for_no_request_for_one(crew, tmp_path):
    module = tmp_path / "users_handlers.py"
    module.write_text(HANDLERS.replace("TIMEOUT_MS", "60_000"))
    worker = crew.start(
        handlers=str(module), stop_timeout_ms=300, PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[1]}"
    )
    crew.put_all([(f"hangs{index}", 1) for index in range(threads.THREADS_MAX + 8)])
    wait_until(
        lambda: worker.metric("handler_threads", handler="hangs", state="under_way") == threads.THREADS_MAX,
        within_s=PATIENCE_S,
    )
    assert worker.metric("handlers_running") == threads.THREADS_MAX
    assert worker.terminate() == 0
    assert worker.logged("worker stopped") is not None
    assert crew.dead_letters() == []
