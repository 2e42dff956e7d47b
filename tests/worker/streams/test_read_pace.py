"""Small reads keep a distance; a callback after a quiet time waits for nothing, and none for longer than it."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.streams.read_pace import READ_FULL, READ_INTERVAL_S, next_read_at

times = st.floats(0, 1e6)
gaps = st.one_of(st.floats(0, READ_INTERVAL_S), st.floats(0, 20 * READ_INTERVAL_S), st.just(0.0))


def reads_of(arrivals):
    """(sent, answered, entries brought) of each read, which waits at the server until there is an entry."""
    reads, now, at = [], 0.0, 0
    while at < len(arrivals):
        sent, now = now, max(now, arrivals[at])
        brought = sum(arrival <= now for arrival in arrivals[at:])
        at += brought
        reads.append((sent, now, brought))
        now = max(now, next_read_at(sent, brought, more=False))
    return reads


@given(st.integers(2, READ_FULL - 1))
def test_read_is_followed_the_sooner_the_more_it_brought(entries):
    distances = [next_read_at(0.0, brought, more=False) for brought in (1, entries, READ_FULL - 1)]
    assert READ_INTERVAL_S > distances[0] >= READ_INTERVAL_S * (1 - 1 / READ_FULL)
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] > 0


@given(times, st.one_of(st.just(0), st.integers(min_value=READ_FULL)))
def test_read_that_brought_nothing_or_much_is_followed_at_once(sent_at, entries):
    assert next_read_at(sent_at, entries, more=False) == sent_at


@given(times, st.integers(min_value=0))
def test_read_that_left_something_behind_is_followed_at_once(sent_at, entries):
    assert next_read_at(sent_at, entries, more=True) == sent_at


@given(st.lists(gaps, min_size=1, max_size=200))
def test_no_callback_waits_longer_than_the_interval_and_the_first_after_a_quiet_time_not_at_all(distances):
    arrivals = [sum(distances[: number + 1]) for number in range(len(distances))]
    reads = reads_of(arrivals)
    at, last = 0, -math.inf
    for _, answered, brought in reads:
        for arrival in arrivals[at : at + brought]:
            waited = answered - arrival
            assert waited <= READ_INTERVAL_S + 1e-9
            if arrival - last > 2 * READ_INTERVAL_S + 1e-9:
                assert waited == 0, "it came after a quiet time"
            last = arrival
        at += brought
    for (sent, _, brought), (later, _, _) in itertools.pairwise(reads):
        assert brought >= READ_FULL or later >= next_read_at(sent, brought, more=False)
