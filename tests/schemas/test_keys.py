"""Keys: one hash tag a partition, nothing shared across namespaces and groups, routing that never moves."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.schemas.keys import Keys, partition_of

many = settings(max_examples=200, deadline=None)
NAME = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)


@many
@given(st.text(max_size=128), st.integers(1, 16384))
def test_partition_is_in_range_and_stable(session_uuid, partitions):
    partition = partition_of(session_uuid, partitions)
    assert 0 <= partition < partitions
    assert partition == partition_of(session_uuid, partitions)


@pytest.mark.parametrize(("session_uuid", "partition"), [("s-1", 14), ("", 0), ("é", 62)])
def test_partition_is_the_same_in_every_release(session_uuid, partition):
    assert partition_of(session_uuid, 64) == partition


def test_partitions_fill_evenly():
    counts = [0] * 64
    for number in range(6400):
        counts[partition_of(f"0d6ab5e2-8a3c-4f0a-9b1e-{number:012d}", 64)] += 1
    assert 60 < min(counts) <= max(counts) < 140


def of_partition(keys, partition):
    methods = [name for name in vars(Keys) if not name.startswith("_") and callable(getattr(Keys, name))]
    methods.remove("of")  # which the others take theirs from
    for name in methods:
        if name == "sessions":
            yield from getattr(keys, name)(partition, ["s1", "s2"])
        elif name == "session":
            yield getattr(keys, name)(partition, "s3")
        else:
            yield getattr(keys, name)(partition)


@many
@given(NAME, NAME, st.integers(0, 16383))
def test_all_keys_of_a_partition_share_its_hash_tag(namespace, group, partition):
    keys = list(of_partition(Keys(namespace, group), partition))
    assert len(keys) >= 6
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert re.match(r"\{([^}]+)\}", key)[1] == f"{namespace}:{partition}"


def test_groups_share_streams_and_nothing_else():
    one, two = Keys("a", "g1"), Keys("a", "g2")
    assert one.callbacks(1) == two.callbacks(1)
    assert one.dead(1) == two.dead(1)
    assert one.lease(1) != two.lease(1)
    assert one.session(1, "s") != two.session(1, "s")
    assert one.workers != two.workers
    assert not set(of_partition(one, 1)) & set(of_partition(one, 11))
    assert not set(of_partition(one, 1)) & set(of_partition(Keys("b", "g1"), 1))
    assert one.layout != Keys("b").layout
