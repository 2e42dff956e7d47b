"""Runs the load generator (load.c)."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.machine import HOME, BenchError

BINARY = HOME / "load"
SOURCE = Path(__file__).with_name("load.c")
GRACE_S = 30.0


class Load(msgspec.Struct, frozen=True):
    """The result of one slice of load; see load.c."""

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
    argv = [
        *([] if core is None else ["taskset", "--cpu-list", str(core)]),
        str(BINARY),
        "--port",
        str(port),
        "--clients",
        str(clients),
        "--requests",
        str(requests),
        "--warm-s",
        str(warm_s),
        "--slice-s",
        str(slice_s),
        "--rate",
        str(rate),
    ]
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
