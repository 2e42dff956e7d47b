"""Plain `def` handlers run here: in daemon threads, so that one which never ends cannot keep the process alive.

`concurrent.futures` joins its threads when the interpreter ends, for ever if need be; asyncio's `to_thread` uses it.
"""

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

THREADS_MAX: Final = 32
"""Plain handlers at once in a worker process. Threads that hang and were given up do not count."""


class _Job:
    __slots__ = ("call", "context", "future")

    def __init__(self, call: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self.call = call
        self.context = contextvars.copy_context()
        self.future = future


class HandlerThreads:
    """Threads that run plain handlers for one event loop, started as they are needed and kept."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._slots = asyncio.Semaphore(THREADS_MAX)
        self._threads = 0
        self._idle = 0
        self._lock = threading.Lock()

    async def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call in a thread and return what it returns, or raise what it raises.

        Cancelling does not stop the thread: it goes on, and nobody looks at how it ends.
        """
        async with self._slots:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            job = _Job(lambda: call(*arguments), future)
            with self._lock:
                start = self._idle <= self._jobs.qsize()
            self._jobs.put(job)
            if start:
                self._threads += 1
                threading.Thread(
                    target=self._work, name=f"maskline-handler-{self._threads}", daemon=True
                ).start()
            return await future

    def stop(self) -> None:
        """Let the idle threads end."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            job = self._jobs.get()
            with self._lock:
                self._idle -= 1
            if job is None:
                return
            result: Any = None
            error: BaseException | None = None
            try:
                result = job.context.run(job.call)
            except BaseException as raised:  # noqa: BLE001  SystemExit in a handler must not end a thread silently
                error = (
                    raised
                    if isinstance(raised, Exception)
                    else RuntimeError(f"the handler raised {raised!r}")
                )
            try:
                job.future.get_loop().call_soon_threadsafe(_resolve, job.future, result, error)
            except RuntimeError:
                return  # the loop is closed: the process is ending


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
