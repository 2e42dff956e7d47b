"""Measures the time from receipt to handling, with ingest, Valkey, worker and load on the same two cores.

The first step finds their capacity: the greatest constant rate at which callbacks are answered and handled about at
once. Then come the latencies at 10, 50 and 80 % of it. Each callback is sent once, as Plivo does.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Final

from bench.machine import BenchError
from bench.paired import Key
from bench.parts import memory
from bench.plan import Column, Options, Plan, Slice
from bench.whole_path import MASKLINE, measure, requests_in, requests_once, running

SHARES: Final = (0.1, 0.5, 0.8)
SLICES: Final = 3
"""Slices long: a p99.9 needs some thousand events."""
SEARCH_S: Final = 2.0
SEARCH_STEPS: Final = 6
ATTEMPTS: Final = 3
RATE_MIN: Final = 500.0
RATE_MAX: Final = 32_000.0


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
    return values["kept_up"] == 1


def end_to_end(
    rate: float, warm_s: float, slice_s: float, *, appendfsync: str = "everysec"
) -> dict[str, float]:
    """Latencies of `rate` callbacks a second, over `slice_s` after `warm_s`."""
    requests = requests_once(requests_in(rate, warm_s + slice_s))
    with running(MASKLINE, appendfsync=appendfsync) as path:
        return measure(path, requests, rate, warm_s=warm_s, slice_s=slice_s)
