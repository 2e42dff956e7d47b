"""The worker's counts as Prometheus metrics, made when they are asked for."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from maskline.runtime.admin.vitals import vital_metrics

if TYPE_CHECKING:
    from maskline.worker.node import WorkerNode

PREFIX = "maskline_worker_"


class WorkerCollector(Collector):
    """Reads a node's counts. Names and meanings are listed in docs/operating.md."""

    def __init__(self, node: "WorkerNode") -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        counters, node = self._node.counters, self._node
        partitions = node.partitions
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
                "states_unreadable",
                "Session states that could not be read and were begun anew.",
                counters.unreadable_states,
            ),
        )
        for name, text, value in totals:
            yield CounterMetricFamily(PREFIX + name, text, value)
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
                node.background.failures,
            ),
        )
        for name, text, label, counts in labelled:
            family = CounterMetricFamily(PREFIX + name, text, labels=[label])
            for key, count in list(counts.items()):
                family.add_metric([key], count)
            yield family
        gauges = (
            ("partitions_owned", "Partitions owned.", node.owned),
            ("live_workers", "Live workers of the group, as last seen.", node.live_workers),
            ("redis_up", "1 while there is a connection to Redis.", int(node.connected)),
            (
                "events_unfinished",
                "Events released to handlers and not done.",
                sum(p.unfinished for p in partitions),
            ),
            (
                "events_held",
                "Events that wait for a missing number or the opening of a call.",
                sum(p.held for p in partitions),
            ),
            ("sessions_cached", "Sessions in memory.", sum(p.live_sessions for p in partitions)),
            ("handlers_running", "Sessions with a handler under way.", node.busy),
            ("entries_retained", "Entries in the streams of owned partitions.", node.retention.retained),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(PREFIX + name, text, value)
        threads = GaugeMetricFamily(
            PREFIX + "handler_threads",
            "Plain handlers in threads, hung in threads that cannot be stopped, and waiting for one.",
            labels=["handler", "state"],
        )
        for name, use in node.threads.items():
            for state, count in use._asdict().items():
                threads.add_metric([name, state], count)
        yield threads
        yield from self._memory()
        held_back = GaugeMetricFamily(
            PREFIX + "retention_held_back_seconds",
            "For how long the oldest callback that a group keeps has outstayed retention.",
            labels=["group"],
        )
        for group, seconds in node.retention.held_back_s().items():
            held_back.add_metric([group], seconds)
        yield held_back
        yield from vital_metrics(PREFIX)

    def _memory(self) -> Iterable[Metric]:
        """What fills the servers."""
        letters = self._node.dead_letters
        yield GaugeMetricFamily(
            PREFIX + "dead_letters_stored", "Dead letters in Redis, of owned partitions.", letters.count
        )
        if letters.size_bytes is not None:
            yield GaugeMetricFamily(
                PREFIX + "dead_letters_bytes", "Redis's memory that they take, about.", letters.size_bytes
            )
        used = GaugeMetricFamily(
            PREFIX + "redis_memory_used_bytes", "Redis's memory in use, by server.", labels=["redis"]
        )
        limit = GaugeMetricFamily(
            PREFIX + "redis_memory_max_bytes", "Redis's maxmemory, 0 for none.", labels=["redis"]
        )
        for address, report in self._node.servers.items():
            if report.memory_used_bytes is not None:
                used.add_metric([address], report.memory_used_bytes)
            if report.memory_max_bytes is not None:
                limit.add_metric([address], report.memory_max_bytes)
        yield used
        yield limit
