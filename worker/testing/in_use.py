"""The harnesses that the running test has entered, for the order table of a failed one. Imports nothing of maskline."""

from collections import deque
from typing import Final, Protocol

HARNESSES_MAX: Final = 3
"""Harnesses of one test that are remembered, the last ones: a property test enters one for each example."""


class HasOrderTable(Protocol):
    """A harness, as the pytest plugin sees it."""

    def order_table(self) -> str:
        """What arrived, what handlers got, and what waits."""


HARNESSES: Final[deque[HasOrderTable]] = deque(maxlen=HARNESSES_MAX)
