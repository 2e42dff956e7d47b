"""Where sessions wait for threads of plain handlers, and from where their attempts are started.

Whoever waits here takes no runner: that holds up no `async` handler, no stop, and no partition that is given back. A
session may wait for several handlers at a time, and for a retry of another one besides; it goes where it is called
first. One that is called while a runner has it comes before all others when it is back.

| bound | on |
| --- | --- |
| those of `worker.dispatch.thread_shares` | threads |
| MASKLINE_CONCURRENCY | attempts of plain handlers, also those that await what their functions have returned |
| MASKLINE_OUTSTANDING_MAX | what waits, as everything that was read and is not done |
"""

import asyncio
import contextvars
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.worker.dispatch import threads
from maskline.worker.dispatch.thread_shares import ThreadShares, ThreadUse
from maskline.worker.dispatch.threads import REPEAT_S, HandlerThreads
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.session import LiveSession, Progress

WAITS: Final = "plain handler waits for hung threads"

_log = get_logger("maskline.worker")


class ThreadSlot:
    """A thread for one attempt of a plain handler."""

    __slots__ = ("_plain", "handler", "left", "running", "used")

    def __init__(self, plain: "PlainHandlers", handler: str) -> None:
        self._plain = plain
        self.handler = handler
        self.running = self.used = self.left = False

    async def run(self, call: Callable[..., Any], *arguments: Any, context: contextvars.Context) -> Any:
        """Call in the thread, in this context; return or raise what that returns or raises. Only once.

        Where it is cancelled the thread goes on, and nobody looks at how it ends.
        """
        self.running = self.used = True
        return await self._plain.threads.start(functools.partial(call, *arguments), context, self._ended)

    def leave(self) -> None:
        """The thread is not needed any more; somebody else may have it, as soon as the function has ended."""
        if not self.left:
            self.left = True
            self._plain.left(self.handler, used=self.used, hangs=self.running)
            self._plain.turn()

    def _ended(self) -> None:
        self.running = False
        if self.left:
            self._plain.came_back(self.handler)


class _ThreadRequest:
    """In the line of one handler: a session, or an attempt that runs alone."""

    __slots__ = ("called", "future", "handler", "progress", "session")

    def __init__(self, handler: str, session: LiveSession | None, progress: Progress | None) -> None:
        self.handler = handler
        self.session = session
        self.progress = progress
        """The session's, for its present event."""
        self.future: asyncio.Future[ThreadSlot] | None = None
        self.called = False
        """It was, while a runner had the session."""


class PlainHandlers:
    """`handlers`: the names of all. `attempts_max`: at a time.

    `start(session, seat)`: run the session's first event, with the handler of the seat only, in a task; ask for the
    `next` after that, or call `ended`.
    """

    def __init__(
        self, handlers: Iterable[str], attempts_max: int, start: Callable[[LiveSession, ThreadSlot], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.threads = HandlerThreads()
        self._seats: ThreadShares[_ThreadRequest] = ThreadShares(handlers, threads.THREADS_MAX)
        self._attempts_max = attempts_max
        self._start = start
        self._at_work: set[ThreadSlot] = set()
        self._again: asyncio.TimerHandle | None = None
        self._stopped = False
        self._context = contextvars.copy_context()
        self._hang_lines = LogRateLimit()
        self._wait_lines = LogRateLimit()

    # What the dispatcher calls

    def line_up(self, session: LiveSession, progress: Progress, handler: str) -> None:
        """The session's first event needs this handler, too, whose attempt is due."""
        if handler not in progress.thread_requests:
            place = progress.thread_requests[handler] = _ThreadRequest(handler, session, progress)
            self._seats.wait(handler, place)

    def waiting(self, progress: Progress, timer: asyncio.TimerHandle | None) -> None:
        """The session of these places is with no runner now; `timer` would bring it to one."""
        progress.wait(timer)
        for place in progress.thread_requests.values():
            if place.called:
                place.called = False
                self._seats.wait(place.handler, place, first=True)
        self.turn()

    async def slot(self, handler: str) -> ThreadSlot:
        """Wait for a seat, for an attempt that has begun."""
        place = _ThreadRequest(handler, None, None)
        future: asyncio.Future[ThreadSlot] = self._loop.create_future()
        place.future = future
        self._seats.wait(handler, place)
        self.turn()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.result().leave()
            raise

    def next(self, slot: ThreadSlot) -> tuple[LiveSession, ThreadSlot] | None:
        """What was started with a seat is over: what to go on with in the same task, if anything."""
        self._at_work.discard(slot)
        if not slot.left:
            slot.left = True
            self.left(slot.handler, used=slot.used, hangs=slot.running)
        return self._called()

    def ended(self, slot: ThreadSlot) -> None:
        """What was started with a seat is over, or is not waited for any more."""
        self._at_work.discard(slot)
        if slot.left:
            self.turn()
        else:
            slot.leave()

    def forget(self, partition: Partition | None) -> None:
        """Nothing of the partition, or of any, is to run here any more."""
        leavers = {
            place
            for place in self._seats.waiting()
            if partition is None or (place.session is not None and place.session.partition is partition)
        }
        for place in leavers:
            if place.progress is not None:
                place.progress.thread_requests.pop(place.handler, None)
        self._seats.forget(leavers)

    def stop(self) -> None:
        """Start nothing more, and let the threads end."""
        self._stopped = True
        if self._again is not None:
            self._again.cancel()
        self.threads.stop()

    def uses(self) -> Mapping[str, ThreadUse]:
        """How every plain handler stands."""
        return self._seats.uses()

    # What seats call

    def left(self, handler: str, *, used: bool, hangs: bool) -> None:
        if not used:
            self.threads.give_back()
        if hangs:
            self._seats.hang(handler)
            if self._hang_lines.due(handler) and not self._stopped:
                _log.warning(
                    "handler thread hung", handler=handler,
                    hung=self._seats.use(handler).hung,
                )  # fmt: skip
        else:
            self._seats.leave(handler)

    def came_back(self, handler: str) -> None:
        self._seats.come_back(handler)
        self.turn()

    # Inside

    def turn(self) -> None:
        """Start as many as may start."""
        while (called := self._called()) is not None:
            self._start(*called)

    def _called(self) -> tuple[LiveSession, ThreadSlot] | None:
        """The next session that may start, and its seat. Attempts that run alone get theirs on the way."""
        if self._stopped or (self._again is not None and not self.threads.free):
            return None
        while len(self._at_work) < self._attempts_max and (called := self._seats.call()) is not None:
            handler, place = called
            if not self._ready(place):
                self._seats.leave(handler)
            elif not self.threads.reserve():
                self._seats.leave(handler)
                self._seats.wait(handler, place, first=True)
                if self._again is None:
                    self._again = self._loop.call_later(REPEAT_S, self._turn_again, context=self._context)
                return None
            elif (session := self._let_in(place, slot := ThreadSlot(self, handler))) is not None:
                return session, slot
        for handler, use in self._seats.stuck():
            if self._wait_lines.due(handler):
                _log.warning(WAITS, handler=handler, hung=use.hung, waiting=use.waiting)
        return None

    def _turn_again(self) -> None:
        self._again = None
        self.turn()

    def _ready(self, place: _ThreadRequest) -> bool:
        """Whether what has this place can start now; if not, the place is gone, or comes back by itself."""
        if place.future is not None:
            return not place.future.done()
        session, progress = place.session, place.progress
        if session is None or progress is None or session.progress is not progress:
            return False  # that event is done
        if not progress.waiting:
            place.called = True
            return False
        if session.partition.closed:
            progress.thread_requests.pop(place.handler)
            progress.stop_waiting()
            session.scheduled = False  # should it be opened again, `resume` takes it up
            return False
        return True

    def _let_in(self, place: _ThreadRequest, slot: ThreadSlot) -> LiveSession | None:
        if place.future is not None:
            place.future.set_result(slot)
            return None
        if place.progress is not None:
            place.progress.thread_requests.pop(place.handler)
            place.progress.stop_waiting()
        self._at_work.add(slot)
        return place.session
