"""Where records are kept: in the worker's Redis, in the hash slot of their session's partition."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, Self

from maskline.handlers.redis_store.records import (
    ADDED_PREFIX,
    Record,
    RecordChange,
    Stored,
    encoded_observation,
    observation_field,
    read_record,
)
from maskline.runtime.redis.partition_client import PartitionClient, Script
from maskline.runtime.redis.pipeline import pack
from maskline.schemas.calls.assembly import OBSERVATIONS_MAX
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys, partition_of
from maskline.schemas.settings import Settings

_LUA: Final = Path(__file__).with_name("lua")
_RECORD: Final = Script((_LUA / "record.lua").read_bytes())
_DUE: Final = Script((_LUA / "due.lua").read_bytes())

KeyOf = Callable[[int, str], str]
"""The key of a record, from partition and SessionUUID, as `Keys.timeline` makes it."""


class RecordStore(Protocol):
    """Keeps the records of sessions."""

    async def read(self, session_uuid: str) -> Record:
        """The record of a session; an empty one where nothing is kept."""

    async def change(self, session_uuid: str, change: RecordChange) -> Stored:
        """Change the record of a session, and emit what follows, all or nothing."""

    async def due(self, limit: int) -> list[str]:
        """Sessions whose due time has come, of each partition `limit` at most, the oldest first. While the group is
        behind with a partition, its time there is that of the last entry it has read.
        """

    async def postpone(self, session_uuid: str, for_ms: int) -> None:
        """Make a session that is due so again only after `for_ms`, whatever its record is like."""


class RedisRecordStore:
    """Records in Redis. An async context manager, which opens and closes the connections.

    `name`: of the module, for logs. `key_of`, `due_key_of`: where records and due times stand. `ttl_ms`: how long a
    record is kept after its last change.

    Every method raises RedisUnavailableError, RedisRefusesError for what the server refuses (out of memory, a key of
    another type): nothing was changed then, or nobody knows, and the same change may be made again.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        key_of: Callable[[Keys, int, str], str],
        due_key_of: Callable[[Keys, int], str],
        *,
        ttl_ms: int,
    ) -> None:
        self.client = PartitionClient(settings, name, {"record": _RECORD, "due": _DUE})
        self._key_of, self._due_key_of = key_of, due_key_of
        self._ttl_ms = ttl_ms

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.__aexit__(*error)

    async def read(self, session_uuid: str) -> Record:
        """As `RecordStore.read`."""
        partition = self._partition(session_uuid)
        key = self._key_of(self.client.keys, partition, session_uuid)
        (reply,) = await self.client.send(partition, pack("HGETALL", key))
        return read_record(_fields(reply))

    async def change(self, session_uuid: str, change: RecordChange) -> Stored:
        """As `RecordStore.change`. One round trip."""
        partition = self._partition(session_uuid)
        keys, one = self.client.keys, change.observation
        emissions: list[bytes] = []
        for emission in change.emissions:
            emissions += (ADDED_PREFIX + emission.name.encode(), emission.value, emission.entry)
        packed = _RECORD.call(
            [
                self._key_of(keys, partition, session_uuid),
                keys.callbacks(partition),
                self._due_key_of(keys, partition),
            ],
            change.token,
            change.version,
            b"" if one is None else observation_field(one),
            b"" if one is None else encoded_observation(one),
            OBSERVATIONS_MAX,
            self._ttl_ms,
            "" if change.due_in_ms is None else change.due_in_ms,
            session_uuid,
            int(change.only_if_due),
            *emissions,
        )
        (reply,) = await self.client.send(partition, packed)
        status, version, now_ms, fields = reply
        record = read_record(_fields(fields)) if fields else None
        if status == b"changed" and record is None:
            record = Record()
        return Stored(status.decode(), version, now_ms, record)

    async def due(self, limit: int) -> list[str]:
        """As `RecordStore.due`. Passes over partitions whose server is away."""
        keys = self.client.keys
        replies = await asyncio.gather(
            *(
                self.client.send(
                    partition,
                    _DUE.call(
                        [self._due_key_of(keys, partition), keys.callbacks(partition)], limit, keys.group
                    ),
                )
                for partition in range(self.client.partitions)
            ),
            return_exceptions=True,
        )
        found: list[str] = []
        for reply in replies:
            if isinstance(reply, RedisUnavailableError):
                continue  # its partitions have their turn at the next call
            if isinstance(reply, BaseException):
                raise reply
            found += [session.decode("utf-8", "surrogatepass") for session in reply[0]]
        return found

    async def postpone(self, session_uuid: str, for_ms: int) -> None:
        """As `RecordStore.postpone`."""
        partition = self._partition(session_uuid)
        due_key = self._due_key_of(self.client.keys, partition)
        now_s, now_us = (await self.client.send(partition, pack("TIME")))[0]
        due_ms = int(now_s) * 1000 + int(now_us) // 1000 + for_ms
        await self.client.send(partition, pack("ZADD", due_key, "XX", due_ms, session_uuid))

    def _partition(self, session_uuid: str) -> int:
        return partition_of(session_uuid, self.client.partitions)


def _fields(reply: list[Any]) -> dict[bytes, bytes]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
