"""What failing handlers cost: events set aside and run again, and an outage of what one of two handlers calls."""

import math
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from bench import data
from bench.backlog import KEYS, Feeder, partition_stream
from bench.machine import HOME, WAIT_TIMEOUT_S, BenchError, Process, Valkey
from bench.paired import Key
from bench.parts.worker import MASKLINE, PARTITIONS, backlog, running, wait_until_committed
from bench.plan import CPU, RATE, Column, Options, Plan, Slice
from bench.tallies import HandledCounts, listen_for_handled
from maskline.schemas.handler_control import Pause, encode_pause, pause_field

SET_ASIDE_FULL: Final = 1_000_000
HANDLER: Final = "bench.worker.maskline_handlers.handle"
"""As logs name it."""
MARK: Final = 1_000
"""The handler reports after every so many events; all counts here are multiples of it."""
LEASE_TTL_MS: Final = 120_000
"""The worker is stopped while callbacks are added, and must keep its partitions."""
CONTROL_S: Final = 2.0
"""A pause takes effect within a second."""

OUTAGE_RATE: Final = 1_000
"""Events a second."""
OUTAGE_S: Final = 30.0
OUTAGE_FULL_S: Final = 1_800.0
BEFORE_S: Final = 10.0
TICK_S: Final = 0.01
"""Events are added so often, as many as are due."""


def plan(options: Options) -> Plan:
    """The slices of the part, by case."""
    counts = (options.events, *([SET_ASIDE_FULL] if options.full else []))
    slices = [Slice(Key(_case(options.events), "handled"), partial(backlog, MASKLINE, options.events))]
    slices += [Slice(Key(_case(count), "set aside"), partial(set_aside, count)) for count in counts]
    lasts_s = OUTAGE_FULL_S if options.full else OUTAGE_S
    slices.append(
        Slice(Key(f"{lasts_s:g} s of outage, {OUTAGE_RATE:,}/s", "maskline"), partial(outage, lasts_s))
    )
    columns = [
        RATE,
        CPU,
        Column("cpu_us", "CPU ÷ base", ratio=True, format=".2f"),
        Column("again_per_s", "again a second"),
        Column("again_cpu_us", "CPU µs", format=".1f"),
        Column("server_bytes", "Valkey bytes", format=",.0f"),
        Column("worker_mb", "worker MB more", format=",.1f"),
        Column("p99_ratio", "p99 ÷ before", format=".2f"),
        Column("attempts", "attempts", format=".0f"),
        Column("letters", "letters", format=".0f"),
    ]
    bases = {_case(options.events): Key(_case(options.events), "handled")}
    title = "Failures: events set aside as a handler is paused, and run again; an outage beside a handler that is well"
    return Plan("failures", title, slices, bases, columns)


def _case(events: int) -> str:
    return f"{events:,} events"


# Set aside and run again


def set_aside(events: int) -> dict[str, float]:
    """Set a backlog aside, as its handler is paused; then resume, and run it. Bytes are of each event."""
    total = events // MARK * MARK
    environment = {"MASKLINE_LEASE_TTL_MS": str(LEASE_TTL_MS)}
    with (
        listen_for_handled() as handled_counts,
        running(MASKLINE, handled_counts.environment(MARK) | environment) as (worker, store),
    ):
        _pause(store)
        memory_bytes = worker.memory_bytes()
        worker.pause()
        with Feeder(store) as feeder:
            feeder.add(data.session_events(total // data.SESSION_EVENTS), partition_stream(PARTITIONS))
        store.wait_until_no_rewrite()
        stored_bytes, used_s, start_s = store.used_bytes(), worker.cpu_s(), time.monotonic()
        worker.resume()
        wait_until_committed(MASKLINE, store, worker)
        seconds, used_s = time.monotonic() - start_s, worker.cpu_s() - used_s
        if (waiting := _waiting(store)) != total:
            raise BenchError(f"{waiting:,} events were set aside where there are {total:,}")
        return {
            "per_s": total / seconds,
            "cpu_us": used_s / total * 1e6,
            "server_bytes": (store.used_bytes() - stored_bytes) / total,
            "worker_mb": (worker.memory_bytes() - memory_bytes) / 1e6,
        } | _run_again(handled_counts, worker, store, total)


def _run_again(handled_counts: HandledCounts, worker: Process, store: Valkey, total: int) -> dict[str, float]:
    """Resume the handler until all is handled, at the pace that grows as after an outage."""
    used_s, start_ns = worker.cpu_s(), time.monotonic_ns()
    store.client.hdel(KEYS.control, pause_field(HANDLER))
    seconds = (handled_counts.wait_for(total, worker) - start_ns) / 1e9
    return {"again_per_s": total / seconds, "again_cpu_us": (worker.cpu_s() - used_s) / total * 1e6}


def _pause(store: Valkey) -> None:
    store.client.hset(KEYS.control, pause_field(HANDLER), encode_pause(Pause()))
    time.sleep(CONTROL_S)


def _waiting(store: Valkey) -> int:
    """Events that are set aside."""
    found = 0
    for number in range(PARTITIONS):
        counts: Any = store.client.hgetall(KEYS.retry_counts(number))
        found += sum(int(count) for name, count in counts.items() if name.startswith(b"waiting "))
    return found


# An outage


def outage(lasts_s: float) -> dict[str, float]:
    """Two handlers of every event: what one of them calls is well for BEFORE_S, then away for `lasts_s`.

    `p99_ratio`: of the other one, during the outage and before it. `worker_mb`: how much the worker grew between the
    first third of the outage and its end.
    """
    with tempfile.TemporaryDirectory(prefix="outage-", dir=_directory()) as directory:
        away, seen = Path(directory) / "away", Path(directory) / "seen"
        environment = {
            "MASKLINE_HANDLERS": "bench.worker.maskline_outage",
            "BENCH_AWAY": str(away),
            "BENCH_SEEN": str(seen),
        }
        total = round((BEFORE_S + lasts_s) * OUTAGE_RATE)
        with running(MASKLINE, environment) as (worker, store):
            events = data.session_events(-(-total // data.SESSION_EVENTS), out_of_order=False)
            _feed(store, events, BEFORE_S)
            away.touch()
            began_s = time.time()
            _feed(store, events, lasts_s / 3)
            memory_bytes = worker.memory_bytes()
            _feed(store, events, lasts_s * 2 / 3)
            grown_bytes, ended_s = worker.memory_bytes() - memory_bytes, time.time()
            away.unlink()
            again_s = _wait_until_worked_off(store, worker)
            letters = sum(store.client.xlen(KEYS.dead(number)) for number in range(PARTITIONS))
            worker.end()
            worker.wait_until_ended(WAIT_TIMEOUT_S)
        noted: dict[str, Any] = msgspec.json.decode(seen.read_bytes())
        before = _p99(noted["mail"], began_s - BEFORE_S / 2, began_s)
        during = _p99(noted["mail"], began_s, ended_s)
        return {
            "per_s": OUTAGE_RATE,
            "p50_ms": before,
            "p99_ms": during,
            "p99_ratio": during / before,
            "worker_mb": grown_bytes / 1e6,
            "attempts": noted["attempts"],
            "letters": letters,
            "again_per_s": lasts_s * OUTAGE_RATE / again_s,
        }


def _directory() -> Path:
    path = HOME / "data"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _feed(store: Valkey, events: Iterator[data.NumberedEvent], lasts_s: float) -> None:
    """Add events at OUTAGE_RATE for so long."""
    stream_of = partition_stream(PARTITIONS)
    with Feeder(store) as feeder:
        start_s, added = time.monotonic(), 0
        while (passed_s := time.monotonic() - start_s) < lasts_s:
            due = math.floor(passed_s * OUTAGE_RATE) - added
            if due > 0:
                feeder.add_at_once(list(islice(events, due)), stream_of)
                added += due
            time.sleep(TICK_S)


def _wait_until_worked_off(store: Valkey, worker: Process) -> float:
    """Wait until nothing is set aside any more; returns how many seconds that took."""
    start_s = time.monotonic()
    wait_until_committed(MASKLINE, store, worker)
    left = _waiting(store)
    stalled_s = time.monotonic()
    while left:
        worker.check()
        time.sleep(0.05)
        now = _waiting(store)
        if now < left:
            left, stalled_s = now, time.monotonic()
        elif time.monotonic() > stalled_s + WAIT_TIMEOUT_S + 30:  # a probe comes once a minute at least
            raise BenchError(f"{worker.log.name}: {left:,} events set aside are not worked off")
    return time.monotonic() - start_s


def _p99(pairs: list[list[float]], from_s: float, until_s: float) -> float:
    took_ms = sorted(ms for received_s, ms in pairs if from_s <= received_s < until_s)
    if not took_ms:
        raise BenchError("no event was handled")
    return took_ms[int(0.99 * (len(took_ms) - 1))]
