"""Puts events into streams as ingest does, at the speed of the server: thousands of XADDs in one write."""

import json
import os
import socket
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl

from bench import data
from bench.machine import BenchError, Valkey
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.keys import Keys, partition_of

NAMESPACE = "bench"
GROUP = "workers"
BATCH = 2_000
KEYS = Keys(NAMESPACE, GROUP)
ONE_STREAM = "callbacks"


def partition_stream(partitions: int) -> Callable[[str], str]:
    """From a session to the stream where maskline reads its events."""
    names = [KEYS.callbacks(number) for number in range(partitions)]
    return lambda session: names[partition_of(session, partitions)]


def one_stream(_: str) -> str:
    """From a session to the stream that a loop without partitions reads."""
    return ONE_STREAM


class Feeder:
    """A connection that adds events to streams."""

    def __init__(self, store: Valkey) -> None:
        self._socket = socket.create_connection(("127.0.0.1", store.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def add(self, events: Iterable[data.NumberedEvent], stream_of: Callable[[str], str]) -> int:
        """Add events as received now, and return their number once they are in the streams."""
        self._socket.sendall(_command(b"CLIENT", b"REPLY", b"OFF"))
        count, source = 0, iter(events)
        while batch := list(islice(source, BATCH)):
            self._socket.sendall(b"".join(_added(event, stream_of) for event in batch))
            count += len(batch)
        self._socket.sendall(_command(b"CLIENT", b"REPLY", b"ON"))
        if self._socket.recv(64) != b"+OK\r\n":
            raise BenchError("Valkey did not take the backlog")
        return count

    def add_at_once(self, events: Iterable[data.NumberedEvent], stream_of: Callable[[str], str]) -> None:
        """Add events in one transaction, so that a blocked reader gets all of them at once."""
        commands = [_added(event, stream_of) for event in events]
        self._socket.sendall(b"".join((_command(b"MULTI"), *commands, _command(b"EXEC"))))
        left = 1 + len(
            commands
        )  # OK, and QUEUED for each; then the IDs, each in two lines, after their count
        left += 1 + 2 * len(commands)
        while left:
            left -= self._socket.recv(65_536).count(b"\n")


def write_events(path: Path, events: Iterable[data.NumberedEvent]) -> Path:
    """The events as JSON lines, for peers that load their backlog themselves. An existing file is kept."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("w") as file:
            for event in events:
                file.write(json.dumps(dict(parse_qsl(event.body.decode()))) + "\n")
        part.rename(path)
    return path


def _added(event: data.NumberedEvent, stream_of: Callable[[str], str]) -> bytes:
    return _command(b"XADD", stream_of(event.session).encode(), b"*", CALLBACK_FIELD, data.stored(event))


def _command(*parts: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(parts), b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
