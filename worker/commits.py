"""Carries what partitions have done to Redis: one commit of a partition under way at a time, many partitions a trip.

While a commit is under way, what is done gathers for the next one, so the batches grow with the load by themselves.
A commit whose reply was lost is sent again as it was: the script knows it by its number.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import hiredis

from runtime.logs import get_logger
from schemas.keys import Keys
from worker.connections import Connections
from worker.partition import Partition
from worker.scripts import commit as pack_commit
from worker.stats import Stats

REPEAT_DELAY_S: Final = 0.1
"""After a commit that Redis refused, or that was under way when the connection was lost."""

_log = get_logger("maskline.worker")


class Committer:
    """`on_fenced(partition)`: a commit was refused because the lease is not ours any more.

    `on_committed()`: one is through.
    """

    def __init__(
        self, connections: Connections, keys: Keys, stats: Stats, on_fenced: Callable[[Partition], None],
        on_committed: Callable[[], None],
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._connections = connections
        self._keys = keys
        self._stats = stats
        self._on_fenced = on_fenced
        self._on_committed = on_committed
        self._dirty: dict[Partition, None] = {}
        self._settled: dict[Partition, asyncio.Future[None]] = {}
        self._refused = ""

    def mark(self, partition: Partition) -> None:
        """Something of the partition is done: commit it with the next trip, unless one is under way already."""
        if partition.commit_in_flight is None:
            if not self._dirty:
                self._loop.call_soon(self._flush)
            self._dirty[partition] = None

    async def settle(self, partition: Partition) -> None:
        """Wait until everything that was done is committed, or the partition is lost."""
        while partition.uncommitted and not partition.lost:
            self.mark(partition)
            future = self._settled.setdefault(partition, self._loop.create_future())
            await future

    def abandon(self, partition: Partition) -> None:
        """Stop caring: the partition is lost."""
        self._dirty.pop(partition, None)
        self._wake(partition)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, {}
        for partition in dirty:
            if partition.wants_commit and not partition.lost:
                partition.take_commit()
                self._send(partition)

    def _send(self, partition: Partition) -> None:
        commit, link = partition.commit_in_flight, self._connections.link(partition.number)
        if commit is None or partition.lost:
            return
        if link is None:
            self._loop.call_later(REPEAT_DELAY_S, self._send, partition)
            return
        packed = pack_commit(self._keys, partition.number, partition.lease_value, commit)
        link.send(packed, 1).add_done_callback(partial(self._answered, partition))

    def _answered(self, partition: Partition, future: asyncio.Future[list[Any]]) -> None:
        if partition.lost:
            return
        reply: Any = future.exception() or future.result()[0]
        if reply == 1:
            self._refused = ""
            self._stats.commits += 1
            partition.committed()
            if partition.wants_commit:
                self.mark(partition)
            self._wake(partition)
            self._on_committed()
        elif reply == 0:
            self._stats.fenced += 1
            self._on_fenced(partition)
        elif isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOGROUP"):
            # The data is gone, or the group was deleted: whoever takes the lease next makes it anew.
            _log.error(
                "the consumer group is gone, starting it again from the beginning", partition=partition.number
            )
            self._on_fenced(partition)
        else:
            if isinstance(reply, hiredis.ReplyError):
                self._refuse(partition, str(reply))
            self._loop.call_later(REPEAT_DELAY_S, self._send, partition)

    def _refuse(self, partition: Partition, reply: str) -> None:
        connection = self._connections.of(partition.number)
        if connection is not None:
            connection.refused(reply)
        kind = reply.partition(" ")[0]  # what follows may name a slot or a script, and differ every time
        if kind != self._refused:
            _log.error("Redis refuses commits, trying again until it takes them", reply=reply)
        self._refused = kind

    def _wake(self, partition: Partition) -> None:
        future = self._settled.pop(partition, None)
        if future is not None and not future.done():  # whoever waited may have been cancelled
            future.set_result(None)
