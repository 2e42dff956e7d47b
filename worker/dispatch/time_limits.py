"""Keeps the attempts under way, and cancels those over their time limit in a periodic sweep.

An attempt whose lease is gone is cancelled as well. An attempt that ignores its cancellation for CANCEL_GRACE_S is
abandoned: the dispatcher goes on without it.
"""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import is_
from typing import Any, Final

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.known_numbers import KNOWN_NUMBERS
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.events import Event
from maskline.worker.api.binding import BoundHandler
from maskline.worker.dispatch.plain_handlers import ThreadSlot
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.session import LiveSession

SWEEP_INTERVAL_S: Final = 0.05
"""How late an attempt over its time limit may be cancelled."""

CANCEL_GRACE_S: Final = 5.0
"""How long a cancelled handler may take to end, before it is abandoned."""

TIME_LIMIT: Final = "timeout"
"""The reason for a cancellation by the sweep."""

OVERDUE_EVENTS_MAX: Final = 256
"""Events remembered whose handlers ran over their limit: a thread cannot be stopped, and may log their numbers at its
end."""

SWEEP: Final = "time limits"
"""The name of the sweep among the background tasks."""

_log = get_logger("maskline.worker")


class Attempt:
    """What a task of the dispatcher is running: the sweep and a stop read it.

    `context`: the clean context that its task runs in; None if the task is for one attempt only.

    Times are by `lease_clock()`, never by the loop's clock: uvloop's stands still while callbacks run, so an owner that
    was stopped meanwhile would trust a lease that lapsed long ago.
    """

    __slots__ = (
        "_cancelling",
        "_clean_context",
        "_clean_values",
        "_context",
        "abandoned",
        "cancel_reason",
        "deadline",
        "handler",
        "now",
        "number",
        "session",
        "slot",
        "solo",
        "task",
    )

    def __init__(self, task: asyncio.Task[Any], context: contextvars.Context | None = None) -> None:
        self.task = task
        self._cancelling = task.cancelling
        self._context = context
        self._clean_context = contextvars.Context() if context is None else context.copy()
        self._clean_values = tuple(self._clean_context.values())
        self.now = 0.0
        """When the last handler ended. If nothing has to be awaited, the next one starts then."""
        self.deadline = 0.0
        """When the sweep cancels the attempt, or abandons it if it was cancelled before; 0 while no handler runs."""
        self.handler: BoundHandler | None = None
        self.number = 0
        """1 for the first attempt of the handler at the event."""
        self.session: LiveSession | None = None
        self.cancel_reason = ""
        """Why the sweep or a stop has cancelled the handler; empty if neither has."""
        self.abandoned = False
        """The handler ignores its cancellation: its result does not count any more."""
        self.solo = False
        """It runs a suspect with crashes, and no other attempt does meanwhile."""
        self.slot: ThreadSlot | None = None
        """Its thread. Unless it is solo, the attempt runs no handler but the slot's."""

    def tainted(self) -> bool:
        """Whether its task must not run another attempt: a handler has changed its context, or it was cancelled.

        Nearly always no handler has, and this costs two comparisons. A task has one context for all its life; a task
        for every attempt would add a quarter to the cost of an event.
        """
        try:
            if self._context != self._clean_context:
                return True
        except Exception:  # noqa: BLE001  a handler has set a value that cannot be compared
            return True
        # Identical, not only equal: another attempt must not share what a handler changes in place later on.
        if self._clean_values and not all(map(is_, self._context.values(), self._clean_values)):
            return True
        return self._cancelling() > 0

    def may_run(self, handler: BoundHandler) -> bool:
        """Whether the handler may run in this task."""
        if self.solo:
            return True
        return not handler.in_thread if self.slot is None else handler.name == self.slot.handler


class RunningAttempts:
    """The attempts under way.

    `on_abandon(attempt)`: called when an attempt that ignores its cancellation is abandoned. `background`: runs the
    sweep.
    """

    def __init__(self, on_abandon: Callable[[Attempt], None], background: BackgroundTasks) -> None:
        self._on_abandon = on_abandon
        self._background = background
        self._attempts: set[Attempt] = set()
        self._overdue_events: deque[Event] = deque(maxlen=OVERDUE_EVENTS_MAX)
        self.add = self._attempts.add
        self.discard = self._attempts.discard
        KNOWN_NUMBERS.watch(self)
        self._sweeper = background.every(SWEEP, SWEEP_INTERVAL_S, self._sweep)

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._attempts)

    def handler_of(self, task: asyncio.Task[Any] | None) -> str:
        """The name of the handler that a task is running; empty if it runs no attempt. Any thread may call this."""
        for attempt in list(self._attempts):
            if attempt.task is task and attempt.handler is not None:
                return attempt.handler.name
        return ""

    def events(self) -> list[Event]:
        """The events whose handlers may still be running. Any thread may call this."""
        events = list(self._overdue_events)
        for attempt in list(self._attempts):
            session = attempt.session
            with contextlib.suppress(IndexError):  # its queue is empty just now
                if session is not None:
                    events.append(session.queue[0].arrival.payload.event)
        return events

    def cancel(self, partition: Partition | None, reason: str) -> None:
        """Cancel the attempts of one partition or of all."""
        for attempt in self._attempts:
            session = attempt.session
            affected = partition is None or (session is not None and session.partition is partition)
            if affected and not attempt.cancel_reason:
                attempt.cancel_reason = reason
                attempt.deadline = lease_clock() + CANCEL_GRACE_S
                attempt.task.cancel()

    async def stop(self, tasks: Iterable[asyncio.Task[None]], grace_s: float) -> None:
        """End the sweep, and cancel the attempts' tasks. Tasks that ignore it for `grace_s` are left alone."""
        self._sweeper.cancel()
        ending = set(tasks)
        for task in ending:
            task.cancel()
        if ending:
            _, late = await asyncio.wait(ending, timeout=grace_s)
            if late:
                _log.error("handlers ignore cancellation", count=len(late))

    def _sweep(self) -> None:
        now = lease_clock()
        overdue = [attempt for attempt in self._attempts if attempt.deadline and attempt.deadline <= now]
        for attempt in overdue:
            try:
                self._end_overdue(attempt, now)
            except Exception as error:  # noqa: BLE001 - the other attempts have time limits too
                self._background.failed(SWEEP, error)

    def _end_overdue(self, attempt: Attempt, now: float) -> None:
        if attempt.session is not None and attempt.session.queue:
            self._overdue_events.append(attempt.session.queue[0].arrival.payload.event)
        if attempt.cancel_reason:
            attempt.abandoned = True
            self._attempts.discard(attempt)
            self._on_abandon(attempt)
        else:
            attempt.cancel_reason = TIME_LIMIT
            attempt.deadline = now + CANCEL_GRACE_S
            attempt.task.cancel()
