"""The progress of jobs in an owned partition: what each step of a job, and each outcome, makes of its record. Pure.

Invariant: `selected` is the sum of succeeded, failed, gone, discarded, parked, and all that is under way. A run that
was taken on is under way in its retry queue until its outcome; if its queue is parked behind a dead letter, it counts
as parked until an operator lets the queue go on.

| state | becomes | when |
| --- | --- | --- |
| running | failing | a worker found that most of what the job ran failed again |
| running | stopped | an operator stopped it |
| running | done | everything was scanned, and nothing is under way |

The three on the right are final, but outcomes of what is still under way count on.
"""

import contextlib
from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from maskline.schemas.jobs import (
    Job,
    PartitionJob,
    decode_partition_job,
    encode_partition_job,
)
from maskline.schemas.keys import encode_handler


def queue_name(handler: str, session_uuid: str) -> str:
    """The name of a retry queue in `PartitionJob.under_way`."""
    return f"{encode_handler(handler)} {session_uuid}"


def took_on(
    record: PartitionJob,
    *,
    cursor: str,
    queued: Mapping[str, int] | None = None,
    parked: int = 0,
    succeeded: int = 0,
    gone: int = 0,
    discarded: int = 0,
) -> PartitionJob:
    """The record after a step: everything up to `cursor` is dealt with.

    `queued`: runs that were put into retry queues which are tried, by the queue's name. The others are counts of runs:
    put behind a dead letter, done with at once, not possible, discarded.
    """
    under_way = record.under_way
    if queued:
        under_way = {**under_way}
        for queue, runs in queued.items():
            under_way[queue] = under_way.get(queue, 0) + runs
    selected = sum((queued or {}).values()) + parked + succeeded + gone + discarded
    return replace(
        record,
        cursor=cursor,
        selected=record.selected + selected,
        under_way=under_way,
        parked=record.parked + parked,
        succeeded=record.succeeded + succeeded,
        gone=record.gone + gone,
        discarded=record.discarded + discarded,
    )


def run_ended(record: PartitionJob, queue: str, *, succeeded: bool) -> PartitionJob:
    """The record after a run of the job has ended in this queue: handled, or given up again."""
    under_way, parked = record.under_way, record.parked
    if runs := under_way.get(queue, 0):
        under_way = {**under_way, queue: runs - 1}
        if runs == 1:
            del under_way[queue]
    elif parked:
        parked -= 1  # an operator has let the queue go on
    else:
        return record  # a run that no record knows: Redis has lost the commit that took it on
    return replace(
        record,
        under_way=under_way,
        parked=parked,
        succeeded=record.succeeded + succeeded,
        failed=record.failed + (not succeeded),
    )


def queue_parked(record: PartitionJob, queue: str) -> PartitionJob:
    """The record after a dead letter has parked a queue: the job's other runs in it wait for an operator."""
    runs = record.under_way.get(queue, 0)
    if not runs:
        return record
    under_way = {name: count for name, count in record.under_way.items() if name != queue}
    return replace(record, under_way=under_way, parked=record.parked + runs)


def settled(record: PartitionJob, job: Job) -> PartitionJob:
    """The record with the state that follows from the job and from the record's own progress."""
    if record.state != "running":
        return record
    if job.failing:
        return replace(record, state="failing")
    if job.stopped:
        return replace(record, state="stopped")
    if record.scanned and not record.under_way:
        return replace(record, state="done")
    return record


class PartitionJobs:
    """The records of all jobs in one owned partition.

    They are read before the first retry queue is run, so that every outcome finds its record; from then on the owner
    knows them best, as nobody else writes them. `write(job_id, record)`: writes a record with the next commit.
    """

    def __init__(self, write: Callable[[str, bytes], None]) -> None:
        self._write = write
        self.loaded = False
        """The records were read from Redis: no retry queue is run before."""
        self.records: dict[str, PartitionJob] = {}
        """By job id. Only the methods of this class change it."""
        self.on_outcome: Callable[[str, bool], None] = lambda _job, _succeeded: None
        """Called with a job and whether a run of it that has ended was handled."""
        self.on_failed_first: Callable[[str], None] = lambda _job: None
        """Called with a job of which a run has failed for the first time, and waits for its next try."""

    def load(self, encoded: Mapping[bytes, bytes]) -> None:
        """Take the records in that Redis has, by job id, but for those known here.

        Skips what cannot be read: a newer release wrote it, and its workers carry it out.
        """
        self.loaded = True
        for name, value in encoded.items():
            with contextlib.suppress(UnicodeDecodeError, msgspec.MsgspecError):
                self.records.setdefault(name.decode(), decode_partition_job(value))

    def update(self, job_id: str, record: PartitionJob) -> None:
        """Keep a job's new record, and write it with the next commit, if it differs from the last."""
        if record != self.records.get(job_id):
            self.records[job_id] = record
            self._write(job_id, encode_partition_job(record))

    def forget(self, job_id: str) -> None:
        """Remove the record of a job, which the caller deletes in Redis."""
        self.records.pop(job_id, None)

    def run_ended(self, job_id: str, handler: str, session_uuid: str, *, succeeded: bool) -> None:
        """Count a run of a job that has ended in a retry queue: handled, or given up again."""
        record = self.records.get(job_id)
        if record is not None:
            self.update(job_id, run_ended(record, queue_name(handler, session_uuid), succeeded=succeeded))
        self.on_outcome(job_id, succeeded)

    def queue_parked(self, handler: str, session_uuid: str) -> None:
        """A retry queue was parked behind a dead letter; call it after `run_ended` for that letter's own run."""
        if self.records:
            queue = queue_name(handler, session_uuid)
            for job_id, record in [*self.records.items()]:
                self.update(job_id, queue_parked(record, queue))
