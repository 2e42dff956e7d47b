"""Checks after each reconnect whether the server still has each partition's history (`worker.partitions.history`).

Until the server has answered, the partition is neither read nor committed there: a read could skip entries, and a
commit could move the cursor past them. One round trip for all partitions of a server, once a connection.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands import scripts
from maskline.worker.connections import RETRY_DELAY_S, ServerConnections, WorkerConnections
from maskline.worker.partitions.history import Seen, has_all
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition

CHECK_S: Final = 1.0
"""Between two checks if none is requested: a partition may have moved to another server while it was acquired."""

REQUEST_PARTITIONS_MAX: Final = 256
"""Partitions checked in one round trip: each reply may hold an entry of some kilobytes."""

LOGGED_MAX: Final = 16
"""Partitions named in a log line."""

_log = get_logger("maskline.worker")


class HistoryVerifier:
    """Checks the history of all owned partitions.

    `on_verified(partition)`: called when the server has all that was seen, so that the partition may be read and
    committed. `on_diverged(partition)`: called when the server lacks something that was seen.
    """

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        owned: OwnedPartitions,
        *,
        on_verified: Callable[[Partition], None],
        on_diverged: Callable[[Partition], None],
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._owned = owned
        self._on_verified = on_verified
        self._on_diverged = on_diverged
        self._due = asyncio.Event()

    def check_soon(self) -> None:
        """Check unverified partitions now: a connection was opened, or partitions have moved to other servers."""
        self._due.set()

    async def run(self) -> None:
        """Verify unverified partitions until cancelled."""
        while True:
            self._due.clear()
            by_server: dict[ServerConnections, list[Partition]] = {}
            for server, partition in self._unverified():
                by_server.setdefault(server, []).append(partition)
            await asyncio.gather(*(self._verify(*those) for those in by_server.items()))
            wait_s = RETRY_DELAY_S if any(self._unverified()) else CHECK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._due.wait()

    def _unverified(self) -> Iterator[tuple[ServerConnections, Partition]]:
        for partition in self._owned:
            server = self._connections.of_partition(partition.number)
            if server is None or partition.lost or partition.verified_at is server.incarnation:
                continue
            yield server, partition

    async def _verify(self, server: ServerConnections, partitions: list[Partition]) -> None:
        commands, incarnation = server.commands, server.incarnation
        if commands is None or not server.up:
            return
        for first in range(0, len(partitions), REQUEST_PARTITIONS_MAX):
            some = partitions[first : first + REQUEST_PARTITIONS_MAX]
            seen = [self._begin(partition) for partition in some]
            replies = await self._ask(server, commands, some, seen)
            diverged: list[Partition] = []
            for partition, one, (fence, found) in zip(some, seen, replies, strict=False):
                if partition.lost or isinstance(fence, hiredis.ReplyError):
                    continue
                if isinstance(found, hiredis.ReplyError):
                    continue
                if has_all(one, fence, found):
                    partition.verified_at = incarnation
                    self._on_verified(partition)
                else:
                    diverged.append(partition)
            if diverged:
                _log.warning(
                    "partitions diverged",
                    redis=server.address,
                    partitions=[partition.number for partition in diverged][:LOGGED_MAX],
                    count=len(diverged),
                )
            for partition in diverged:
                self._on_diverged(partition)

    @staticmethod
    def _begin(partition: Partition) -> Seen:
        # From here on the history does not grow: a reply that another server still sends is not processed.
        partition.verified_at = None
        return partition.seen()

    async def _ask(
        self,
        server: ServerConnections,
        commands: PipelinedConnection,
        partitions: list[Partition],
        seen: list[Seen],
    ) -> list[tuple[Any, Any]]:
        """The fence of each partition, and the entries under the ID of the last one read; empty if the connection is
        lost.
        """
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
            server.handle_error_reply(refusal)
        return list(zip(replies[::2], replies[1::2], strict=True))
