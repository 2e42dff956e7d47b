"""What was worked out of late, at the price of looking a key up. Pure.

A `functools.lru_cache` is called and keeps an order: it takes some 65 ns where this takes 45.
"""

from collections.abc import Callable
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class BoundedCache(dict[Key, Value]):
    """`memo[key]` is `make(key)`, made anew only if it is not there. What `make` raises is raised, and nothing kept.

    With `entries_max` entries it is full, and begins again with none: those in use are soon back.
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
