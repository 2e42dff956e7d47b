"""Keeps which partitions of a server are to be read next, where the server tells which streams have changed. Pure.

| a partition is to be read | because |
| --- | --- |
| once its stream has changed | the server says so, once after each read (`runtime.redis.tracking`) |
| again at once | a read brought as much as was asked for, so there may be more |
| every READ_ALL_S, and at the deadline of a gap | messages may be lost, and its watermark must move on |

A partition that may not be read yet (`worker.streams.pipeline`) stays noted until it is.
"""

from collections.abc import Iterable
from typing import Final

READ_ALL_S: Final = 0.25
"""How often all partitions are read, whatever is known: the most by which a lost message delays a callback, and by
which a gap is given up late."""


class StreamNews:
    """What is known of one server's streams. Times by the caller's clock, in seconds."""

    __slots__ = ("all_at", "noted")

    def __init__(self) -> None:
        self.noted: set[int] = set()
        """The numbers of the partitions to read."""
        self.all_at = 0.0
        """When all partitions are to be noted."""

    def note_all_soon(self) -> None:
        """All are to be read: the partitions have changed, or nothing is known of them."""
        self.all_at = 0.0

    def read_all_by(self, at: float) -> None:
        """All are to be read at this time at the latest."""
        self.all_at = min(self.all_at, at)

    def note_all_if_due(self, numbers: Iterable[int], now: float) -> None:
        """If it is time to, note all partitions, which have these numbers."""
        if now >= self.all_at:
            self.noted = {*numbers}
            self.all_at = now + READ_ALL_S

    def next_read_at(self, earliest_at: float) -> float:
        """When to read, if nothing is noted meanwhile; not before `earliest_at`."""
        return earliest_at if self.noted else max(earliest_at, self.all_at)
