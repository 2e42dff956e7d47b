"""Runs the whole path of a callback (ingest, Valkey, worker) on two cores with the load, and measures a window of it.

The window's ends are the load generator's. At both, the CPU clocks of the three and Valkey's counters are read; what
the handlers have noted (`bench.worker.latency_notes`) tells how many callbacks came in and were handled between them.
"""

import contextlib
import math
import os
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import data
from bench.load import Load, start_load
from bench.machine import (
    HOME,
    ROOT,
    BenchError,
    Process,
    Valkey,
    cores,
    cpu_s,
    free_port,
    process,
    valkey,
    wait_until_listening,
)
from bench.parts import ingest, worker

SUSTAINED_P99_MS: Final = 250.0
"""Above what the machine can take a backlog builds up, and latencies reach seconds."""
SUSTAINED_SHARE: Final = 0.99
"""Of the requests that were due, that must have been answered. The last one or two may have found their slice over."""
NOTES_MAX: Final = 2_000_000
"""Callbacks that one start can note, at 16 bytes of a sparse file."""
UNDER_WAY: Final = 10_000
"""Sessions that go on at the same time: at full load an event comes half a second after the one before."""
CPU_METRICS: Final = {"ingest": "ingest_us", "Valkey": "valkey_us", "worker": "worker_us"}
"""The metric of each process, in the order of a callback's way."""


class System(NamedTuple):
    """An ingest and a worker that go together."""

    name: str
    ingest: ingest.Server
    worker: worker.Consumer
    root: Path = ROOT
    """The checkout that they run in."""


HANDWRITTEN: Final = System("hand-written", ingest.FIRST, worker.HANDWRITTEN)
MASKLINE: Final = System("maskline", ingest.MASKLINE, worker.MASKLINE)


def maskline_in(checkout: Path) -> System:
    """The maskline of another checkout, with its own virtual environment. Raises BenchError if it has none."""
    python = checkout.absolute() / ".venv" / "bin" / "python"
    if not python.exists():
        raise BenchError(f"AGAINST: {python} is missing; run make setup there")
    return System(
        "before",
        ingest.MASKLINE._replace(argv=(str(python), "-m", "maskline.ingest")),
        worker.MASKLINE._replace(work=(str(python), "-m", "maskline.worker")),
        checkout.absolute(),
    )


class Notes:
    """What the handlers noted: when each event was received (Unix time), and after how many milliseconds handled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("wb") as file:
            file.truncate(16 * NOTES_MAX)

    def read(self) -> "array[float]":
        """All pairs so far, flat."""
        found = array("d")
        with self.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.frombytes(chunk)
                if found[-2] == 0:
                    break
        pairs = next((place for place in range(0, len(found), 2) if found[place] == 0), len(found))
        return found[:pairs]


class Running(NamedTuple):
    """A system that is ready."""

    system: System
    port: int
    server: Process
    worker: Process
    store: Valkey
    notes: Notes

    def pids(self) -> dict[str, list[int]]:
        """The processes of each of the three, by its name in CPU_METRICS."""
        return {
            "ingest": self.server.pids(),
            "Valkey": self.store.process.pids(),
            "worker": self.worker.pids(),
        }

    def wait_until_committed(self) -> None:
        """Wait until all that came in is handled and committed."""
        worker.wait_until_committed(self.system.worker, self.store, self.worker)


@contextlib.contextmanager
def running(system: System, *, appendfsync: str = "everysec") -> Iterator[Running]:
    """Start a system with a fresh Valkey, all of it on two cores, and wait until it is ready."""
    logs, name = HOME / "logs", system.name.replace(" ", "-")
    with (
        two_cores(),
        valkey(appendfsync=appendfsync, core=None) as store,
        tempfile.TemporaryDirectory(prefix="path-", dir=HOME / "data") as directory,
    ):
        store.wait_until_no_rewrite()
        port, notes = free_port(), Notes(Path(directory) / "notes")
        environment = (
            worker.settings(store, worker.PARTITIONS)
            | ingest.environment(port, store.url, Path(directory) / "spool")
            | {
                "MASKLINE_HANDLERS": str(ROOT / "bench" / "worker" / "maskline_latency.py"),
                "BENCH_STREAMS": ",".join(worker.streams_of(system.worker, worker.PARTITIONS)),
                "BENCH_LATENCIES": str(notes.path),
            }
        )
        with (
            process(
                system.worker.work, logs / f"path-worker-{name}.log", core=None, environment=environment,
                root=system.root,
            ) as consumer,
            process(
                system.ingest.argv, logs / f"path-ingest-{name}.log", core=None, environment=environment,
                root=system.root,
            ) as server,
        ):  # fmt: skip
            worker.wait_until_ready(system.worker, store, consumer, worker.PARTITIONS)
            wait_until_listening(port, server)
            yield Running(system, port, server, consumer, store, notes)


@contextlib.contextmanager
def two_cores() -> Iterator[None]:
    """Keep what is started meanwhile on two cores, where the system can."""
    found = cores()
    if found.server is None or found.rest is None:
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {found.server, found.rest})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class Clocks(NamedTuple):
    """Unix time, and the CPU seconds of each of the three."""

    at_s: float
    cpu_s: dict[str, float]


class Traffic(NamedTuple):
    """Bytes that Valkey has written to its append-only file, received and sent."""

    aof: int
    received: int
    sent: int


class Window(NamedTuple):
    """A window of load."""

    load: Load
    begin: Clocks
    end: Clocks
    traffic: Traffic
    commands: dict[str, tuple[int, int]]
    """Valkey's calls and microseconds in the window, by command."""

    @property
    def seconds(self) -> float:
        return self.end.at_s - self.begin.at_s

    def cpu_s(self, name: str) -> float:
        return self.end.cpu_s[name] - self.begin.cpu_s[name]


def measure(
    path: Running, requests: Path, rate: float, *, warm_s: float, slice_s: float, skip: int = 0
) -> dict[str, float]:
    """The figures of `rate` callbacks a second at random distances, for `slice_s` after `warm_s`.

    `skip`: how many requests of the file were sent before. Returns when all is committed.
    """
    pids = path.pids()
    store = path.store
    with start_load(path.port, requests, rate=rate, warm_s=warm_s, slice_s=slice_s, skip=skip) as load:
        load.wait_for("counting")
        store.client.config_resetstat()
        before, begin = _traffic(store), _clocks(pids)
        load.wait_for("counted")
        end, after = _clocks(pids), _traffic(store)
        traffic = Traffic(*(now - then for now, then in zip(after, before, strict=True)))
        commands = _commands(store)
        result = load.result()
    path.wait_until_committed()
    return figures(Window(result, begin, end, traffic, commands), path.notes.read())


def idle(path: Running, seconds: float, *, settle_s: float) -> dict[str, float]:
    """The share of a core, in percent, that each of the three uses without any load, after `settle_s`."""
    pids = path.pids()
    time.sleep(settle_s)
    begin = _clocks(pids)
    time.sleep(seconds)
    end = _clocks(pids)
    found = {
        name.replace("_us", "_percent"): (end.cpu_s[which] - begin.cpu_s[which]) / seconds * 100
        for which, name in CPU_METRICS.items()
    }
    return {"cpu_percent": sum(found.values())} | found


def figures(window: Window, notes: "array[float]") -> dict[str, float]:
    """The figures of a window, from its counters and the handlers' notes.

    Costs are of each callback that came in, a worker's of each that was handled; that is one number if it kept up.
    Raises BenchError if nothing came in.
    """
    from_s, to_s = window.begin.at_s, window.end.at_s
    took_ms, handled = [], 0
    for place in range(0, len(notes), 2):
        received_s, ms = notes[place], notes[place + 1]
        if from_s <= received_s < to_s:
            took_ms.append(ms)
        handled += from_s <= received_s + ms / 1000 < to_s
    if not took_ms or not handled:
        raise BenchError("no event was handled")
    took_ms.sort()
    received, load = len(took_ms), window.load
    cost = {
        metric: window.cpu_s(name) / (handled if name == "worker" else received) * 1e6
        for name, metric in CPU_METRICS.items()
    }
    p50_ms, p99_ms, p999_ms = (took_ms[int(share * (received - 1))] for share in (0.5, 0.99, 0.999))
    late_ms = load.p99_us / 1000
    kept_up = (
        load.answered >= SUSTAINED_SHARE * (load.answered + load.unanswered)
        and max(p99_ms, late_ms) < SUSTAINED_P99_MS
    )
    values = {
        "per_s": received / window.seconds,
        "sent": float(load.sent),
        "kept_up": float(kept_up),
        "cpu_us": sum(cost.values()),
    } | cost
    values |= {
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "p999_ms": p999_ms,
        "answer_p50_ms": load.p50_us / 1000,
        "answer_p99_ms": late_ms,
        "aof_bytes": window.traffic.aof / received,
        "to_redis_bytes": window.traffic.received / received,
        "from_redis_bytes": window.traffic.sent / received,
    }
    for command, (calls, spent_us) in window.commands.items():
        values |= {f"calls:{command}": calls / received, f"us:{command}": spent_us / received}
    return values


def requests_in(rate: float, seconds: float) -> int:
    """How many requests come in `seconds` at most, but for once in a billion, as their number is random."""
    mean = rate * seconds
    return round(mean + 6 * math.sqrt(mean)) + 1


def requests_once(number: int) -> Path:
    """A file of at least `number` requests, each of another event; made once for each size."""
    thousands = 1 << (-(-number // 1_000) - 1).bit_length()
    sessions = -(-thousands * 1_000 // data.SESSION_EVENTS)
    path = HOME / "data" / f"requests-once-{thousands}k.bin"
    return data.write_requests(path, data.session_events(sessions, out_of_order=False, under_way=UNDER_WAY))


def _clocks(pids: dict[str, list[int]]) -> Clocks:
    return Clocks(time.time(), {name: cpu_s(them) for name, them in pids.items()})


def _traffic(store: Valkey) -> Traffic:
    found: dict[str, Any] = store.client.info("persistence") | store.client.info("stats")
    names = ("aof_current_size", "total_net_input_bytes", "total_net_output_bytes")
    return Traffic(*(int(found.get(name, 0)) for name in names))


def _commands(store: Valkey) -> dict[str, tuple[int, int]]:
    found: Any = store.client.info("commandstats")
    return {
        name.removeprefix("cmdstat_"): (stats["calls"], stats["usec"])
        for name, stats in found.items()
        if not name.startswith(("cmdstat_info", "cmdstat_config"))
    }
