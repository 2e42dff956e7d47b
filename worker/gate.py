"""Which suspects run beside which: those without a strike together, one with strikes alone. No I/O.

Alone means without other suspects: of two under way when the worker goes down, both would be struck. Whoever has to
wait waits here, not in a runner. Those without a strike go first, so that they are out of danger. Sessions wait once
each, and there are never more than those with unfinished events.
"""

from collections import deque
from collections.abc import Callable

from worker.attempts import Attempt
from worker.session import LiveSession


class Gate:
    """The gate of a worker process.

    `submit(sessions)`: these need wait no longer, let runners take them. `start_alone(session)`: run it now, in an
    attempt that has `gate="alone"` and leaves in the end.
    """

    def __init__(
        self, submit: Callable[[list[LiveSession]], None], start_alone: Callable[[LiveSession], None]
    ) -> None:
        self._submit = submit
        self._start_alone = start_alone
        self._beside = 0
        self._alone = False
        self._waiting: list[LiveSession] = []
        self._waiting_alone: deque[LiveSession] = deque()

    def admit(self, session: LiveSession, strikes: int, attempt: Attempt) -> bool:
        """Whether a suspect with so many strikes may run now, until the attempt leaves; if not, its session waits."""
        if attempt.gate == "alone":
            return True
        if strikes:
            self._waiting_alone.append(session)
            self.turn()
        elif self._alone:
            self._waiting.append(session)
        else:
            self._beside += 1
            attempt.gate = "beside"
            return True
        return False

    def leave(self, attempt: Attempt) -> None:
        """The attempt has ended, or somebody goes on without it."""
        if attempt.gate == "beside":
            self._beside -= 1
        elif attempt.gate:
            self._alone = False
        attempt.gate = ""
        self.turn()

    def turn(self) -> None:
        """Let go on who may. To be called now and then: one that was let go need not come back."""
        if self._alone:
            return
        if self._waiting:
            free, self._waiting = self._waiting, []
            self._submit(free)
        elif self._waiting_alone and not self._beside:
            self._alone = True
            self._start_alone(self._waiting_alone.popleft())
