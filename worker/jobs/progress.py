"""The progress of a job in one partition: what each step of it, and each outcome, makes of its record. Pure.

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

from collections import deque
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from maskline.schemas.jobs import Job, PartitionJob
from maskline.schemas.keys import encode_handler

OUTCOMES_JUDGED: Final = 10
"""The last outcomes of a job by which a worker judges whether it has to stop."""

FAILURES_MIN: Final = 5
"""Failures among them from which on the job stops, if they are more than half: a bug that is still there shows after
a handful of events, and a single bad event stops nothing."""


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


class FailureWatch:
    """Watches the outcomes of one job, and says when it has to stop because what it runs fails again."""

    def __init__(self) -> None:
        self._succeeded: deque[bool] = deque(maxlen=OUTCOMES_JUDGED)

    def ended(self, *, succeeded: bool) -> bool:
        """Take the next outcome in. Returns whether the job has to stop."""
        self._succeeded.append(succeeded)
        failures = self._succeeded.count(False)
        return failures >= FAILURES_MIN and 2 * failures > len(self._succeeded)
