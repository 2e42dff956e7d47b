"""Gives up what has waited too long behind a dead letter: MASKLINE_DEAD_TTL_S after the queue was parked.

Each event that waited becomes a dead letter of its own, and the handler's later events of the session run again, with
their numbers in `ctx.skipped`.
"""

import asyncio
from typing import Any, Final

import hiredis

from maskline.runtime.clock import wall_clock_ms
from maskline.runtime.logs import get_logger
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands import scripts
from maskline.worker.connections import WorkerConnections
from maskline.worker.partitions.committer import Committer
from maskline.worker.partitions.owned_partitions import OwnedPartitions
from maskline.worker.partitions.partition import Partition

INTERVAL_S: Final = 30.0
"""Between two looks for queues that have been parked too long."""

ITEMS_MAX: Final = 4_096
"""Events of a queue given up at a time. A session has dozens: of a longer queue, what follows runs again."""

_log = get_logger("maskline.worker")


class ParkedQueueExpiry:
    """Gives up the events that have waited for `ttl_s` behind dead letters, in the owned partitions."""

    def __init__(
        self,
        connections: WorkerConnections,
        keys: Keys,
        owned: OwnedPartitions,
        committer: Committer,
        *,
        ttl_s: int,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._owned = owned
        self._committer = committer
        self._ttl_ms = ttl_s * 1000
        self._interval_s = interval_s

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            for partition in self._owned.open:
                while not partition.closed and await self._expire_oldest(partition):
                    await self._committer.wait_committed(partition)

    async def _expire_oldest(self, partition: Partition) -> bool:
        """Give up what waits behind the oldest parked queue of a handler, if it is too old. Returns whether it was."""
        connection = self._connections.verified_commands(partition.number, partition.verified_at)
        if connection is None:
            return False
        try:
            (reply,) = await connection.send(scripts.retry_index(self._keys, partition.number), 1)
            for backlog in scripts.read_retry_index(reply):
                parked_ms = backlog.parked_oldest_ms
                if parked_ms is not None and parked_ms > self._ttl_ms:
                    return await self._expire(connection, partition, backlog.handler)
        except RedisUnavailableError as error:
            _log.warning("parked queues not checked", partition=partition.number, reason=str(error))
        return False

    async def _expire(self, connection: PipelinedConnection, partition: Partition, handler: str) -> bool:
        keys, number = self._keys, partition.number
        (oldest,) = await connection.send(pack("ZRANGE", keys.retry_parked(number, handler), 0, 0), 1)
        if not isinstance(oldest, list) or not oldest:
            return False
        uuid = oldest[0].decode()
        asked = pack("GET", keys.session(number, uuid)) + pack(
            "LRANGE", keys.retry_queue(number, handler, uuid), 0, ITEMS_MAX - 1
        )
        state, items = await connection.send(asked, 2)
        if isinstance(state, hiredis.ReplyError) or not isinstance(items, list) or partition.closed:
            return False
        return self._give_up(partition, handler, uuid, state, items)

    def _give_up(
        self, partition: Partition, handler: str, uuid: str, state: bytes | None, items: list[Any]
    ) -> bool:
        session = partition.session_of(uuid, state)
        if not partition.may_change_queues(session) or not partition.retry_confirmed(handler, uuid):
            return False
        partition.give_up_waiting(session, handler, items, now_ms=wall_clock_ms())
        _log.error(
            "parked queue given up",
            handler=handler,
            session_uuid=uuid,
            events=len(items),
            partition=partition.number,
        )
        return True
