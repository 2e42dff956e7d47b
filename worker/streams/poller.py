"""Asks one server for new entries, again and again.

| | how | waits |
| --- | --- | --- |
| together | one XREAD over all partitions owned | at the server, until an entry comes or BLOCK_MAX_MS are over |
| each | an XREAD a partition, in one trip | here, POLL_S between trips that brought nothing |

Together is cheaper and quicker. A cluster refuses it, since the keys lie in several slots; and where one partition
cannot be read (another type of key in its place), asking each by itself lets the others go on.

How much is asked for follows from how fast it comes (`worker.streams.read_size`). While that is less than
READ_PARTITION_MIN entries of every partition, and there is more than comes, the partitions take turns.

Every trip begins with TIME: a partition that then has less than was asked for had been read to its end at that time,
which is how the watermark moves on where no entries do. The next read is sent before the last one's entries are worked
on.

What was read and not fed yet is known to nobody but its poller: `read_id` is past it, and Redis is not told. So a
partition has one poller at a time (`Partition.poller`), also while it moves to another server, and a poller whose
server goes is not cancelled before it has fed what it has.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.connections import RETRY_DELAY_S, ServerConnections, WorkerConnections
from maskline.worker.partitions.partition import Partition
from maskline.worker.streams.pipeline import Intake, Reader
from maskline.worker.streams.read_request import ReadRequest
from maskline.worker.streams.read_size import SLOW_S, Pace

READ_PARTITION_MIN: Final = 4
READ_PARTITION_MAX: Final = 256

BLOCK_MAX_MS: Final = 250
"""How long a read waits at the server. It bounds how late a gap is given up, and a wake-up that came too early."""

POLL_S: Final = 0.02
"""What asking each adds to the latency, at most; and a thousand small commands a second for twenty partitions."""

TURN_BLOCK_MS: Final = 1
"""The same where partitions take turns: others have something to read."""

EACH_FOR_S: Final = 5.0
"""How long each is asked by itself after the server has refused to be asked for all together."""

_log = get_logger("maskline.worker")


class Poller:
    """Reads what a worker owns on one server, and feeds it to the reader."""

    def __init__(
        self, connection: ServerConnections, keys: Keys, reader: Reader, *, together: bool,
        on_released: Callable[[], None],
    ) -> None:  # fmt: skip
        self._connection = connection
        self._keys = keys
        self._reader = reader
        self._together = together
        self._each_until = 0.0
        self._refused: dict[int, str] = {}
        """The last refusal of each partition that could not be read."""
        self._woken = asyncio.Event()
        self._at_server = False
        self.starved = False
        """Something is not read because too much is unfinished: wake it when there is room."""
        self._on_released = on_released
        self._claimed: list[Partition] = []
        """Those whose `poller` this is."""
        self._feeding = False
        self._gone = False
        self._pace = Pace()
        self._under_way: ReadRequest | None = None
        self._turn = 0
        """Where the next turn begins, while the partitions take turns."""
        self._backlog = True
        """There is more to read than a read brings."""
        self._full_in_round = False
        """Some read of this round of turns brought all that was asked for."""
        self.reads_cut = 0
        """Reads under way when their connection was lost."""

    def details(self) -> dict[str, Any]:
        """How reading goes, for /readyz."""
        request, pace = self._under_way, self._pace
        waited_s = request.waited_s if request is not None and request.took_s is None else 0.0
        return {
            "redis": self._connection.address,
            "slow": pace.slow or waited_s > SLOW_S,
            "waited_s": round(waited_s, 1),
            "read_bytes": pace.read_bytes,
            "reads_cut": self.reads_cut,
            "refused_partitions": sorted(self._refused),
        }

    def retire(self, task: asyncio.Task[None]) -> None:
        """Its server is gone: end the task in which it runs, as soon as all that was read is fed."""
        self._gone = True
        if not self._feeding:
            task.cancel()

    def wake(self) -> None:
        """What there is to read, or the room for it, has changed: let a waiting read go."""
        self._woken.set()
        commands = self._connection.commands
        if self._at_server and commands is not None:
            self._at_server = False
            commands.send(pack("CLIENT", "UNBLOCK", self._connection.reads_client_id), 1)

    async def run(self) -> None:
        """Read until cancelled or retired, over any number of connections."""
        try:
            while not self._gone:
                _, reads = await self._connection.ready()
                try:
                    await self._read_while_connected(reads)
                except RedisUnavailableError:
                    self._at_server = False
                    self._note_cut()
                    self._keep_to(())  # no reply of it is read any more
                    # The connection's keeper needs a turn to see the loss before `ready` may answer again.
                    await asyncio.sleep(RETRY_DELAY_S)
        finally:
            self._keep_to(())

    async def _read_while_connected(self, reads: PipelinedConnection) -> None:
        request = self._request(reads)
        while not self._gone:
            self._keep_to(() if request is None else request.partitions)
            if request is None:
                await self._woken.wait()
                request = self._request(reads)
                continue
            self._at_server = request.together
            time_reply, *replies = await request.replies()
            self._at_server = False
            if isinstance(time_reply, hiredis.ReplyError):  # to a user who may not ask: what came has no date
                replies = [time_reply] * len(replies)
            streams = self._read(request, replies)
            self._note_read(request, streams or ())
            if streams is None:
                await asyncio.sleep(RETRY_DELAY_S)
                request = self._request(reads)
                continue
            now_ms = int(time_reply[0]) * 1000 + int(time_reply[1]) // 1000 if streams else 0
            # From here to the end of what is read nothing may cancel: see `retire`.
            intake = self._reader.take(self._reader.taken_in(streams, request.each, now_ms))
            if request.together or any(entries for _, entries in streams):
                # After the question for states, which would wait behind it.
                request = self._request(reads)
                await self._feed(intake)
                if request is None:
                    request = self._request(reads)  # what was in hand may have been what left no room
            else:
                await self._feed(intake)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._woken.wait()
                request = self._request(reads)

    async def _feed(self, intake: Intake) -> None:
        self._feeding = True
        try:
            await intake.finish()
        finally:
            self._feeding = False

    def _keep_to(self, partitions: Sequence[Partition]) -> None:
        """Everything read is fed, and only of these a read is under way: let others read the rest."""
        kept = {*partitions}
        released = [partition for partition in self._claimed if partition not in kept]
        for partition in released:
            partition.poller = None
        self._claimed = list(partitions)
        if released:
            self._on_released()

    def _request(self, reads: PipelinedConnection) -> ReadRequest | None:
        """Send the next read; None if there is nothing to read or no room for it."""
        self._woken.clear()
        partitions, ahead = self._reader.readable(self._connection, self)
        room = self._reader.room()
        room = min(room, self._pace.room(self._reader.outstanding_max - room))
        # Where the bound is less than the least that is read, it is read when nothing is unfinished.
        least = min(len(partitions) * READ_PARTITION_MIN, self._reader.outstanding_max, self._pace.room(0))
        self.starved = room < least or ahead
        if not partitions or room < least:
            return None
        entries = self._pace.entries
        there, partitions = len(partitions), self._of_this_turn(partitions, entries)
        of_each = max(min(entries, room) // len(partitions), min(entries, READ_PARTITION_MIN))
        count = min(of_each, READ_PARTITION_MAX)
        together = self._together and monotonic() >= self._each_until
        keys = [self._keys.callbacks(partition.number) for partition in partitions]
        read_ids = [partition.read_id for partition in partitions]
        if together:
            block_ms = TURN_BLOCK_MS if len(partitions) < there else self._block_ms(partitions)
            reading = [pack("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", *keys, *read_ids)]
        else:
            reading = [
                pack("XREAD", "COUNT", count, "STREAMS", key, read_id)
                for key, read_id in zip(keys, read_ids, strict=True)
            ]
        for partition in partitions:
            if partition.poller is None:
                partition.poller = self
                self._claimed.append(partition)
        future = reads.send(pack("TIME") + b"".join(reading), 1 + len(reading), at_once=True)
        self._under_way = ReadRequest(
            reads, self._connection.incarnation, partitions, count, future, together=together
        )
        return self._under_way

    def _of_this_turn(self, partitions: list[Partition], entries: int) -> list[Partition]:
        """All, or as many as may be read now with so many entries; others have the next turns."""
        if not self._backlog or len(partitions) * READ_PARTITION_MIN <= entries:
            self._turn = 0
            return partitions
        start = self._turn if self._turn < len(partitions) else 0
        chosen = partitions[start : start + max(1, entries // READ_PARTITION_MIN)]
        self._turn = start + len(chosen)
        if self._turn >= len(partitions):
            self._turn = 0
        return chosen

    def _note_read(self, request: ReadRequest, streams: Sequence[tuple[Partition, Sequence[Any]]]) -> None:
        """Learn from a read how much to ask for next."""
        counts = [len(entries) for _, entries in streams]
        pace, was_slow, took_s = self._pace, self._pace.slow, request.transfer_s
        full = request.each in counts
        pace.brought(sum(counts), request.size_bytes, took_s, min(request.waited_s, took_s), full=full)
        if pace.slow and not was_slow:
            _log.warning(
                "redis reads slow", redis=self._connection.address,
                size_bytes=request.size_bytes, took_s=round(took_s, 1), next_bytes=pace.read_bytes,
            )  # fmt: skip
        self._full_in_round = self._full_in_round or full
        if not self._turn:  # the round is over, or there are no turns
            self._backlog, self._full_in_round = self._full_in_round, False

    def _note_cut(self) -> None:
        request, self._under_way = self._under_way, None
        if request is not None:
            self.reads_cut += 1
            self._pace.cut()

    def _block_ms(self, partitions: Sequence[Partition]) -> int:
        block_ms = BLOCK_MAX_MS
        for partition in partitions:
            if (deadline := partition.next_deadline_ms) is not None:
                block_ms = min(block_ms, max(deadline - partition.watermark_ms, 1))
        return block_ms

    def _read(
        self, request: ReadRequest, replies: Sequence[Any]
    ) -> list[tuple[Partition, Sequence[Any]]] | None:
        """What came, by partition, also where nothing did; None if it could not be read.

        Left out is what an earlier connection still owed: its server may have lost since what it tells of.
        """
        if request.together:
            reply = replies[0]
            if isinstance(reply, hiredis.ReplyError):
                self._each_until = monotonic() + EACH_FOR_S
                self._connection.note_error_reply(str(reply))
                return None
            by_key = dict(reply or ())
            return [
                (partition, by_key.get(self._keys.callbacks(partition.number).encode(), ()))
                for partition in request.partitions
                if partition.verified_at is request.incarnation
            ]
        came: list[tuple[Partition, Sequence[Any]]] = []
        for partition, reply in zip(request.partitions, replies, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                self._note_refused(partition, str(reply))
            elif partition.verified_at is request.incarnation:
                came.append((partition, reply[0][1] if reply else ()))
                if self._refused:
                    self._refused.pop(partition.number, None)
        return came

    def _note_refused(self, partition: Partition, reply: str) -> None:
        self._connection.note_error_reply(reply)
        kind = reply.partition(" ")[0]
        if self._refused.get(partition.number) != kind:
            self._refused[partition.number] = kind
            _log.error("partition read failed", partition=partition.number, reply=reply)


class Pollers:
    """A poller for each server."""

    def __init__(self, connections: WorkerConnections, keys: Keys, reader: Reader) -> None:
        self._connections = connections
        self._keys = keys
        self._reader = reader
        self._pollers: dict[ServerConnections, tuple[Poller, asyncio.Task[None]]] = {}
        self._retired: set[asyncio.Task[None]] = set()
        """Tasks of pollers whose servers are gone."""
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled, or until a poller fails, which is a fault in maskline."""
        try:
            while True:
                self._match()
                self._changed.clear()
                changed = asyncio.ensure_future(self._changed.wait())
                running = [*(task for _, task in self._pollers.values()), *self._retired]
                done, _ = await asyncio.wait([changed, *running], return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                for task in done - {changed}:
                    if task in self._retired:
                        self._retired.discard(task)
                        if task.cancelled():
                            continue
                    task.result()
        finally:
            for task in (*(task for _, task in self._pollers.values()), *self._retired):
                task.cancel()

    def details(self) -> list[dict[str, Any]]:
        """How reading goes from each server, for /readyz."""
        return [poller.details() for poller, _ in self._pollers.values()]

    def change(self) -> None:
        """The servers, or what they have, are others than before."""
        self._changed.set()
        self.wake()

    def wake(self) -> None:
        """What there is to read has changed: let waiting reads go."""
        for poller, _ in self._pollers.values():
            poller.wake()

    def progressed(self) -> None:
        """Something was finished, committed or let go of by a poller: there may be more to read."""
        for poller, _ in self._pollers.values():
            if poller.starved:
                poller.wake()

    def _match(self) -> None:
        present = set(self._connections)
        for connection in [gone for gone in self._pollers if gone not in present]:
            poller, task = self._pollers.pop(connection)
            self._retired.add(task)
            poller.retire(task)
        for connection in present - self._pollers.keys():
            poller = Poller(
                connection, self._keys, self._reader, together=not self._connections.is_cluster,
                on_released=self.progressed,
            )  # fmt: skip
            self._pollers[connection] = poller, asyncio.create_task(poller.run())
