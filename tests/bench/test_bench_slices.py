"""A tiny slice of ingest and worker, of the base and of maskline: real servers, real load, a few seconds."""

import contextlib
import shutil

import pytest
from rich.console import Console

from bench import machine, prepare, whole_path
from bench.parts import cost, failures, ingest, worker
from bench.plan import Options

OPTIONS = Options(slice_s=0.2, warm_s=0.1)
EVENTS = 2_000

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None and shutil.which("gcc") is None, reason="the load generator needs a C compiler"
)


@pytest.fixture(scope="module", autouse=True)
def load_generator():
    prepare.prepare_load(Console(quiet=True))


@pytest.mark.parametrize("server", [ingest.EMPTY, ingest.MASKLINE], ids=lambda server: server.name)
def test_ingest_slice(server):
    values = ingest.closed(server, OPTIONS, clients=8)
    assert values["per_s"] > 0
    assert 0 < values["p50_us"] <= values["p99_us"]


def test_mixed_slice_has_refusals_and_keeps_its_connections():
    values = ingest.mixed(ingest.MASKLINE, OPTIONS)
    assert values["per_s"] > 0


def test_a_mix_without_refusals_is_not_measured():
    with (
        ingest.running(ingest.MASKLINE) as (port, _, _),
        pytest.raises(machine.BenchError, match="refusals must be answered"),
    ):
        ingest.run_load(port, ingest.requests_file(), core=None, warm_s=0.1, slice_s=0.2, may_refuse=True)


def test_a_constant_rate_is_kept():
    with ingest.running(ingest.EMPTY) as (port, _, _):
        load = ingest.run_load(port, ingest.requests_file(), core=None, warm_s=0.1, slice_s=0.5, rate=200)
    assert load.answered + load.unanswered == pytest.approx(100, abs=1)


def test_load_says_how_many_requests_it_has_sent_in_all():
    """The next slice of a search goes on there: an event left out would be a gap that others wait for."""
    with ingest.running(ingest.MASKLINE) as (port, _, store):
        load = ingest.run_load(port, ingest.requests_file(), core=None, warm_s=0.2, slice_s=0.3, rate=300)
        stored = sum(store.client.xlen(key) for key in store.client.scan_iter(match="*:callbacks"))
    tried_before = 1
    assert load.sent == stored - tried_before > load.answered


def test_each_slice_of_a_search_begins_after_what_the_last_one_has_sent(monkeypatch):
    skipped: list[int] = []

    def measure(_path, _requests, _rate, *, skip, **_rest):
        skipped.append(skip)
        return {"sent": 700.0}

    monkeypatch.setattr(cost, "running", lambda _system: contextlib.nullcontext("started"))
    monkeypatch.setattr(cost, "requests_once", lambda _number: "a file")
    monkeypatch.setattr(cost, "measure", measure)
    with cost.Probes(whole_path.MASKLINE) as probes:
        for _ in range(3):
            probes.measure(500)
    assert skipped == [0, 700, 1400]


def test_a_server_that_lets_everything_in_is_not_measured_as_one_that_verifies():
    lax = ingest.EMPTY._replace(verifies=True)
    with pytest.raises(machine.BenchError, match="bad signature"):
        ingest.closed(lax, OPTIONS)


def test_a_server_that_keeps_nothing_is_not_measured_as_one_that_stores():
    forgetful = ingest.EMPTY._replace(stores=True)
    with pytest.raises(machine.BenchError, match="are stored"):
        ingest.closed(forgetful, OPTIONS)


@pytest.mark.parametrize(
    "consumer", [worker.HANDWRITTEN, worker.MASKLINE], ids=lambda consumer: consumer.name
)
def test_worker_slice(consumer):
    assert worker.backlog(consumer, EVENTS)["per_s"] > 0


@pytest.mark.parametrize(
    "system", [whole_path.HANDWRITTEN, whole_path.MASKLINE], ids=lambda system: system.name
)
def test_cost_slice_counts_each_callback_once(system, monkeypatch):
    monkeypatch.setattr(cost, "SETTLE_S", 0)  # what a start leaves to do may count here
    values = cost.at_rate(system, 500, OPTIONS._replace(slice_s=0.5, warm_s=0.5))
    assert min(values[name] for name in ("ingest_us", "valkey_us", "worker_us")) > 0
    assert min(values[name] for name in ("aof_bytes", "to_redis_bytes", "from_redis_bytes")) > 300
    assert values["cpu_us"] == pytest.approx(values["ingest_us"] + values["valkey_us"] + values["worker_us"])
    assert values["calls:xadd"] == pytest.approx(1, abs=0.2)
    assert 0 <= values["p50_ms"] <= values["p99_ms"]


def test_light_slice():
    assert worker.light(worker.MASKLINE, 0.2)["per_s"] > 0


def test_events_are_set_aside_and_run_again():
    values = failures.set_aside(EVENTS)
    assert min(values["per_s"], values["again_per_s"], values["server_bytes"]) > 0


def test_outage_spends_no_attempts_and_is_worked_off(monkeypatch):
    monkeypatch.setattr(failures, "BEFORE_S", 0.5)
    values = failures.outage(1.5)
    assert (values["letters"], values["p99_ratio"] > 0) == (0, True)
    assert 1 <= values["attempts"] < 20
