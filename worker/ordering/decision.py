"""Decides about one arrival of a session that has a number: the table of docs/ordering.md. Pure."""

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, cast

from maskline.worker.ordering.state import LaneState, released_numbers, was_number_released

if TYPE_CHECKING:
    from maskline.worker.ordering.reorder import Arrival

Verdict = Literal["in_order", "late", "wait", "restart"]

AHEAD_MAX: Final = 1_000
"""A number that is further beyond the one that is due is implausible: a session has a few dozen events, and a single
damaged number must not make all that follow it late. It is plausible all the same if another number is this near."""


def decide(lane: LaneState, arrival: "Arrival", number: int, first_sequence: int) -> Verdict:
    """Decide on an arrival that has a number and is no duplicate, by the table of docs/ordering.md."""
    at_us = arrival.timestamp_us
    if at_us is not None:
        if lane.floor_us is not None and at_us < lane.floor_us:
            return "late"
        if lane.ending_us is not None and at_us > lane.ending_us:
            return "wait"  # the next run's
    due = lane.next
    if due is None:
        if number in (first_sequence, 0):
            return "in_order"
        return "wait" if number > first_sequence else "late"
    if number >= due:
        return "in_order" if number == due else "wait"
    later = at_us is not None and lane.top_us is not None and at_us > lane.top_us
    return _decide_passed(lane, arrival, number, first_sequence) if later else "late"


def _decide_passed(lane: LaneState, arrival: "Arrival", number: int, first_sequence: int) -> Verdict:
    """As `decide`, for a number below the one that is due, stamped later than all that was released."""
    if 0 < number < first_sequence:
        return "late"  # in no run would it have a place
    if number > first_sequence:
        return "wait"
    if arrival.timestamp_us == lane.ending_us:
        return "restart" if arrival.may_open else "wait"
    if (
        number != first_sequence
        and lane.opening == first_sequence
        and not was_number_released(lane.released, 0)
    ):
        return "late"  # the run's own zero, which the first number has overtaken
    if lane.opening == 0 and number != 0:
        return "wait"  # for the 0 before it; see opens_run_after_waiting
    return "restart" if arrival.may_open else "wait"


def opens_run_after_waiting(lane: LaneState, waiting: "Arrival", number: int, first_sequence: int) -> bool:
    """Whether an arrival that has waited long enough opens a run: it is the first number, and no 0 came before it."""
    return lane.opening == 0 and number == first_sequence < cast("int", lane.next) and waiting.may_open


def plausible(
    lane: LaneState, candidates: list["Arrival"], waiting: Iterable["Arrival"], due: int
) -> list["Arrival"]:
    """Those of the candidates, all of one lane, with whose numbers the numbering may go on.

    They are ahead of the number that is due and not far from it, or other numbers are near them: of those that wait in
    the lane, or of its last releases. All candidates are judged in one pass: one by one, a thousand that wait far ahead
    would keep a worker for half a minute.
    """
    near = range(due, due + AHEAD_MAX + 1)
    if all(candidate.number in near for candidate in candidates):
        return candidates
    others = {cast("int", held.number) for held in (*waiting, *candidates)}
    numbers = sorted(others.union(released_numbers(lane.released)))
    beside = {
        number
        for lower, upper in pairwise(numbers)
        if upper - lower <= AHEAD_MAX
        for number in (lower, upper)
        if number > due
    }
    return [held for held in candidates if held.number in near or held.number in beside]
