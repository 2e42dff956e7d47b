"""One job in one partition while it is carried out: its record, and whether more of it may begin.

A run of a job begins only while all of this holds, so that a replay stays behind what is live:
- this worker is not behind its streams by LAG_MAX_MS (`worker.jobs.lag`);
- the job has UNDER_WAY_QUEUES_MAX retry queues under way in the partition at most;
- the job's rate has room, over all workers (`worker.jobs.run_rate`).
"""

import asyncio
from collections.abc import Collection
from time import monotonic
from typing import Any, Final, NamedTuple

import hiredis

from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.schemas.errors import MasklineError, RedisUnavailableError
from maskline.schemas.jobs import Job, PartitionJob
from maskline.schemas.keys import Keys
from maskline.worker.commands import scripts
from maskline.worker.connections import RETRY_DELAY_S, WorkerConnections
from maskline.worker.entries.decode import EntryDecoder
from maskline.worker.jobs.lag import LagWatch
from maskline.worker.jobs.run_rate import RunRate
from maskline.worker.jobs.session_replay import HandlersOf
from maskline.worker.ordering.reorder import Policy
from maskline.worker.partitions.committer import Committer
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.partition_jobs import settled

UNDER_WAY_QUEUES_MAX: Final = 64
"""Retry queues in which a job has runs under way, in one partition. It bounds a job's record to some kilobytes, and how
much of a replay is still run after it was stopped."""

CHECK_S: Final = 0.1
"""How often it is checked whether more may begin."""


class JobInactiveError(MasklineError):
    """The job is not to be carried on in this partition: it has ended, or the partition is another worker's."""


class JobTools(NamedTuple):
    """What carrying out jobs needs of the worker."""

    connections: WorkerConnections
    keys: Keys
    committer: Committer
    decoder: EntryDecoder
    """One for jobs alone: unreadable values of old callbacks are not counted again."""
    handlers_of: HandlersOf
    policy: Policy
    recording_shared: bool
    lag: LagWatch


class JobRun:
    """One job in one partition. `rate`: the worker's share of the job's rate, for all of its partitions."""

    def __init__(self, tools: JobTools, partition: Partition, job: Job, rate: RunRate) -> None:
        self.tools = tools
        self.partition = partition
        self.job = job
        self._rate = rate

    @property
    def record(self) -> PartitionJob:
        """The job's progress in this partition."""
        return self.partition.jobs.records[self.job.id]

    @property
    def active(self) -> bool:
        """Whether it is to be carried on: the partition is this worker's, and the job has not ended there."""
        record = self.partition.jobs.records.get(self.job.id)
        return (
            not self.partition.closed
            and record is not None
            and record.state == "running"
            and not record.scanned
        )

    def require_active(self) -> None:
        """Raise JobInactiveError if it is not to be carried on. To be called after each wait."""
        if not self.active:
            raise JobInactiveError("the job is not carried on here")

    def update(self, record: PartitionJob) -> None:
        """Write the record with the next commit, with whatever else was changed in the partition until then."""
        self.partition.jobs.update(self.job.id, settled(record, self.job))
        if self.partition.wants_commit:
            self.tools.committer.mark(self.partition)

    def has_room(self, queues: Collection[str]) -> bool:
        """Whether runs may begin in these retry queues as far as this worker is concerned."""
        under_way = self.record.under_way
        return not self.tools.lag.lagging and (
            not under_way or len(under_way.keys() | queues) <= UNDER_WAY_QUEUES_MAX
        )

    def take_rate(self, runs: int) -> bool:
        """Take runs out of what the job's rate has granted this worker; False if that is too little."""
        return self._rate.take(runs)

    async def wait_admitted(self, runs: int, queues: Collection[str]) -> None:
        """Wait until so many runs may begin in these retry queues. Raises JobInactiveError, RedisUnavailableError."""
        self.require_active()
        while not self.has_room(queues) or not self.take_rate(runs):
            if not self.has_room(queues):
                await asyncio.sleep(CHECK_S)
            elif (wait_s := self._rate.wait_s(monotonic())) > 0:
                await asyncio.sleep(min(wait_s, CHECK_S))
            else:
                await self._ask_for(runs)
            self.require_active()

    def connection(self) -> PipelinedConnection:
        """The connection of the partition's commits. Raises RedisUnavailableError while there is none."""
        connection = self.tools.connections.verified_commands(
            self.partition.number, self.partition.verified_at
        )
        if connection is None:
            raise RedisUnavailableError("the partition's server is away")
        return connection

    async def ask(self, packed: bytes, count: int) -> list[Any]:
        """The replies to commands about the partition, which is still active then.

        Raises JobInactiveError, and RedisUnavailableError also if a command is refused.
        """
        replies = await self.connection().send(packed, count)
        self.require_active()
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                self.tools.connections.handle_error_reply(self.partition.number, str(reply))
                raise RedisUnavailableError(str(reply))
        return replies

    async def _ask_for(self, runs: int) -> None:
        """Ask for room in the job's rate."""
        wanted = self._rate.asks_for(runs, monotonic())
        server = self.tools.connections.of_key(self.tools.keys.job_rate(self.job.id))
        if server is None or server.commands is None:
            await asyncio.sleep(RETRY_DELAY_S)
            return
        packed = scripts.take_runs(self.tools.keys, self.job.id, self._rate.microseconds_each, wanted)
        (reply,) = await server.commands.send(packed, 1)
        if isinstance(reply, hiredis.ReplyError):
            server.handle_error_reply(str(reply))
            raise RedisUnavailableError(str(reply))
        if reply == 0:
            self._rate.granted(wanted)
        else:
            self._rate.refused(reply, monotonic())
