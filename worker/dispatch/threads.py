"""Runs plain `def` handlers in threads: daemons, so that one which never ends cannot keep the process alive.

`concurrent.futures`, which asyncio's `to_thread` uses, joins its threads when the interpreter ends, for ever if need
be.
"""

import asyncio
import contextvars
import functools
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit

THREADS_MAX: Final = 32
"""Plain handlers at once in a worker process; `worker.dispatch.thread_shares` holds them to it."""

START_RETRY_S: Final = 0.2
"""Before the next try to start a thread. A failed start is not the handler's fault, and does not count as an
attempt."""

_log = get_logger("maskline.worker")


class _Job:
    __slots__ = ("call", "context", "future", "on_end")

    def __init__(
        self,
        call: Callable[[], Any],
        context: contextvars.Context,
        future: asyncio.Future[Any],
        on_end: Callable[[], None],
    ) -> None:
        self.call = call
        self.context = context
        self.future = future
        self.on_end = on_end


def _nothing() -> None:
    pass


class HandlerThreads:
    """Threads that run plain handlers for one event loop; started when needed, and kept.

    All public methods are called on the loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = 0
        self._free = 0
        """Threads that wait for a job and are not reserved. Only a reserved thread is given a job, so a job never waits
        behind another handler."""
        self._log_limit = LogRateLimit()

    @property
    def free(self) -> int:
        """Threads that can be reserved without starting one."""
        return self._free

    def reserve(self) -> bool:
        """Reserve a free thread, or start one. Returns False if there is neither."""
        if self._free:
            self._free -= 1
            return True
        try:
            threading.Thread(
                target=self._work, name=f"maskline-handler-{self._started + 1}", daemon=True
            ).start()
        except (RuntimeError, MemoryError) as error:
            # No memory, or the limit of this user, or of the container, is reached.
            if self._log_limit.due():
                _log.warning("handler thread not started", reason=str(error))
            return False
        self._started += 1
        return True

    def unreserve(self) -> None:
        """Give back a reserved thread that is not needed after all."""
        self._free += 1

    def start(
        self, call: Callable[[], Any], context: contextvars.Context, on_end: Callable[[], None] = _nothing
    ) -> asyncio.Future[Any]:
        """Call in the reserved thread, in this context.

        The future has the result or the exception. Cancelling it does not stop the thread; its result is dropped then.
        `on_end` is called on the loop when the call has ended, also after a cancellation.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.put(_Job(call, context, future, on_end))
        return future

    async def run(self, call: Callable[..., Any], *arguments: Any, context: contextvars.Context) -> Any:
        """Wait for a thread, and call `call` in it. Returns its result or raises its exception."""
        while not self.reserve():  # noqa: ASYNC110  nothing tells when there is one
            await asyncio.sleep(START_RETRY_S)
        return await self.start(functools.partial(call, *arguments), context)

    def stop(self) -> None:
        """End the idle threads now, and each other thread when its handler ends."""
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
            try:
                self._loop.call_soon_threadsafe(self._ended, job, result, error)
            except RuntimeError:
                return  # the loop is closed: the process is ending
            del job, result, error  # not kept alive by a thread that waits

    def _ended(self, job: _Job, result: Any, error: BaseException | None) -> None:
        self._free += 1
        if not job.future.done():
            if error is not None:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
        job.on_end()


def _for_future(raised: BaseException) -> Exception:
    """The exception of a handler as a future may carry it: StopIteration and anything but an Exception is wrapped."""
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
        return raised
    wrapped = RuntimeError(f"the handler raised {type(raised).__name__}")
    wrapped.__cause__ = raised
    return wrapped
