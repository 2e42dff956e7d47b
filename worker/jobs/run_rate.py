"""A worker's share of a job's rate: asks Redis for some runs at a time, since all workers take from one bucket. Pure.

`worker/commands/lua/take_runs.lua` is the bucket. A worker asks for what it needs next, or for what ASK_INTERVAL_S
brings if that is more, so that a fast job asks ten times a second and no more.
"""

from math import ceil
from typing import Final

ASK_INTERVAL_S: Final = 0.1
"""Between two questions of a worker about one job."""

MICROSECONDS: Final = 1_000_000


class RunRate:
    """The runs of one job that this worker may begin. `rate`: runs in a second, of all workers; 0 for no bound.

    Times are seconds of one clock that never falls.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = 0
        self._ask_at = 0.0

    @property
    def microseconds_each(self) -> float:
        """How long each run takes up of the bucket; 0 where there is no bound."""
        return MICROSECONDS / self._rate if self._rate else 0.0

    def take(self, runs: int) -> bool:
        """Take so many runs out of what was granted. Returns False, and takes nothing, if that is too little."""
        if not self._rate:
            return True
        if runs > self._left:
            return False
        self._left -= runs
        return True

    def wait_s(self, now: float) -> float:
        """In how many seconds Redis may be asked; 0 for at once."""
        return max(self._ask_at - now, 0.0)

    def asks_for(self, runs: int, now: float) -> int:
        """How many runs to ask Redis for, so that `runs` may begin."""
        self._ask_at = now + ASK_INTERVAL_S
        return max(runs - self._left, ceil(self._rate * ASK_INTERVAL_S))

    def granted(self, runs: int) -> None:
        """Redis has granted them."""
        self._left += runs

    def refused(self, wait_us: int, now: float) -> None:
        """Redis grants none before so many microseconds are over."""
        self._ask_at = max(self._ask_at, now + wait_us / MICROSECONDS)
