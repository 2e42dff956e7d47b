import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import weakref

import pytest
from servers import wait_until

from maskline.worker.dispatch.threads import HandlerThreads

PATIENCE_S = 60.0

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
        return await pool.run(call, *arguments, context=contextvars.copy_context())


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


async def test_it_runs_in_the_context_that_is_given(pool):
    variable.set("caller's")

    def look():
        before = variable.get()
        variable.set("handler's")
        return before

    context = contextvars.copy_context()
    assert await pool.run(look, context=context) == "caller's"
    assert variable.get() == "caller's"
    assert context[variable] == "handler's"


async def test_a_thread_is_used_again(pool):
    idents = {await run(pool, threading.get_ident) for _ in range(20)}
    assert len(idents) == 1


async def test_all_threads_are_daemons(pool):
    assert await run(pool, lambda: threading.current_thread().daemon)


async def test_no_job_waits_behind_another_handler():
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


async def test_there_is_a_thread_for_every_reserved_job():
    pool = HandlerThreads()
    for count in (1, 3, 2, 8, 5, 8):
        together = threading.Barrier(count)
        await asyncio.gather(*(run(pool, together.wait, 5) for _ in range(count)))
        for _ in range(3):
            await asyncio.gather(*(run(pool, nothing) for _ in range(count)))
    pool.stop()


async def test_a_thread_whose_caller_has_gone_is_used_again_when_it_has_ended(pool):
    gate, ended = threading.Event(), asyncio.Event()
    assert pool.reserve()
    hung = pool.start(
        lambda: gate.wait(PATIENCE_S) and threading.get_ident(), contextvars.Context(), ended.set
    )
    hung.cancel()
    other = await run(pool, threading.get_ident)
    gate.set()
    await asyncio.wait_for(ended.wait(), PATIENCE_S)
    assert pool.reserve()
    assert pool.reserve()  # neither is new
    pool.unreserve()
    pool.unreserve()
    assert len({await run(pool, threading.get_ident) for _ in range(4)} | {other}) <= 2


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
import asyncio, contextvars, threading
from maskline.worker.dispatch.threads import HandlerThreads

async def main():
    started = asyncio.Event()
    loop, never = asyncio.get_running_loop(), threading.Event()

    def hang():
        loop.call_soon_threadsafe(started.set)
        never.wait()

    task = asyncio.ensure_future(HandlerThreads().run(hang, context=contextvars.copy_context()))
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

    ran = []
    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", refuse)
        call = asyncio.create_task(run(pool, ran.append, 5))
        await asyncio.wait_for(tried.wait(), PATIENCE_S)
        assert not ran
    await asyncio.wait_for(call, PATIENCE_S)
    assert ran == [5]
