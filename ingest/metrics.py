"""The metrics of an ingest process: plain counters on the hot path, turned into Prometheus metrics at the scrape."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from maskline.runtime.admin.vitals import vital_metrics
from maskline.runtime.net.listener import ACCEPT_FAILED

PREFIX: Final = "maskline_ingest_"

BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Callbacks per batch, up to the usual MASKLINE_IN_FLIGHT_MAX."""

LATENCY_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""From a round trip on the same machine to several times the usual MASKLINE_PUBLISH_TIMEOUT_MS."""


class Histogram:
    """Counts by fixed buckets. `bounds`: the upper bound of each bucket but the last, in ascending order."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value; this costs a bisection."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as the text format wants them."""
        cumulative = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            cumulative += count
            rows.append((bound, cumulative))
        return rows


class Gauges(NamedTuple):
    """The state of an ingest process at the scrape."""

    waiting: int
    """Callbacks that await Redis or the spool."""
    batches_under_way: int
    requests_under_way: int
    connections: int
    redis_connected: bool
    breakers: dict[str, int]
    """How many servers there are by the state of their circuit breaker."""
    spool_callbacks: int
    spool_partitions: int
    """Partitions of which workers were told that this process holds spooled callbacks."""
    spool_bytes: int
    spool_max_bytes: int
    spool_oldest_age_s: float
    spool_ok: bool


class Metrics(Collector):
    """The counters of one process, and `gauges`, which is called at the scrape."""

    def __init__(self) -> None:
        self.taken = 0
        """Callbacks answered 200."""
        self.refused: Counter[tuple[int, str]] = Counter()
        """Other answers, by status and code."""
        self.refused_kept = 0
        """Refused requests that Redis keeps for a release."""
        self.refused_dropped: Counter[str] = Counter()
        """Those that could be Plivo's, and were not kept, by reason (ingest.refused.keeper)."""
        self.refused_removed: Counter[str] = Counter()
        """Those that were kept, and left Redis without a release: `pushed_out` by others, or `expired`."""
        self.connections_refused = 0
        self.accept_failures = 0
        """Connections that could not be accepted for want of a descriptor."""
        self.connects = 0
        """Connections to Redis that were opened."""
        self.batch_failures: Counter[str] = Counter()
        """Batches that Redis did not confirm, by reason."""
        self.batch_size = Histogram(BATCH_BUCKETS)
        self.publish_s = Histogram(LATENCY_BUCKETS_S)
        """Seconds from a batch's first callback to Redis's reply."""
        self.spooled: Counter[str] = Counter()
        """Callbacks that went to the spool, by reason."""
        self.drained = 0
        """Callbacks that Redis took from the spool."""
        self.spool_failures: Counter[str] = Counter()
        """Callbacks that the spool did not take, by reason."""
        self.spool_files_gone = 0
        """Spool files that were removed, moved or replaced while they were open."""
        self.commit_s = Histogram(LATENCY_BUCKETS_S)
        """Seconds that the spool's commits took."""
        self.background_failures: Counter[str] = Counter()
        """Failures of background tasks, by name."""
        self.gauges: Callable[[], Gauges] | None = None

    def count_connection(self, reason: str) -> None:
        """Count a connection that was refused or could not be accepted, for the reason of `runtime.net.listener`."""
        if reason == ACCEPT_FAILED:
            self.accept_failures += 1
        else:
            self.connections_refused += 1

    def collect(self) -> Iterator[Metric]:
        """The metrics, as the Prometheus client asks for them at a scrape."""
        requests = CounterMetricFamily(
            PREFIX + "requests", "Requests by answer and reason.", labels=["status", "reason"]
        )
        requests.add_metric(["200", "taken"], self.taken)
        # A copy: scrapes run in a thread.
        for (status, code), count in sorted(self.refused.copy().items()):
            requests.add_metric([str(status), code], count)
        yield requests
        yield CounterMetricFamily(
            PREFIX + "refused_kept",
            "Refused requests that are kept for a release.",
            value=self.refused_kept,
        )
        yield _by_reason(
            "refused_dropped",
            "Refused requests that could be Plivo's, and were not kept, by reason.",
            self.refused_dropped,
        )
        yield _by_reason(
            "refused_removed",
            "Refused requests that were kept, and made room or expired.",
            self.refused_removed,
        )
        yield _by_reason(
            "batch_failures", "Batches that Redis did not confirm, by reason.", self.batch_failures
        )
        yield _by_reason("spooled", "Callbacks that went to the spool, by reason.", self.spooled)
        yield _by_reason(
            "spool_failures", "Callbacks that the spool did not take, by reason.", self.spool_failures
        )
        yield CounterMetricFamily(
            PREFIX + "spool_drained", "Callbacks that Redis took from the spool.", value=self.drained
        )
        yield CounterMetricFamily(
            PREFIX + "spool_files_gone",
            "Spool files that were removed, moved or replaced while they were open.",
            value=self.spool_files_gone,
        )
        yield _histogram("spool_commit_seconds", "Time of a commit to the spool.", self.commit_s)
        yield CounterMetricFamily(
            PREFIX + "connections_refused",
            "Connections over the bound, or beyond the descriptors there are.",
            value=self.connections_refused,
        )
        yield CounterMetricFamily(
            PREFIX + "accept_failures",
            "Times a connection could not be accepted for want of a descriptor.",
            value=self.accept_failures,
        )
        yield CounterMetricFamily(
            PREFIX + "redis_connects", "Connections to Redis that were opened.", value=self.connects
        )
        yield _histogram("batch_size", "Callbacks per batch.", self.batch_size)
        yield _histogram("publish_seconds", "Time until Redis confirmed a batch.", self.publish_s)
        background = CounterMetricFamily(
            PREFIX + "background_failures", "Failures of background tasks, by name.", labels=["task"]
        )
        for name, count in sorted(self.background_failures.copy().items()):
            background.add_metric([name], count)
        yield background
        if self.gauges is not None:
            yield from _gauges(self.gauges())
        yield from vital_metrics(PREFIX)


def _by_reason(name: str, documentation: str, counts: Counter[str]) -> Metric:
    metric = CounterMetricFamily(PREFIX + name, documentation, labels=["reason"])
    for reason, count in sorted(counts.items()):
        metric.add_metric([reason], count)
    return metric


def _histogram(name: str, documentation: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(
        PREFIX + name, documentation, buckets=histogram.buckets(), sum_value=histogram.total
    )


def _gauges(now: Gauges) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        PREFIX + "waiting", "Callbacks that wait for Redis or the spool.", value=now.waiting
    )
    yield GaugeMetricFamily(
        PREFIX + "batches_under_way", "Batches that Redis has not answered.", value=now.batches_under_way
    )
    yield GaugeMetricFamily(
        PREFIX + "requests_under_way", "Requests not answered yet.", value=now.requests_under_way
    )
    yield GaugeMetricFamily(PREFIX + "connections", "Open connections.", value=now.connections)
    yield GaugeMetricFamily(
        PREFIX + "redis_connected", "Whether there is a connection to Redis.", value=int(now.redis_connected)
    )
    breakers = GaugeMetricFamily(PREFIX + "breakers", "Redis servers by breaker state.", labels=["state"])
    for state, count in now.breakers.items():
        breakers.add_metric([state], count)
    yield breakers
    yield GaugeMetricFamily(PREFIX + "spool_callbacks", "Callbacks in the spool.", value=now.spool_callbacks)
    yield GaugeMetricFamily(
        PREFIX + "spool_partitions",
        "Partitions whose gaps wait for this process's spool.",
        value=now.spool_partitions,
    )
    yield GaugeMetricFamily(PREFIX + "spool_bytes", "Bytes they take on the disk.", value=now.spool_bytes)
    yield GaugeMetricFamily(
        PREFIX + "spool_max_bytes", "Bytes the spool may take.", value=now.spool_max_bytes
    )
    yield GaugeMetricFamily(
        PREFIX + "spool_oldest_age_seconds",
        "How long the oldest callback has been in the spool.",
        value=now.spool_oldest_age_s,
    )
    yield GaugeMetricFamily(
        PREFIX + "spool_ok", "Whether the spool takes callbacks.", value=int(now.spool_ok)
    )
