"""The benchmark's end of `bench.worker.tally`: receives from handlers how many events they have handled, and when."""

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import BenchError, Process

STALL_S = 60.0
"""The longest time without a message: no consumer is so slow."""


class HandledCounts:
    """Receives the counts of one consumer."""

    def __init__(self, path: Path, sock: socket.socket) -> None:
        self.path = path
        self._socket = sock

    def environment(self, every: int, pause: str = "") -> dict[str, str]:
        """The environment of a consumer that reports after every `every` events."""
        return {"BENCH_TALLY": str(self.path), "BENCH_TALLY_EVERY": str(every), "BENCH_PAUSE": pause}

    def wait_for(self, count: int, consumer: Process, *, within_s: float = STALL_S) -> int:
        """Wait until `count` events were handled; returns when they were, by `time.monotonic_ns`.

        Raises BenchError if the consumer ends, or handles nothing for `within_s`.
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
def listen_for_handled() -> Iterator[HandledCounts]:
    """Open the socket that handlers send to."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,  # short: the paths of sockets are limited
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        path = Path(directory) / "tally"
        sock.bind(str(path))
        sock.settimeout(0.5)
        yield HandledCounts(path, sock)
