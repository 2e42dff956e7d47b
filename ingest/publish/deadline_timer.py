"""One timer for the deadlines of all batches of a publisher.

A timer for each batch would be made and cancelled for each, and almost none ever fires. This one fires once a deadline
and finds, as a rule, that the batch was answered long ago.
"""

import asyncio
from collections.abc import Callable
from math import inf


class DeadlineTimer:
    """Calls `check` when the first deadline that it was told of has come.

    `check`: returns when it is to be called again, by the loop's clock; infinite if there is no deadline left.
    """

    __slots__ = ("_at", "_check", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, check: Callable[[], float]) -> None:
        self._loop = loop
        self._check = check
        self._timer: asyncio.TimerHandle | None = None
        self._at = inf

    def watch(self, deadline: float) -> None:
        """Have `check` called at `deadline`, by the loop's clock, or earlier. Infinite: there is none."""
        if deadline >= self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = deadline
        self._timer = self._loop.call_at(deadline, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._at = inf
        self.watch(self._check())
