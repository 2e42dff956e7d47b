"""The order of a session's kept callbacks when they run again, and which of them do."""

from itertools import permutations

from dispatch_kit import RECEIVED_MS, START_MS
from hypothesis import given
from hypothesis import strategies as st
from partition_kit import fields

from maskline.schemas.jobs import NOTHING_SELECTED, Selection
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.jobs.session_replay import Run, runs_again, without
from maskline.worker.ordering.reorder import Arrival, Policy
from maskline.worker.ordering.state import LaneState, SessionState

POLICY = Policy(65_000, 1, 1_000)
NEW = SessionState()


def arrival(at_ms: int, number: int | None, name: str = "SessionFirstPartyRinging", **more: str) -> Arrival:
    """An entry that came `at_ms` after the start; `stamp`: its EventTimestamp, in seconds after the start."""
    parameters = {"EventName": name, **more}
    if number is not None:
        parameters["SequenceNumber"] = str(number)
    if (stamp := parameters.pop("stamp", None)) is not None:
        parameters["EventTimestamp"] = f"2026-01-01 00:{int(stamp) // 60:02}:{int(stamp) % 60:02}"
    return entry_decoder().arrival_of(f"{START_MS + at_ms}-0", fields(**parameters), False)


def replay(
    arrivals: list[Arrival],
    selection: Selection = NOTHING_SELECTED,
    now: SessionState = NEW,
    policy: Policy = POLICY,
) -> list[Run]:
    return runs_again(arrivals, selection, lambda _: ("billing", "crm"), policy, now)


def seen(runs: list[Run]) -> list[tuple[int | None, str]]:
    return [(run.release.arrival.number, run.release.order) for run in runs]


def test_kept_callbacks_run_by_their_numbers_in_whatever_order_they_came() -> None:
    for order in permutations([1, 2, 3, 4]):
        arrivals = [arrival(place, number) for place, number in enumerate(order)]
        assert seen(replay(arrivals)) == [(number, "in_order") for number in (1, 2, 3, 4)]


def test_what_was_trimmed_at_the_beginning_is_no_gap() -> None:
    for order in permutations([7, 8, 9]):
        arrivals = [arrival(place, number) for place, number in enumerate(order)]
        runs = replay(arrivals)
        assert seen(runs) == [(7, "in_order"), (8, "in_order"), (9, "in_order")]
        assert all(not run.release.missing for run in runs)


def test_a_gap_further_on_is_one() -> None:
    runs = replay([arrival(0, 7), arrival(1, 9), arrival(2, 10)])
    assert seen(runs) == [(7, "in_order"), (9, "after_gap"), (10, "in_order")]
    assert runs[1].release.missing == (8,)


def test_a_number_that_was_late_because_redis_was_away_is_in_order_again() -> None:
    late = 5_000 + 1_000
    assert seen(replay([arrival(0, 1), arrival(1, 3), arrival(late, 2)])) == [
        (1, "in_order"),
        (2, "in_order"),
        (3, "in_order"),
    ]
    much_later = 65_000 + 1_000
    assert seen(replay([arrival(0, 1), arrival(1, 3), arrival(much_later, 2)])) == [
        (1, "in_order"),
        (3, "after_gap"),
        (2, "late"),
    ]


def test_a_repeat_runs_once() -> None:
    assert seen(replay([arrival(0, 1), arrival(1, 1), arrival(2, 2), arrival(3, 1)])) == [
        (1, "in_order"),
        (2, "in_order"),
    ]


def test_numbering_that_started_again_is_the_next_run() -> None:
    opening = "SessionInitiated"
    arrivals = [
        arrival(0, 7, stamp="1"),
        arrival(1, 8, stamp="2"),
        arrival(2, 1, opening, stamp="3"),
        arrival(3, 2, stamp="4"),
    ]
    runs = replay(arrivals)
    assert seen(runs) == [(7, "in_order"), (8, "in_order"), (1, "in_order"), (2, "in_order")]
    assert [run.release.run for run in runs] == [0, 0, 1, 1]


def test_runs_count_on_from_those_that_were_trimmed_where_what_is_kept_reaches_to_now() -> None:
    arrivals = [arrival(0, 4, stamp="1"), arrival(1, 5, stamp="2")]
    now = SessionState(status=LaneState(next=6, run=3))
    assert [run.release.run for run in replay(arrivals, now=now)] == [3, 3]
    later = SessionState(status=LaneState(next=2, run=4))
    assert [run.release.run for run in replay(arrivals, now=later)] == [0, 0]


def test_recordings_are_numbered_apart() -> None:
    arrivals = [
        arrival(0, 4),
        arrival(1, 2, "SessionRecordingReady"),
        arrival(2, 3, "SessionRecordingReady"),
        arrival(3, 5),
    ]
    assert seen(replay(arrivals)) == [(4, "in_order"), (2, "in_order"), (3, "in_order"), (5, "in_order")]


def test_events_that_are_not_selected_are_no_gaps() -> None:
    arrivals = [arrival(0, 1), arrival(1, 2, "SessionFirstPartyAnswer"), arrival(2, 3)]
    assert seen(replay(arrivals, Selection(event="SessionFirstPartyRinging"))) == [
        (1, "in_order"),
        (3, "in_order"),
    ]


def test_only_the_selected_handler_runs_again() -> None:
    (run,) = replay([arrival(0, 1)], Selection(handler="crm"))
    assert run.handlers == ("crm",)
    assert replay([arrival(0, 1)], Selection(handler="another")) == []


def test_only_callbacks_received_in_time_run_again() -> None:
    assert len(replay([arrival(0, 1)], Selection(since_ms=RECEIVED_MS, until_ms=RECEIVED_MS + 1))) == 1
    assert replay([arrival(0, 1)], Selection(since_ms=RECEIVED_MS + 1)) == []
    assert replay([arrival(0, 1)], Selection(until_ms=RECEIVED_MS)) == []


def test_what_waits_in_a_retry_queue_does_not_run_twice() -> None:
    runs = replay([arrival(0, 1), arrival(1, 2)])
    second = runs[1].release.arrival.payload.entry_id
    left = without(runs, {("crm", second)})
    assert [(run.release.arrival.number, run.handlers) for run in left] == [
        (1, ("billing", "crm")),
        (2, ("billing",)),
    ]
    assert [run.release.arrival.number for run in without(runs, {("crm", second), ("billing", second)})] == [
        1
    ]


@given(st.permutations(range(3, 12)), st.lists(st.integers(0, 8), max_size=4), st.integers(0, 3))
def test_any_order_with_repeats_runs_each_number_once_in_order(
    order: list[int], repeats: list[int], unsequenced: int
) -> None:
    numbers = [*order, *(order[place] for place in repeats)]
    arrivals = [arrival(place, number) for place, number in enumerate(numbers)]
    arrivals += [arrival(100 + place, None, RequestUUID=str(place)) for place in range(unsequenced)]
    runs = seen(replay(arrivals))
    assert [number for number, _ in runs if number is not None] == list(range(3, 12))
    assert {order for number, order in runs if number is not None} == {"in_order"}
    assert len(runs) == 9 + unsequenced
