"""The worker's counts as Prometheus metrics, made when they are asked for."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from maskline.runtime.admin.vitals import vital_metrics
from maskline.runtime.redis.server_checks import ServerReport
from maskline.worker.counters import Counters
from maskline.worker.dispatch.thread_shares import ThreadUse

PREFIX: Final = "maskline_worker_"


class HandlerGauges(NamedTuple):
    """One handler: what waits for it in owned partitions, as of the last count, and its gates."""

    waiting: int
    parked: int
    down: bool
    recovering: bool
    paused: bool


class Gauges(NamedTuple):
    """The worker's state at the scrape. Partitions, events and entries are those that this process owns."""

    partitions_owned: int
    live_workers: int
    """Of the group, as last seen."""
    redis_up: bool
    events_unfinished: int
    """Released to handlers and not done."""
    events_held: int
    """Waiting for a missing number or the opening of a call."""
    sessions_awaiting_spools: int
    """Sessions that have outstayed the gap timeout, and wait for the spools of ingest nodes."""
    sessions_cached: int
    handlers_running: int
    """Sessions with a handler under way."""
    entries_retained: int
    """Entries in the streams."""
    held_back_s: Mapping[str, float]
    """By group: for how many seconds the oldest entry that it keeps has outstayed retention."""
    dead_letters: int
    dead_letters_bytes: int | None
    """None if Redis does not report it."""
    handlers: Mapping[str, HandlerGauges]
    """By handler; also those for which events wait and that are not loaded any more."""
    dead_letters_held_bytes: int
    """Of all partitions: dead letters and what waits behind them."""
    dead_letters_max_bytes: int
    threads: Mapping[str, ThreadUse]
    """By plain handler."""
    servers: Mapping[str, ServerReport]
    """By address."""
    background_failures: Mapping[str, int]
    """By background task."""


class WorkerCollector(Collector):
    """Makes metrics of a worker's counters and gauges. Names and meanings are listed in docs/operating.md."""

    def __init__(self, counters: Counters, gauges: Callable[[], Gauges]) -> None:
        self._counters = counters
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        """All metrics, as they are now."""
        gauges = self._gauges()
        yield from self._totals()
        yield from self._labelled_totals(gauges.background_failures)
        yield from _simple_gauges(gauges)
        yield from _handlers(gauges.handlers)
        yield from _threads(gauges.threads)
        yield from _memory(gauges)
        yield from _held_back(gauges.held_back_s)
        yield from vital_metrics(PREFIX)

    def _totals(self) -> Iterable[Metric]:
        counters = self._counters
        totals: tuple[tuple[str, str, int], ...] = (
            ("callbacks_read", "Stream entries read.", counters.read),
            ("duplicates", "Callbacks dropped because they had come before.", counters.duplicates),
            ("sequence_numbers_given_up", "Numbers that never came in time.", counters.given_up),
            ("commits", "Commits that Redis took.", counters.commits),
            ("commits_fenced", "Commits refused because the lease had gone.", counters.fenced),
            ("leases_gained", "Partitions taken.", counters.leases_gained),
            ("leases_lost", "Leases that ended without being given back.", counters.leases_lost),
            (
                "partitions_diverged",
                "Partitions read again because their server had lost part of them.",
                counters.diverged,
            ),
            (
                "loop_blocks",
                "Times a handler blocked the event loop for over a second.",
                counters.loop_blocks,
            ),
            (
                "handler_strikes",
                "Handlers that had been running for an event when their worker went down.",
                counters.crashes,
            ),
            ("entries_trimmed", "Stream entries that retention has taken.", counters.trimmed),
            ("gaps_forced", "Gaps given up early because the process held too much.", counters.forced_gaps),
            (
                "spools_given_up",
                "Sessions that went on though an ingest node still held spooled callbacks.",
                counters.spools_given_up,
            ),
            (
                "states_unreadable",
                "Session states that could not be read and were begun anew.",
                counters.unreadable_states,
            ),
        )
        for name, text, value in totals:
            yield CounterMetricFamily(PREFIX + name, text, value)

    def _labelled_totals(self, background_failures: Mapping[str, int]) -> Iterable[Metric]:
        counters = self._counters
        labelled: tuple[tuple[str, str, str, Mapping[str, float]], ...] = (
            ("events_released", "Events handed to handlers, by order.", "order", counters.released),
            ("dead_letters", "Dead letters written, by code.", "code", counters.dead),
            (
                "unreadable_values",
                "Values of callbacks that could not be read, by attribute.",
                "attribute",
                counters.unreadable,
            ),
            ("attempts_succeeded", "Attempts that succeeded, by handler.", "handler", counters.handled),
            ("attempts_failed", "Attempts that failed, by handler.", "handler", counters.failed),
            (
                "events_set_aside",
                "Events set aside into retry queues, by handler.",
                "handler",
                counters.set_aside,
            ),
            ("retries", "Runs of events from retry queues, by handler.", "handler", counters.retried),
            ("replays", "Replayed events that were handled or given up again.", "outcome", counters.job_runs),
            ("events_given_up", "Events that became dead letters, by handler.", "handler", counters.gave_up),
            (
                "trials",
                "Handlers run in a process of their own, by what came of it.",
                "outcome",
                counters.sandbox_runs,
            ),
            ("handler_seconds", "Time in handlers, awaiting included.", "handler", counters.handler_seconds),
            (
                "background_failures",
                "Failures of background tasks, by name.",
                "task",
                background_failures,
            ),
        )
        for name, text, label, counts in labelled:
            family = CounterMetricFamily(PREFIX + name, text, labels=[label])
            for key, count in list(counts.items()):
                family.add_metric([key], count)
            yield family


def _simple_gauges(gauges: Gauges) -> Iterable[Metric]:
    rows = (
        ("partitions_owned", "Partitions owned.", gauges.partitions_owned),
        ("live_workers", "Live workers of the group, as last seen.", gauges.live_workers),
        ("redis_up", "1 while there is a connection to Redis.", int(gauges.redis_up)),
        ("events_unfinished", "Events released to handlers and not done.", gauges.events_unfinished),
        (
            "events_held",
            "Events that wait for a missing number or the opening of a call.",
            gauges.events_held,
        ),
        (
            "sessions_awaiting_spools",
            "Sessions that wait, beyond the gap timeout, for the spools of ingest nodes.",
            gauges.sessions_awaiting_spools,
        ),
        ("sessions_cached", "Sessions in memory.", gauges.sessions_cached),
        ("handlers_running", "Sessions with a handler under way.", gauges.handlers_running),
        ("entries_retained", "Entries in the streams of owned partitions.", gauges.entries_retained),
    )
    for name, text, value in rows:
        yield GaugeMetricFamily(PREFIX + name, text, value)


def _handlers(handlers: Mapping[str, HandlerGauges]) -> Iterable[Metric]:
    rows = (
        ("events_waiting", "Events in retry queues of owned partitions, by handler."),
        ("events_parked", "Those of them that wait behind a dead letter."),
        ("handler_down", "1 while what the handler calls fails, and it is probed."),
        ("handler_recovering", "1 while what was set aside for it is worked off at a growing pace."),
        ("handler_paused", "1 while an operator has paused the handler."),
    )
    for (name, text), values in zip(rows, zip(*handlers.values(), strict=True), strict=False):
        family = GaugeMetricFamily(PREFIX + name, text, labels=["handler"])
        for handler, value in zip(handlers, values, strict=True):
            family.add_metric([handler], int(value))
        yield family


def _threads(threads: Mapping[str, ThreadUse]) -> Iterable[Metric]:
    family = GaugeMetricFamily(
        PREFIX + "handler_threads",
        "Plain handlers in threads, hung in threads that cannot be stopped, and waiting for one.",
        labels=["handler", "state"],
    )
    for name, use in threads.items():
        for state, count in use._asdict().items():
            family.add_metric([name, state], count)
    yield family


def _memory(gauges: Gauges) -> Iterable[Metric]:
    """What fills the servers."""
    yield GaugeMetricFamily(
        PREFIX + "dead_letters_stored", "Dead letters in Redis, of owned partitions.", gauges.dead_letters
    )
    if gauges.dead_letters_bytes is not None:
        yield GaugeMetricFamily(
            PREFIX + "dead_letters_bytes", "Redis's memory that they take, about.", gauges.dead_letters_bytes
        )
    held, limit_bytes = gauges.dead_letters_held_bytes, gauges.dead_letters_max_bytes
    for name, text, value in (
        ("dead_letters_held_bytes", "Dead letters of all partitions, with what waits behind them.", held),
        ("dead_letters_max_bytes", "At so many bytes of them giving up waits.", limit_bytes),
    ):
        yield GaugeMetricFamily(PREFIX + name, text, value)
    used = GaugeMetricFamily(
        PREFIX + "redis_memory_used_bytes", "Redis's memory in use, by server.", labels=["redis"]
    )
    limit = GaugeMetricFamily(
        PREFIX + "redis_memory_max_bytes", "Redis's maxmemory, 0 for none.", labels=["redis"]
    )
    for address, report in gauges.servers.items():
        if report.memory_used_bytes is not None:
            used.add_metric([address], report.memory_used_bytes)
        if report.memory_max_bytes is not None:
            limit.add_metric([address], report.memory_max_bytes)
    yield used
    yield limit


def _held_back(held_back_s: Mapping[str, float]) -> Iterable[Metric]:
    family = GaugeMetricFamily(
        PREFIX + "retention_held_back_seconds",
        "For how long the oldest callback that a group keeps has outstayed retention.",
        labels=["group"],
    )
    for group, seconds in held_back_s.items():
        family.add_metric([group], seconds)
    yield family
