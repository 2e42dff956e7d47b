"""What every node tells of its process, besides its work: for /readyz and for /metrics."""

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric

from runtime.logs import lines_dropped, lines_waiting


def vital_details() -> dict[str, Any]:
    """For the JSON of /readyz."""
    return {"log": {"lines_dropped": lines_dropped(), "lines_waiting": lines_waiting()}}


def vital_metrics(prefix: str) -> Iterator[Metric]:
    """For /metrics; the names begin with `prefix`."""
    yield CounterMetricFamily(
        prefix + "log_lines_dropped",
        "Log lines lost because nobody read them, or the disk was full.",
        lines_dropped(),
    )
