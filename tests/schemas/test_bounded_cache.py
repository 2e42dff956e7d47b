"""A cache computes each value once, keeps nothing of a failure, and never exceeds its bound."""

import pytest

from maskline.schemas.bounded_cache import BoundedCache


def test_value_is_computed_once():
    computed = []
    cache = BoundedCache(lambda key: computed.append(key) or len(key), 10)
    assert [cache["a"], cache["bb"], cache["a"], cache["bb"]] == [1, 2, 1, 2]
    assert computed == ["a", "bb"]


def test_failure_is_raised_and_not_kept():
    cache = BoundedCache(int, 10)
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            cache["x"]
    assert not cache


def test_full_cache_is_emptied_before_the_next_value():
    cache = BoundedCache(str, 3)
    assert [cache[number] for number in range(4)] == ["0", "1", "2", "3"]
    assert dict(cache) == {3: "3"}
