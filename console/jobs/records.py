"""The records of jobs in Redis, as commands write and read them: `schemas.jobs` says what they hold.

A job is created in three steps, each harmless to repeat: the record of each partition, then the job itself, then the
revision by which workers learn of it. Workers do nothing for records without a job. So a command that is killed between
two steps leaves nothing behind that is carried out later, or all of it.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import hiredis
import msgspec

from maskline.console.operators import operator_name
from maskline.console.redis_reader import Query, RedisReader, query_for
from maskline.runtime.redis.connect import MOVED_AWAY, WRONG_SERVER
from maskline.schemas.errors import MasklineError, RedisUnavailableError
from maskline.schemas.jobs import (
    ID_CHANCES,
    JOB_TTL_MS,
    JOBS_KEPT_MAX,
    Job,
    JobKind,
    JobTotals,
    PartitionJob,
    Selection,
    decode_job,
    decode_partition_job,
    encode_job,
    encode_partition_job,
    new_job_id,
    sum_up,
)

SWAP_TRIES_MAX: Final = 10
"""Attempts to change a record that somebody else changes as well; each of them can do so only once or twice."""


def _script(name: str) -> bytes:
    return Path(__file__).with_name(f"{name}.lua").read_bytes()


_SWAP_FIELD: Final = _script("swap_field")
_INCREMENT_FIELD: Final = _script("increment_field")


class JobError(MasklineError):
    """A job that cannot be created, followed or stopped."""


def new_job(kind: JobKind, selection: Selection, partitions: Sequence[int], rate: float) -> Job:
    """A job of this user's, with an id of its own. `rate`: runs a second at most, 0 for no bound."""
    created_ms = int(time.time() * 1000)
    return Job(
        id=new_job_id(created_ms, secrets.randbelow(ID_CHANCES)),
        kind=kind,
        selection=selection,
        created_ms=created_ms,
        partitions=tuple(sorted(partitions)),
        rate=rate,
        by=operator_name(),
    )


async def create_job(reader: RedisReader, job: Job, ends: Mapping[int, str]) -> bool:
    """Write a job; returns False, and starts nothing, if another job has its id. Harmless to repeat.

    `ends`: the entry up to which it goes, for each of its partitions. Raises JobError if too many jobs are under way.
    """
    await _forget_old_jobs(reader)
    records = [PartitionJob(created_ms=job.created_ms, end=ends[partition]) for partition in job.partitions]
    written = checked(
        await reader.send(
            [
                _swap(reader.keys.partition_jobs(partition), job.id, b"", encode_partition_job(record))
                for partition, record in zip(job.partitions, records, strict=True)
            ]
        )
    )
    ours = all(
        (there.created_ms, there.end) == (record.created_ms, record.end)
        for there, record in zip(map(decode_partition_job, written), records, strict=True)
    )
    encoded = encode_job(job)
    if not ours or checked(await reader.send([_swap(reader.keys.jobs, job.id, b"", encoded)])) != [encoded]:
        return False
    await announce_jobs(reader)
    return True


async def announce_jobs(reader: RedisReader) -> None:
    """Tell the workers that jobs have changed."""
    control = reader.keys.control
    checked(await reader.send([query_for(control, "EVAL", _INCREMENT_FIELD, 1, control, "revision")]))


async def read_jobs(reader: RedisReader) -> list[Job]:
    """All jobs that Redis keeps, the oldest first."""
    (reply,) = checked(await reader.send([query_for(reader.keys.jobs, "HVALS", reader.keys.jobs)]))
    return sorted((decode_job(value) for value in reply), key=lambda job: (job.created_ms, job.id))


async def read_progress(reader: RedisReader, jobs: Sequence[Job]) -> list[list[PartitionJob | None]]:
    """How far each job is in each of its partitions; None where there is no record any more."""
    keys = reader.keys
    replies = iter(
        checked(
            await reader.send(
                [
                    query_for(keys.partition_jobs(number), "HGET", keys.partition_jobs(number), job.id)
                    for job in jobs
                    for number in job.partitions
                ]
            )
        )
    )
    return [
        [
            None if value is None else decode_partition_job(value)
            for value in islice(replies, len(job.partitions))
        ]
        for job in jobs
    ]


async def read_totals(reader: RedisReader, jobs: Sequence[Job]) -> list[JobTotals]:
    """The sums of each job over its partitions; a record that is gone counts for nothing."""
    return [
        sum_up(record for record in records if record is not None)
        for records in await read_progress(reader, jobs)
    ]


async def stop_job(reader: RedisReader, job_id: str) -> Job:
    """Have the workers stop a job; returns it as it is then. Raises JobError if there is none of this id."""
    jobs = reader.keys.jobs
    for _ in range(SWAP_TRIES_MAX):
        (value,) = checked(await reader.send([query_for(jobs, "HGET", jobs, job_id)]))
        if value is None:
            raise JobError(f"there is no job {job_id[:60]!r}: see maskline replay list")
        stopped = msgspec.structs.replace(decode_job(value), stopped=True)
        encoded = encode_job(stopped)
        if checked(await reader.send([_swap(jobs, job_id, value, encoded)])) == [encoded]:
            await announce_jobs(reader)
            return stopped
    raise JobError(f"the job {job_id} is changed by others all the time: try again")


async def _forget_old_jobs(reader: RedisReader) -> None:
    """Remove jobs that have ended and are beyond JOBS_KEPT_MAX or JOB_TTL_MS, to make room for one.

    The workers remove their records. Raises JobError if too many are under way.
    """
    jobs = await read_jobs(reader)
    totals = await read_totals(reader, jobs)
    ended = [job for job, total in zip(jobs, totals, strict=True) if total.ended]
    too_many = max(len(jobs) - JOBS_KEPT_MAX + 1, 0)
    if too_many > len(ended):
        raise JobError(f"{len(jobs):,} replays and discards are under way: see maskline replay list")
    before_ms = int(time.time() * 1000) - JOB_TTL_MS
    old = [job.id for at, job in enumerate(ended) if at < too_many or job.created_ms < before_ms]
    if old:
        checked(await reader.send([query_for(reader.keys.jobs, "HDEL", reader.keys.jobs, *old)]))


def checked(replies: list[Any]) -> list[Any]:
    """The replies. Raises RedisUnavailableError for an error reply that another connection may not give, and JobError
    for any other.
    """
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            if text.startswith(WRONG_SERVER + MOVED_AWAY):
                raise RedisUnavailableError(f"Redis refuses: {text}")
            raise JobError(f"Redis refuses: {text}")
    return replies


def _swap(key: str, field: str, before: bytes, after: bytes) -> Query:
    return query_for(key, "EVAL", _SWAP_FIELD, 1, key, field, before, after)
