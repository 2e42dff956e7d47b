"""A bounded cache of computed values, for hot paths. Pure.

A hit is a lookup in a dict, some 45 ns. `functools.lru_cache` is a call and keeps an order, which takes some 65.
"""

from collections.abc import Callable
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class BoundedCache(dict[Key, Value]):
    """`cache[key]` is `make(key)`, computed if it is not there yet. Raises what `make` raises, and then keeps nothing.

    At `entries_max` entries the cache is emptied: those in use are soon back.
    """

    __slots__ = ("_entries_max", "_make")

    def __init__(self, make: Callable[[Key], Value], entries_max: int) -> None:
        super().__init__()
        self._make = make
        self._entries_max = entries_max

    def __missing__(self, key: Key) -> Value:
        value = self._make(key)
        if len(self) >= self._entries_max:
            self.clear()
        self[key] = value
        return value
