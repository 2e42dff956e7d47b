"""Plain `def` handlers run here: in daemon threads, so that one which never ends cannot keep the process alive.

`concurrent.futures` joins its threads when the interpreter ends, for ever if need be; asyncio's `to_thread` uses it.
"""

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

from runtime.logs import get_logger
from runtime.seldom import Seldom

THREADS_MAX: Final = 32
"""Plain handlers at once in a worker process. Threads that hang and were given up do not count."""

REPEAT_S: Final = 0.2
"""Until it is tried again to start a thread, or one is free. That is no fault of the handler's, and no attempt."""

_log = get_logger("maskline.worker")


class _Job:
    __slots__ = ("call", "context", "future")

    def __init__(
        self, call: Callable[[], Any], context: contextvars.Context, future: asyncio.Future[Any]
    ) -> None:
        self.call = call
        self.context = context
        self.future = future


class HandlerThreads:
    """Threads that run plain handlers for one event loop, started as they are needed and kept."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._slots = asyncio.Semaphore(THREADS_MAX)
        self._started = 0
        self._free = 0
        """Threads that wait for a job nobody has put yet: whoever puts one takes a thread from here first, so
        that no job ever stands behind another one's handler."""
        self._lock = threading.Lock()
        self._lines = Seldom()

    async def run(
        self, call: Callable[..., Any], *arguments: Any, on_start: Callable[[], None],
        context: contextvars.Context | None = None,
    ) -> Any:  # fmt: skip
        """Call in a thread, in this context or a copy of the caller's; return or raise what it returns or raises.

        `on_start` is called on the event loop when a thread was free. Cancelling does not stop the thread: it goes
        on, and nobody looks at how it ends.
        """
        async with self._slots:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            job = _Job(lambda: call(*arguments), context or contextvars.copy_context(), future)
            while not self._has_thread():  # noqa: ASYNC110  nobody tells when there is one
                await asyncio.sleep(REPEAT_S)
            self._jobs.put(job)
            on_start()
            return await future

    def _has_thread(self) -> bool:
        """Take a thread that is free, or start one; False where neither can be had."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
        try:
            threading.Thread(
                target=self._work, name=f"maskline-handler-{self._started + 1}", daemon=True
            ).start()
        except RuntimeError as error:  # no memory, or as many as this user, or the container, may have
            if self._lines.due():
                _log.warning("a plain handler waits for a thread, none can be started", reason=str(error))
            return False
        self._started += 1
        return True

    def stop(self) -> None:
        """Let the idle threads end, and the others when their handlers do."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = job.context.run(job.call)
            except BaseException as raised:  # noqa: BLE001  SystemExit in a handler must not end a thread silently
                error = _for_future(raised)
            # Before the answer: who gets it may put the next job at once.
            with self._lock:
                self._free += 1
            try:
                job.future.get_loop().call_soon_threadsafe(_resolve, job.future, result, error)
            except RuntimeError:
                return  # the loop is closed: the process is ending
            del job, result, error  # not kept alive by a thread that waits


def _for_future(raised: BaseException) -> Exception:
    """What a handler raised, as a future may carry it: StopIteration and what is no Exception are wrapped."""
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
        return raised
    wrapped = RuntimeError(f"the handler raised {type(raised).__name__}")
    wrapped.__cause__ = raised
    return wrapped


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
