"""Decides when finished work is committed, and of which partitions. Pure; times in seconds.

Most of what a small commit costs the server and the worker is the same whatever it holds. Nothing waits for an ordinary
one, as the handlers have been called. So a partition's finished work gathers, and the commits of several partitions go
together, in a *flush*:

| when | the next flush goes | and takes |
| --- | --- | --- |
| nothing has waited or gone for COMMIT_WAIT_MAX_S: a quiet time | at once | all partitions |
| GATHERED_MAX entries have been taken in | at once | all partitions |
| something waits for a commit (`EntryLedger.commit_is_urgent`, `Committer.wait_committed`) | at once | its partition |
| a partition has taken in COMMIT_AHEAD entries: at `ledger.RUN_AHEAD_MAX` its reads would stop | at once | it |
| else | when a partition has waited for COMMIT_WAIT_MAX_S | those that have waited for COMMIT_WAIT_MIN_S |

Each flush takes along those that have waited for COMMIT_WAIT_MIN_S. Unless it takes all, it leaves those that have
entries under way (`EntryLedger.whole`), for COMMIT_GRACE_S at most: most are done within milliseconds, and what is
under way goes into the group's pending list with a commit, and out again with the next.

What was handled and is not committed comes again after a crash, so the longest wait bounds that too.
"""

import math
from collections.abc import Callable
from typing import Final, Generic, TypeVar

COMMIT_WAIT_MAX_S: Final = 0.035
"""The longest that a partition's finished work waits for its flush."""

COMMIT_WAIT_MIN_S: Final = 0.025
"""A partition that has waited for less is left for a later flush, unless that is to take all: its commit would be
smaller, and there would be more of them."""

COMMIT_GRACE_S: Final = 0.005
"""How much longer a partition waits that has entries under way."""

COMMIT_RETRY_S: Final = COMMIT_GRACE_S / 2
"""How long after a flush the next one goes, where it had to leave some that were due: with handlers that take long,
flushes find entries under way all the time."""

COMMIT_WINDOW_MAX_S: Final = 0.05
"""Events that were handled longer ago are committed, if Redis answers at once and the event loop runs: those of such a
time, and no more, come again after a crash. COMMIT_WAIT_MAX_S and COMMIT_GRACE_S leave the rest of it to the loop and
to Redis."""

COMMIT_AHEAD: Final = 256
"""So many entries taken in by one partition are worth a commit, even if none is done: the pending list then has those
that wait."""

GATHERED_MAX: Final = 1024
"""So many entries taken in, over all partitions, are committed at once: a backlog is worked off as fast as ever."""

P = TypeVar("P")
"""A partition: anything that a dict can have as a key."""


class _Waiting:
    """A partition that the flushes have not taken yet."""

    __slots__ = ("entries", "since_s")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        """-inf if it is urgent."""
        self.entries = 0


class CommitPace(Generic[P]):
    """The partitions with finished work, and when the next flush goes. `now_s`: any clock that does not go back."""

    def __init__(self, wait_max_s: float = COMMIT_WAIT_MAX_S, wait_min_s: float = COMMIT_WAIT_MIN_S) -> None:
        self._wait_max_s = wait_max_s
        self._wait_min_s = wait_min_s
        self._waiting: dict[P, _Waiting] = {}
        """Those that are not urgent stand in the order of their `since_s`."""
        self._gathered = 0
        self._flushed_s = -math.inf
        self._earliest_s = -math.inf
        """When those may be taken that the last flush has left though they were due."""
        self._at_once = False
        self._takes_all = False

    def add(self, partition: P, entries: int, now_s: float, *, urgent: bool = False) -> bool:
        """Have a flush take a partition with finished work. `entries`: how many it has taken in since its last commit.

        Returns whether `due_s` may be earlier than before.
        """
        waiting = self._waiting.get(partition)
        earlier = False
        if waiting is None:
            if not self._waiting:
                earlier = True
                self._takes_all = now_s - self._flushed_s >= self._wait_max_s
            waiting = self._waiting[partition] = _Waiting(now_s)
        self._gathered += entries - waiting.entries
        waiting.entries = entries
        if urgent or entries >= COMMIT_AHEAD:
            waiting.since_s = -math.inf
            earlier = self._at_once = True
        if self._gathered >= GATHERED_MAX:
            earlier = self._takes_all = True
        return earlier

    def remove(self, partition: P) -> None:
        """Have no flush take a partition, which may be lost."""
        waiting = self._waiting.pop(partition, None)
        if waiting is not None:
            self._gathered -= waiting.entries

    def due_s(self, now_s: float) -> float:
        """When the next flush goes: `now_s` if at once, infinite if no partition waits."""
        if not self._waiting:
            return math.inf
        if self._at_once or self._takes_all:
            return now_s
        oldest = next(iter(self._waiting.values()))
        return max(now_s, oldest.since_s + self._wait_max_s, self._earliest_s)

    def take(self, now_s: float, is_whole: Callable[[P], bool]) -> list[P]:
        """The partitions of the flush that goes now. `is_whole`: of a partition, that it has no entries under way."""
        waited_s = now_s - self._wait_min_s
        waited_long_s = now_s - self._wait_max_s - COMMIT_GRACE_S
        taken = [
            partition
            for partition, waiting in self._waiting.items()
            if self._takes_all
            or waiting.since_s <= waited_long_s
            or (waiting.since_s <= waited_s and is_whole(partition))
        ]
        for partition in taken:
            self.remove(partition)
        self._at_once = self._takes_all = False
        self._flushed_s = now_s
        self._earliest_s = now_s + COMMIT_RETRY_S
        return taken
