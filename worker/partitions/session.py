"""A session in a worker's memory: its order, its released events, and the progress of their handlers."""

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from maskline.worker.ordering.reorder import NONE_WAITING, Release, SessionOrder
from maskline.worker.ordering.state import SessionState

if TYPE_CHECKING:
    from maskline.worker.partitions.partition import Partition


class Progress:
    """The progress of the handlers of a session's first event, once one has failed or waits for a thread."""

    __slots__ = ("_due", "attempts", "done", "first_failed_ms", "retry_timer", "thread_requests", "waiting")

    def __init__(self) -> None:
        self.attempts: dict[str, int] = {}
        """Failed attempts by handler."""
        self.first_failed_ms: dict[str, int] = {}
        """When a handler's first attempt failed: milliseconds since the epoch."""
        self.done: set[str] = set()
        """Handlers that need not run again: they succeeded, or their dead letter is written."""
        self._due: dict[str, float] = {}
        self.thread_requests: dict[str, Any] = {}
        """By handler, the session's requests for threads; see `worker.dispatch.plain_handlers`."""
        self.waiting = False
        """No runner has the session: the first free thread takes it."""
        self.retry_timer: asyncio.TimerHandle | None = None
        """Submits the session for a retry, if no thread is free before."""

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
        self.scheduled = False
        """Ready to run, running, or waiting for a retry: the dispatcher will process its queue again."""
        self.gap_ends_ms: int | None = None
        """When the gap before its waiting arrivals is given up, by the stream's time in ms; None while nothing
        waits."""
        self.touched_ms = 0
        """The stream's time of its last entry."""
        self.retries: Any = None
        """The session's retry queues; None if it has none."""

    @property
    def idle(self) -> bool:
        """Nothing is queued or waits: the session may be dropped from memory, and its state read back later."""
        return not self.queue and not self.scheduled and not self.waiting
