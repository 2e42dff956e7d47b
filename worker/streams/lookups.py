"""Asks Redis for what a batch needs before it is ordered: the states of its sessions, and spool notices.

| asked for | of | when |
| --- | --- | --- |
| states | sessions that are not in memory | always |
| spool notices (`schemas.spool_notices`) | partitions | `GapDeadlines.must_look` says so |

All of it goes to each server in one round trip, after the read that brought the batch. So a notice that was written
before an entry is known when that entry is ordered.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.logs.rate_limit import LogRateLimit
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.spool_notices import NOTICES_MAX, read_notice
from maskline.worker.commands.scripts import get_states
from maskline.worker.connections import ServerConnections, WorkerConnections
from maskline.worker.partitions.decoded_batch import DecodedBatch
from maskline.worker.partitions.partition import Partition

_log = get_logger("maskline.worker")


class _Wanted(NamedTuple):
    """What is wanted of one server."""

    states: list[tuple[Partition, list[str]]]
    """Sessions, by partition."""
    notices: list[Partition]


class LookupRequest(NamedTuple):
    """A request to one server that is under way."""

    server: ServerConnections
    incarnation: object
    wanted: _Wanted
    replies: asyncio.Future[list[Any]]


class LookupResult(NamedTuple):
    """What the servers that answer have said."""

    states: dict[Partition, Mapping[str, bytes | None]]
    """The encoded state of each session that was asked for, None for a new one."""
    looked: set[Partition]
    """Partitions whose spool notices are known up to now."""

    def suffices(self, partition: Partition, batch: DecodedBatch) -> bool:
        """Whether the batch can be ordered."""
        return (not batch.unknown or partition in self.states) and (
            not batch.look or partition in self.looked
        )


NOTHING_FOUND = LookupResult({}, set())


class Lookups:
    """Sends the requests of one worker process, and reads the replies."""

    def __init__(self, connections: WorkerConnections, keys: Keys) -> None:
        self._connections = connections
        self._keys = keys
        self._failure_lines = LogRateLimit()
        self._notice_lines = LogRateLimit()

    def request(self, batches: Iterable[tuple[Partition, DecodedBatch]]) -> list[LookupRequest]:
        """Ask each server for what these batches need of it. Nothing is asked of a server that is away."""
        by_server: dict[ServerConnections, _Wanted] = {}
        for partition, batch in batches:
            if not batch.unknown and not batch.look:
                continue
            server = self._connections.of_partition(partition.number)
            if server is not None:
                wanted = by_server.setdefault(server, _Wanted([], []))
                if batch.unknown:
                    wanted.states.append((partition, batch.unknown))
                if batch.look:
                    wanted.notices.append(partition)
        return [
            self._send(server, commands, wanted)
            for server, wanted in by_server.items()
            if (commands := server.commands) is not None and commands.connected
        ]

    async def receive(self, requests: Iterable[LookupRequest]) -> LookupResult:
        """Wait for the replies. What a server that is lost meanwhile was asked for is not among them."""
        found = LookupResult({}, set())
        for request in requests:
            with contextlib.suppress(RedisUnavailableError):
                replies = await request.replies
                states = request.wanted.states
                for (partition, unknown), reply in zip(states, replies, strict=False):
                    if not isinstance(reply, hiredis.ReplyError):
                        found.states[partition] = dict(zip(unknown, reply, strict=True))
                    else:
                        self._on_state_error(partition, str(reply))
                self._read_notices(request, replies[len(states) :], found)
        return found

    def _send(
        self, server: ServerConnections, commands: PipelinedConnection, wanted: _Wanted
    ) -> LookupRequest:
        packed = [get_states(self._keys, partition.number, unknown) for partition, unknown in wanted.states]
        # A cluster refuses to read the keys of several slots at once.
        together = 1 if self._connections.is_cluster else len(wanted.notices)
        packed += [
            self._read_of(server, wanted.notices[first : first + together])
            for first in range(0, len(wanted.notices), together or 1)
        ]
        replies = commands.send(b"".join(packed), len(packed), at_once=True)
        return LookupRequest(server, server.incarnation, wanted, replies)

    def _read_of(self, server: ServerConnections, partitions: list[Partition]) -> bytes:
        for partition in partitions:
            if partition.gaps.spools.incarnation is not server.incarnation:
                partition.gaps.reconnected(server.incarnation, server.lost_ms, server.opened_ms)
        keys = [self._keys.spooled(partition.number) for partition in partitions]
        last_ids = [partition.gaps.spools.last_id for partition in partitions]
        return pack("XREAD", "COUNT", NOTICES_MAX, "STREAMS", *keys, *last_ids)

    def _read_notices(self, request: LookupRequest, replies: list[Any], found: LookupResult) -> None:
        partitions = request.wanted.notices
        by_key: dict[bytes, Any] = {}
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                # Order suffers, and nothing else: gaps are given up as though nobody held anything.
                self._on_notice_error(partitions[0], str(reply))
            else:
                by_key |= dict(reply or ())
        for partition in partitions:
            found.looked.add(partition)
            entries = by_key.get(self._keys.spooled(partition.number).encode()) if by_key else None
            if entries and partition.gaps.spools.incarnation is request.incarnation:
                notices = (read_notice(entry_id, fields) for entry_id, fields in entries)
                partition.gaps.spools.add(notice for notice in notices if notice is not None)
                partition.gaps.spools.last_id = entries[-1][0].decode()

    def _on_state_error(self, partition: Partition, reply: str) -> None:
        self._connections.handle_error_reply(partition.number, reply)
        if self._failure_lines.due(partition.number, reply.partition(" ")[0]):
            _log.error(
                "session state read failed",
                partition=partition.number,
                reply=reply,
                repeats_of_all=self._failure_lines.take_suppressed(),
            )

    def _on_notice_error(self, partition: Partition, reply: str) -> None:
        self._connections.handle_error_reply(partition.number, reply)
        if self._notice_lines.due(partition.number):
            _log.error(
                "spool notice read failed",
                partition=partition.number,
                reply=reply,
                repeats_of_all=self._notice_lines.take_suppressed(),
            )
