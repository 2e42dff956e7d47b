"""When gaps are given up: the earliest live deadline first, and no more stale ones in memory than the bound."""

from partition_kit import SETTINGS, make

from maskline.worker.ordering.state import NEW_SESSION
from maskline.worker.partitions.gap_deadlines import STALE_MAX, GapDeadlines
from maskline.worker.partitions.session import LiveSession


def sessions_of(*names):
    partition = make()
    return {name: LiveSession(name, NEW_SESSION, partition) for name in names}


def note(deadlines, session, deadline_ms):
    """As a partition does it: the session's own record first."""
    session.gap_ends_ms = deadline_ms
    if deadline_ms is not None:
        deadlines.add(deadline_ms, session.uuid)


def test_earliest_deadline_comes_first_whatever_the_order_they_were_added_in():
    sessions = sessions_of("a", "b", "c")
    deadlines = GapDeadlines(sessions, SETTINGS.policy)
    for name, deadline_ms in (("a", 30), ("b", 10), ("c", 20)):
        note(deadlines, sessions[name], deadline_ms)
    order = []
    while deadlines.next_ms is not None:
        session = deadlines.pop()
        assert session.gap_ends_ms is None
        order.append(session.uuid)
    assert order == ["b", "c", "a"]


def test_deadline_that_was_moved_counts_where_it_is_now():
    sessions = sessions_of("a", "b")
    deadlines = GapDeadlines(sessions, SETTINGS.policy)
    note(deadlines, sessions["a"], 10)
    note(deadlines, sessions["b"], 20)
    note(deadlines, sessions["a"], 30)
    assert deadlines.next_ms == 20
    assert deadlines.pop().uuid == "b"
    assert deadlines.next_ms == 30


def test_deadline_of_a_closed_gap_or_of_a_session_that_is_gone_counts_for_nothing():
    sessions = sessions_of("a", "b")
    deadlines = GapDeadlines(sessions, SETTINGS.policy)
    note(deadlines, sessions["a"], 10)
    note(deadlines, sessions["b"], 20)
    note(deadlines, sessions["a"], None)
    del sessions["b"]
    assert deadlines.next_ms is None
    assert len(deadlines) == 0


def test_stale_deadlines_are_bounded_while_gaps_open_and_close_for_hours():
    sessions = sessions_of("a", "b")
    deadlines = GapDeadlines(sessions, SETTINGS.policy)
    note(deadlines, sessions["b"], 10**9)
    most = 0
    for number in range(100_000):
        note(deadlines, sessions["a"], 10**9 + number)
        note(deadlines, sessions["a"], None)
        most = max(most, len(deadlines))
    assert most <= 2 * (1 + STALE_MAX)
    assert deadlines.next_ms == 10**9
