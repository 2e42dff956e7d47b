"""The map of a cluster's slots, from the reply to CLUSTER SLOTS."""

import pytest

from maskline.runtime.redis.slots import SLOTS, read_slots
from maskline.runtime.redis.url import Server

ASKED = Server("asked", 7)


def test_ranges_are_read_and_replicas_left_out():
    slots = read_slots(
        [
            [0, 8191, [b"a", 1, b"id", []], [b"c", 3, b"id", []]],
            [8192, SLOTS - 1, [b"b", 2, b"id", []]],
        ],
        ASKED,
    )
    assert slots.primaries == (Server("a", 1), Server("b", 2))
    assert slots.complete
    # 12739 and 5061 are in the cluster specification; so the tag alone counts.
    assert slots.server_of("123456789") == Server("b", 2)
    assert slots.server_of("foo{bar}zap") == slots.server_of("{bar}") == Server("a", 1)


@pytest.mark.parametrize("host", [b"", b"?", None])
def test_node_that_does_not_know_its_address_is_the_one_asked(host):
    assert read_slots([[0, SLOTS - 1, [host, 9, b"id"]]], ASKED).primaries == (Server("asked", 9),)


def test_slots_that_nobody_serves():
    slots = read_slots([[0, 100, [b"a", 1]]], ASKED)
    assert not slots.complete
    assert slots.server_of("123456789") is None


@pytest.mark.parametrize(
    "reply", [None, b"x", [[1]], [[0, 1, None]], [[0, b"x", [b"a", 1]]], [[0, 1, [b"a", b"x"]]]]
)
def test_reply_that_is_no_slot_map_raises(reply):
    with pytest.raises(ValueError, match="not a map of slots"):
        read_slots(reply, ASKED)
