"""Decides when finished work is committed: at once after a quiet time, at a pace under load. Pure; times in seconds.

Most of what a small commit costs the server and the worker is the same whatever it holds. Nothing waits for an ordinary
one, as the handlers have been called. So commits go together, in *flushes*:

| when | the next flush goes |
| --- | --- |
| the last one is longer ago than COMMIT_INTERVAL_S | at once |
| else | COMMIT_INTERVAL_S after the last one |
| GATHERED_MAX entries have been taken in since | at once |
| one partition has COMMIT_AHEAD of them | at once, or reading it would have to stop (`ledger.RUN_AHEAD_MAX`) |
| something waits for the commit (`EntryLedger.commit_is_urgent`, `Committer.wait_committed`) | at once |

What was handled since the last flush comes again after a crash, so the interval bounds that too.
"""

import math
from typing import Final

COMMIT_INTERVAL_S: Final = 0.025
"""Between two flushes, unless something makes one go at once. 10 to 30 ms cost Valkey and the worker about the same at
1,000 callbacks a second; from 4,000 on a longer one saves a few percent more."""

COMMIT_WINDOW_MAX_S: Final = 0.05
"""Events that were handled longer ago are committed, if Redis answers at once and the event loop runs: those of such a
time, and no more, come again after a crash. COMMIT_INTERVAL_S leaves half of it to the loop and to Redis."""

COMMIT_AHEAD: Final = 256
"""So many entries taken in by one partition are worth a commit, even if none is done: the pending list then has those
that wait."""

GATHERED_MAX: Final = 512
"""So many entries taken in, over all partitions, are committed at once: a backlog is worked off as fast as ever."""


class CommitPace:
    """When the next flush goes. `now_s`: any clock that does not go back."""

    def __init__(self, interval_s: float = COMMIT_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._last_s = -math.inf
        self._gathered = 0

    def gather(self, entries: int) -> None:
        """Count entries towards the next flush: how many more a partition has taken in since it was last counted;
        negative where a partition is lost.
        """
        self._gathered += entries

    def is_full(self, run_ahead: int) -> bool:
        """Whether the next flush goes at once. `run_ahead`: entries that one of its partitions has taken in."""
        return run_ahead >= COMMIT_AHEAD or self._gathered >= GATHERED_MAX

    def due_s(self, now_s: float) -> float:
        """When the next flush goes if nothing makes it go at once; never before `now_s`."""
        return max(now_s, self._last_s + self._interval_s)

    def flushed(self, now_s: float) -> None:
        """A flush has gone; what gathered is in it."""
        self._last_s = now_s
        self._gathered = 0
