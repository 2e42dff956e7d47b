"""Measures what a callback costs from request to commit: CPU of ingest, Valkey and worker, beside a hand-written pair.

All of it runs on the same two cores, with the load, whose own CPU does not count. Callbacks come at random distances,
each validly signed and of another event. `AGAINST=DIR` adds the maskline of another checkout, as "before".
"""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, Self

from bench.cost_table import markdown
from bench.machine import BenchError
from bench.paired import Key
from bench.plan import Column, Measure, Options, Plan, Slice
from bench.whole_path import (
    HANDWRITTEN,
    MASKLINE,
    SUSTAINED_P99_MS,
    Running,
    System,
    idle,
    maskline_in,
    measure,
    requests_in,
    requests_once,
    running,
)

RATES: Final = {f"{rate:,}/s": rate for rate in (100, 1_000, 4_000, 12_000)}
"""Callbacks a second, by case."""
IDLE: Final = "idle"
GREATEST: Final = "greatest rate"
SLICES: Final = 1.5
"""Slices long: at the least rate some hundred callbacks."""
IDLE_S: Final = 5.0
"""Three renewals of the leases."""
SETTLE_S: Final = 1.0
"""After the start, before a slice under load: what a start leaves to do is no callback's cost."""
SETTLE_IDLE_S: Final = 3.0

SEARCH_WARM_S: Final = 0.3
SEARCH_S: Final = 1.5
SEARCH_REQUESTS: Final = 256_000
"""Of different events, which one start is asked for at most."""
ATTEMPTS: Final = 2
"""One may fail because the machine was busy with something else."""
HOPELESS_P99_MS: Final = 4 * SUSTAINED_P99_MS
"""Above it no second attempt is made: a failed one takes seconds, until its backlog is worked off."""
FIRST_STEP: Final = 2.0
STEP: Final = 1.2
"""By which the search goes on from what it found the round before."""
PRECISION: Final = 1.05
RATE_START: Final = {HANDWRITTEN.name: 2_000.0}
RATE_START_ELSE: Final = 8_000.0
RATE_MIN: Final = 250.0
RATE_MAX: Final = 64_000.0


def cases(text: str) -> frozenset[str]:
    """The cases that a list such as `1000,idle,greatest` names. Raises BenchError for one that there is not."""
    words = {"idle": IDLE, "greatest": GREATEST} | {str(rate): name for name, rate in RATES.items()}
    chosen = [word for word in text.split(",") if word]
    if unknown := [word for word in chosen if word not in words]:
        raise BenchError(f"RATES: {unknown[0]} is none of {', '.join(words)}")
    return frozenset(words[word] for word in chosen)


def plan(options: Options) -> Plan:
    """The slices of the part, by case."""
    systems = [HANDWRITTEN, MASKLINE, *([maskline_in(options.against)] if options.against else [])]
    names = [IDLE, *RATES, GREATEST]
    slices = [
        Slice(Key(name, system.name), _measure(name, system, options))
        for name in names
        if not options.cases or name in options.cases
        for system in systems
    ]
    columns = [
        Column("per_s", "/s"),
        Column("cpu_us", "CPU µs", format=".0f"),
        Column("cpu_us", "÷ base", ratio=True, format=".2f"),
        Column("ingest_us", "ingest", format=".0f"),
        Column("valkey_us", "Valkey", format=".0f"),
        Column("worker_us", "worker", format=".0f"),
        Column("p50_ms", "p50", format=".1f"),
        Column("p99_ms", "p99", format=".1f"),
        Column("aof_bytes", "AOF B"),
        Column("cpu_percent", "idle %", format=".2f"),
    ]
    bases = {one.key.case: Key(one.key.case, HANDWRITTEN.name) for one in slices}
    title = "A callback, request to commit: CPU µs of each process, received to handled in ms. Base: a pair by hand"
    return Plan("cost", title, slices, bases, columns, markdown)


def _measure(name: str, system: System, options: Options) -> Measure:
    if name == IDLE:
        return partial(at_rest, system)
    if name == GREATEST:
        return GreatestRate(system)
    return partial(at_rate, system, RATES[name], options)


def at_rate(system: System, rate: float, options: Options) -> dict[str, float]:
    """The figures of a slice at a constant mean rate."""
    slice_s = options.slice_s * SLICES
    requests = requests_once(requests_in(rate, options.warm_s + slice_s))
    with running(system) as path:
        time.sleep(SETTLE_S)
        return measure(path, requests, rate, warm_s=options.warm_s, slice_s=slice_s)


def at_rest(system: System) -> dict[str, float]:
    """The figures of a slice without load."""
    with running(system) as path:
        return idle(path, IDLE_S, settle_s=SETTLE_IDLE_S)


class GreatestRate:
    """Finds the greatest rate that a system sustains. Each round begins where the round before has ended."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._start = RATE_START.get(system.name, RATE_START_ELSE)
        self._step = FIRST_STEP

    def __call__(self) -> dict[str, float]:
        """The figures at the greatest rate. Raises BenchError if not even RATE_MIN is sustained."""
        good: dict[float, dict[str, float]] = {}
        with Probes(self._system) as probes:

            def is_good(rate: float) -> bool:
                for _ in range(ATTEMPTS):
                    with contextlib.suppress(BenchError):  # refused: too many requests were in flight
                        found = probes.measure(rate)
                        if found["kept_up"]:
                            good[rate] = found
                            return True
                        if max(found["p99_ms"], found["answer_p99_ms"]) > HOPELESS_P99_MS:
                            return False
                return False

            rate = greatest(is_good, self._start, self._step)
        self._start, self._step = rate, STEP
        return good[rate]


def greatest(is_good: Callable[[float], bool], start: float, step: float) -> float:
    """The greatest good rate: from `start` in steps, then by bisection on a logarithmic scale.

    Raises BenchError if none between RATE_MIN and RATE_MAX is good.
    """
    low = high = start
    if is_good(start):
        while high == low < RATE_MAX:
            high = min(low * step, RATE_MAX)
            if is_good(high):
                low = high
    else:
        while high == low:
            low = high / step
            if low < RATE_MIN:
                raise BenchError(f"not even {high:,.0f} callbacks a second are sustained")
            if not is_good(low):
                high = low
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if is_good(middle) else (low, middle)
    return low


class Probes:
    """Short slices of one start of a system, which is started anew once all requests were sent."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._started = contextlib.ExitStack()
        self._path: Running | None = None
        self._sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.close()

    def measure(self, rate: float) -> dict[str, float]:
        """The figures of a short slice. Raises BenchError as `whole_path.measure`; the next one starts anew then."""
        number = requests_in(rate, SEARCH_WARM_S + SEARCH_S)
        if self._path is None or self._sent + number > SEARCH_REQUESTS:
            self._started.close()
            self._path, self._sent = self._started.enter_context(running(self._system)), 0
        path, self._path, skip = self._path, None, self._sent
        found = measure(
            path, requests_once(SEARCH_REQUESTS), rate, warm_s=SEARCH_WARM_S, slice_s=SEARCH_S, skip=skip
        )
        # Exactly: an event that is left out would be a gap in its session, and hold up the later ones.
        self._path, self._sent = path, skip + int(found["sent"])
        return found
