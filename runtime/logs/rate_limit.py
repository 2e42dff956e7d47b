"""Bounds how often the same event is logged: a failure in a loop repeats many times a second, for hours."""

from collections.abc import Hashable
from time import monotonic
from typing import Final

INTERVAL_S: Final = 30.0
"""Between two lines about the same failure: within that time a reader of the log sees what is wrong, and that it
lasts."""

LINES_MAX: Final = 5
"""Lines within INTERVAL_S about different things: where a server refuses everything, a few partitions are named and the
others are counted."""


class LogRateLimit:
    """Decides whether to log something that happens again and again. One for each kind of log line."""

    def __init__(self, interval_s: float = INTERVAL_S, lines_max: int = LINES_MAX) -> None:
        self._interval_s, self._lines_max = interval_s, lines_max
        self._logged_at: dict[Hashable, float] = {}
        """When each was logged, within the last interval only, so never more than `lines_max`."""
        self._suppressed = 0

    def due(self, *about: Hashable) -> bool:
        """Whether to log a line now. `about` distinguishes it from others of its kind. If not, it is counted."""
        now = monotonic()
        if about in self._logged_at or len(self._logged_at) >= self._lines_max:
            recent = now - self._interval_s
            self._logged_at = {known: at for known, at in self._logged_at.items() if at > recent}
            if about in self._logged_at or len(self._logged_at) >= self._lines_max:
                self._suppressed += 1
                return False
        self._logged_at[about] = now
        return True

    def take_suppressed(self) -> int:
        """How many lines were suppressed since the last call."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
