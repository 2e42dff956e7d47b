"""The benchmark's end of `bench.worker.tally`: told by handlers how many events they have had, and when."""

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import BenchError, Process

STALL_S = 60.0
"""No consumer here is so slow that it says nothing for so long."""


class Tallies:
    def __init__(self, path: Path, sock: socket.socket) -> None:
        self.path = path
        self._socket = sock

    def environment(self, every: int, pause: str = "") -> dict[str, str]:
        """For a consumer: tell after every so many events."""
        return {"BENCH_TALLY": str(self.path), "BENCH_TALLY_EVERY": str(every), "BENCH_PAUSE": pause}

    def until(self, count: int, consumer: Process, *, within_s: float = STALL_S) -> int:
        """Wait until `count` events were handled: when that was, `time.monotonic_ns`.

        Raises BenchError where the consumer ends, or handles nothing for `within_s`.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            try:
                number, _, at_ns = self._socket.recv(64).partition(b" ")
            except TimeoutError:
                consumer.check()
                continue
            deadline = time.monotonic() + within_s
            if int(number) > count:
                raise BenchError(f"{number.decode()} events were handled where there are {count}")
            if int(number) == count:
                return int(at_ns)
        raise BenchError(
            f"{consumer.log.name}: it handled nothing for {within_s:g} s, and not yet {count} events"
        )


@contextlib.contextmanager
def tallies() -> Iterator[Tallies]:
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,  # short: the paths of sockets are limited
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        path = Path(directory) / "tally"
        sock.bind(str(path))
        sock.settimeout(0.5)
        yield Tallies(path, sock)
