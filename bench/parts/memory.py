"""Measures the memory of a callback that waits in its stream, is held for a missing number, or is retained."""

import re
import time
import urllib.request
from collections.abc import Iterable
from functools import partial
from typing import Final

from bench import data
from bench.backlog import KEYS, Feeder, partition_stream
from bench.machine import WAIT_TIMEOUT_S, BenchError, Process, Valkey, cores, valkey
from bench.paired import Key
from bench.parts.worker import MASKLINE, PARTITIONS, running, wait_until_committed
from bench.plan import Column, Options, Slice
from bench.tallies import listen_for_handled

COLUMNS: Final = (
    Column("server_bytes", "Valkey bytes", format=",.0f"),
    Column("worker_bytes", "worker bytes", format=",.0f"),
    Column("session_bytes", "of a session", format=",.0f"),
)
CASE: Final = "memory for each"
SAMPLE: Final = 200
"""Session states whose size is measured."""
UNBOUNDED: Final = 1_000_000


def slices(options: Options) -> list[Slice]:
    """The three cases, as slices of the part `latency`."""
    measures = {"waiting": waiting, "held": held, "retained": retained}
    return [
        Slice(Key(CASE, name), partial(measure, options.events // 2)) for name, measure in measures.items()
    ]


def waiting(events: int) -> dict[str, float]:
    """Callbacks that no worker has read."""
    with valkey(core=cores().rest) as store:
        number = _add(store, data.session_events(events // data.SESSION_EVENTS))
        return {"server_bytes": _stream_bytes(store) / number}


def held(events: int) -> dict[str, float]:
    """Callbacks whose session's first number is missing: read, in the worker's memory, not handled."""
    environment = {"MASKLINE_GAP_TIMEOUT_MS": "86400000", "MASKLINE_OUTSTANDING_MAX": str(UNBOUNDED)}
    with (
        listen_for_handled() as handled_counts,
        running(MASKLINE, handled_counts.environment(UNBOUNDED) | environment) as (worker, store),
    ):
        before = worker.memory_bytes()
        sessions = data.session_events(events // data.SESSION_EVENTS, out_of_order=False)
        number = _add(store, (event for event in sessions if event.number > 1))
        _wait_until_held(number, worker)
        return {
            "server_bytes": _stream_bytes(store) / number,
            "worker_bytes": (worker.memory_bytes() - before) / number,
        }


def retained(events: int) -> dict[str, float]:
    """Callbacks that were handled and stay replayable; and the sessions that they leave behind."""
    sessions = events // data.SESSION_EVENTS
    total = sessions * data.SESSION_EVENTS
    with (
        listen_for_handled() as handled_counts,
        running(MASKLINE, handled_counts.environment(total)) as (worker, store),
    ):
        before = worker.memory_bytes()
        _add(store, data.session_events(sessions))
        handled_counts.wait_for(total, worker)
        wait_until_committed(MASKLINE, store, worker)
        keys = list(store.client.scan_iter(KEYS.session(0, "*").replace("{bench:0}", "*"), count=10_000))
        sample = [store.client.memory_usage(key) or 0 for key in keys[:SAMPLE]]
        return {
            "server_bytes": _stream_bytes(store) / total,
            "session_bytes": sum(sample) / len(sample),
            "worker_bytes": (worker.memory_bytes() - before) / sessions,
        }


def _add(store: Valkey, events: Iterable[data.NumberedEvent]) -> int:
    with Feeder(store) as feeder:
        return feeder.add(events, partition_stream(PARTITIONS))


def _stream_bytes(store: Valkey) -> int:
    """Bytes that the streams take, by all of their entries."""
    usage = store.client.pipeline(transaction=False)
    for number in range(PARTITIONS):
        usage.memory_usage(KEYS.callbacks(number), samples=0)
    return sum(usage.execute())


def _wait_until_held(number: int, worker: Process) -> None:
    """Wait until the worker's metrics say that it holds `number` events."""
    found = re.search(r'"admin":"(http://127\.0\.0\.1:\d+)"', worker.log.read_text())
    if found is None:
        raise BenchError("the worker does not say where its admin port is")
    deadline = time.monotonic() + WAIT_TIMEOUT_S
    while time.monotonic() < deadline:
        worker.check()
        with urllib.request.urlopen(f"{found[1]}/metrics", timeout=10) as response:  # noqa: S310 - our own
            text = response.read().decode()
        if f"\nmaskline_worker_events_held {number:.1f}\n" in text:
            return
        time.sleep(0.1)
    raise BenchError(f"the worker does not hold {number} events")
