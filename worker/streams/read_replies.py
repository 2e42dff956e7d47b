"""Takes the replies to the reads of one server apart, by partition, and keeps which partitions cannot be read."""

from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

import hiredis

from maskline.runtime.logs import get_logger
from maskline.schemas.keys import Keys
from maskline.worker.connections import ServerConnections
from maskline.worker.partitions.partition import Partition
from maskline.worker.streams.read_request import ReadRequest

SINGLE_FOR_S: Final = 5.0
"""How long single reads are sent after the server has refused a combined one."""

_log = get_logger("maskline.worker")

ReadStreams = Sequence[tuple[Partition, Sequence[Any]]]
"""The entries that a read brought, by partition, none for those without."""


class StreamKeys(dict[int, bytes]):
    """The key of each partition's stream, by number, as bytes; made when it is first asked for."""

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        self._keys = keys

    def __missing__(self, number: int) -> bytes:
        """Make the key."""
        key = self[number] = self._keys.callbacks(number).encode()
        return key


class ReadReplies:
    """The replies of one server. `combined`: whether one XREAD may read several partitions."""

    def __init__(self, server: ServerConnections, keys: StreamKeys, *, combined: bool) -> None:
        self._server = server
        self._keys = keys
        self._combined = combined
        self._single_until = 0.0
        self._errors: dict[int, str] = {}
        """The last error of each partition that could not be read, by number."""

    @property
    def combined(self) -> bool:
        """Whether the next read may be a combined one."""
        return self._combined and monotonic() >= self._single_until

    @property
    def refused_partitions(self) -> list[int]:
        """The numbers of the partitions that could not be read."""
        return sorted(self._errors)

    def streams(self, read: ReadRequest, replies: Sequence[Any]) -> ReadStreams | None:
        """The entries that came; None if a combined read was refused, and the next is to be single ones.

        Entries that came over an earlier connection are left out: the server may have lost them since.
        """
        if read.combined:
            reply = replies[0]
            if isinstance(reply, hiredis.ReplyError):
                self._single_until = monotonic() + SINGLE_FOR_S
                self._server.handle_error_reply(str(reply))
                return None
            by_key, keys = dict(reply or ()), self._keys
            return [
                (partition, by_key.get(keys[partition.number], ()))
                for partition in read.partitions
                if partition.verified_at is read.incarnation
            ]
        streams: list[tuple[Partition, Sequence[Any]]] = []
        for partition, reply in zip(read.partitions, replies, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                self._on_failure(partition, str(reply))
            elif partition.verified_at is read.incarnation:
                # A list of pairs, by RESP3 a dictionary; none if there is nothing.
                entries = next(iter(dict(reply).values())) if reply else ()
                streams.append((partition, entries))
                if self._errors:
                    self._errors.pop(partition.number, None)
        return streams

    def _on_failure(self, partition: Partition, reply: str) -> None:
        self._server.handle_error_reply(reply)
        kind = reply.partition(" ")[0]
        if self._errors.get(partition.number) != kind:
            self._errors[partition.number] = kind
            _log.error("partition read failed", partition=partition.number, reply=reply)
