"""Trims the streams of owned partitions: entries that every group has handled, after retention or beyond its count.

A partition is looked at every ROUND_S while there is much to trim, and else every `calm_pause_s`.

The script decides and trims at once, so no lease is needed for safety; the owner does it because one worker must.
Entries that the owner has read and not committed are beyond its group's cursor or in the pending list, since only the
commit moves the cursor: the script never takes them.

A group that has stopped keeps everything it has not handled, for ever if need be: nothing unhandled is ever trimmed,
however much memory that takes. A metric and a warning show it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings
from maskline.worker.commands import scripts
from maskline.worker.connections import WorkerConnections
from maskline.worker.counters import Counters
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition

ROUND_S: Final = 1.0
"""How often a partition is trimmed, roughly, while there is much to trim."""

PAUSE_MAX_S: Final = 5.0
"""How often it is trimmed, at least: where there is little, a look costs the server more than what it trims. At a
thousand callbacks a second over 64 partitions, looks at all of them every second were a fortieth of its work."""

TRIM_MANY: Final = 100
"""So many entries trimmed with one call are worth the next call soon: a whole node of a stream."""

STEPS: Final = 4
"""Round trips over which the trimming of all partitions is spread."""

STEP_PARTITIONS_MAX: Final = 64
"""Partitions trimmed in one round trip; with very many partitions, each is trimmed less often."""

TRIM_MAX: Final = 10_000
"""Entries trimmed from a partition with one call: a few milliseconds of the server's time."""

WARN_AFTER_S: Final = 30.0
"""How long an entry may outstay retention before it is logged: bursts and retries take a while."""

WARN_EVERY_S: Final = 300.0

_log = get_logger("maskline.worker")


class Retention:
    """Trims the streams of the open partitions, a few at a time."""

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        owned: OwnedPartitions,
        settings: Settings,
        counters: Counters,
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._owned = owned
        self._retention_ms = settings.retention_s * 1000
        self._keep = settings.retention_max_entries // settings.partitions
        self._counters = counters
        self._pause_s = calm_pause_s(self._retention_ms, self._keep)
        self._calm_until: dict[int, float] = {}
        """Until when partitions that had little to trim are passed over, by number."""
        self._next = 0
        self._last_replies: dict[int, scripts.TrimReply] = {}
        """The last reply to a trim, by partition."""
        self._warned: dict[str, float] = {}
        self._failure_lines = LogRateLimit()

    @property
    def retained(self) -> int:
        """Entries in the streams of owned partitions, handled or not."""
        owned = {partition.number for partition in self._owned.open}
        return sum(reply.left for number, reply in self._last_replies.items() if number in owned)

    def held_back_s(self) -> dict[str, float]:
        """By group: for how many seconds the oldest entry that it holds back has outstayed retention."""
        owned = {partition.number for partition in self._owned.open}
        greatest: dict[str, float] = {}
        for number, reply in self._last_replies.items():
            for held in reply.held if number in owned else ():
                greatest[held.group] = max(greatest.get(held.group, 0.0), held.outstayed_ms / 1000)
        return greatest

    async def run(self) -> None:
        """Trim until cancelled."""
        while True:
            await asyncio.sleep(ROUND_S / STEPS)
            due = self._due(sorted(self._owned.open, key=lambda partition: partition.number))
            by_connection: defaultdict[PipelinedConnection, list[int]] = defaultdict(list)
            for number in due:
                if (connection := self._connections.commands(number)) is not None:
                    by_connection[connection].append(number)
            await asyncio.gather(
                *(self._trim(connection, numbers) for connection, numbers in by_connection.items())
            )
            self._warn()

    def _due(self, owned: Sequence[Partition]) -> list[int]:
        """The numbers of the next few partitions to trim, in turn."""
        count = min(-(-len(owned) // STEPS), STEP_PARTITIONS_MAX)
        if self._next >= len(owned):
            self._next = 0
            present = {partition.number for partition in owned}
            self._last_replies = {
                number: reply for number, reply in self._last_replies.items() if number in present
            }
            self._calm_until = {number: at for number, at in self._calm_until.items() if number in present}
        first = self._next
        self._next += count
        now = monotonic()
        numbers = [partition.number for partition in owned[first : first + count]]
        return [number for number in numbers if self._calm_until.get(number, 0.0) <= now]

    async def _trim(self, connection: PipelinedConnection, numbers: Sequence[int]) -> None:
        packed = [
            scripts.trim(
                self._keys, number, retention_ms=self._retention_ms, keep=self._keep, at_most=TRIM_MAX
            )
            for number in numbers
        ]
        try:
            replies = await connection.send(b"".join(packed), len(packed))
        except RedisUnavailableError:
            return
        for number, reply in zip(numbers, replies, strict=True):
            self._replied(number, reply)

    def _replied(self, number: int, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._connections.handle_error_reply(number, str(reply))
            self._last_replies.pop(number, None)
            if self._failure_lines.due(number, str(reply).partition(" ")[0]):
                _log.error(
                    "trim failed",
                    partition=number,
                    reply=str(reply),
                    repeats_of_all=self._failure_lines.take_suppressed(),
                )
            return
        trimmed = self._last_replies[number] = scripts.read_trimmed(reply)
        self._counters.trimmed += trimmed.trimmed
        # Half a round less, or rounds that are a little early would make it one more.
        pause_s = 0.0 if trimmed.trimmed >= TRIM_MANY else self._pause_s - ROUND_S / 2
        self._calm_until[number] = monotonic() + pause_s

    def _warn(self) -> None:
        now = monotonic()
        for group, seconds in self.held_back_s().items():
            if seconds < WARN_AFTER_S or now < self._warned.get(group, 0.0) + WARN_EVERY_S:
                continue
            self._warned = {name: at for name, at in self._warned.items() if now < at + WARN_EVERY_S}
            self._warned[group] = now
            waiting = [
                held.waiting
                for reply in self._last_replies.values()
                for held in reply.held
                if held.group == group
            ]
            _log.warning(
                "retention held back",
                group=group,
                outstayed_s=round(seconds),
                callbacks_not_handled=sum(max(count, 0) for count in waiting),
                hint="start the group's workers, or remove the group if nobody needs it (docs/operating.md)",
            )


def calm_pause_s(retention_ms: int, keep: int) -> float:
    """How often a partition is trimmed that has little to trim: pure. `keep`: how many entries may stay in it.

    So that what outstays retention in between is small beside it: a tenth of the time, or what comes in a second for
    each thousand entries that may stay.
    """
    return max(ROUND_S, min(retention_ms / 10_000, keep / 1_000, PAUSE_MAX_S))
