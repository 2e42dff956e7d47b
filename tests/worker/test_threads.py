import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import weakref

import pytest
from servers import wait_until

from worker import threads
from worker.threads import HandlerThreads

PATIENCE_S = 20.0

variable = contextvars.ContextVar("variable", default="unset")


def nothing():
    pass


@pytest.fixture
async def pool():
    pool = HandlerThreads()
    yield pool
    pool.stop()


async def run(pool, call, *arguments):
    async with asyncio.timeout(PATIENCE_S):
        return await pool.run(call, *arguments, on_start=nothing)


async def test_results_and_errors_come_back(pool):
    assert await run(pool, lambda a, b: a + b, 2, 3) == 5

    def fail():
        raise LookupError("none")

    with pytest.raises(LookupError, match="none"):
        await run(pool, fail)


@pytest.mark.parametrize(
    "raised", [StopIteration(1), SystemExit(2), KeyboardInterrupt(), asyncio.CancelledError()]
)
async def test_what_a_future_cannot_carry_comes_wrapped(pool, raised):
    def fail():
        raise raised

    with pytest.raises(RuntimeError, match=type(raised).__name__) as caught:
        await run(pool, fail)
    assert caught.value.__cause__ is raised
    assert await run(pool, threading.get_ident) != threading.get_ident()  # the thread is still of use


async def test_the_context_of_the_caller_goes_along_and_is_not_changed(pool):
    variable.set("caller's")

    def look():
        before = variable.get()
        variable.set("handler's")
        return before

    assert await run(pool, look) == "caller's"
    assert variable.get() == "caller's"


async def test_a_thread_is_used_again(pool):
    idents = {await run(pool, threading.get_ident) for _ in range(20)}
    assert len(idents) == 1


async def test_all_threads_are_daemons(pool):
    assert await run(pool, lambda: threading.current_thread().daemon)


async def test_as_many_at_once_as_the_bound_says(monkeypatch):
    monkeypatch.setattr(threads, "THREADS_MAX", 3)
    pool, gate, running, most = HandlerThreads(), threading.Event(), 0, 0
    lock, started = threading.Lock(), 0

    def work():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(PATIENCE_S)
        with lock:
            running -= 1

    def on_start():
        nonlocal started
        started += 1
        if started == 3:
            asyncio.get_running_loop().call_later(0.02, gate.set)

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(pool.run(work, on_start=on_start) for _ in range(9)))
    assert most == 3
    assert started == 9
    pool.stop()


async def test_no_job_waits_behind_another_one_s_handler():
    """Quick jobs at every moment of a thread's turn, each followed by one that must not wait for the one before."""
    pool = HandlerThreads()
    for _ in range(300):
        gate = threading.Event()
        quick = asyncio.ensure_future(run(pool, nothing))
        slow = asyncio.ensure_future(run(pool, gate.wait, PATIENCE_S))
        assert await run(pool, int) == 0
        gate.set()
        await asyncio.gather(quick, slow)
    pool.stop()


async def test_there_is_a_thread_for_every_job_that_has_a_place():
    pool = HandlerThreads()
    for count in (1, 3, 2, 8, 5, 8):
        together = threading.Barrier(count)
        await asyncio.gather(*(run(pool, together.wait, 5) for _ in range(count)))
        for _ in range(3):
            await asyncio.gather(*(run(pool, nothing) for _ in range(count)))
    pool.stop()


async def test_a_hung_thread_gives_its_place_away(monkeypatch):
    monkeypatch.setattr(threads, "THREADS_MAX", 1)
    pool, gate = HandlerThreads(), threading.Event()
    hung = asyncio.ensure_future(run(pool, gate.wait, PATIENCE_S))
    await asyncio.sleep(0)
    hung.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hung
    assert await run(pool, int) == 0
    gate.set()
    assert await run(pool, int) == 0
    pool.stop()


async def test_an_idle_thread_keeps_no_event_alive(pool):
    class Thing:
        pass

    thing = Thing()
    seen = weakref.ref(thing)
    await run(pool, id, thing)
    del thing
    wait_until(lambda: gc.collect() + 1 and seen() is None, what="the thread to forget the event")


async def test_stop_lets_the_threads_end():
    pool = HandlerThreads()
    thread = await run(pool, threading.current_thread)
    pool.stop()
    await asyncio.to_thread(thread.join, PATIENCE_S)
    assert not thread.is_alive()


def test_a_hung_thread_keeps_no_process_alive():
    source = """
import asyncio, threading
from worker.threads import HandlerThreads

async def main():
    started = asyncio.Event()
    task = asyncio.ensure_future(HandlerThreads().run(threading.Event().wait, on_start=started.set))
    await started.wait()

asyncio.run(main())
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == "ended\n"
    assert done.stderr == ""


async def test_a_call_waits_until_a_thread_can_be_started(pool, monkeypatch):
    tried = asyncio.Event()

    def refuse(_thread):
        tried.set()
        raise RuntimeError("can't start new thread")

    ran, started = [], []
    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", refuse)
        call = asyncio.create_task(pool.run(ran.append, 5, on_start=lambda: started.append(True)))
        await asyncio.wait_for(tried.wait(), PATIENCE_S)
        assert not started
    await asyncio.wait_for(call, PATIENCE_S)
    assert (ran, started) == ([5], [True])
