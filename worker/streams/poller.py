"""Reads the new entries of one server, again and again, and passes them to the pipeline.

| reads | how | if the server does not tell which streams have changed |
| --- | --- | --- |
| combined | one XREAD over partitions with news | over all; it waits at the server, for BLOCK_MAX_MS at most |
| single | an XREAD a partition with news, in one round trip | a partition, POLL_S after one that brought nothing |

A combined read is cheaper. A cluster refuses it, since the keys lie in several slots. And where one partition cannot be
read (another type of key in its place), single reads let the others go on. Which partitions have news is kept in
`worker.streams.stream_news`.

`worker.streams.read_pace` decides when the next read is sent, `worker.streams.read_size` how much it asks for. If that
is less than READ_PARTITION_MIN entries of every partition, and there is a backlog, the partitions take turns.

Every read begins with TIME. A partition that brings less than was asked for has been read to its end as of that time:
so its watermark moves on even without entries. The next read does not wait until the last one's entries are processed.

Only its poller knows the entries of a partition that were read and are not processed yet: `read_id` is past them, and
Redis does not know. So a partition has one poller at a time (`Partition.poller`), even while it moves to another
server, and a poller whose server is gone is not cancelled before it has processed what it has.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.runtime.redis.tracking import changed_keys
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.connections import RETRY_DELAY_S, ServerConnections
from maskline.worker.partitions.partition import Partition
from maskline.worker.streams.combined_read import CombinedRead
from maskline.worker.streams.next_read import NextRead
from maskline.worker.streams.pipeline import StreamPipeline
from maskline.worker.streams.read_pace import next_read_at
from maskline.worker.streams.read_replies import ReadReplies, ReadStreams, StreamKeys
from maskline.worker.streams.read_request import ReadRequest
from maskline.worker.streams.read_size import SLOW_S, ReadSize
from maskline.worker.streams.stream_news import StreamNews

READ_PARTITION_MIN: Final = 4
READ_PARTITION_MAX: Final = 256

BLOCK_MAX_MS: Final = 250
"""How long a read waits at the server. It bounds how late a gap is given up, and how long a wake-up that came before
the read is missed."""

POLL_S: Final = 0.02
"""The pause between single reads: the most that they add to the latency. Twenty partitions then take a thousand small
commands a second."""

ROOM_CHECK_S: Final = 0.004
"""How often a poller that has no room for a read looks whether there is any. It is told only of the first event that is
done after a commit, and of commits, which may be `commit_pace.COMMIT_WAIT_MAX_S` apart: with a small
MASKLINE_OUTSTANDING_MAX everything would be done long before."""

TURN_BLOCK_MS: Final = 1
"""How long a read waits at the server while partitions take turns: others have something to read."""

_TIME: Final = pack("TIME")

_log = get_logger("maskline.worker")


class Poller:
    """Reads the partitions that the worker owns on one server.

    `combined`: whether one XREAD may read several partitions. `on_released(partitions)`: called when another poller may
    read these.
    """

    def __init__(
        self,
        server: ServerConnections,
        keys: Keys,
        pipeline: StreamPipeline,
        *,
        combined: bool,
        on_released: Callable[[Sequence[Partition]], None],
    ) -> None:
        self._server = server
        self._keys = StreamKeys(keys)
        self._pipeline = pipeline
        self._on_released = on_released
        self._combined = CombinedRead(self._keys)
        self._replies = ReadReplies(server, self._keys, combined=combined)
        self._notified = False
        """The server tells what has changed."""
        self._news = StreamNews()
        self._numbers: dict[bytes, int] = {}
        """The number of each partition that was read, by the key of its stream."""
        self._blocking = False
        """A read is waiting at the server."""
        self.starved = False
        """Something is not read, as too much is unfinished: wake the poller when there is room."""
        self._claimed: list[Partition] = []
        """The partitions whose `poller` this is."""
        self._processing = False
        self._retired = False
        self._read_size = ReadSize()
        self._next = NextRead()
        self._last_read: ReadRequest | None = None
        self._turn = 0
        """Where the next turn begins, while the partitions take turns."""
        self._backlog = True
        """There is more to read than a read brings."""
        self._full_in_round = False
        """Some read of this round of turns brought all that was asked for."""
        self.reads_cut = 0
        """Reads under way when their connection was lost."""

    def details(self) -> dict[str, Any]:
        """The state of reading, for /readyz."""
        read, size = self._last_read, self._read_size
        waited_s = read.waited_s if read is not None and read.took_s is None else 0.0
        return {
            "redis": self._server.address,
            "slow": size.slow or waited_s > SLOW_S,
            "waited_s": round(waited_s, 1),
            "read_bytes": size.read_bytes,
            "reads_cut": self.reads_cut,
            "refused_partitions": self._replies.refused_partitions,
            "notified": self._notified,
        }

    def retire(self, task: asyncio.Task[None]) -> None:
        """End `task`, in which this poller of a removed server runs, as soon as all that was read is processed."""
        self._retired = True
        if not self._processing:
            task.cancel()

    def wake(self) -> None:
        """End a read that waits, as the partitions to read or the room for entries have changed."""
        self._news.note_all_soon()
        self._next.hasten()
        commands = self._server.commands
        if self._blocking and commands is not None:
            self._blocking = False
            commands.send(pack("CLIENT", "UNBLOCK", self._server.reads_client_id), 1)

    def progressed(self) -> None:
        """Read on if that waits for room, or for a partition's commits: something was finished or committed."""
        if self.starved:
            if self._notified:
                self._next.hasten()
            else:
                self.wake()

    async def run(self) -> None:
        """Read until cancelled or retired, over any number of connections."""
        try:
            while not self._retired:
                _, reads = await self._server.ready()
                try:
                    await self._read_while_connected(reads)
                except RedisUnavailableError:
                    self._blocking = False
                    self._next.cancel()
                    self._on_interrupted()
                    self._claim_only(())  # no reply of this connection is read any more
                    # The task that keeps the connection needs a turn to see the loss before `ready` may return again.
                    await asyncio.sleep(RETRY_DELAY_S)
        finally:
            self._next.cancel()
            self._claim_only(())

    async def _read_while_connected(self, reads: PipelinedConnection) -> None:
        self._notified, reads.on_push = self._server.notifies, self._on_push
        self._news.note_all_soon()
        read = self._send_read(reads)
        while not self._retired:
            self._claim_only(() if read is None else read.partitions)
            if read is None:
                latest_at = self._news.all_at if self._notified else math.inf
                if self.starved:
                    latest_at = min(latest_at, monotonic() + ROOM_CHECK_S)
                read = await self._next.schedule(
                    partial(self._send_read, reads), earliest_at=0.0, latest_at=latest_at
                )
                continue
            self._blocking = read.combined and not self._notified
            time_reply, *replies = await read.replies()
            self._blocking = False
            # If this user may not ask for TIME, the entries have no date.
            if isinstance(time_reply, hiredis.ReplyError):
                replies = [time_reply] * len(replies)
            streams = self._replies.streams(read, replies)
            self._on_read(read, streams or ())
            if streams is None:
                await asyncio.sleep(RETRY_DELAY_S)
                self._news.note_all_soon()
                read = self._send_read(reads)
                continue
            now_ms = int(time_reply[0]) * 1000 + int(time_reply[1]) // 1000 if streams else 0
            # From here until all that was read is processed nothing may cancel this task: see `retire`.
            processed = self._pipeline.process(self._pipeline.receive(streams, read.count, now_ms))
            # After the request for states, which would wait behind it.
            following = self._schedule(reads, read, sum([len(entries) for _, entries in streams]), now_ms)
            if not await self._finish(processed):
                return
            read = await following
            # The entries just processed may have been what left no room.
            if read is None:
                read = self._send_read(reads)

    def _schedule(
        self, reads: PipelinedConnection, last: ReadRequest, entries: int, now_ms: int
    ) -> asyncio.Future[ReadRequest | None]:
        """Schedule the read after `last`, which brought so many entries. The future holds what `_send_read` returns.

        `now_ms`: Redis's time at that read; 0 if it brought nothing of any partition, not even that.
        """
        now = monotonic()
        latest_at = earliest_at = next_read_at(last.sent_at, entries, more=self._backlog)
        if self._notified:
            if now_ms:
                self._read_gaps_in_time(now, now_ms)
            latest_at = self._news.next_read_at(earliest_at)
        elif not last.combined and not entries:
            latest_at = now + POLL_S
        return self._next.schedule(
            partial(self._send_read, reads), earliest_at=earliest_at, latest_at=latest_at
        )

    def _read_gaps_in_time(self, now: float, now_ms: int) -> None:
        """Have all partitions read when the first of their gaps may be given up. `now_ms`: `now` by Redis's clock."""
        held = {partition.number for partition in self._pipeline.open_at(self._server) if partition.held}
        for partition in self._pipeline.readable(self._server, self, held)[0] if held else ():
            if (deadline := partition.next_deadline_ms) is not None:
                wait_ms = max(deadline - partition.stream_now_ms(now_ms), 1)
                self._news.read_all_by(now + wait_ms / 1000)

    def _on_push(self, message: Sequence[Any]) -> None:
        """Note which streams have changed."""
        keys = changed_keys(message)
        if keys is None:
            self._news.note_all_soon()
        else:
            self._news.noted.update(self._numbers[key] for key in keys if key in self._numbers)
        self._next.hasten()

    async def _finish(self, processed: Awaitable[None]) -> bool:
        """Wait until what was read is processed. Returns whether to read on: the poller is not retired."""
        self._processing = True
        try:
            await processed
        finally:
            self._processing = False
        return not self._retired

    def _claim_only(self, partitions: Sequence[Partition]) -> None:
        """Keep only these partitions, which have a read under way: all others are processed, and other pollers may read
        them.
        """
        kept = {*partitions}
        released = [partition for partition in self._claimed if partition not in kept]
        for partition in released:
            partition.poller = None
        self._claimed = list(partitions)
        if released:
            self._on_released(released)

    def _send_read(self, reads: PipelinedConnection) -> ReadRequest | None:
        """Send the next read; None if there is nothing to read or no room for it."""
        size, pipeline = self._read_size, self._pipeline
        among = self._with_news() if self._notified else None
        partitions, others_wait = pipeline.readable(self._server, self, among)
        room = pipeline.room()
        room = min(room, size.room(pipeline.outstanding_max - room))
        # If the bound is below the least that a read asks for, the read is sent once nothing is unfinished.
        least = min(len(partitions) * READ_PARTITION_MIN, pipeline.outstanding_max, size.room(0))
        self.starved = room < least or others_wait
        if not partitions or room < least:
            return None
        entries = size.entries
        readable_count, partitions = len(partitions), self._of_this_turn(partitions, entries)
        of_each = max(min(entries, room) // len(partitions), min(entries, READ_PARTITION_MIN))
        count = min(of_each, READ_PARTITION_MAX)
        combined = self._replies.combined
        waits = combined and not self._notified
        block_ms = None
        if waits:
            block_ms = TURN_BLOCK_MS if len(partitions) < readable_count else self._block_ms(partitions)
        packed = self._pack(partitions, count, combined=combined, block_ms=block_ms)
        if self._notified:
            self._news.noted.difference_update([partition.number for partition in partitions])
        for partition in partitions:
            if partition.poller is None:
                partition.poller = self
                self._claimed.append(partition)
        future = reads.send(b"".join((_TIME, *packed)), 1 + len(packed), at_once=True)
        self._last_read = ReadRequest(
            reads, self._server.incarnation, partitions, count, future, combined=combined
        )
        return self._last_read

    def _with_news(self) -> set[int]:
        """The numbers of the partitions that are to be read now."""
        numbers = (partition.number for partition in self._pipeline.open_at(self._server))
        self._news.note_all_if_due(numbers, monotonic())
        return self._news.noted

    def _pack(
        self, partitions: Sequence[Partition], count: int, *, combined: bool, block_ms: int | None
    ) -> list[bytes]:
        """The commands that read these partitions. `block_ms`: None if they must not wait at the server."""
        if combined and not self._notified:
            return [self._combined.pack(partitions, count, block_ms)]
        keys = [self._keys[partition.number] for partition in partitions]
        if self._notified:
            self._numbers |= {key: p.number for key, p in zip(keys, partitions, strict=True)}
        if combined:
            return [self._combined.pack(partitions, count, block_ms)]
        return [
            pack("XREAD", "COUNT", count, "STREAMS", key, partition.read_id)
            for key, partition in zip(keys, partitions, strict=True)
        ]

    def _of_this_turn(self, partitions: list[Partition], entries: int) -> list[Partition]:
        """All partitions, or as many as may be read now with so many entries; the others have the next turns."""
        if not self._backlog or len(partitions) * READ_PARTITION_MIN <= entries:
            self._turn = 0
            return partitions
        start = self._turn if self._turn < len(partitions) else 0
        chosen = partitions[start : start + max(1, entries // READ_PARTITION_MIN)]
        self._turn = start + len(chosen)
        if self._turn >= len(partitions):
            self._turn = 0
        return chosen

    def _on_read(self, read: ReadRequest, streams: ReadStreams) -> None:
        """Learn from a read how much to ask for next."""
        counts = [len(entries) for _, entries in streams]
        size, was_slow, took_s = self._read_size, self._read_size.slow, read.transfer_s
        full = read.count in counts
        if full:
            self._news.noted.update(p.number for p, entries in streams if len(entries) == read.count)
        size.completed(sum(counts), read.size_bytes, took_s, min(read.waited_s, took_s), full=full)
        if size.slow and not was_slow:
            _log.warning(
                "redis reads slow",
                redis=self._server.address,
                size_bytes=read.size_bytes,
                took_s=round(took_s, 1),
                next_bytes=size.read_bytes,
            )
        self._full_in_round = self._full_in_round or full
        if not self._turn:  # the round is over, or there are no turns
            self._backlog, self._full_in_round = self._full_in_round, False

    def _on_interrupted(self) -> None:
        read, self._last_read = self._last_read, None
        if read is not None:
            self.reads_cut += 1
            self._read_size.interrupted()

    def _block_ms(self, partitions: Sequence[Partition]) -> int:
        block_ms = BLOCK_MAX_MS
        for partition in partitions:
            if partition.held and (deadline := partition.next_deadline_ms) is not None:
                block_ms = min(block_ms, max(deadline - partition.watermark_ms, 1))
        return block_ms
