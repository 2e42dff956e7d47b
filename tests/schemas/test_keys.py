"""Keys: one hash tag a partition, nothing shared across namespaces and groups, routing that never moves."""

import re
from inspect import signature

import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.schemas.keys import Keys, decode_handler, encode_handler, partition_of

many = settings(max_examples=examples(200), deadline=None)
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


GIVEN = {"session_uuid": "s{3}:", "handler": "{h}: 50%", "job_id": "bado-kemi-tufa"}


def of_partition(keys, partition):
    methods = [name for name in vars(Keys) if not name.startswith("_") and callable(getattr(Keys, name))]
    methods.remove("of")  # which the others take theirs from
    methods.remove("job_rate")  # of the namespace
    for name in methods:
        given = [GIVEN[one] for one in list(signature(getattr(keys, name)).parameters)[1:]]
        yield getattr(keys, name)(partition, *given)


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


@many
@given(st.text(st.characters()))
def test_a_handler_s_name_has_no_colon_and_no_space_in_keys_and_comes_back(name):
    encoded = encode_handler(name)
    assert re.fullmatch(r"[A-Za-z0-9._~%-]*", encoded)
    assert decode_handler(encoded) == name


def test_names_of_functions_stand_in_keys_as_they_are():
    key = Keys("ns", "g").retry_queue(7, "fares.settle_fare", "a:b")
    assert key == "{ns:7}:retry:g:fares.settle_fare:a:b"
    assert encode_handler("\udc80") != encode_handler("\udc81"), "no text is refused"
