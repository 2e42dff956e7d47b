"""Follows the partition streams to learn in which order the callbacks of a session arrived.

The worker hands events over in order, so only the stream still has the order of arrival. Following leaves no trace in
Redis. If the connection is lost, the live view goes on without these numbers.
"""

import asyncio
from collections import OrderedDict
from typing import Any, Final

from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.callback import CALLBACK_FIELD, decode_callback
from maskline.schemas.errors import NotDecodableError, RedisUnavailableError, UndecodableEntryError
from maskline.schemas.keys import Keys
from maskline.schemas.parameters import parse_parameters

REMEMBERED_MAX: Final = 100_000
"""Arrivals and sessions kept. The oldest are dropped: those of duplicates, which nobody asks for."""
READ_COUNT: Final = 500
READ_BLOCK_MS: Final = 1_000


class Arrivals:
    """Counts the callbacks of each session as they arrive, since `start`."""

    def __init__(self, connection: PipelinedConnection, keys: Keys, partitions: int) -> None:
        self._connection = connection
        self._streams = [keys.callbacks(partition) for partition in range(partitions)]
        self._cursors: dict[str, str] = {}
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._places: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._moved = asyncio.Event()
        self._lost = False
        self.total = 0
        """Callbacks of all sessions."""

    async def start(self) -> None:
        """Read the end of each stream: every later entry is an arrival."""
        packed = b"".join(pack("XREVRANGE", stream, "+", "-", "COUNT", 1) for stream in self._streams)
        replies = await self._connection.send(packed, len(self._streams))
        for stream, reply in zip(self._streams, replies, strict=True):
            self._cursors[stream] = reply[0][0].decode() if reply else "0-0"

    async def run(self) -> None:
        """Follow the streams until the connection is lost or the task is cancelled."""
        while True:
            try:
                reply = await self._connection.execute(
                    "XREAD",
                    "COUNT",
                    READ_COUNT,
                    "BLOCK",
                    READ_BLOCK_MS,
                    "STREAMS",
                    *self._cursors,
                    *self._cursors.values(),
                )
            except RedisUnavailableError:
                self._lost = True
                self._moved.set()
                return
            for stream, entries in reply or ():
                for entry_id, fields in entries:
                    self._arrived(entry_id.decode(), fields)
                self._cursors[stream.decode()] = entries[-1][0].decode()
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    async def place(self, session_uuid: str, entry_id: str, *, timeout_s: float) -> int | None:
        """Which of its session's callbacks this one was, counted from 1; None if it is not known within `timeout_s`."""
        key = session_uuid, entry_id
        try:
            async with asyncio.timeout(timeout_s):
                while key not in self._places and not self._lost:
                    await self._moved.wait()
        except TimeoutError:
            return None
        return self._places.pop(key, None)

    def _arrived(self, entry_id: str, fields: list[Any]) -> None:
        self.total += 1
        session_uuid = _session_of(dict(zip(fields[::2], fields[1::2], strict=True)))
        if session_uuid is None:
            return
        count = self._counts.pop(session_uuid, 0) + 1
        self._counts[session_uuid] = count
        self._places[session_uuid, entry_id] = count
        for remembered in (self._counts, self._places):
            if len(remembered) > REMEMBERED_MAX:
                remembered.popitem(last=False)


def _session_of(fields: dict[bytes, bytes]) -> str | None:
    try:
        callback = decode_callback(fields.get(CALLBACK_FIELD, b""))
        parameters = parse_parameters(callback.method, callback.query, callback.content_type, callback.body)
    except (UndecodableEntryError, NotDecodableError):
        return None
    session_uuid = parameters.first("SessionUUID")
    return session_uuid if isinstance(session_uuid, str) else None
