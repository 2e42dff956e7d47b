"""What is in prometheus_client's default registry stands on /metrics, and nothing in it breaks the page."""

import asyncio
import threading

import aiohttp
import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from maskline.runtime.admin import default_registry
from maskline.runtime.admin.default_registry import DefaultRegistry, left_out
from maskline.runtime.admin.server import AdminServer, Health
from maskline.runtime.admin.vitals import vital_metrics
from maskline.schemas.privacy import number_token

ACCEPTS = [
    "",
    "application/openmetrics-text; version=1.0.0",
    "text/plain; version=1.0.0; escaping=allow-utf-8",
]
NUMBER = "+14155550123"


class Ours(Collector):
    def collect(self):
        yield CounterMetricFamily("maskline_worker_commits", "Commits.", 3)
        yield GaugeMetricFamily("maskline_worker_redis_up", "Up.", 1)
        yield from vital_metrics("maskline_worker_")


class Of(Collector):
    """A collector that gives these metrics, or does this."""

    def __init__(self, *metrics, act=lambda: None):
        self.metrics, self.act = metrics, act

    def collect(self):
        yield from self.metrics
        self.act()

    def describe(self):
        return []


def series(page, accept=""):
    """Every series of a page by its name and labels, as Prometheus's own client reads it. Raises where it cannot."""
    parse = parse_openmetrics if "openmetrics" in accept else parse_text
    found = {}
    families = [family.name for family in parse(page)]
    assert len(families) == len(set(families))
    for family in parse(page):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


async def page_of(users, accept="", ours=None):
    encode, _ = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(ours or Ours())
    return (await DefaultRegistry(users).add_to(encode(registry), encode)).decode()


@pytest.fixture(autouse=True)
def counts():
    left_out.clear()
    return left_out


@pytest.mark.parametrize("accept", ACCEPTS)
async def test_every_kind_of_metric_is_on_the_page(accept):
    users = CollectorRegistry(auto_describe=True, target_info={"service": "fares"})
    Counter("fares_settled", "Fares\nsettled.", ["currency"], registry=users).labels('E"U\nR').inc(2)
    Gauge("fares_open", "", registry=users).set(1.5)
    Histogram("fare_seconds", "", registry=users, buckets=(0.1, 100_000_000)).observe(0.2)
    Summary("fare_amount", "", registry=users).observe(7)
    Info("build", "", registry=users).info({"version": "1.2.3"})
    Enum("mode", "", states=["on", "off"], registry=users)
    found = series(await page_of(users, accept), accept)
    for name, *labels in (
        ("maskline_worker_commits_total",), ("fares_settled_total", ("currency", 'E"U\nR')), ("fares_open",),
        ("fare_seconds_bucket", ("le", "1e+08")), ("fare_amount_sum",), ("build_info", ("version", "1.2.3")),
        ("target_info", ("service", "fares")), ("mode", ("mode", "off")),
    ):  # fmt: skip
        assert (name, *labels) in found
    assert not left_out


@pytest.mark.parametrize("accept", ACCEPTS)
async def test_names_that_are_taken_are_left_out_and_counted(accept):
    users = CollectorRegistry()
    Counter("maskline_worker_commits", "Another's.", registry=users).inc(99)
    Gauge("maskline_worker_redis_up", "Another's.", registry=users).set(99)
    Gauge("kept", "", registry=users).set(1)
    users.register(Of(GaugeMetricFamily("kept", "Twice.", 2), GaugeMetricFamily("also_kept", "", 3)))
    found = series(await page_of(users, accept), accept)
    assert 99 not in found.values()
    assert (found["kept",], found["also_kept",]) == (1, 3)
    assert left_out == {"clash": 3}


def broken_metrics():
    no_figure = GaugeMetricFamily("no_figure", "", labels=["a"])
    no_figure.add_metric(["x"], "many")
    no_text = GaugeMetricFamily("no_text", "", labels=["a"])
    no_text.add_metric([object()], 1)
    strange = Metric("strange", "", "gauge")
    strange.add_sample("of_another", {}, 1)
    return [no_figure, no_text, strange, None, "text"]


@pytest.mark.parametrize("accept", ACCEPTS)
async def test_metric_that_raises_or_is_invalid_leaves_out_only_itself(accept):
    users = CollectorRegistry()
    users.register(Of(GaugeMetricFamily("before", "", 1), act=lambda: 1 / 0))
    users.register(Of(*broken_metrics(), GaugeMetricFamily("between", "", 2)))
    Gauge("after", "", registry=users).set(3)
    page = await page_of(users, accept)
    found = series(page, accept)
    assert (found["before",], found["between",], found["after",]) == (1, 2, 3)
    assert left_out == {"failed": 6}
    assert (f'maskline_worker_metrics_left_out_total{{why="failed"}} {6.0}') in await page_of(users, accept)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_collector_that_raises_system_exit_leaves_out_only_itself(error):
    users = CollectorRegistry()
    users.register(Of(act=lambda: throw(error)))
    Gauge("after", "", registry=users).set(3)
    assert ("after",) in series(await page_of(users))
    assert left_out == {"failed": 1}


def throw(error):
    raise error


async def test_hanging_collector_is_skipped_until_it_returns(monkeypatch):
    monkeypatch.setattr(default_registry, "COLLECT_MAX_S", 0.05)
    release, calls = threading.Event(), []
    users = CollectorRegistry()
    Gauge("before", "", registry=users).set(1)
    users.register(Of(GaugeMetricFamily("hanging", "", 1), act=lambda: (calls.append(1), release.wait(30))))
    Gauge("after", "", registry=users).set(2)
    registry = DefaultRegistry(users)
    encode, _ = choose_encoder("")

    async def names():
        return {name for name, *_ in series((await registry.add_to(b"", encode)).decode())}

    assert await names() == {"before", "hanging"}
    for _ in range(3):
        assert await names() == {"before", "after"}
    assert len(calls) == 1
    release.set()
    for thread in list(registry._hanging.values()):
        thread.join(10)
    assert await names() == {"before", "hanging", "after"}
    assert left_out == {"slow": 4}


async def test_without_a_thread_the_page_has_only_our_metrics(monkeypatch):
    def none_to_be_had(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_to_be_had)
    found = series(await page_of(prometheus_client.REGISTRY))
    assert found["maskline_worker_redis_up",] == 1
    assert left_out == {"no_thread": 1}


async def test_page_size_is_bounded(monkeypatch):
    monkeypatch.setattr(default_registry, "TEXTS_MAX_BYTES", 100)
    users = CollectorRegistry()
    Gauge("small", "", registry=users).set(1)
    Gauge("large", "x" * 100, registry=users).set(1)
    found = series(await page_of(users))
    assert ("small",) in found
    assert ("large",) not in found
    assert left_out == {"too_large": 1}


@given(st.sampled_from([NUMBER, "14155550123", "1 (415) 555-0123"]), st.sampled_from(ACCEPTS))
@settings(max_examples=10, deadline=None)
async def test_phone_number_in_a_label_becomes_a_token(number, accept):
    users = CollectorRegistry()
    calls = Counter("calls", f"Calls to {number}.", ["to"], registry=users)
    calls.labels(number).inc(2, exemplar={"to": number})
    calls.labels(number + " ").inc()
    page = await page_of(users, accept)
    assert "4155550123" not in "".join(filter(str.isdigit, page))
    assert ("calls_total", ("to", number_token(number))) in series(page, accept)


class Port:
    """An admin port with the default registry of this process."""

    async def __aenter__(self):
        registry = CollectorRegistry()
        registry.register(Ours())
        ok = Health(ok=True, details={})
        self.server = AdminServer("127.0.0.1", 0, live=lambda: ok, ready=lambda: ok, registry=registry)
        await self.server.start()
        return f"http://127.0.0.1:{self.server.port}/metrics"

    async def __aexit__(self, *_):
        await self.server.stop()


@pytest.mark.parametrize("accept", ACCEPTS)
async def test_admin_port_shows_process_metrics_and_those_of_modules(accept):
    mine = Gauge("fares_open_here", "")
    try:
        async with (
            Port() as url,
            aiohttp.ClientSession(headers={"Accept": accept}) as client,
            client.get(url) as answer,
        ):
            assert answer.status == 200
            found = series(await answer.text(), accept)
    finally:
        prometheus_client.REGISTRY.unregister(mine)
    names = {name for name, *_ in found}
    assert {
        "fares_open_here", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds",
        "python_info", "maskline_worker_commits_total",
    } <= names  # fmt: skip
