"""Which suspects run beside which: one with strikes alone among its like, all others as they come. No I/O.

Of two with strikes that are under way when the worker goes down both would be struck again; one without a strike gets
its first, and is kept apart from then on. Whoever has to wait waits here, not in a runner. Sessions wait once each, and
there are never more than those with unfinished events.
"""

from collections import deque
from collections.abc import Callable

from maskline.worker.dispatch.deadlines import Attempt
from maskline.worker.partitions.session import LiveSession


class Gate:
    """The gate of a worker process.

    `start_alone(session)`: run it now, in an attempt that has `alone` set and leaves in the end.
    """

    def __init__(self, start_alone: Callable[[LiveSession], None]) -> None:
        self._start_alone = start_alone
        self._taken = False
        self._waiting: deque[LiveSession] = deque()

    def admit(self, session: LiveSession, attempt: Attempt) -> bool:
        """Whether a suspect with strikes may run now, until the attempt leaves; if not, its session waits."""
        if attempt.alone:
            return True
        self._waiting.append(session)
        self._turn()
        return False

    def leave(self, attempt: Attempt) -> None:
        """The attempt has ended, or somebody goes on without it."""
        if attempt.alone:
            attempt.alone = False
            self._taken = False
            self._turn()

    def _turn(self) -> None:
        if self._waiting and not self._taken:
            self._taken = True
            self._start_alone(self._waiting.popleft())
