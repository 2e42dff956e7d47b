"""Asks a server that is connected anew whether it still has what was seen of each partition
(`worker.partitions.history`).

Until it has answered, the partition is neither read nor committed there: what is read could skip entries, and a commit
could move the cursor past them. One round trip for all partitions of a server, once a connection.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands import scripts
from maskline.worker.connections import RETRY_DELAY_S, ServerConnections, WorkerConnections
from maskline.worker.partitions.history import Seen, has_all
from maskline.worker.partitions.partition import Partition

LOOK_S: Final = 1.0
"""Between looks that nobody asked for: a partition may have moved to another server while it was being acquired."""

ASKED_MAX: Final = 256
"""Partitions in one trip: each may be answered with an entry of some kilobytes."""

LOGGED_MAX: Final = 16
"""Partitions named in a log line."""

_log = get_logger("maskline.worker")


class HistoryVerifier:
    """`owned()`: the partitions of this worker. `on_same(partition)`: it may be gone on with.

    `on_diverged(partition)`: its server lacks something that was seen.
    """

    def __init__(
        self, connections: WorkerConnections, keys: Keys, owned: Callable[[], Iterable[Partition]],
        *, on_same: Callable[[Partition], None], on_diverged: Callable[[Partition], None],
    ) -> None:  # fmt: skip
        self._connections = connections
        self._keys = keys
        self._owned = owned
        self._on_same = on_same
        self._on_diverged = on_diverged
        self._wanted = asyncio.Event()

    def want(self) -> None:
        """A connection was opened, or partitions have moved to other servers."""
        self._wanted.set()

    async def run(self) -> None:
        """Verify what is not verified, until cancelled."""
        while True:
            self._wanted.clear()
            by_connection: dict[ServerConnections, list[Partition]] = {}
            for connection, partition in self._unverified():
                by_connection.setdefault(connection, []).append(partition)
            await asyncio.gather(*(self._verify(*those) for those in by_connection.items()))
            wait_s = RETRY_DELAY_S if any(self._unverified()) else LOOK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wanted.wait()

    def _unverified(self) -> Iterator[tuple[ServerConnections, Partition]]:
        for partition in self._owned():
            connection = self._connections.of_partition(partition.number)
            if connection is None or partition.lost or partition.verified_at is connection.incarnation:
                continue
            yield connection, partition

    async def _verify(self, connection: ServerConnections, partitions: list[Partition]) -> None:
        commands, incarnation = connection.commands, connection.incarnation
        if commands is None or not connection.up:
            return
        for first in range(0, len(partitions), ASKED_MAX):
            some = partitions[first : first + ASKED_MAX]
            seen = [self._begin(partition) for partition in some]
            replies = await self._ask(connection, commands, some, seen)
            diverged: list[Partition] = []
            for partition, one, (fence, found) in zip(some, seen, replies, strict=False):
                if partition.lost or isinstance(fence, hiredis.ReplyError):
                    continue
                if isinstance(found, hiredis.ReplyError):
                    continue
                if has_all(one, fence, found):
                    partition.verified_at = incarnation
                    self._on_same(partition)
                else:
                    diverged.append(partition)
            if diverged:
                _log.warning(
                    "partitions diverged",
                    redis=connection.address, partitions=[p.number for p in diverged][:LOGGED_MAX],
                    count=len(diverged),
                )  # fmt: skip
            for partition in diverged:
                self._on_diverged(partition)

    @staticmethod
    def _begin(partition: Partition) -> Seen:
        # From here on nothing adds to what was seen: a reply that another server still owes us is not taken.
        partition.verified_at = None
        return partition.seen()

    async def _ask(
        self,
        connection: ServerConnections,
        commands: PipelinedConnection,
        partitions: list[Partition],
        seen: list[Seen],
    ) -> list[tuple[Any, Any]]:
        """The fence of each, and what lies under the ID of the last entry read; nothing if the connection is lost."""
        packed = [
            scripts.get_history(self._keys, partition.number, one.read_id)
            for partition, one in zip(partitions, seen, strict=True)
        ]
        try:
            replies = await commands.send(b"".join(packed), 2 * len(packed))
        except RedisUnavailableError:
            return []
        refusal = next((str(reply) for reply in replies if isinstance(reply, hiredis.ReplyError)), "")
        if refusal:
            connection.note_error_reply(refusal)
        return list(zip(replies[::2], replies[1::2], strict=True))
