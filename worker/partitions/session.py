"""A session in a worker's memory: its order, its released events, and the progress of their handlers."""

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from maskline.worker.entries.dead_letter import DeadLetter
from maskline.worker.ordering.reorder import NONE_WAITING, Release, SessionOrder
from maskline.worker.ordering.state import SessionState

if TYPE_CHECKING:
    from maskline.worker.partitions.partition import Partition
    from maskline.worker.partitions.retry_queue import SessionRetries


class SetAside(NamedTuple):
    """The outcome of an event for one handler: it waits in the handler's retry queue."""

    attempts: int
    """Attempts that failed and count."""
    first_failed_ms: int | None
    """When the first of them failed: milliseconds since the epoch."""
    delay_ms: int
    """When to try it again."""
    why: str | None = None
    """What the last attempt failed on, one line; None if none did."""


class GivenUp(NamedTuple):
    """The outcome of an event for one handler: a dead letter."""

    letter: DeadLetter
    parks: bool
    """The handler's later events of the session wait until an operator replays or discards the letter."""


Outcome = SetAside | GivenUp
"""What an event came to for a handler that has not handled it."""


class Progress:
    """The progress of the handlers of a session's first event, once one has failed or waits for a thread."""

    __slots__ = (
        "_due",
        "attempts",
        "done",
        "first_failed_ms",
        "only",
        "outcomes",
        "retry_timer",
        "thread_requests",
        "waiting",
    )

    def __init__(self, only: str | None = None) -> None:
        self.attempts: dict[str, int] = {}
        """Failed attempts by handler."""
        self.first_failed_ms: dict[str, int] = {}
        """When the first of them failed, by handler: milliseconds since the epoch."""
        self.done: set[str] = set()
        """Handlers that need not run again now: they succeeded, or have an outcome."""
        self.outcomes: dict[str, Outcome] = {}
        """By handler, of those that have not handled the event. They are written by the commit that finishes the
        event: written before, they would be written again if the event came again."""
        self.only = only
        """The one handler that the event is run for; None for all."""
        self._due: dict[str, float] = {}
        self.thread_requests: dict[str, Any] = {}
        """By handler, the session's requests for threads; see `worker.dispatch.plain_handlers`."""
        self.waiting = False
        """No runner has the session: the first free thread takes it."""
        self.retry_timer: asyncio.TimerHandle | None = None
        """Submits the session for a retry, if no thread is free before."""

    @property
    def begun(self) -> bool:
        """A handler has ended, or failed: the next owner must not begin anew."""
        return bool(self.done or self.attempts)

    def is_over(self, handler: str) -> bool:
        """Whether the handler need not run: it is done with the event, or the event is not run for it."""
        return handler in self.done or (self.only is not None and self.only != handler)

    def wait(self, retry_timer: asyncio.TimerHandle | None) -> None:
        """Let the session, which has left its runner, wait for a thread; `retry_timer` may end that sooner."""
        self.waiting, self.retry_timer = True, retry_timer

    def stop_waiting(self) -> None:
        """Stop the timer and the wait for threads, as the session goes to a runner or its partition is closed."""
        self.waiting = False
        if self.retry_timer is not None:
            self.retry_timer.cancel()
            self.retry_timer = None

    def failed(self, handler: str, attempt: int, due: float) -> None:
        """Record that attempt number `attempt` of a handler (1, 2, …) failed; the next is due at `due`, by
        `lease_clock()`.
        """
        self.attempts[handler] = attempt
        self._due[handler] = due

    def end(self, handler: str, outcome: Outcome) -> None:
        """Record the outcome of the event for a handler that has not handled it."""
        self.outcomes[handler] = outcome
        self.done.add(handler)

    def wait_ms(self, handler: str, now: float) -> float:
        """In how many ms the handler's next attempt is due; 0 or less if it is due now. `now`: by `lease_clock()`."""
        return (self._due.get(handler, now) - now) * 1000


NO_RELEASES: Final = cast("list[Release]", ())
"""The empty queue that nearly all sessions share: a list of its own would take a hundred bytes."""


class LiveSession(SessionOrder):
    """A session in memory: its order, and the releases that wait for their handlers, the oldest first."""

    __slots__ = (
        "gap_ends_ms",
        "partition",
        "progress",
        "queue",
        "retries",
        "scheduled",
        "touched_ms",
        "uuid",
    )

    def __init__(self, uuid: str, state: SessionState, partition: "Partition") -> None:
        # Without `super().__init__`: with short sessions, one is made for each event.
        self.state = state
        self.waiting = NONE_WAITING
        self.uuid = uuid
        self.partition = partition
        self.queue = (
            NO_RELEASES  # a list, as it has one or two items nearly always: a deque is ten times as large
        )
        self.progress: Progress | None = None
        self.retries: SessionRetries | None = None
        """The session's retry queues; None if it has none."""
        self.scheduled = False
        """Ready to run, running, or waiting for a retry: the dispatcher will process its queue again."""
        self.gap_ends_ms: int | None = None
        """When the gap before its waiting arrivals is given up, by the stream's time in ms; None while nothing
        waits."""
        self.touched_ms = 0
        """The stream's time of its last entry."""

    @property
    def idle(self) -> bool:
        """Nothing is queued or waits: the session may be dropped from memory, and its state read back later."""
        return (
            not self.queue
            and not self.scheduled
            and not self.waiting
            and (self.retries is None or not self.retries.running)
        )
