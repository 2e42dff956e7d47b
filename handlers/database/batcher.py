"""Decides which rows make up the next batch. Pure.

Group commit: a batch takes whatever has gathered while the last one was under way, the oldest rows first, up to a
number of rows and of bytes. So a single row is written at once, and under load an fsync serves hundreds. Beside a batch
that is under way another one begins only with many rows: two that take turns with a few each would be slower than one.
"""

from collections import deque
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class BatchLimits(NamedTuple):
    """The bounds of one batch. A row that is larger than `max_bytes` makes a batch of its own."""

    rows_max: int
    max_bytes: int
    beside_rows_min: int = 1
    """How many rows must wait for a batch to begin beside another one."""


class Batcher(Generic[Item]):
    """The rows that wait, in their order."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._waiting: deque[tuple[Item, int]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Item, size_bytes: int) -> None:
        """Add a row behind those that wait."""
        self._waiting.append((item, size_bytes))

    def may_begin(self, under_way: int) -> bool:
        """Whether a batch may begin while so many are under way."""
        return len(self._waiting) >= (self._limits.beside_rows_min if under_way else 1)

    def take(self) -> list[Item]:
        """Take the next batch: at least one row if any waits, and never more than the limits allow."""
        waiting, (rows_max, left_bytes, _) = self._waiting, self._limits
        batch: list[Item] = []
        while waiting and len(batch) < rows_max:
            left_bytes -= waiting[0][1]
            if left_bytes < 0 and batch:
                break
            batch.append(waiting.popleft()[0])
        return batch
