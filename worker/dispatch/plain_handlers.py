"""Queues sessions that wait for a thread of a plain handler, and starts their attempts.

A session that waits here takes no runner: it holds up no `async` handler, no stop, and no partition that is given back.
It may wait for several handlers at a time, and for the retry of another one: whichever is free first runs. If a
handler's turn comes while a runner has the session, that handler is the first when the session is back.

| bound | on |
| --- | --- |
| those of `worker.dispatch.thread_shares` | threads |
| MASKLINE_CONCURRENCY | attempts of plain handlers, also those that await what their functions have returned |
| MASKLINE_OUTSTANDING_MAX | sessions that wait, with everything else that was read and is not done |
"""

import asyncio
import contextvars
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.worker.dispatch import threads
from maskline.worker.dispatch.thread_shares import ThreadShares, ThreadUse
from maskline.worker.dispatch.threads import START_RETRY_S, HandlerThreads
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.session import LiveSession, Progress

_log = get_logger("maskline.worker")


class ThreadSlot:
    """A thread for one attempt of a plain handler. `handler`: the handler's name."""

    __slots__ = ("_plain", "handler", "released", "running", "used")

    def __init__(self, plain: "PlainHandlers", handler: str) -> None:
        self._plain = plain
        self.handler = handler
        self.running = self.used = self.released = False

    async def run(self, call: Callable[..., Any], *arguments: Any, context: contextvars.Context) -> Any:
        """Call in the thread, in this context; return or raise what that returns or raises. Only once.

        If it is cancelled the thread goes on, and its result is dropped.
        """
        self.running = self.used = True
        return await self._plain.threads.start(functools.partial(call, *arguments), context, self._ended)

    def release(self) -> None:
        """Release the thread: another attempt may have it as soon as the function has ended."""
        if not self.released:
            self.released = True
            self._plain.slot_released(self)
            self._plain.start_waiting()

    def _ended(self) -> None:
        self.running = False
        if self.released:
            self._plain.hung_ended(self.handler)


class _ThreadRequest:
    """A session, or an attempt that runs solo, that waits for a thread of one handler."""

    __slots__ = ("first", "future", "handler", "progress", "session")

    def __init__(self, handler: str, session: LiveSession | None, progress: Progress | None) -> None:
        self.handler = handler
        self.session = session
        self.progress = progress
        """Of the session's first event."""
        self.future: asyncio.Future[ThreadSlot] | None = None
        """Of the attempt that runs solo."""
        self.first = False
        """Its turn came while a runner had the session: it is served first when the session is back."""


class PlainHandlers:
    """The plain handlers of a worker process.

    `handlers`: the names of all. `attempts_max`: at a time. `start(session, slot)`: run the session's first event, with
    the handler of the slot only, in a task; call `finished_take_next` after that, or `finished`.
    """

    def __init__(
        self, handlers: Iterable[str], attempts_max: int, start: Callable[[LiveSession, ThreadSlot], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.threads = HandlerThreads()
        self._shares: ThreadShares[_ThreadRequest] = ThreadShares(handlers, threads.THREADS_MAX)
        self._attempts_max = attempts_max
        self._start = start
        self._under_way: set[ThreadSlot] = set()
        self._retry_timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._context = contextvars.copy_context()
        self._hung_log = LogRateLimit()
        self._waiting_log = LogRateLimit()

    # What the dispatcher calls

    def request_thread(self, session: LiveSession, progress: Progress, handler: str) -> None:
        """Request a thread for an attempt, which is due, of this handler at the session's first event."""
        if handler not in progress.thread_requests:
            request = progress.thread_requests[handler] = _ThreadRequest(handler, session, progress)
            self._shares.enqueue(handler, request)

    def session_waits(self, progress: Progress, retry_timer: asyncio.TimerHandle | None) -> None:
        """Let threads take the session of this progress, which has left its runner; `retry_timer` submits it for a
        retry.
        """
        progress.wait(retry_timer)
        for request in progress.thread_requests.values():
            if request.first:
                request.first = False
                self._shares.enqueue(request.handler, request, first=True)
        self.start_waiting()

    async def acquire(self, handler: str) -> ThreadSlot:
        """Wait for a slot, for an attempt that has begun."""
        request = _ThreadRequest(handler, None, None)
        future: asyncio.Future[ThreadSlot] = self._loop.create_future()
        request.future = future
        self._shares.enqueue(handler, request)
        self.start_waiting()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.result().release()
            raise

    def finished_take_next(self, slot: ThreadSlot) -> tuple[LiveSession, ThreadSlot] | None:
        """Free a slot whose attempt has ended. Returns the session and slot that the same task goes on with, if any."""
        self._under_way.discard(slot)
        if not slot.released:
            slot.released = True
            self.slot_released(slot)
        return self._take_next()

    def finished(self, slot: ThreadSlot) -> None:
        """Free a slot whose attempt has ended or was abandoned."""
        self._under_way.discard(slot)
        if slot.released:
            self.start_waiting()
        else:
            slot.release()

    def forget(self, partition: Partition | None) -> None:
        """Drop the requests of a partition's sessions, or of all (None)."""
        forgotten = {
            request
            for request in self._shares.waiting()
            if partition is None or (request.session is not None and request.session.partition is partition)
        }
        for request in forgotten:
            if request.progress is not None:
                request.progress.thread_requests.pop(request.handler, None)
        self._shares.discard(forgotten)

    def stop(self) -> None:
        """Start nothing more, and let the threads end."""
        self._stopped = True
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self.threads.stop()

    def uses(self) -> Mapping[str, ThreadUse]:
        """The threads and requests of every plain handler, by its name."""
        return self._shares.uses()

    # What slots call

    def slot_released(self, slot: ThreadSlot) -> None:
        """Count the slot's thread as free, or as hung where its function has not ended."""
        handler = slot.handler
        if not slot.used:
            self.threads.unreserve()
        if not slot.running:
            self._shares.give_back(handler)
            return
        self._shares.hang(handler)
        if self._hung_log.due(handler) and not self._stopped:
            _log.warning("handler thread hung", handler=handler, hung=self._shares.use(handler).hung)

    def hung_ended(self, handler: str) -> None:
        """Count a hung thread of the handler as ended after all."""
        self._shares.hung_ended(handler)
        self.start_waiting()

    def start_waiting(self) -> None:
        """Start as many of the waiting sessions as there are threads for."""
        while (following := self._take_next()) is not None:
            self._start(*following)

    # Inside

    def _take_next(self) -> tuple[LiveSession, ThreadSlot] | None:
        """The next session that may start, and its slot. Solo attempts before it in the queue get their slots."""
        if self._stopped or (self._retry_timer is not None and not self.threads.free):
            return None
        while len(self._under_way) < self._attempts_max and (taken := self._shares.take()) is not None:
            handler, request = taken
            if not self._may_start(request):
                self._shares.give_back(handler)
            elif not self.threads.reserve():
                self._shares.give_back(handler)
                self._shares.enqueue(handler, request, first=True)
                if self._retry_timer is None:
                    self._retry_timer = self._loop.call_later(
                        START_RETRY_S, self._retry, context=self._context
                    )
                return None
            elif (session := self._hand_over(request, slot := ThreadSlot(self, handler))) is not None:
                return session, slot
        for handler, use in self._shares.starved():
            if self._waiting_log.due(handler):
                _log.warning(
                    "plain handler waits for hung threads",
                    handler=handler,
                    hung=use.hung,
                    waiting=use.waiting,
                )
        return None

    def _retry(self) -> None:
        self._retry_timer = None
        self.start_waiting()

    def _may_start(self, request: _ThreadRequest) -> bool:
        """Whether the request can be served now. If not, it is void, or is enqueued again here."""
        if request.future is not None:
            return not request.future.done()
        session, progress = request.session, request.progress
        if session is None or progress is None or session.progress is not progress:
            return False  # that event is done
        if not progress.waiting:
            request.first = True
            return False
        if session.partition.closed:
            progress.thread_requests.pop(request.handler)
            progress.stop_waiting()
            session.scheduled = False  # `resume` submits it if the partition is opened again
            return False
        return True

    def _hand_over(self, request: _ThreadRequest, slot: ThreadSlot) -> LiveSession | None:
        """Give the slot to the attempt that waits for it, or return the session to start with it."""
        if request.future is not None:
            request.future.set_result(slot)
            return None
        if request.progress is not None:
            request.progress.thread_requests.pop(request.handler)
            request.progress.stop_waiting()
        self._under_way.add(slot)
        return request.session
