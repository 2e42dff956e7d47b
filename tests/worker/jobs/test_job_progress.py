"""The record of a job in a partition: every run taken on is counted once, whatever happens to it."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from maskline.schemas.jobs import Job, PartitionJob, Selection, sum_up
from maskline.worker.jobs.progress import (
    FailureWatch,
    queue_name,
    queue_parked,
    run_ended,
    settled,
    took_on,
)

QUEUES = [queue_name(handler, session) for handler in ("billing", "crm") for session in ("a", "b")]
JOB = Job("bado-kemi-tufa", "dead", Selection(handler="billing"), 0, (0,))


class ProgressMachine(RuleBasedStateMachine):
    """Beside the record, the runs themselves: by queue, how many are tried and how many are parked."""

    def __init__(self) -> None:
        super().__init__()
        self.record = PartitionJob(0, "9-0")
        self.tried: Counter[str] = Counter()
        self.parked: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.cursor = 0

    @rule(queue=st.sampled_from(QUEUES), runs=st.integers(1, 3))
    def queue_runs(self, queue: str, runs: int) -> None:
        self.cursor += 1
        self.record = took_on(self.record, cursor=f"{self.cursor}-0", queued={queue: runs})
        self.tried[queue] += runs

    @rule(queue=st.sampled_from(QUEUES))
    def append_behind_a_letter(self, queue: str) -> None:
        self.record = took_on(self.record, cursor=self.record.cursor, parked=1)
        self.parked[queue] += 1

    @rule(gone=st.integers(0, 2), discarded=st.integers(0, 2), succeeded=st.integers(0, 2))
    def end_at_once(self, gone: int, discarded: int, succeeded: int) -> None:
        counts = {"gone": gone, "discarded": discarded, "succeeded": succeeded}
        self.record = took_on(self.record, cursor=self.record.cursor, **counts)
        self.ended.update(counts)

    @precondition(lambda self: self.tried.total())
    @rule(data=st.data(), succeeded=st.booleans())
    def end_a_run(self, data: st.DataObject, succeeded: bool) -> None:
        queue = data.draw(st.sampled_from(sorted(+self.tried)))
        self.record = run_ended(self.record, queue, succeeded=succeeded)
        self.tried[queue] -= 1
        self.ended["succeeded" if succeeded else "failed"] += 1

    @rule(queue=st.sampled_from(QUEUES))
    def park(self, queue: str) -> None:
        self.record = queue_parked(self.record, queue)
        self.parked[queue] += self.tried.pop(queue, 0)

    @precondition(lambda self: self.parked.total())
    @rule(data=st.data(), succeeded=st.booleans())
    def end_a_parked_run_that_an_operator_let_go_on(self, data: st.DataObject, succeeded: bool) -> None:
        queue = data.draw(
            st.sampled_from(sorted(queue for queue in +self.parked if not self.tried[queue]) or [""])
        )
        if queue:
            self.record = run_ended(self.record, queue, succeeded=succeeded)
            self.parked[queue] -= 1
            self.ended["succeeded" if succeeded else "failed"] += 1

    @invariant()
    def counts_are_those_of_the_runs(self) -> None:
        record = self.record
        assert record.under_way == dict(+self.tried)
        assert record.parked == self.parked.total()
        counts = {name: getattr(record, name) for name in ("succeeded", "failed", "gone", "discarded")}
        assert +Counter(counts) == +self.ended
        assert record.selected == record.parked + self.tried.total() + self.ended.total()
        assert record.cursor == f"{self.cursor}-0"


TestProgress = ProgressMachine.TestCase


def test_a_run_that_no_record_knows_changes_nothing() -> None:
    record = PartitionJob(0, "9-0", selected=1, succeeded=1)
    assert run_ended(record, QUEUES[0], succeeded=True) == record


def test_a_name_with_a_space_in_it_is_one_name() -> None:
    assert queue_name("settle fare", "s 1") == "settle%20fare s 1"


@pytest.mark.parametrize(
    ("record", "job", "state"),
    [
        (PartitionJob(0, "9-0"), JOB, "running"),
        (PartitionJob(0, "9-0", scanned=True, under_way={"q s": 1}), JOB, "running"),
        (PartitionJob(0, "9-0", scanned=True, parked=3), JOB, "done"),
        (
            PartitionJob(0, "9-0", under_way={"q s": 1}),
            Job("j", "dead", Selection(), 0, (0,), stopped=True),
            "stopped",
        ),
        (
            PartitionJob(0, "9-0"),
            Job("j", "dead", Selection(), 0, (0,), stopped=True, failing=True),
            "failing",
        ),
        (PartitionJob(0, "9-0", state="done"), Job("j", "dead", Selection(), 0, (0,), stopped=True), "done"),
    ],
)
def test_the_state_follows_from_the_job_and_the_progress(record: PartitionJob, job: Job, state: str) -> None:
    assert settled(record, job).state == state


def test_a_stopped_job_ends_with_the_last_run_under_way() -> None:
    record = PartitionJob(0, "9-0", state="stopped", selected=1, under_way={QUEUES[0]: 1})
    assert not sum_up([record]).ended
    record = run_ended(record, QUEUES[0], succeeded=True)
    assert record.ended
    assert (record.state, record.succeeded) == ("stopped", 1)


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
