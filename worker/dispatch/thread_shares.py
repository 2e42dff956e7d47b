"""Which plain handler has a thread next, and how many each may have. Pure: no threads here, no clock.

| bound | on |
| --- | --- |
| THREADS_MAX (worker.dispatch.threads) | attempts of plain handlers under way |
| HUNG_MAX | threads besides, whose attempts were given up and which have not ended: nobody can end them |
| HANDLER_THREADS_MAX | threads of one handler, hung ones included |

Whoever waits for one handler waits in the order of coming; the handlers take turns. A handler that has no thread finds
one free for it, as far as half of all go: those that are slow, or hang, keep no other from its own.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, Generic, NamedTuple, TypeVar

HUNG_MAX: Final = 32
"""As many again may hang, before those under way get fewer for it."""

HANDLER_THREADS_MAX: Final = 32
"""As many as may be under way, for where there is one handler only. Where all of one hang, others have as many yet."""

Who = TypeVar("Who")


class ThreadUse(NamedTuple):
    """How a handler stands."""

    under_way: int
    hung: int
    waiting: int


class ThreadShares(Generic[Who]):
    """`handlers`: the names of all plain handlers. `threads_max`: attempts under way. `Who`: what waits."""

    def __init__(self, handlers: Iterable[str], threads_max: int) -> None:
        self._uses = {handler: _ThreadCounts() for handler in handlers}
        self._threads_max = threads_max
        self._under_way = self._hung = 0
        """Of all handlers."""
        self._without = len(self._uses)
        """Handlers that have no thread."""
        self._lines: dict[str, deque[Who]] = {}
        """By handler, those whose turn is next first; of handlers that are waited for, and no others."""

    def wait(self, handler: str, who: Who, *, first: bool = False) -> None:
        """Wait behind all others who wait for the handler, or before them."""
        line = self._lines.setdefault(handler, deque())
        if first:
            line.appendleft(who)
        else:
            line.append(who)

    def call(self) -> tuple[str, Who] | None:
        """The next one, for whom there is a seat; it is taken."""
        for handler, line in self._lines.items():
            if self.may_start(handler):
                who = line.popleft()
                del self._lines[handler]
                if line:
                    self._lines[handler] = line
                self._count(handler, 1, 0)
                return handler, who
        return None

    def leave(self, handler: str) -> None:
        """A seat is free again."""
        self._count(handler, -1, 0)

    def hang(self, handler: str) -> None:
        """An attempt was given up, and its thread goes on."""
        self._count(handler, -1, 1)

    def come_back(self, handler: str) -> None:
        """Such a thread has ended after all."""
        self._count(handler, 0, -1)

    def forget(self, leavers: set[Who]) -> None:
        """These wait no more."""
        for handler, line in list(self._lines.items()):
            if staying := deque(who for who in line if who not in leavers):
                self._lines[handler] = staying
            else:
                del self._lines[handler]

    def waiting(self) -> list[Who]:
        return [who for line in self._lines.values() for who in line]

    def may_start(self, handler: str) -> bool:
        """Whether the handler may have one more thread."""
        under_way_left = self._threads_max - self._under_way
        left = min(under_way_left, under_way_left + HUNG_MAX - self._hung)
        use = self._uses[handler]
        mine = use.under_way + use.hung
        if not mine:
            return left > 0
        return mine < HANDLER_THREADS_MAX and left > min(self._without, self._threads_max // 2)

    def stuck(self) -> list[tuple[str, ThreadUse]]:
        """Those waited for that may have no more threads, and have some that hang."""
        if not self._hung:
            return []
        return [
            (handler, self.use(handler))
            for handler in self._lines
            if self._uses[handler].hung and not self.may_start(handler)
        ]

    def use(self, handler: str) -> ThreadUse:
        """How a handler stands."""
        use = self._uses[handler]
        return ThreadUse(use.under_way, use.hung, len(self._lines.get(handler, ())))

    def uses(self) -> dict[str, ThreadUse]:
        """How every handler stands."""
        return {handler: self.use(handler) for handler in self._uses}

    def _count(self, handler: str, under_way: int, hung: int) -> None:
        use = self._uses[handler]
        self._without -= use.under_way + use.hung == 0
        use.under_way += under_way
        use.hung += hung
        self._without += use.under_way + use.hung == 0
        self._under_way += under_way
        self._hung += hung


class _ThreadCounts:
    __slots__ = ("hung", "under_way")

    def __init__(self) -> None:
        self.under_way = self.hung = 0
