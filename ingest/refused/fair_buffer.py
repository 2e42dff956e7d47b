"""A bounded buffer that is shared fairly among addresses: a flood from one does not push out another's. Pure.

| the buffer | the address has | then |
| --- | --- | --- |
| has room | | the item is added |
| is full | its share: the bound divided by the addresses that have items | the item is refused; that costs a lookup |
| is full | less than that | the newest items of an address that has more than its share make room |

Items are taken in turns, one from each address, the oldest first. So what one address sends beyond its share waits, or
is refused, while the items of all others go through. An address without items is forgotten: there are never more
addresses than items, and each item counts ITEM_OVERHEAD_BYTES at least.
"""

from collections import deque
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

ITEM_OVERHEAD_BYTES: Final = 512
"""Counted for each item beside its size: what Python's objects take."""


class _Queue(Generic[Item]):
    """The items of one address, each with its size, the oldest first."""

    __slots__ = ("items", "size_bytes")

    def __init__(self) -> None:
        self.items: deque[tuple[Item, int]] = deque()
        self.size_bytes = 0


class FairBuffer(Generic[Item]):
    """Items by address, `max_bytes` at most with their overhead."""

    __slots__ = ("_max_bytes", "_over_share", "_queues", "pushed_out", "size_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._queues: dict[str, _Queue[Item]] = {}
        """By address, in the order in which they are taken from."""
        self._over_share = ""
        """The address that made room last: most likely it has more than its share still."""
        self.size_bytes = 0
        self.pushed_out = 0
        """How many items made room for others so far."""

    def __len__(self) -> int:
        return sum(len(queue.items) for queue in self._queues.values())

    def make_room(self, address: str, size_bytes: int) -> bool:
        """Make room for an item of this address, whose size is as in `add`. Returns whether it may be added."""
        counted = size_bytes + ITEM_OVERHEAD_BYTES
        if self.size_bytes + counted <= self._max_bytes:
            return True
        own = self._queues.get(address)
        share = self._max_bytes // (len(self._queues) + (own is None))
        if (own.size_bytes if own is not None else 0) + counted > share:
            return False
        while self.size_bytes + counted > self._max_bytes:
            self._push_out_newest(share)
        return True

    def add(self, address: str, item: Item, size_bytes: int) -> None:
        """Add an item that `make_room` has admitted; `size_bytes` is its own size."""
        queue = self._queues.get(address)
        if queue is None:
            queue = self._queues[address] = _Queue()
        counted = size_bytes + ITEM_OVERHEAD_BYTES
        queue.items.append((item, counted))
        queue.size_bytes += counted
        self.size_bytes += counted

    def take(self, max_bytes: int) -> list[tuple[str, Item]]:
        """Take items with their addresses, `max_bytes` of them at most, but at least one if there is any."""
        taken: list[tuple[str, Item]] = []
        left_bytes = max_bytes
        while self._queues:
            address, queue = next(iter(self._queues.items()))
            item, counted = queue.items[0]
            if taken and counted > left_bytes:
                break
            queue.items.popleft()
            self._forget(address, queue, counted)
            if queue.items:
                self._queues[address] = self._queues.pop(address)  # its next turn is after all others
            taken.append((address, item))
            left_bytes -= counted
        return taken

    def _push_out_newest(self, share: int) -> None:
        """Drop the newest item of an address that has more than its share.

        There is one: the buffer is full, and the address that needs room has less than its share.
        """
        queue = self._queues.get(self._over_share)
        if queue is None or queue.size_bytes <= share:
            self._over_share = max(self._queues, key=lambda address: self._queues[address].size_bytes)
            queue = self._queues[self._over_share]
        _, counted = queue.items.pop()
        self._forget(self._over_share, queue, counted)
        self.pushed_out += 1

    def _forget(self, address: str, queue: _Queue[Item], counted: int) -> None:
        queue.size_bytes -= counted
        self.size_bytes -= counted
        if not queue.items:
            del self._queues[address]
