"""When a job stops itself because what it runs fails again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.jobs.failure_watch import FailureWatch


def stops_after(outcomes: str) -> int | None:
    """After how many outcomes (`.` succeeded, `x` failed) the job is stopped; None if it is not."""
    watch = FailureWatch()
    for count, outcome in enumerate(outcomes, start=1):
        if watch.ended(succeeded=outcome == "."):
            return count
    return None


@pytest.mark.parametrize(
    ("outcomes", "stops"),
    [
        ("xxxxx", 5),
        ("xxxx", None),
        (".x.x.x.x.x.x.x.x.x.x", None),  # half of them
        (".xx.xx.xx", 8),
        ("...................xxxxxx", 25),
        ("xxxx......xxxx......xxxx", None),
    ],
)
def test_a_job_stops_when_most_of_the_last_outcomes_are_failures(outcomes: str, stops: int | None) -> None:
    assert stops_after(outcomes) == stops


@given(st.lists(st.booleans(), max_size=60))
def test_a_job_never_stops_while_half_of_the_last_ten_succeed(outcomes: list[bool]) -> None:
    watch = FailureWatch()
    for count, succeeded in enumerate(outcomes, start=1):
        last = outcomes[max(count - 10, 0) : count]
        failures = last.count(False)
        assert watch.ended(succeeded=succeeded) == (failures >= 5 and failures > len(last) / 2)
