"""Runs the load generator (load.c)."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bench.machine import HOME, BenchError

BINARY = HOME / "load"
SOURCE = Path(__file__).with_name("load.c")
GRACE_S = 30.0


class Load(msgspec.Struct, frozen=True):
    """The result of one slice of load; see load.c."""

    sent: int
    """In all, those of the warm-up and after the slice too: the next load goes on after them."""
    answered: int
    good: int
    refused: int
    failed: int
    unanswered: int
    reconnects: int
    seconds: float
    cpu_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


def run_load(
    port: int,
    requests: Path,
    *,
    core: int | None,
    clients: int = 64,
    warm_s: float = 0.5,
    slice_s: float = 2.0,
    rate: float = 0.0,
    pids: Sequence[int] = (),
    may_refuse: bool = False,
) -> Load:
    """Send requests from `clients` keep-alive clients: as fast as they are answered, or `rate` a second.

    Raises BenchError if any answer is not 200, or the server does not answer at all. With `may_refuse` 4xx may
    come back too, but the server must keep the connections open.
    """
    argv = [*([] if core is None else ["taskset", "--cpu-list", str(core)])]
    argv += _arguments(port, requests, clients=clients, warm_s=warm_s, slice_s=slice_s, rate=rate)
    for pid in pids:
        argv += ["--pid", str(pid)]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=warm_s + slice_s + GRACE_S
    )
    if done.returncode:
        raise BenchError(done.stderr.strip())
    load = msgspec.json.decode(done.stdout, type=Load)
    if load.failed or not load.good or (load.refused and not may_refuse):
        raise BenchError(f"not all requests were answered 200: {load}")
    if may_refuse and (load.reconnects or not load.refused):
        raise BenchError(f"refusals must be answered, and close no connection: {load}")
    return load


class RunningLoad:
    """A load generator under way, which says when its slice begins and ends."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        if self._process.stdout is None:
            raise BenchError("the load generator has no output")
        self._output = self._process.stdout

    def wait_for(self, word: str) -> None:
        """Wait for the line `word`. Raises BenchError if the generator ends without it."""
        if (line := self._output.readline().strip()) != word:
            raise BenchError(f"the load generator said {line!r} where {word!r} was due")

    def result(self) -> Load:
        """Wait for the end; its result. Raises BenchError if any answer was not 200.

        A server that falls behind may have answered none of the requests that were due in the slice, only earlier ones.
        """
        load = msgspec.json.decode(self._output.read(), type=Load)
        if load.failed or load.refused:
            raise BenchError(f"not all requests were answered 200: {load}")
        return load

    def close(self) -> None:
        """Kill it if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._output.close()


@contextlib.contextmanager
def start_load(
    port: int, requests: Path, *, rate: float, warm_s: float, slice_s: float, skip: int = 0, clients: int = 64
) -> Iterator[RunningLoad]:
    """Send `rate` requests a second at random distances, beginning after the first `skip` of the file."""
    argv = _arguments(port, requests, clients=clients, warm_s=warm_s, slice_s=slice_s, rate=rate)
    load = RunningLoad([*argv, "--random", "1", "--skip", str(skip), "--announce", "1"])
    try:
        yield load
    finally:
        load.close()


def _arguments(
    port: int, requests: Path, *, clients: int, warm_s: float, slice_s: float, rate: float
) -> list[str]:
    values = {
        "port": port,
        "clients": clients,
        "requests": requests,
        "warm-s": warm_s,
        "slice-s": slice_s,
        "rate": rate,
    }
    return [str(BINARY), *(str(part) for name, value in values.items() for part in (f"--{name}", value))]
