"""Reads the dead letters of owned partitions, and has the handlers of dead letters called for each, once.

- A partition is looked at when it is opened, and when a commit has written letters: nobody else writes those of its
  group. Its letters are taken in their order, one at a time; up to RUNNERS partitions are at work at once.
- How far a partition has come is kept in Redis (`seen`), so that the next owner goes on from there. A letter that an
  earlier owner has begun, and not finished, is waited for as long as that may take; then its worker has gone down, and
  the handlers are called again.
- Letters that were there before a group first had such a handler are left alone.
"""

import asyncio
import contextlib
from time import monotonic
from typing import Any, Final

import hiredis

from maskline.runtime.clock import lease_clock
from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.runtime.redis.pipeline import pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands.scripts import dead_seen
from maskline.worker.connections import RETRY_DELAY_S, WorkerConnections
from maskline.worker.dead_letters.calls import DeadLetterCalls
from maskline.worker.dead_letters.seen import STARTS_MAX, Seen
from maskline.worker.entries.dead_letter import DEAD_FIELD, DeadLetter, decode_dead_letter, public_id
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.phase import Phase

RUNNERS: Final = 8
"""Partitions whose letters are handled at once: a webhook that takes a second is called eight times a second."""

PAGE_LETTERS: Final = 8
"""Letters read at once: they come over the connection of the commits, and each may have a callback of 64 KiB."""

OTHER_CHECK_S: Final = 0.25
"""Between two looks at whether another owner has finished the letter that it has begun."""

_log = get_logger("maskline.worker")


class DeadLetterSink:
    """Has `calls` made for the dead letters of the open partitions."""

    def __init__(
        self, connections: WorkerConnections, keys: Keys, owned: OwnedPartitions, calls: DeadLetterCalls
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._owned = owned
        self._calls = calls
        self._since = monotonic()
        self._queue: asyncio.Queue[Partition] = asyncio.Queue()
        """Partitions to look at, each once."""
        self._queued: set[Partition] = set()
        self._working: set[Partition] = set()
        self._read_to_end: set[Partition] = set()
        self._called: dict[Partition, str] = {}
        """The last letter whose handlers were called, as Redis may not know of it yet."""
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._failure_lines = LogRateLimit()
        owned.on_change(self._partitions_changed)

    def look(self, partition: Partition) -> None:
        """Look for new letters of a partition, as a commit has written some."""
        self._read_to_end.discard(partition)
        if partition not in self._queued and not self._stopping:
            self._queued.add(partition)
            self._queue.put_nowait(partition)

    async def run(self) -> None:
        """Work until cancelled."""
        self._working.clear()
        self._read_to_end.clear()
        self._partitions_changed()
        async with asyncio.TaskGroup() as runners:
            for _ in range(RUNNERS):
                runners.create_task(self._run_one())

    def start_no_more(self) -> None:
        """Begin no further letter, as a stop is under way."""
        self._stopping = True

    async def stop(self, within_s: float) -> None:
        """Wait for the letters under way, `within_s` seconds at most. The next owner begins those again that have not
        ended.
        """
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._idle.wait()

    def _partitions_changed(self) -> None:
        opened = self._owned.open
        self._read_to_end.intersection_update(opened)
        self._called = {partition: one for partition, one in self._called.items() if partition in opened}
        for partition in opened:
            if partition not in self._read_to_end:
                self.look(partition)

    async def _run_one(self) -> None:
        while True:
            partition = await self._queue.get()
            self._queued.discard(partition)
            if partition in self._working:  # its runner may have read past what this look is for
                self._look_later(partition)
                continue
            self._working.add(partition)
            try:
                with contextlib.suppress(RedisUnavailableError):
                    await self._work_off(partition)
            finally:
                self._working.discard(partition)
            if partition not in self._read_to_end:
                self._look_later(partition)

    def _look_later(self, partition: Partition) -> None:
        if partition in self._owned:
            asyncio.get_running_loop().call_later(RETRY_DELAY_S, self.look, partition)

    def _may_start(self, partition: Partition) -> bool:
        owned = partition.phase is Phase.OPEN and lease_clock() < partition.lease_until
        return owned and not self._stopping

    async def _work_off(self, partition: Partition) -> None:
        """Handle the partition's letters in their order: up to the last one, or as long as it may."""
        seen = await self._move(partition)
        while self._may_start(partition):
            page = await self._read_page(partition, seen.done)
            if not page:
                self._read_to_end.add(partition)
                return
            for letter_id, letter in page:
                if letter is not None:
                    seen = await self._handle(partition, seen, letter_id, letter)
                    if seen.done != letter_id:  # it may not start any more, or another owner has moved on
                        break
            else:
                last = page[-1][0]
                if seen.done != last:  # none of the group's
                    seen = await self._move(partition, seen, seen.finish(last, partition.token))

    async def _handle(self, partition: Partition, seen: Seen, letter_id: str, letter: DeadLetter) -> Seen:
        """Have the handlers called for a letter, and record it. Returns what Redis has now."""
        token = partition.token
        if seen.under_way_elsewhere(letter_id, token):
            now = await self._wait_for_other(partition, seen)
            if now != seen:
                return now
        if not self._may_start(partition):
            return seen
        self._under_way += 1
        self._idle.clear()
        try:
            if self._called.get(partition) != letter_id:
                if seen.starts_of(letter_id) < STARTS_MAX:
                    begun = seen.begin(letter_id, token)
                    seen = await self._move(partition, seen, begun)
                    if seen != begun:
                        return seen
                    await self._calls.call(letter, public_id(partition.number, letter_id), token)
                else:
                    self._log_passed_over(partition, letter_id, seen)
                self._called[partition] = letter_id
            return await self._move(partition, seen, seen.finish(letter_id, token))
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _wait_for_other(self, partition: Partition, seen: Seen) -> Seen:
        """Wait while another owner may still be calling handlers. Returns what Redis has then."""
        deadline, now = monotonic() + self._calls.longest_s, seen
        while now == seen and monotonic() < deadline and self._may_start(partition):
            await asyncio.sleep(OTHER_CHECK_S)
            now = await self._move(partition)
        return now

    def _log_passed_over(self, partition: Partition, letter_id: str, seen: Seen) -> None:
        _log.error(
            "dead letter handlers passed a letter over",
            letter=public_id(partition.number, letter_id),
            starts=seen.starts_of(letter_id),
            hint="each time their worker went down",
        )

    # Redis

    async def _move(self, partition: Partition, known: Seen | None = None, new: Seen | None = None) -> Seen:
        """Put `new` in the place of `known`, or only read. Returns what is there now: `new`, if nobody came before."""
        command = dead_seen(
            self._keys,
            partition.number,
            age_ms=round((monotonic() - self._since) * 1000),
            known="" if known is None else known.encode(),
            new="" if new is None else new.encode(),
        )
        reply = await self._send(partition, command)
        try:
            return Seen.read(reply)
        except (ValueError, AttributeError):
            raise self._refused(
                partition, f"{self._keys.dead_seen(partition.number)} cannot be read"
            ) from None

    async def _read_page(self, partition: Partition, after: str) -> list[tuple[str, DeadLetter | None]]:
        """The letters that follow, by their IDs; None in place of those of other groups, and of what is no letter."""
        key = self._keys.dead(partition.number)
        entries = await self._send(partition, pack("XRANGE", key, f"({after}", "+", "COUNT", PAGE_LETTERS))
        return [(entry_id.decode(), self._letter_of(fields)) for entry_id, fields in entries]

    def _letter_of(self, fields: Any) -> DeadLetter | None:
        try:
            letter = decode_dead_letter(dict(zip(fields[::2], fields[1::2], strict=True))[DEAD_FIELD])
        except (KeyError, ValueError):  # msgspec's errors are ValueErrors
            return None
        return letter if letter.group == self._keys.group else None

    async def _send(self, partition: Partition, command: bytes) -> Any:
        connection = self._connections.commands(partition.number)
        if connection is None:
            raise RedisUnavailableError("there is no connection to the partition's server")
        (reply,) = await connection.send(command, 1)
        if isinstance(reply, hiredis.ReplyError):
            self._connections.handle_error_reply(partition.number, str(reply))
            raise self._refused(partition, str(reply))
        return reply

    def _refused(self, partition: Partition, reason: str) -> RedisUnavailableError:
        """Log why Redis cannot be used, and make the error to raise."""
        if self._failure_lines.due(partition.number, reason.partition(" ")[0]):
            _log.error(
                "dead letters not read",
                partition=partition.number,
                reason=reason,
                repeats_of_all=self._failure_lines.take_suppressed(),
            )
        return RedisUnavailableError(reason)
