"""Each row of the decision table as an example to read; the properties are in test_reorder_model.py."""

import sys
from hashlib import blake2b

import pytest

from maskline.worker.ordering.decision import AHEAD_MAX
from maskline.worker.ordering.reorder import (
    MISSING_MAX,
    Arrival,
    Duplicate,
    Policy,
    Release,
    SessionOrder,
)
from maskline.worker.ordering.state import (
    NEW_SESSION,
    RELEASED_REMEMBERED,
    LaneState,
    SessionState,
    decode_state,
    encode_state,
)

POLICY = Policy(gap_timeout_ms=5_000, first_sequence=1, held_max=256)


def fingerprint(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def event(
    number: int | None,
    at: int | None = None,
    *,
    ms: int = 0,
    name: str = "",
    recording: bool = False,
    ends_session: bool = False,
    may_open: bool = True,
) -> Arrival:
    """A callback, stamped `at` microseconds, that came at `ms`. Same arguments, same callback."""
    mark = fingerprint(f"{number} {at} {name} {recording} {ends_session}")
    return Arrival(number, mark, at, recording, ends_session, may_open, ms, None)


def shown(outcome: Release | Duplicate) -> str:
    """As `3 after_gap (2,) run 1`, where there is a gap and another run than the first."""
    words = [("r" if outcome.arrival.recording else "") + str(outcome.arrival.number)]
    if isinstance(outcome, Duplicate):
        return f"{words[0]} duplicate"
    words.append(outcome.order)
    words += [str(outcome.missing)] if outcome.missing else []
    words += [f"run {outcome.run}"] if outcome.run else []
    return " ".join(words)


def play(*arrivals: Arrival, policy: Policy = POLICY, session: SessionOrder | None = None) -> list[str]:
    session = SessionOrder() if session is None else session
    return [shown(outcome) for arrival in arrivals for outcome in session.arrive(arrival, policy)]


# n = next; n > next


def test_arrivals_in_order_are_released_in_order() -> None:
    assert play(event(1), event(2), event(3)) == ["1 in_order", "2 in_order", "3 in_order"]


def test_a_number_that_comes_early_waits_for_those_before_it() -> None:
    session = SessionOrder()
    assert play(event(1), event(3), session=session) == ["1 in_order"]
    assert (session.held, session.deadline_ms(POLICY)) == (1, 5_000)
    assert play(event(2), session=session) == ["2 in_order", "3 in_order"]
    assert (session.held, session.deadline_ms(POLICY)) == (0, None)


def test_first_arrival_waits_if_its_number_does_not_open_a_run() -> None:
    assert play(event(3), event(2), event(1)) == ["1 in_order", "2 in_order", "3 in_order"]


# opening


def test_zero_opens_a_run() -> None:
    assert play(event(0), event(1), event(2)) == ["0 in_order", "1 in_order", "2 in_order"]


def test_zero_after_one_opened_is_late_and_starts_nothing() -> None:
    assert play(event(1, 10), event(0, 20), event(2, 30)) == ["1 in_order", "0 late", "2 in_order"]


def test_a_second_zero_later_in_time_starts_again_even_where_one_opened() -> None:
    expected = ["1 in_order", "0 late", "0 in_order run 1", "1 in_order run 1"]
    assert play(event(1, 10), event(0, 5), event(0, 50), event(1, 60)) == expected


def test_first_sequence_setting_opens_a_run() -> None:
    policy = Policy(5_000, first_sequence=5, held_max=256)
    session = SessionOrder()
    assert play(event(6), event(3), event(5), policy=policy, session=session) == [
        "3 late",
        "5 in_order",
        "6 in_order",
    ]
    assert play(event(9), policy=policy) == []


# duplicates


def test_the_same_callback_again_is_a_duplicate_held_or_released() -> None:
    expected = ["1 in_order", "1 duplicate", "3 duplicate", "2 in_order", "3 in_order", "3 duplicate"]
    assert play(event(1), event(1), event(3), event(3), event(2), event(3)) == expected


def test_a_duplicate_from_an_earlier_run_is_a_duplicate() -> None:
    expected = ["1 in_order", "2 in_order", "1 in_order run 1", "2 duplicate", "2 in_order run 1"]
    assert play(event(1, 10), event(2, 20), event(1, 30), event(2, 20), event(2, 40)) == expected


def test_one_number_in_both_lanes_is_two_callbacks() -> None:
    assert play(event(1), event(1, recording=True)) == ["1 in_order", "r1 in_order"]


def test_repeat_of_a_forgotten_release_is_late() -> None:
    session = SessionOrder()
    play(*(event(number) for number in range(1, RELEASED_REMEMBERED + 2)), session=session)
    assert play(event(2), event(1), session=session) == ["2 duplicate", "1 late"]


# n < next


def test_another_callback_of_a_released_number_is_late_unless_later_in_time() -> None:
    assert play(event(1, 10), event(2, 20), event(1, 20, name="other")) == [
        "1 in_order",
        "2 in_order",
        "1 late",
    ]
    assert play(event(1), event(1, name="other")) == ["1 in_order", "1 late"]
    assert play(event(1), event(1, 10)) == ["1 in_order", "1 late"]


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("at", [31, 10**9])
def test_a_callback_again_that_was_stamped_anew_is_late_and_the_run_goes_on(number: int, at: int) -> None:
    session = SessionOrder()
    again = event(number, at, name="altered")
    arrivals = [event(1, 10), event(2, 20), event(3, 30), again, again, event(5, 25), event(4, 22, ms=4_999)]
    assert play(*arrivals, session=session) == [
        *("1 in_order", "2 in_order", "3 in_order", f"{number} duplicate", "4 in_order", "5 in_order"),
    ]
    assert session.deadline_ms(POLICY) == 5_000
    assert play(event(6, 60, ms=5_000), session=session) == [f"{number} late", "6 in_order"]


def test_what_is_undecided_is_late_once_the_run_has_gone_beyond_it() -> None:
    arrivals = [event(1, 10), event(2, 20), event(2, 25), event(3, 30)]
    assert play(*arrivals) == ["1 in_order", "2 in_order", "3 in_order", "2 late"]


def test_two_undecided_arrivals_of_one_number_are_decided_one_by_one() -> None:
    arrivals = [event(1, 10), event(2, 20), event(2, 110), event(2, 120), event(1, 100)]
    assert play(*arrivals) == ["1 in_order", "2 in_order", "1 in_order run 1", "2 in_order run 1"]
    assert play(*arrivals, event(None, 130, ends_session=True))[4:] == [
        "2 late run 1",
        "None unsequenced run 1",
    ]


@pytest.mark.parametrize("may_open", [False, True])
def test_only_an_event_that_may_open_a_call_starts_a_run(may_open: bool) -> None:
    session = SessionOrder()
    arrivals = [event(1, 10), event(2, 20), event(2, 101), event(1, 100, may_open=may_open)]
    expected = ["1 in_order run 1", "2 in_order run 1"] if may_open else []
    assert play(*arrivals, session=session)[2:] == expected
    expected = [] if may_open else ["2 late", "1 late"]
    assert [shown(one) for one in session.expire(5_000, POLICY)] == expected


def test_what_was_stamped_before_the_opening_is_not_the_new_runs() -> None:
    arrivals = [event(1, 10), event(2, 20), event(2, 50), event(1, 60, may_open=False), event(1, 100)]
    assert play(*arrivals) == [
        *("1 in_order", "2 in_order", "1 in_order run 1", "2 late run 1", "1 late run 1"),
    ]


def test_an_opening_that_comes_too_late_opens_nothing() -> None:
    arrivals = [event(1, 10), event(2, 20), event(2, 110), event(1, 100, ms=5_000)]
    assert play(*arrivals) == ["1 in_order", "2 in_order", "2 late", "1 late"]


def test_first_number_waits_for_another_zero_where_zero_opened_the_run() -> None:
    arrivals = [event(0, 10), event(1, 20), event(2, 30), event(1, 110), event(2, 120)]
    assert play(*arrivals, event(0, 100)) == [
        *("0 in_order", "1 in_order", "2 in_order"),
        *("0 in_order run 1", "1 in_order run 1", "2 in_order run 1"),
    ]


def test_waiting_first_number_starts_a_run_if_no_zero_comes() -> None:
    arrivals = [event(0, 10), event(1, 20), event(2, 30), event(4, 40, ms=1), event(1, 110, ms=1)]
    assert play(*arrivals, event(2, 120, ms=2), event(3, 130, ms=5_001), event(0, 100, ms=5_001)) == [
        *("0 in_order", "1 in_order", "2 in_order", "4 after_gap (3,)"),
        *("1 in_order run 1", "2 in_order run 1", "3 in_order run 1", "0 late run 1"),
    ]
    numbered_from_five = Policy(5_000, first_sequence=5, held_max=256)
    assert play(event(0, 10), event(5, 20), event(5, 30, ms=5_000), policy=numbered_from_five) == [
        *("0 in_order", "5 after_gap (1, 2, 3, 4)"),
    ]
    other = [event(0, 10), event(1, 20), event(2, 30), event(1, 110, may_open=False), event(3, 40, ms=5_000)]
    assert play(*other) == ["0 in_order", "1 in_order", "2 in_order", "1 late", "3 in_order"]


def test_zero_starts_again_where_the_first_numbers_were_lost() -> None:
    session = SessionOrder()
    play(event(2, 20), session=session)
    session.expire(5_000, POLICY)
    assert play(event(0, 100, ms=6_000), event(1, 110, ms=6_000), session=session) == [
        "0 in_order run 1",
        "1 in_order run 1",
    ]


def test_numbers_far_ahead_go_late_with_the_run_that_ends() -> None:
    arrivals = [event(1, 10), event(9_000, 15), event(5_000, 16), event(4, 20), event(1, 100)]
    assert play(*arrivals) == [
        *("1 in_order", "4 after_gap (2, 3)", "9000 late", "5000 late", "1 in_order run 1"),
    ]


def test_while_a_run_is_ending_only_an_opening_begins_the_next() -> None:
    """Another first number bears the same time as the opening."""
    other, opening = event(1, 100, name="other", may_open=False), event(1, 100)
    session = SessionOrder()
    assert play(event(1, 10), event(3, 30), other, session=session) == ["1 in_order"]
    held, first, second = session.arrive(opening, POLICY)
    assert [shown(one) for one in (held, first, second)] == [
        *("3 after_gap (2,)", "1 in_order run 1", "1 late run 1"),
    ]
    assert first.arrival is opening


def test_numbering_starts_again() -> None:
    arrivals = [event(number, 10 * number) for number in (1, 2, 3)]
    arrivals += [event(number, 100 + number) for number in (2, 1, 3, 4)]
    assert play(*arrivals) == [
        *("1 in_order", "2 in_order", "3 in_order"),
        *("1 in_order run 1", "2 in_order run 1", "3 in_order run 1", "4 in_order run 1"),
    ]


def test_a_new_run_first_releases_what_the_old_one_held() -> None:
    arrivals = [event(1, 10), event(3, 30), event(6, 60), event(7, 70), event(1, 100)]
    assert play(*arrivals) == [
        "1 in_order",
        "3 after_gap (2,)",
        "6 after_gap (4, 5)",
        "7 in_order",
        "1 in_order run 1",
    ]


@pytest.mark.parametrize("early", [4, 5])
def test_what_is_stamped_after_the_restart_belongs_to_the_new_run(early: int) -> None:
    """Next to the old run's numbers or not, it waits for the new run's."""
    session = SessionOrder()
    arrivals = [event(1, 10), event(3, 30), event(early, 140), event(1, 110)]
    assert play(*arrivals, session=session) == ["1 in_order", "3 after_gap (2,)", "1 in_order run 1"]
    assert session.held == 1
    assert play(event(2, 120), event(3, 130), session=session)[:2] == ["2 in_order run 1", "3 in_order run 1"]


def test_a_crash_while_a_run_is_ending_changes_nothing() -> None:
    """The old run's last is stamped like the restart, and the new run's 4 would be next in the old one."""
    arrivals = [event(1, 10), event(3, 110), event(4, 140), event(1, 110, name="other")]
    session = SessionOrder()
    outcomes = [outcome for arrival in arrivals for outcome in session.arrive(arrival, POLICY)]
    assert [shown(outcome) for outcome in outcomes] == ["1 in_order", "3 after_gap (2,)", "1 in_order run 1"]
    halfway = outcomes[1]
    assert isinstance(halfway, Release)
    successor = SessionOrder(decode_state(encode_state(halfway.state)))
    assert play(arrivals[2], arrivals[3], session=successor) == ["1 in_order run 1"]
    assert successor.state == session.state


def test_a_run_ends_however_much_it_still_held() -> None:
    """A second zero shows a restart because the first is remembered, and then no longer is."""
    held = [event(number, number) for number in range(3, 3 + RELEASED_REMEMBERED)]
    outcomes = play(event(1, 1), event(0, 0), *held, event(0, 1_000))
    assert outcomes[:3] == ["1 in_order", "0 late", "3 after_gap (2,)"]
    assert outcomes[-2:] == [f"{held[-1].number} in_order", "0 in_order run 1"]


def test_a_run_that_cannot_end_goes_on() -> None:
    """As above, but what should end the run was deleted from the stream: the next wait as for a gap."""
    halfway = SessionOrder()
    for arrival in (event(1, 10), event(3, 30), event(1, 100)):
        outcomes = halfway.arrive(arrival, POLICY)
    assert isinstance(outcomes[0], Release)
    successor = SessionOrder(outcomes[0].state)
    assert play(event(4, 140), event(5, 150, ms=1), session=successor) == []
    assert [shown(one) for one in successor.expire(5_001, POLICY)] == ["4 in_order", "5 in_order"]
    assert play(event(6, 160), session=successor) == ["6 in_order"]


def test_a_run_that_an_earlier_release_left_halfway_goes_on() -> None:
    """It began runs with any number that was passed, and ended them before the new one's first event came."""
    ending = SessionOrder(SessionState(status=LaneState(4, 0, 1, b"", top_us=30, ending_us=100)))
    assert play(event(5, 140), event(2, 100, ms=1), session=ending) == []
    assert [shown(one) for one in ending.expire(5_001, POLICY)] == ["5 after_gap (4,)", "2 late"]
    empty = SessionOrder(SessionState(status=LaneState(None, 1, None, b"", top_us=30, floor_us=30)))
    assert play(event(2, 50), event(3, 20), event(1, 40, may_open=False), session=empty) == [
        *("3 late run 1", "1 in_order run 1", "2 in_order run 1"),
    ]


def test_what_comes_from_the_ended_run_is_late_whatever_its_number() -> None:
    arrivals = [
        event(1, 10),
        event(2, 20),
        event(1, 100),
        event(2, 15, name="other"),
        event(9, 90),
        event(2, 110),
    ]
    assert play(*arrivals) == [
        *("1 in_order", "2 in_order", "1 in_order run 1"),
        *("2 late run 1", "9 late run 1", "2 in_order run 1"),
    ]


# gaps


def test_a_gap_is_given_up_when_the_watermark_passes_its_time() -> None:
    session = SessionOrder()
    play(event(1), event(4, ms=100), event(5, ms=4_000), event(7, ms=4_500), session=session)
    assert session.expire(5_099, POLICY) == ()
    assert session.deadline_ms(POLICY) == 5_100
    assert [shown(one) for one in session.expire(5_100, POLICY)] == ["4 after_gap (2, 3)", "5 in_order"]
    assert session.deadline_ms(POLICY) == 9_500
    assert play(event(2, ms=5_200), session=session) == ["2 late"]
    assert [shown(one) for one in session.expire(10_000, POLICY)] == ["7 after_gap (6,)"]


def test_everything_up_to_the_number_that_waited_too_long_goes() -> None:
    session = SessionOrder()
    play(event(1), event(9, ms=0), event(3, ms=4_000), event(11, ms=4_000), session=session)
    assert [shown(one) for one in session.expire(5_000, POLICY)] == [
        "3 after_gap (2,)",
        "9 after_gap (4, 5, 6, 7, 8)",
    ]
    assert session.held == 1


def test_an_arrival_expires_what_its_own_time_has_passed() -> None:
    assert play(event(1), event(3), event(2, ms=5_000)) == ["1 in_order", "3 after_gap (2,)", "2 late"]


def test_a_session_whose_first_events_are_lost() -> None:
    session = SessionOrder()
    play(event(4), session=session)
    assert [shown(one) for one in session.expire(5_000, POLICY)] == ["4 after_gap (1, 2, 3)"]


@pytest.mark.parametrize("session", [[], [event(1)]], ids=["new", "begun"])
def test_a_number_far_ahead_is_late_by_itself_and_moves_nothing(session: list[Arrival]) -> None:
    due = 1 + len(session)
    for number, order in ((due + AHEAD_MAX, "after_gap"), (due + AHEAD_MAX + 1, "late"), (2**53 - 1, "late")):
        lane = SessionOrder()
        assert len(play(*session, event(number), event(number, name="altered"), session=lane)) == len(session)
        first, second = lane.expire(5_000, POLICY)
        assert (first.order, second.order) == (order, "late")
        if order == "late":
            assert first.missing == second.missing == ()
            assert play(event(due, ms=9_000), session=lane) == [f"{due} in_order"]


def test_a_number_far_ahead_disturbs_nothing_that_waits_for_another() -> None:
    session = SessionOrder()
    play(event(1), event(9_000), event(4, ms=3_000), session=session)
    assert [shown(one) for one in session.expire(5_000, POLICY)] == ["9000 late"]
    assert play(event(2, ms=6_000), event(3, ms=6_000), session=session) == [
        "2 in_order",
        "3 in_order",
        "4 in_order",
    ]


def test_numbers_far_ahead_that_are_near_each_other_are_plausible() -> None:
    session = SessionOrder()
    play(event(1), event(9_001), event(9_000), event(9_500), event(2, ms=10), session=session)
    assert [release.arrival.number for release in session.expire(5_000, POLICY)] == [9_000, 9_001, 9_500]
    assert session.state.status.next == 9_501


def test_number_far_ahead_is_plausible_where_one_near_it_was_released() -> None:
    """As when ingest came up in the middle of a long session."""
    session = SessionOrder()
    play(event(5_000), session=session)
    assert [shown(one) for one in session.expire(5_000, POLICY)] == ["5000 late"]
    assert play(event(5_001, ms=8_000), session=session) == []
    (release,) = session.expire(13_000, POLICY)
    assert (release.order, release.missing) == ("after_gap", tuple(range(1, 1 + MISSING_MAX)))
    assert play(event(5_002, ms=14_000), session=session) == ["5002 in_order"]


def test_too_many_held_give_up_the_lowest_gap() -> None:
    policy = Policy(5_000, 1, held_max=3)
    arrivals = [event(1), event(5), event(3), event(4), event(9)]
    assert play(*arrivals, policy=policy) == ["1 in_order", "3 after_gap (2,)", "4 in_order", "5 in_order"]


def test_too_many_that_wait_cost_the_run_nothing_as_long_as_others_can_go() -> None:
    policy = Policy(5_000, 1, held_max=3)
    arrivals = [event(1, 10), event(2, 20), event(4, 40), event(2, 50), event(9_000, 50), event(2, 60)]
    assert play(*arrivals, policy=policy) == ["1 in_order", "2 in_order", "2 late"]
    assert play(*arrivals, event(5, 60), policy=policy)[3:] == ["9000 late"]


def test_the_lane_that_took_one_too_many_gives_up() -> None:
    policy = Policy(5_000, 1, held_max=1)
    assert play(event(3), event(5, recording=True), policy=policy) == ["r5 after_gap (1, 2, 3, 4)"]


PAIRS_FAR_AHEAD = [3_000 * (1 + index // 2) + index % 2 for index in range(128)]
EVERY_OTHER = [2 * index for index in range(1, 129)]


@pytest.mark.parametrize("numbers", [PAIRS_FAR_AHEAD, PAIRS_FAR_AHEAD[::-1], EVERY_OTHER])
@pytest.mark.parametrize("held_max", [128, 64])
def test_giving_up_all_that_waits_costs_no_more_than_the_square_of_its_number(
    numbers: list[int], held_max: int
) -> None:
    """A session of nonsense must not keep the event loop for seconds. Counted are calls of functions."""
    session, policy, calls = SessionOrder(), Policy(5_000, 1, held_max), 0

    def count(_frame: object, what: str, _argument: object) -> None:
        nonlocal calls
        calls += what == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for number in numbers:
            session.arrive(event(number), policy)
        session.expire(5_000, policy)
    finally:
        sys.setprofile(before)
    assert not session.held
    assert calls < 16 * len(numbers) ** 2


# unsequenced, and the end


def test_an_event_without_a_number_does_not_wait() -> None:
    expected = ["1 in_order", "None unsequenced", "None duplicate", "2 in_order", "3 in_order"]
    assert play(event(1), event(3), event(None), event(None), event(2)) == expected


def test_a_timeout_first_releases_all_that_is_held() -> None:
    session = SessionOrder()
    arrivals = [event(1), event(4), event(3), event(2, recording=True), event(None, ends_session=True)]
    assert play(*arrivals, session=session) == [
        "1 in_order",
        "3 after_gap (2,)",
        "4 in_order",
        "r2 after_gap (1,)",
        "None unsequenced",
    ]
    assert session.state.closed
    turned = [event(2, recording=True), event(4), event(None, ends_session=True)]
    assert play(*turned) == ["4 after_gap (1, 2, 3)", "r2 after_gap (1,)", "None unsequenced"]
    assert play(event(None, ends_session=True), event(5), session=session) == ["None duplicate", "5 in_order"]
    assert session.state.closed


def test_a_timeout_with_a_number() -> None:
    assert play(event(1), event(2, ends_session=True)) == ["1 in_order", "2 in_order"]
    assert play(event(1), event(4, ends_session=True)) == ["1 in_order", "4 after_gap (2, 3)"]
    assert play(event(1), event(1, ends_session=True)) == ["1 in_order", "1 late"]
    assert play(event(1, 10), event(2, 20), event(2, 30, ends_session=True)) == [
        "1 in_order",
        "2 in_order",
        "2 late",
    ]


# states


def test_a_release_bears_the_state_right_after_it() -> None:
    session = SessionOrder()
    session.arrive(event(1, 10), POLICY)
    session.arrive(event(3, 30), POLICY)
    second, third = session.arrive(event(2, 20), POLICY)
    assert isinstance(second, Release)
    assert isinstance(third, Release)
    assert (second.state.status.next, second.state.status.top_us) == (3, 20)
    assert (third.state.status.next, third.state.status.top_us) == (4, 30)
    assert third.state is session.state
    assert NEW_SESSION.status.next is None


def test_an_arrival_does_not_show_its_payload() -> None:
    assert "+14155550123" not in repr(Arrival(1, b"12345678", None, False, False, True, 0, "+14155550123"))
