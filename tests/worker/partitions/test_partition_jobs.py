"""The record of a job in a partition: every run taken on is counted once, whatever happens to it."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from maskline.schemas.jobs import (
    Job,
    PartitionJob,
    Selection,
    decode_partition_job,
    encode_partition_job,
    sum_up,
)
from maskline.worker.partitions.partition_jobs import (
    PartitionJobs,
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


def test_what_redis_has_is_taken_in_once_and_the_owner_knows_better_from_then_on() -> None:
    written: dict[str, bytes] = {}
    jobs = PartitionJobs(written.__setitem__)
    first = encode_partition_job(
        PartitionJob(0, "9-0", selected=2, under_way={queue_name("billing", "a"): 2})
    )
    jobs.load({b"bado": first, b"kemi": b"\xc1"})
    jobs.run_ended("bado", "billing", "a", succeeded=True)
    jobs.load({b"bado": first, b"tufa": encode_partition_job(PartitionJob(0, "9-0"))})
    assert [*jobs.records] == ["bado", "tufa"]
    assert jobs.records["bado"].succeeded == 1
    assert {name: decode_partition_job(value).succeeded for name, value in written.items()} == {"bado": 1}


def test_outcomes_are_told_also_of_a_job_that_redis_has_forgotten() -> None:
    told: list[tuple[str, bool]] = []
    jobs = PartitionJobs(lambda _job, _record: None)
    jobs.on_outcome = lambda job, succeeded: told.append((job, succeeded))
    jobs.run_ended("bado", "billing", "a", succeeded=False)
    assert (told, jobs.records) == ([("bado", False)], {})


def test_a_letter_that_parks_a_queue_parks_the_runs_of_every_job_in_it() -> None:
    queue = queue_name("billing", "a")
    written: dict[str, bytes] = {}
    jobs = PartitionJobs(written.__setitem__)
    for job, under_way in {"bado": {queue: 2}, "kemi": {queue: 1}, "tufa": {"crm a": 1}}.items():
        record = PartitionJob(0, "9-0", selected=sum(under_way.values()), under_way=under_way)
        jobs.load({job.encode(): encode_partition_job(record)})
    jobs.run_ended("bado", "billing", "a", succeeded=False)
    jobs.queue_parked("billing", "a")
    assert {job: (one.failed, one.parked) for job, one in jobs.records.items()} == {
        "bado": (1, 1),
        "kemi": (0, 1),
        "tufa": (0, 0),
    }
    assert {*written} == {"bado", "kemi"}
