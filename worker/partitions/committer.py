"""Commits what partitions have done to Redis: one commit of a partition under way at a time, many partitions a round
trip.

`commit_pace` decides when they go. While a commit is under way, finished work gathers for the next one, so batches grow
with the load. A commit whose reply was lost is sent again unchanged: the script recognises it by its number.
"""

import asyncio
import contextvars
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.schemas.keys import Keys
from maskline.worker.commands.scripts import COMMITTED, DIVERGED, FENCED
from maskline.worker.commands.scripts import commit as pack_commit
from maskline.worker.connections import RETRY_DELAY_S, WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.partitions.commit_pace import CommitPace
from maskline.worker.partitions.partition import Partition

CURSOR_CHECK_INTERVAL_S: Final = 0.5
"""How often a commit checks that the entry at the partition's cursor exists. A new connection has the history checked
(`worker.partitions.history_check`); this is for a server whose data changes behind a connection that stays open."""

_log = get_logger("maskline.worker")


class Committer:
    """Sends the commits of all owned partitions.

    `on_fenced(partition)`: called when a commit was refused because the lease is not ours any more.
    `on_diverged(partition)`: called when the server lacks what the commit builds on. `on_committed()`: called when some
    commits were answered. `on_retry_due(partition)`: called when a commit has changed when a retry queue is due.
    `on_dead_letters(partition)`: called when a commit has written dead letters.
    `on_fault(doing, error)`: called when a commit could not be encoded, which is a fault in maskline; its partition
    counts as fenced, and is acquired anew.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        counters: Counters,
        *,
        on_fenced: Callable[[Partition], None],
        on_diverged: Callable[[Partition], None],
        on_committed: Callable[[], None],
        on_retry_due: Callable[[Partition], None] = lambda _partition: None,
        on_dead_letters: Callable[[Partition], None] = lambda _partition: None,
        on_fault: Callable[[str, BaseException], None] = lambda _doing, _error: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections = connections
        self._keys = keys
        self._counters = counters
        self._on_fenced = on_fenced
        self._on_diverged = on_diverged
        self._on_committed = on_committed
        self._on_retry_due = on_retry_due
        self._on_dead_letters = on_dead_letters
        self._on_fault = on_fault
        self._pace: CommitPace[Partition] = CommitPace()
        self._timer: asyncio.TimerHandle | None = None
        """For the next flush, where it does not go at once."""
        self._flushing = False
        """The next flush goes in the loop's next turn."""
        self._waits: dict[Partition, asyncio.Future[None]] = {}
        self._context = contextvars.copy_context()
        """Commits are sent in this context, not in the caller's: a handler may have bound log values in its own."""
        self._failure_lines = LogRateLimit()

    @property
    def flush_at(self) -> float | None:
        """When the next flush goes, by the loop's clock; None if no partition waits for one, or it goes at once."""
        return None if self._timer is None else self._timer.when()

    def mark(self, partition: Partition, *, at_once: bool = False) -> None:
        """Commit the partition's finished work when its turn has come, unless a commit of it is under way.

        `at_once`: with the loop's next turn, as something waits for it.
        """
        if partition.commit_in_flight is not None:
            return
        urgent = at_once or partition.commit_is_urgent
        if self._pace.add(partition, partition.run_ahead, self._loop.time(), urgent=urgent):
            self._schedule()

    async def wait_committed(self, partition: Partition) -> None:
        """Wait until all finished work is committed, or the partition is lost."""
        while partition.uncommitted and not partition.lost:
            self.mark(partition, at_once=True)
            future = self._waits.setdefault(partition, self._loop.create_future())
            await future

    def abandon(self, partition: Partition) -> None:
        """Commit nothing more of a partition, which is lost."""
        self._pace.remove(partition)
        self._end_wait(partition)

    def _schedule(self) -> None:
        """Have the next flush go with the loop's next turn, or when the pace says."""
        if self._flushing:
            return
        now = self._loop.time()
        due = self._pace.due_s(now)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due <= now:
            self._flushing = True
            self._loop.call_soon(self._flush, context=self._context)
        elif due < math.inf:
            self._timer = self._loop.call_at(due, self._flush, context=self._context)

    def _flush(self) -> None:
        """Send a commit of each partition whose turn has come, and that has something to commit."""
        self._timer, self._flushing = None, False
        taken = [
            partition
            for partition in self._pace.take(self._loop.time(), _is_whole)
            if partition.wants_commit and not partition.lost
        ]
        for partition in taken:
            partition.take_commit()
        self._send(taken)
        self._schedule()

    def _send(self, partitions: Iterable[Partition]) -> None:
        """Send the commits under way of these partitions, those of one server together."""
        by_connection: dict[PipelinedConnection, list[Partition]] = {}
        packed: dict[PipelinedConnection, list[bytes]] = {}
        now = self._loop.time()
        for partition in partitions:
            commit = partition.commit_in_flight
            if commit is None or partition.lost:
                continue
            connection = self._connections.verified_commands(partition.number, partition.verified_at)
            if connection is None:
                self._retry(partition)
                continue
            check_cursor = now >= partition.cursor_check_at
            if check_cursor:
                partition.cursor_check_at = now + CURSOR_CHECK_INTERVAL_S
            try:
                one = pack_commit(
                    self._keys, partition.number, partition.lease_value, commit, check_cursor=check_cursor
                )
            except Exception as error:  # noqa: BLE001 - the other commits must be sent, and this one must not wait for ever
                self._on_fault("commits", error)
                self._on_fenced(partition)
                continue
            by_connection.setdefault(connection, []).append(partition)
            packed.setdefault(connection, []).append(one)
        for connection, those in by_connection.items():
            replies = connection.send(b"".join(packed[connection]), len(those), at_once=True)
            replies.add_done_callback(partial(self._answered, those))

    def _retry(self, partition: Partition) -> None:
        self._loop.call_later(RETRY_DELAY_S, self._send, (partition,))

    def _answered(self, partitions: Sequence[Partition], future: asyncio.Future[list[Any]]) -> None:
        failure = future.exception()
        replies: Sequence[Any] = [failure] * len(partitions) if failure is not None else future.result()
        for partition, reply in zip(partitions, replies, strict=True):
            if not partition.lost:
                self._replied(partition, reply)
        self._on_committed()

    def _replied(self, partition: Partition, reply: Any) -> None:
        if reply == COMMITTED:
            self._counters.commits += 1
            commit = partition.commit_in_flight
            partition.committed()
            if partition.retry_due_ms:
                self._on_retry_due(partition)
            if commit is not None and commit.dead:
                self._on_dead_letters(partition)
            if partition.wants_commit:
                self.mark(partition)
            self._end_wait(partition)
        elif reply == FENCED:
            self._counters.fenced += 1
            self._on_fenced(partition)
        elif reply == DIVERGED:
            _log.warning("partition diverged", partition=partition.number)
            self._on_diverged(partition)
        elif isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOGROUP"):
            # The data is gone, or the group was deleted: the next acquisition creates it again.
            _log.error("consumer group missing", partition=partition.number)
            self._on_diverged(partition)
        else:
            if isinstance(reply, hiredis.ReplyError):
                self._on_error_reply(partition, str(reply))
            self._retry(partition)

    def _on_error_reply(self, partition: Partition, reply: str) -> None:
        self._connections.handle_error_reply(partition.number, reply)
        kind = reply.partition(" ")[0]  # the rest may name a slot or a script, and differ every time
        if self._failure_lines.due(partition.number, kind):
            _log.error(
                "commit refused",
                partition=partition.number,
                reply=reply,
                repeats_of_all=self._failure_lines.take_suppressed(),
            )

    def _end_wait(self, partition: Partition) -> None:
        future = self._waits.pop(partition, None)
        if future is not None and not future.done():  # the task that waited may have been cancelled
            future.set_result(None)


def _is_whole(partition: Partition) -> bool:
    return partition.whole
