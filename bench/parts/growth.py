"""The cost of an event as partitions, live sessions or the backlog grow: maskline compared with itself."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final

from bench import data
from bench.backlog import Feeder, partition_stream
from bench.machine import Process, Valkey
from bench.paired import Key
from bench.parts.worker import MASKLINE, PARTITIONS, measured, running, wait_until_committed
from bench.plan import CPU, RATE, SERVER, Column, Options, Plan, Slice
from bench.tallies import HandledCounts, listen_for_handled

PARTITION_COUNTS: Final = (64, 1, 8, 512)
"""The base first."""
SESSION_COUNTS: Final = (1_000, 100_000)
SESSION_COUNT_FULL: Final = 1_000_000
"""Takes a minute or two, as each session has to get its first event."""
BACKLOG_FULL: Final = 1_000_000
MARK: Final = 1_000
"""Handlers report after every so many events; all counts here are multiples of it."""
LEASE_TTL_MS: Final = 120_000
"""The worker is stopped while up to a million callbacks are added, and must keep its partitions."""


def plan(options: Options) -> Plan:
    """The slices of the part, by case."""
    slices = [
        Slice(Key("partitions", f"{number:,}"), partial(partitions, number, options.events))
        for number in PARTITION_COUNTS
    ]
    counts = (*SESSION_COUNTS, *([SESSION_COUNT_FULL] if options.full else []))
    slices += [
        Slice(Key("sessions", f"{number:,}"), partial(live_sessions, number, options.events))
        for number in counts
    ]
    sizes = (options.events, *([BACKLOG_FULL] if options.full else []))
    slices += [Slice(Key("backlog", f"{size:,}"), partial(partitions, PARTITIONS, size)) for size in sizes]
    bases = {
        "partitions": Key("partitions", f"{PARTITION_COUNTS[0]:,}"),
        "sessions": Key("sessions", f"{SESSION_COUNTS[0]:,}"),
        "backlog": Key("backlog", f"{sizes[0]:,}"),
    }
    columns = [
        Column("cpu_us", "cost ÷ base", ratio=True, format=".2f"),
        CPU,
        SERVER,
        RATE,
        Column("seconds", "seconds", format=".1f"),
        Column("memory_mb", "worker MB", format=",.0f"),
    ]
    title = "Growth: CPU of the worker for an event, against the first of each case"
    return Plan("growth", title, slices, bases, columns)


def partitions(number: int, events: int) -> dict[str, float]:
    """The usual backlog in `number` partitions."""
    environment = {"MASKLINE_LEASE_TTL_MS": str(LEASE_TTL_MS)}
    with (
        listen_for_handled() as handled_counts,
        running(MASKLINE, handled_counts.environment(MARK) | environment, partitions=number) as (
            worker,
            store,
        ),
    ):
        backlog = data.session_events(events // data.SESSION_EVENTS)
        return _run(handled_counts, worker, store, backlog, number)


def live_sessions(number: int, events: int) -> dict[str, float]:
    """Further events of `number` sessions in turn, after each has had its first."""
    environment = {"MASKLINE_LEASE_TTL_MS": str(LEASE_TTL_MS)}
    names = [data.session_uuid(index) for index in range(number)]
    with (
        listen_for_handled() as handled_counts,
        running(MASKLINE, handled_counts.environment(MARK) | environment) as (worker, store),
    ):
        first = (data.numbered(index, 1, name) for index, name in enumerate(names))
        _run(handled_counts, worker, store, first, PARTITIONS)
        return _run(handled_counts, worker, store, _rounds(names, events), PARTITIONS, before=number)


def _rounds(names: list[str], events: int) -> Iterator[data.NumberedEvent]:
    """The next events of all sessions, again and again."""
    for place in range(events):
        number, index = divmod(place, len(names))
        yield data.numbered(index, number + 2, names[index])


def _run(
    handled_counts: HandledCounts,
    worker: Process,
    store: Valkey,
    events: Iterable[data.NumberedEvent],
    number: int,
    *,
    before: int = 0,
) -> dict[str, float]:
    """Add events while the worker is stopped, and measure how it handles them."""
    worker.pause()
    with Feeder(store) as feeder:
        total = feeder.add(events, partition_stream(number))
    store.wait_until_no_rewrite()
    values = measured(handled_counts, worker, store, total, before)
    wait_until_committed(MASKLINE, store, worker, number)
    return values | {"memory_mb": worker.memory_bytes() / 1e6}
