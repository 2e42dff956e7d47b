"""The part of /readyz and /metrics that is about the process: dropped log lines, descriptors, metrics left out."""

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from maskline.runtime.admin import default_registry
from maskline.runtime.logs import lines_dropped, lines_waiting
from maskline.runtime.net.descriptors import descriptors_max, descriptors_open


def vital_details() -> dict[str, Any]:
    """The process's part of the JSON of /readyz."""
    return {
        "log": {"lines_dropped": lines_dropped(), "lines_waiting": lines_waiting()},
        "descriptors": {"open": descriptors_open(), "max": descriptors_max()},
    }


def vital_metrics(prefix: str) -> Iterator[Metric]:
    """The process's metrics for /metrics, whose names begin with `prefix`."""
    yield CounterMetricFamily(
        prefix + "log_lines_dropped",
        "Log lines lost because nobody read them, or the disk was full.",
        lines_dropped(),
    )
    yield GaugeMetricFamily(prefix + "descriptors_open", "File descriptors open.", descriptors_open())
    yield GaugeMetricFamily(
        prefix + "descriptors_max", "File descriptors that the process may have open.", descriptors_max()
    )
    left_out = CounterMetricFamily(
        prefix + "metrics_left_out",
        "Metrics of prometheus_client's default registry that are not on this page, by reason.",
        labels=["why"],
    )
    for why, count in list(default_registry.left_out.items()):
        left_out.add_metric([why], count)
    yield left_out
