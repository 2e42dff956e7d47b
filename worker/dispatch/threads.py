"""Threads for plain `def` handlers: daemons, so that one which never ends cannot keep the process alive.

`concurrent.futures` joins its threads when the interpreter ends, for ever if need be; asyncio's `to_thread` uses it.
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
"""Before the next try to start a thread. That none could be had is no fault of the handler's, and no attempt."""

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
    """Threads that run plain handlers for one event loop, started as they are needed and kept.

    Everything here is called on the loop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = 0
        self._free = 0
        """Threads that wait for a job and are not reserved. A job is only put for a reserved thread, so that it never
        waits behind another handler."""
        self._log_limit = LogRateLimit()

    @property
    def free(self) -> int:
        """Threads that can be reserved without starting one."""
        return self._free

    def reserve(self) -> bool:
        """Take a thread that is free, or start one; False where neither can be had."""
        if self._free:
            self._free -= 1
            return True
        try:
            threading.Thread(
                target=self._work, name=f"maskline-handler-{self._started + 1}", daemon=True
            ).start()
        except (RuntimeError, MemoryError) as error:
            # No memory, or as many as this user, or the container, may have.
            if self._log_limit.due():
                _log.warning("handler thread not started", reason=str(error))
            return False
        self._started += 1
        return True

    def unreserve(self) -> None:
        """A reserved thread is not needed after all."""
        self._free += 1

    def start(
        self, call: Callable[[], Any], context: contextvars.Context, on_end: Callable[[], None] = _nothing
    ) -> asyncio.Future[Any]:
        """Call in the reserved thread, in this context.

        The future has what it returns or raises. Cancelling it does not stop the thread, which goes on; how it
        ends has no effect then. `on_end` is called on the loop when it has ended, also after a cancellation.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.put(_Job(call, context, future, on_end))
        return future

    async def run(self, call: Callable[..., Any], *arguments: Any, context: contextvars.Context) -> Any:
        """Wait for a thread, and call in it; return or raise what that returns or raises."""
        while not self.reserve():  # noqa: ASYNC110  nothing tells when there is one
            await asyncio.sleep(START_RETRY_S)
        return await self.start(functools.partial(call, *arguments), context)

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
    """What a handler raised, as a future may carry it: StopIteration and what is no Exception are wrapped."""
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
        return raised
    wrapped = RuntimeError(f"the handler raised {type(raised).__name__}")
    wrapped.__cause__ = raised
    return wrapped
