"""Jobs as Redis keeps them: which dead letters a selection takes, the sums over partitions, and ids."""

import re
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.schemas.jobs import (
    ID_CHANCES,
    ID_EPOCH_MS,
    ID_TICK_MS,
    Job,
    PartitionJob,
    Selection,
    decode_job,
    decode_partition_job,
    encode_job,
    encode_partition_job,
    new_job_id,
    sum_up,
)


class Letter(NamedTuple):
    """The fields that a selection looks at."""

    code: str = "retries_exhausted"
    reason: str = "TimeoutError: the Billing API did not answer"
    failed_at_ms: int = 5_000
    session_uuid: str | None = "session-a"
    event_name: str | None = "SessionInitiated"
    handler: str | None = "billing.settle"


MATCHING = [
    Selection(),
    Selection(ids=("7-1-0", "3-9-0")),
    Selection(handler="billing.settle"),
    Selection(event="SessionInitiated"),
    Selection(session="session-a"),
    Selection(group="g1"),
    Selection(reason="retries_exhausted"),
    Selection(reason="billing api"),
    Selection(since_ms=5_000),
    Selection(until_ms=5_001),
]
OTHERS = [
    Selection(ids=("7-1-0",)),
    Selection(handler="billing"),
    Selection(event="SessionTimeout"),
    Selection(session="session-b"),
    Selection(group="g2"),
    Selection(reason="rejected"),
    Selection(since_ms=5_001),
    Selection(until_ms=5_000),
]


@pytest.mark.parametrize("selection", MATCHING)
def test_a_letter_that_fulfils_the_condition_is_selected(selection: Selection) -> None:
    assert selection.matches(Letter(), "3-9-0", "g1")


@pytest.mark.parametrize("selection", OTHERS)
def test_a_letter_that_does_not_is_not(selection: Selection) -> None:
    assert not selection.matches(Letter(), "3-9-0", "g1")


@given(st.sampled_from(MATCHING), st.sampled_from(OTHERS))
def test_all_conditions_must_hold(matching: Selection, other: Selection) -> None:
    fields = {
        name: getattr(selection, name)
        for selection in (matching, other)
        for name in selection.__struct_fields__
        if getattr(selection, name)
    }
    assert not Selection(**fields).matches(Letter(), "3-9-0", "g1")


def test_a_letter_without_handler_and_session_matches_no_condition_on_them() -> None:
    letter = Letter(handler=None, session_uuid=None, event_name=None)
    assert Selection(reason="retries_exhausted").matches(letter, "0-1-0", None)
    for selection in (
        Selection(handler="a"),
        Selection(session="a"),
        Selection(event="a"),
        Selection(group="g"),
    ):
        assert not selection.matches(letter, "0-1-0", None)


def test_only_a_selection_without_conditions_is_empty() -> None:
    assert [selection.is_empty for selection in MATCHING] == [True] + [False] * (len(MATCHING) - 1)


def test_jobs_and_their_progress_are_read_as_they_were_written() -> None:
    job = Job(
        "bado-kemi-tufa", "dead", Selection(handler="a", since_ms=3), 17, (0, 5), rate=2.5, by="ops@host"
    )
    progress = PartitionJob(17, "9-1", cursor="5-0", selected=4, succeeded=1, under_way={"a s": 3})
    assert decode_job(encode_job(job)) == job
    assert decode_partition_job(encode_partition_job(progress)) == progress
    with pytest.raises(msgspec.MsgspecError):
        decode_job(b"\xc1")


def test_a_job_runs_as_long_as_one_partition_does() -> None:
    done = PartitionJob(0, "1-0", state="done", selected=3, succeeded=2, failed=1)
    running = PartitionJob(0, "1-0", selected=5, succeeded=1, under_way={"a s": 3, "b t": 1})
    totals = sum_up([done, running])
    assert (totals.state, totals.partitions_left, totals.ended) == ("running", 1, False)
    assert (totals.selected, totals.succeeded, totals.failed, totals.under_way) == (8, 3, 1, 4)
    assert sum_up([done]).state == "done"
    assert sum_up([done]).ended


def test_a_job_that_was_stopped_ends_when_nothing_of_it_is_under_way() -> None:
    stopping = PartitionJob(0, "1-0", state="stopped", selected=2, succeeded=1, under_way={"a s": 1})
    assert not sum_up([stopping]).ended
    assert sum_up([stopping]).state == "stopped"
    failing = PartitionJob(0, "1-0", state="failing")
    assert sum_up([PartitionJob(0, "1-0", state="stopped"), failing]).state == "failing"


def test_an_empty_job_is_done() -> None:
    assert sum_up([]) == ("done", 0, 0, 0, 0, 0, 0, 0, 0)


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**9),
    st.integers(0, ID_CHANCES - 1),
    st.integers(0, ID_CHANCES - 1),
)
def test_ids_sort_by_time_and_have_no_digits(at: int, later: int, one: int, other: int) -> None:
    first = new_job_id(ID_EPOCH_MS + at, one)
    second = new_job_id(ID_EPOCH_MS + at + ID_TICK_MS + later, other)
    assert first < second
    assert re.fullmatch(r"[a-z]{4}-[a-z]{4}-[a-z]{4}", first)


def test_ids_of_one_moment_differ() -> None:
    ids = {new_job_id(ID_EPOCH_MS, chance) for chance in range(ID_CHANCES)}
    assert len(ids) == ID_CHANCES
