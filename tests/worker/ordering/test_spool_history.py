"""How long gaps and SessionTimeouts wait for spools: by what nodes have said, and by when Redis was away."""

from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.schemas.spool_notices import NOTICE_LIFE_MS, SpoolNotice
from maskline.worker.ordering.spool_history import HOLDS_MAX, NOTICE_DELAY_MS, SETTLE_MS, SpoolHistory

NOW_MS = 1_767_225_600_000
"""All times of this file are added to it."""


def history(*notices: tuple[str, int, int | None]) -> SpoolHistory:
    it = SpoolHistory()
    it.add(SpoolNotice(node, NOW_MS + at_ms, held_ms) for node, at_ms, held_ms in notices)
    return it


def gap(it: SpoolHistory, due_ms: int) -> int:
    return it.gap_waits_until_ms(NOW_MS + due_ms) - NOW_MS


def timeout(it: SpoolHistory, arrived_ms: int) -> int:
    return it.timeout_waits_until_ms(NOW_MS + arrived_ms) - NOW_MS


def test_nothing_waits_where_nobody_holds_anything() -> None:
    assert gap(history(), 7) == timeout(history(), 7) == 7
    assert history().empty


def test_a_gap_waits_until_the_node_has_drained() -> None:
    it = history(("a", 10_000, 4_000), ("a", 25_000, None))
    since = 6_000 - NOTICE_DELAY_MS
    assert [gap(it, due) for due in (since - 1, since, 10_000, 25_000, 25_001)] == [
        *(since - 1, 25_001, 25_001, 25_001, 25_001)
    ]
    assert timeout(it, since) == 25_001


def test_a_notice_that_waited_in_front_of_a_redis_that_stood_still_counts_since_it_was_sent() -> None:
    """It was sent at 0, when the first callback was spooled, and carried out two seconds later."""
    it = history(("a", 2_000, 0))
    assert gap(it, 1_000) == 2_000 + NOTICE_LIFE_MS + 1


def test_a_node_that_says_no_more_is_taken_to_be_dead() -> None:
    it = history(("a", 0, 0), ("a", 10_000, 10_000))
    assert gap(it, 1) == 10_000 + NOTICE_LIFE_MS + 1
    it.add([SpoolNotice("a", NOW_MS + 100_000, 2_000)])
    assert gap(it, 60_000) == 60_000
    assert gap(it, 98_000 - NOTICE_DELAY_MS - 1) == 98_000 - NOTICE_DELAY_MS - 1
    assert gap(it, 99_000) == 100_000 + NOTICE_LIFE_MS + 1


def test_a_restarted_node_goes_on_where_it_was_killed() -> None:
    it = history(("a", 0, 0), ("a", 8_000, 8_000), ("a", 9_000, None))
    assert gap(it, 4_000) == 9_001


def test_other_nodes_have_a_moment_to_say_what_they_hold() -> None:
    it = history(("a", 0, 500), ("a", 40, None))
    assert gap(it, -500) == gap(it, 40) == timeout(it, 0) == SETTLE_MS + 1
    assert gap(it, SETTLE_MS + 1) == SETTLE_MS + 1


def test_times_of_several_nodes_are_put_together() -> None:
    it = history(("a", 0, 0), ("b", 9_000, 1_000), ("a", 10_000, None), ("b", 20_000, None), ("c", 20_001, 0))
    assert gap(it, 0) == 20_001 + NOTICE_LIFE_MS + 1
    assert it.holders(NOW_MS + 20_001) == ["c"]


def test_a_notice_that_nothing_is_held_says_nothing_by_itself() -> None:
    assert history(("a", 0, None)).empty


def test_after_redis_was_away_nodes_have_a_moment() -> None:
    it = history()
    it.away(NOW_MS, NOW_MS + 60_000)
    assert gap(it, 0) == timeout(it, 0) == timeout(it, 60_000 + SETTLE_MS) == 60_000 + SETTLE_MS + 1
    assert gap(it, -1) == -1


def test_gaps_that_stood_when_a_worker_started_wait_a_moment_and_timeouts_do_not() -> None:
    it = history()
    it.started(NOW_MS, 5_000, 60_000)
    assert [gap(it, due) for due in (-60_001, -60_000, -1, SETTLE_MS, SETTLE_MS + 1)] == [
        *(-60_001, SETTLE_MS + 1, SETTLE_MS + 1, SETTLE_MS + 1, SETTLE_MS + 1)
    ]
    assert timeout(it, -1) == -1


def test_a_gap_that_began_after_the_start_waits_no_longer_than_its_timeout() -> None:
    it = history()
    it.started(NOW_MS, 700, 60_000)
    assert gap(it, 701) == 701


def test_what_is_over_is_kept_through_a_new_connection_and_what_is_not_is_read_again() -> None:
    it = history(("a", 0, 0), ("a", 5_000, None), ("b", 80_000, 0))
    it.last_id = "5-1"
    it.restart("another")
    assert it.last_id == "0-0"
    assert gap(it, 0) == 5_001
    assert gap(it, 80_000) == 80_000


def test_a_stream_that_runs_ahead_of_the_clock_waits_as_long() -> None:
    it = history(("a", 0, 0), ("a", 5_000, None))
    it.run_ahead(1_000_000)
    assert gap(it, 1_000_000) == gap(it, 1_005_000) == 1_005_001


def test_memory_is_bounded() -> None:
    notices = [("a", 20_000 * at, 0 if at % 2 else None) for at in range(8 * HOLDS_MAX)]
    it = history(*notices)
    assert len(it._past) == HOLDS_MAX
    assert gap(it, 20_000 * (len(notices) - 3)) > 20_000 * (len(notices) - 3)


NOTICES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 20_000),
        st.none() | st.sampled_from((0, 1, 500, 30_000)),
    ),
    max_size=12,
)


def dated(drafts: list[tuple[str, int, int | None]]) -> list[tuple[str, int, int | None]]:
    at_ms, notices = 0, []
    for node, wait_ms, held_ms in drafts:
        at_ms += wait_ms
        notices.append((node, at_ms, held_ms))
    return notices


@settings(max_examples=examples(200), deadline=None)
@given(NOTICES.map(dated), st.lists(st.integers(-40_000, 200_000), min_size=2, max_size=8))
def test_later_gaps_are_never_given_up_earlier_and_nothing_before_it_is_due(
    notices: list[tuple[str, int, int | None]], dues: list[int]
) -> None:
    it = history(*notices)
    it.away(NOW_MS + 1_000, NOW_MS + 2_000)
    it.started(NOW_MS + 40_000, 5_000, 60_000)
    for waits in (gap, timeout):
        ends = [waits(it, due) for due in sorted(dues)]
        assert ends == sorted(ends)
        assert all(end >= due for end, due in zip(ends, sorted(dues), strict=True))
        assert [waits(it, end) for end in ends] == ends


@settings(max_examples=examples(200), deadline=None)
@given(NOTICES.map(dated), st.integers(0, 12))
def test_it_makes_no_difference_in_how_many_looks_the_notices_come(
    notices: list[tuple[str, int, int | None]], cut: int
) -> None:
    whole, parts = history(*notices), history(*notices[:cut])
    gap(parts, 0)
    parts.add(SpoolNotice(node, NOW_MS + at_ms, held_ms) for node, at_ms, held_ms in notices[cut:])
    for due in range(-31_000, 300_000, 997):
        assert gap(parts, due) == gap(whole, due)
