"""Counts of spooled callbacks: by session, roughly, and by partition, exactly."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from maskline.ingest.spool.counts import SESSION_BUCKETS, SpoolCounts

HASHES = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 20), max_size=30)


@given(st.sampled_from((1, 7, 64, 100)), HASHES, st.data())
def test_they_count_what_is_there(partitions, hashes, data):
    counts, there = SpoolCounts(partitions), Counter()
    for partition_hash in hashes:
        first = not any(one % partitions == partition_hash % partitions for one in there.elements())
        assert counts.add(partition_hash) == first
        there[partition_hash] += 1
    for partition_hash in data.draw(st.permutations(hashes))[: len(hashes) // 2]:
        counts.remove(partition_hash)
        there[partition_hash] -= 1
    left = [*there.elements()]
    assert counts.held_partitions() == sorted({one % partitions for one in left})
    assert sum(counts.partitions) == sum(counts.buckets) == len(left)
    assert all(counts.holds_session(one) for one in left)


def test_what_was_counted_anew_meanwhile_does_not_go_below_nothing():
    counts = SpoolCounts(4)
    counts.remove(3)
    assert not counts.held_partitions()
    assert not counts.holds_session(3)


def test_sessions_that_share_a_bucket_look_alike():
    counts = SpoolCounts(64)
    counts.add(5)
    assert counts.holds_session(5 + SESSION_BUCKETS)
    assert not counts.holds_session(6)


@given(HASHES, HASHES)
def test_the_sum_is_that_of_both(one, other):
    first, second, both = SpoolCounts(12), SpoolCounts(12), SpoolCounts(12)
    for partition_hash in one:
        first.add(partition_hash)
    for partition_hash in other:
        second.add(partition_hash)
    for partition_hash in (*one, *other):
        both.add(partition_hash)
    total = first.plus(second)
    assert (total.buckets, total.partitions) == (both.buckets, both.partitions)
