"""Carries out the jobs of a group in the partitions that this worker owns, beside its live events.

Jobs are learned of when their revision changes (`worker.gates.control`), and when a partition is acquired. Each job in
each partition is a task of its own; what it has done is in the partition's records, which are written by the commits
that do it. So a task that ends early, with its worker, its partition or its connection, is simply begun again.

| bound | on |
| --- | --- |
| JOBS_AT_ONCE | jobs carried out: the oldest first, the others wait |
| WINDOWS_AT_ONCE | partitions in which kept callbacks are gone through, since that takes memory |
| FEEDS_AT_ONCE | partitions in which those of an archive are, as they come, for each job |
| `job_run.UNDER_WAY_QUEUES_MAX` | retry queues of a job under way in a partition |
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final

import hiredis
import msgspec
from msgspec.structs import replace

from maskline.runtime.clock import wall_clock_ms
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.runtime.redis.pipeline import Argument, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.jobs import Job, PartitionJob, decode_job, encode_job
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.api.binding import Table
from maskline.worker.commands import scripts
from maskline.worker.commands.retry_ops import DeleteJob
from maskline.worker.connections import RETRY_DELAY_S, WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.entries.decode import EntryDecoder
from maskline.worker.jobs.callback_scan import carry_out_callbacks
from maskline.worker.jobs.failure_watch import FailureWatch
from maskline.worker.jobs.feed_scan import carry_out_archive
from maskline.worker.jobs.job_run import JobInactiveError, JobRun, JobTools
from maskline.worker.jobs.lag import MEASURE_S, LagWatch
from maskline.worker.jobs.letter_scan import carry_out_letters
from maskline.worker.jobs.run_rate import RunRate
from maskline.worker.ordering.reorder import Policy
from maskline.worker.partitions.committer import Committer
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.partition_jobs import settled

JOBS_AT_ONCE: Final = 4

WINDOWS_AT_ONCE: Final = 4
"""Each holds the sessions of WINDOW_ENTRIES_MAX entries, and the callbacks of BATCH_ENTRIES_MAX."""

FEEDS_AT_ONCE: Final = 4
"""Each holds a session and a page of its feed. Apart from WINDOWS_AT_ONCE, and for each job, since a feed may pause."""

LOOK_S: Final = 15.0
"""Between two looks at the jobs if nothing is known to have changed: a failover may have lost the revision."""

LOOK_BUSY_S: Final = 1.0
"""The same while a job is carried out: another worker may have found that it has to stop."""

FORGET_AFTER_MS: Final = 3_600_000
"""A record without a job is removed when it is so old. A command writes the records first: they may be alone for a
moment."""

_log = get_logger("maskline.worker")


class JobExecutor:
    """Carries out jobs in a worker process.

    `table`: the handlers by type of event. `on_fault(doing, error)`: called with an error that is a fault in maskline;
    the job goes on from its record.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        owned: OwnedPartitions,
        committer: Committer,
        table: Table,
        settings: Settings,
        *,
        counters: Counters,
        on_fault: Callable[[str, BaseException], None] = lambda _doing, _error: None,
    ) -> None:
        self._tools = JobTools(
            connections,
            keys,
            committer,
            EntryDecoder(frozenset(settings.ignored_parameters), settings.group),
            {
                kind: tuple(handler.name for handler in handlers) for kind, handlers in table.items()
            }.__getitem__,
            Policy(
                settings.gap_timeout_ms + settings.gap_spool_ms, settings.first_sequence, settings.held_max
            ),
            settings.recording_sequence == "shared",
            LagWatch(connections, owned),
        )
        self._owned = owned
        self._counters = counters
        self._on_fault = on_fault
        self._jobs: dict[str, Job] = {}
        self._job_ids: set[str] = set()
        """Those in Redis, of jobs that only a newer release can read as well."""
        self._revision = 0
        self._jobs_read_at = -1
        """The revision at which the jobs were read; -1 before the first time."""
        self._records_read_at: dict[Partition, int] = {}
        self._looked_at = -LOOK_S
        self._rates: dict[str, RunRate] = {}
        self._watches: dict[str, FailureWatch] = {}
        self._failing: set[str] = set()
        """Jobs that have stopped themselves, as long as Redis does not know."""
        self._tasks: dict[tuple[Partition, str], asyncio.Task[None]] = {}
        self._windows = asyncio.Semaphore(WINDOWS_AT_ONCE)
        self._feeds: defaultdict[str, asyncio.Semaphore] = defaultdict(
            partial(asyncio.Semaphore, FEEDS_AT_ONCE)
        )
        self._wake = asyncio.Event()
        self._failure_lines = LogRateLimit()
        owned.on_change(self._wake.set)

    def revision_changed(self, revision: int) -> None:
        """A command has changed jobs."""
        self._revision = revision
        self._wake.set()

    @property
    def running(self) -> int:
        """Jobs that this worker carries out."""
        return len({job_id for _, job_id in self._tasks})

    async def run(self) -> None:
        """Carry jobs out until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._tell_failing()
                    await self._read_changes()
                    wait_s = await self._carry_on()
                except RedisUnavailableError:
                    wait_s = RETRY_DELAY_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
        finally:
            for task in self._tasks.values():
                task.cancel()

    # What there is to do

    async def _read_changes(self) -> None:
        """Read the jobs, and the records of partitions, as far as they may have changed."""
        revision, now = self._revision, monotonic()
        due = now >= self._looked_at + (LOOK_BUSY_S if self._tasks else LOOK_S)
        fresh = [p for p in self._owned.open if p.jobs.loaded and self._records_read_at.get(p) != revision]
        if due or fresh or self._jobs_read_at != revision:
            await self._read_jobs()
            self._jobs_read_at = revision
            for partition in [*self._owned.open] if due else fresh:
                await self._read_records(partition)
                self._records_read_at[partition] = revision
            self._records_read_at = {p: at for p, at in self._records_read_at.items() if p in self._owned}
            self._looked_at = now

    async def _read_jobs(self) -> None:
        jobs: dict[str, Job] = {}
        key = self._tools.keys.jobs
        reply = await self._send(key, "HGETALL", key)
        for value in reply[1::2]:
            with contextlib.suppress(msgspec.MsgspecError):  # of a newer release: its workers carry it out
                job = decode_job(value)
                known = self._jobs.get(job.id)
                jobs[job.id] = replace(job, failing=job.failing or (known is not None and known.failing))
        self._jobs = jobs
        self._job_ids = {job_id.decode() for job_id in reply[::2]}
        self._rates = {name: rate for name, rate in self._rates.items() if name in jobs}
        self._watches = {name: watch for name, watch in self._watches.items() if name in jobs}
        for name in self._feeds.keys() - jobs.keys():
            del self._feeds[name]

    async def _read_records(self, partition: Partition) -> None:
        """Learn of the records that commands have created in a partition, and remove those of jobs that are gone."""
        connection = self._tools.connections.verified_commands(partition.number, partition.verified_at)
        if connection is None or not partition.jobs.loaded or partition.closed:
            return
        (reply,) = await connection.send(scripts.get_jobs(self._tools.keys, partition.number), 1)
        jobs = partition.jobs
        jobs.load(scripts.read_jobs(reply))
        jobs.on_outcome = partial(self._ended, partition)
        jobs.on_failed_first = self._failed_first
        old_ms = wall_clock_ms() - FORGET_AFTER_MS
        for job_id, record in [*jobs.records.items()]:
            if job_id not in self._job_ids and record.created_ms < old_ms:
                jobs.forget(job_id)
                partition.add_retry_op(DeleteJob(job_id))
                self._tools.committer.mark(partition)

    # Carrying out

    async def _carry_on(self) -> float:
        """Begin what is to be carried out. Returns after how many seconds to look again."""
        for partition in self._owned.open:
            for job_id in [*partition.jobs.records]:
                self._settle(partition, job_id)
        oldest = sorted(self._jobs.values(), key=lambda job: (job.created_ms, job.id))
        unfinished = {
            job_id for p in self._owned.open for job_id, record in p.jobs.records.items() if _is_left(record)
        }
        for job in [job for job in oldest if job.id in unfinished][:JOBS_AT_ONCE]:
            for partition in self._owned.open:
                record = partition.jobs.records.get(job.id)
                if record is not None and _is_left(record) and (partition, job.id) not in self._tasks:
                    self._begin(partition, job)
        if not all(partition.jobs.loaded for partition in self._owned.open):
            return RETRY_DELAY_S
        if not self._tasks:
            return LOOK_S
        await self._tools.lag.measure()
        return MEASURE_S

    def _begin(self, partition: Partition, job: Job) -> None:
        if job.id not in self._rates:
            self._rates[job.id] = RunRate(job.rate)
            _log.info("job begun", job=job.id, kind=job.kind, by=job.by, rate=job.rate)
        task = asyncio.create_task(
            self._carry_out(partition, job), name=f"job {job.id} in {partition.number}"
        )
        self._tasks[partition, job.id] = task
        task.add_done_callback(lambda _task: self._task_ended(partition, job.id))

    async def _carry_out(self, partition: Partition, job: Job) -> None:
        run = JobRun(self._tools, partition, job, self._rates[job.id])
        while run.active:
            try:
                if job.kind == "callbacks":
                    async with self._windows:
                        await carry_out_callbacks(run)
                elif job.kind == "archive":
                    async with self._feeds[job.id]:
                        await carry_out_archive(run)
                else:
                    await carry_out_letters(run)
            except JobInactiveError:
                return
            except RedisUnavailableError:
                await asyncio.sleep(RETRY_DELAY_S)
            except Exception as error:  # noqa: BLE001 - a fault in maskline; the job goes on from its record
                self._on_fault("jobs", error)
                await asyncio.sleep(LOOK_S)
            else:
                return

    def _task_ended(self, partition: Partition, job_id: str) -> None:
        self._tasks.pop((partition, job_id), None)
        self._wake.set()

    # What becomes of jobs

    def _ended(self, partition: Partition, job_id: str, succeeded: bool) -> None:
        """A run of a job has ended; the commit that says so is yet to be written."""
        self._counters.job_runs["succeeded" if succeeded else "failed"] += 1
        self._judge(job_id, succeeded=succeeded)
        self._settle(partition, job_id)

    def _failed_first(self, job_id: str) -> None:
        """A run of a job has failed for the first time, and is tried on."""
        self._judge(job_id, succeeded=False)

    def _judge(self, job_id: str, *, succeeded: bool) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            return
        if self._watches.setdefault(job_id, FailureWatch()).ended(succeeded=succeeded) and not job.failing:
            self._stop_failing(job)

    def _settle(self, partition: Partition, job_id: str) -> None:
        """Give a record the state that follows from its job and its progress."""
        job, record = self._jobs.get(job_id), partition.jobs.records.get(job_id)
        if job is not None and record is not None:
            partition.jobs.update(job_id, settled(record, job))
            if partition.wants_commit:
                self._tools.committer.mark(partition)

    def _stop_failing(self, job: Job) -> None:
        """Stop a job in all partitions of this worker now, and in those of others once Redis knows."""
        self._jobs[job.id] = replace(job, failing=True)
        self._failing.add(job.id)
        for partition in self._owned:
            self._settle(partition, job.id)
        _log.error("job stopped itself", job=job.id, kind=job.kind, reason="most of what it runs fails again")
        self._wake.set()

    async def _tell_failing(self) -> None:
        """Tell the other workers which jobs stopped themselves."""
        keys = self._tools.keys
        for job_id in [*self._failing]:
            value = await self._send(keys.jobs, "HGET", keys.jobs, job_id)
            if value is not None:
                told = encode_job(replace(decode_job(value), failing=True))
                await self._send(keys.jobs, "HSET", keys.jobs, job_id, told)
            self._failing.discard(job_id)

    async def _send(self, key: str, *command: Argument) -> Any:
        """The reply of the server that has `key`. Raises RedisUnavailableError, also where it refuses the command."""
        server = self._tools.connections.of_key(key)
        if server is None or server.commands is None:
            raise RedisUnavailableError("there is no connection to the server of the key")
        (reply,) = await server.commands.send(pack(*command), 1)
        if isinstance(reply, hiredis.ReplyError):
            server.handle_error_reply(str(reply))
            self._log_failure(str(reply))
            raise RedisUnavailableError(str(reply))
        return reply

    def _log_failure(self, reason: str) -> None:
        if self._failure_lines.due(reason.partition(" ")[0]):
            _log.error("jobs not read", reason=reason, repeats_of_all=self._failure_lines.take_suppressed())


def _is_left(record: PartitionJob) -> bool:
    """Whether more of the job may begin in its partition."""
    return record.state == "running" and not record.scanned
