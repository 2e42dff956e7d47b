"""Measures the time from receipt to handling, with ingest, Valkey, worker and load on the same two cores.

The first step finds their capacity: the greatest constant rate at which callbacks are answered and handled about at
once. Then come the latencies at 10, 50 and 80 % of it. Each callback is sent once, as Plivo does.
"""

import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Final

from bench import data
from bench.load import run_load
from bench.machine import HOME, WAIT_TIMEOUT_S, BenchError, free_port, process, valkey, wait_until_listening
from bench.paired import Key
from bench.parts import ingest, memory
from bench.parts.worker import MASKLINE, PARTITIONS, settings, wait_until_committed, wait_until_ready
from bench.plan import Column, Options, Plan, Slice

SHARES: Final = (0.1, 0.5, 0.8)
SLICES: Final = 3
"""Slices long: a p99.9 needs some thousand events."""
SEARCH_S: Final = 2.0
SEARCH_STEPS: Final = 6
ATTEMPTS: Final = 3
RATE_MIN: Final = 500.0
RATE_MAX: Final = 32_000.0
SUSTAINED_P99_MS: Final = 250.0
"""Above the capacity a backlog builds up, and latencies reach seconds."""
UNDER_WAY: Final = 10_000
"""Sessions that go on at the same time: at full load an event comes half a second after the one before."""


def plan(options: Options) -> Plan:
    """The slices of the part, by case."""

    @cache
    def capacity() -> float:
        return find_capacity(lambda rate: sustained(rate, options))

    slices = [
        Slice(Key(f"{share * 100:.0f} %", "maskline"), partial(at_share, share, capacity, options))
        for share in SHARES
    ]
    # Shows how much of the latency is due to the disk.
    off = partial(at_share, 0.5, capacity, options, appendfsync="off")
    slices.insert(2, Slice(Key("50 %", "maskline, AOF off"), off))
    slices += memory.slices(options)
    columns = [
        Column("per_s", "a second"),
        Column("p50_ms", "p50 ms", format=".1f"),
        Column("p99_ms", "p99 ms", format=".1f"),
        Column("p999_ms", "p99.9 ms", format=".1f"),
        *memory.COLUMNS,
    ]
    title = (
        "Received to handled, by share of what ingest, Valkey and worker can take on this machine; and memory"
    )
    return Plan("latency", title, slices, {}, columns)


def at_share(
    share: float, capacity: Callable[[], float], options: Options, *, appendfsync: str = "everysec"
) -> dict[str, float]:
    """Latencies at a share of the capacity."""
    rate = capacity() * share
    values = end_to_end(rate, options.warm_s, options.slice_s * SLICES, appendfsync=appendfsync)
    return values | {"share": share}


def find_capacity(good: Callable[[float], bool]) -> float:
    """The greatest rate that is good, by bisection on a logarithmic scale."""
    low, high = RATE_MIN, RATE_MAX
    for _ in range(SEARCH_STEPS):
        middle = (low * high) ** 0.5
        # Several attempts, as one may fail because the machine was busy with something else.
        low, high = (middle, high) if any(good(middle) for _ in range(ATTEMPTS)) else (low, middle)
    return low


def sustained(rate: float, options: Options) -> bool:
    """Whether callbacks at that rate are answered and handled about at once."""
    try:
        values = end_to_end(rate, options.warm_s, SEARCH_S)
    except BenchError:  # refused: too many requests were in flight
        return False
    return values["unanswered"] == 0 and values["p99_ms"] < SUSTAINED_P99_MS


def requests_once(number: int) -> Path:
    """A file of at least `number` requests, each of another event; made once for each size."""
    thousands = 1 << max(4, (-(-number // 1_000) - 1).bit_length())
    sessions = -(-thousands * 1_000 // data.SESSION_EVENTS)
    path = HOME / "data" / f"requests-once-{thousands}k.bin"
    return data.write_requests(path, data.session_events(sessions, out_of_order=False, under_way=UNDER_WAY))


def end_to_end(
    rate: float, warm_s: float, slice_s: float, *, appendfsync: str = "everysec"
) -> dict[str, float]:
    """Latencies of `rate` callbacks a second, over `slice_s` after `warm_s`."""
    requests = requests_once(round(rate * (warm_s + slice_s)) + 1)
    with (
        valkey(appendfsync=appendfsync, core=None) as store,
        tempfile.TemporaryDirectory(prefix="spool-", dir=HOME / "data") as directory,
    ):
        noted = Path(directory) / "latencies"
        port = free_port()
        environment = (
            settings(store, PARTITIONS)
            | ingest.environment(port, store.url, Path(directory) / "spool")
            | {"MASKLINE_HANDLERS": "bench.worker.maskline_latency", "BENCH_LATENCIES": str(noted)}
        )
        logs = HOME / "logs"
        with (
            process(MASKLINE.work, logs / "latency-worker.log", core=None, environment=environment) as worker,
            process(
                [sys.executable, "-m", "maskline.ingest"],
                logs / "latency-ingest.log",
                core=None,
                environment=environment,
            ) as server,
        ):
            wait_until_ready(MASKLINE, store, worker, PARTITIONS)
            wait_until_listening(port, server)
            counted_from_s = time.time() + warm_s
            load = run_load(port, requests, core=None, rate=rate, warm_s=warm_s, slice_s=slice_s)
            wait_until_committed(MASKLINE, store, worker)
            worker.end()
            worker.wait_until_ended(WAIT_TIMEOUT_S)
        return figures(array("d", noted.read_bytes()), counted_from_s, slice_s) | {
            "unanswered": float(load.unanswered)
        }


def figures(noted: "array[float]", from_s: float, slice_s: float) -> dict[str, float]:
    """Figures from the handler's pairs of receipt time and milliseconds, for events received in the slice."""
    pairs = zip(noted[::2], noted[1::2], strict=True)
    taken_ms = sorted(took_ms for received_s, took_ms in pairs if from_s <= received_s < from_s + slice_s)
    if not taken_ms:
        raise BenchError("no event was handled")

    def percentile(share: float) -> float:
        return taken_ms[min(int(share * len(taken_ms)), len(taken_ms) - 1)]

    return {
        "per_s": len(taken_ms) / slice_s,
        "p50_ms": percentile(0.5),
        "p99_ms": percentile(0.99),
        "p999_ms": percentile(0.999),
    }
