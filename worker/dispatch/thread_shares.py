"""Decides which plain handler gets a thread next, and how many each may have. Pure: no threads here, no clock.

| bound | on |
| --- | --- |
| THREADS_MAX (worker.dispatch.threads) | attempts of plain handlers under way |
| HUNG_MAX | hung threads besides: their attempts were abandoned, and a thread cannot be stopped |
| HANDLER_THREADS_MAX | threads of one handler, hung ones included |

Requests for one handler are served in their order; the handlers take turns. For each handler without a thread one is
kept free, up to half of all threads: so a handler that is slow, or hangs, does not starve the others.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, Generic, NamedTuple, TypeVar

HUNG_MAX: Final = 32
"""Hung threads beyond this number reduce the attempts under way."""

HANDLER_THREADS_MAX: Final = 32
"""As many as THREADS_MAX, since there may be one handler only. If all of one handler's hang, the others still have as
many."""

Request = TypeVar("Request")


class ThreadUse(NamedTuple):
    """How many threads a handler has, and how many requests wait for one."""

    under_way: int
    hung: int
    waiting: int


class ThreadShares(Generic[Request]):
    """Counts the threads of all plain handlers, and queues the requests for more.

    `handlers`: the names of all plain handlers. `threads_max`: attempts under way.
    """

    def __init__(self, handlers: Iterable[str], threads_max: int) -> None:
        self._counts = {handler: _ThreadCounts() for handler in handlers}
        self._threads_max = threads_max
        self._under_way = self._hung = 0
        """Of all handlers."""
        self._without = len(self._counts)
        """How many handlers have no thread."""
        self._queues: dict[str, deque[Request]] = {}
        """By handler, in the order of their turns; only handlers with requests."""

    def enqueue(self, handler: str, request: Request, *, first: bool = False) -> None:
        """Queue a request behind all others for the handler, or with `first` before them."""
        queue = self._queues.setdefault(handler, deque())
        if first:
            queue.appendleft(request)
        else:
            queue.append(request)

    def take(self) -> tuple[str, Request] | None:
        """Take the next request that may have a thread, and count that as under way. Returns handler and request."""
        for handler, queue in self._queues.items():
            if self.may_start(handler):
                request = queue.popleft()
                del self._queues[handler]
                if queue:
                    self._queues[handler] = queue
                self._count(handler, 1, 0)
                return handler, request
        return None

    def give_back(self, handler: str) -> None:
        """Count a thread under way as free again."""
        self._count(handler, -1, 0)

    def hang(self, handler: str) -> None:
        """Count a thread under way as hung: its attempt was abandoned."""
        self._count(handler, -1, 1)

    def hung_ended(self, handler: str) -> None:
        """Count a hung thread as ended after all."""
        self._count(handler, 0, -1)

    def discard(self, requests: set[Request]) -> None:
        """Drop these requests."""
        for handler, queue in list(self._queues.items()):
            if staying := deque(request for request in queue if request not in requests):
                self._queues[handler] = staying
            else:
                del self._queues[handler]

    def waiting(self) -> list[Request]:
        """All requests that wait."""
        return [request for queue in self._queues.values() for request in queue]

    def may_start(self, handler: str) -> bool:
        """Whether the handler may have one more thread."""
        under_way_left = self._threads_max - self._under_way
        left = min(under_way_left, under_way_left + HUNG_MAX - self._hung)
        counts = self._counts[handler]
        own = counts.under_way + counts.hung
        if not own:
            return left > 0
        return own < HANDLER_THREADS_MAX and left > min(self._without, self._threads_max // 2)

    def starved(self) -> list[tuple[str, ThreadUse]]:
        """The handlers with requests that may have no more threads, and have some that hang."""
        if not self._hung:
            return []
        return [
            (handler, self.use(handler))
            for handler in self._queues
            if self._counts[handler].hung and not self.may_start(handler)
        ]

    def use(self, handler: str) -> ThreadUse:
        """The threads and requests of a handler."""
        counts = self._counts[handler]
        return ThreadUse(counts.under_way, counts.hung, len(self._queues.get(handler, ())))

    def uses(self) -> dict[str, ThreadUse]:
        """The threads and requests of every handler."""
        return {handler: self.use(handler) for handler in self._counts}

    def _count(self, handler: str, under_way: int, hung: int) -> None:
        counts = self._counts[handler]
        self._without -= counts.under_way + counts.hung == 0
        counts.under_way += under_way
        counts.hung += hung
        self._without += counts.under_way + counts.hung == 0
        self._under_way += under_way
        self._hung += hung


class _ThreadCounts:
    __slots__ = ("hung", "under_way")

    def __init__(self) -> None:
        self.under_way = self.hung = 0
