"""Tables, targets, results and the plot, from samples made up here."""

from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from bench.paired import Key, Sample
from bench.parts.latency import figures, find_capacity
from bench.plan import CPU_RATIO, RATE, RATIO, Plan, Slice
from bench.plot import panels, svg
from bench.results import Report, read_report, write_report
from bench.table import part_table, target_table
from bench.targets import TARGETS, Target, outcome

SAMPLES = [
    Sample("ingest", "64 clients", variant, number, {"per_s": per_s * number, "cpu_us": 1e6 / per_s})
    for number in (1, 2, 3)
    for variant, per_s in (("empty aiohttp", 1000.0), ("maskline", 1300.0), ("fastify + ioredis", 700.0))
]
SLICES = [Slice(Key("64 clients", name), dict) for name in ("empty aiohttp", "maskline", "never run")]
PLAN = Plan("ingest", "Ingest", SLICES, {"64 clients": SLICES[0].key}, [RATIO, CPU_RATIO, RATE])


def shown(table):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines()]


def test_a_table_shows_ratios_to_the_base_of_the_case():
    lines = shown(part_table(PLAN, SAMPLES))
    assert ["empty", "aiohttp", "1", "1", "2,000"] in lines
    assert ["maskline", "1.30", "(1.30\u20131.30)", "1.30", "(1.30\u20131.30)", "2,600"] in lines
    assert ["never", "run"] in lines


def test_targets_are_judged_by_the_median():
    lines = [" ".join(line) for line in shown(target_table(SAMPLES))]
    assert any("empty aiohttp web.Server 1.30 (1.30\u20131.30) ≥ 1 ≥ 1.3 aim" in line for line in lines)
    assert any("÷ fastify + ioredis 1.86 (1.86\u20131.86) ≥ 1.5 ≥ 2 reached" in line for line in lines)
    assert not any("worker" in line for line in lines)


def test_no_targets_without_samples():
    assert target_table([]) is None


@pytest.mark.parametrize(("p99", "verdict"), [(9.0, "aim"), (24.0, "reached"), (26.0, "missed")])
def test_a_target_may_be_a_figure_that_is_not_to_be_passed(p99, verdict):
    target = Target("p99", "latency", Key("50 %", "maskline"), (), "p99_ms", 25, 10, at_most=True)
    found = outcome([Sample("latency", "50 %", "maskline", 1, {"p99_ms": p99})], target)
    assert found is not None
    assert found.verdict == verdict


def test_the_best_of_several_is_taken_in_each_round():
    target = next(target for target in TARGETS if "best of" in target.label)
    rates = {"maskline": 3000.0, "FastStream": 100.0, "taskiq-redis": 200.0, "streaq": 50.0}
    found = outcome(
        [Sample("worker", "backlog", name, 1, {"per_s": rate}) for name, rate in rates.items()], target
    )
    assert found is not None
    assert found.found.median == 15.0


def test_results_are_read_as_they_were_written(tmp_path):
    report = Report("2026-01-05T09:00:00+00:00", {"cores": "2"}, SAMPLES)
    write_report(tmp_path / "deep" / "results.json", report)
    assert read_report(tmp_path / "deep" / "results.json") == report


def test_the_plot_is_an_svg_with_a_bar_for_each_variant_that_was_run():
    root = ET.fromstring(svg(panels(SAMPLES)))  # noqa: S314 - our own
    name = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{name}text")]
    assert {"maskline", "1.30", "fastify + ioredis", "0.70"} <= set(texts)
    bars = list(root.iter(f"{name}rect"))
    assert len(bars) == 2
    assert all(0 <= float(bar.get("width")) + float(bar.get("x")) <= 720 for bar in bars)


def test_nothing_run_gives_no_panel():
    assert panels([]) == []


def test_the_greatest_sustained_rate_is_found_by_halving():
    assert find_capacity(lambda rate: rate <= 7_000) == pytest.approx(7_000, rel=0.07)


def test_latencies_outside_of_the_slice_do_not_count():
    noted = [
        9.0,
        500.0,
        *(value for place in range(100) for value in (10 + place / 100, place + 1.0)),
        11.0,
        500.0,
    ]
    found = figures(noted, 10.0, 1.0)
    assert found == {"per_s": 100.0, "p50_ms": 51.0, "p99_ms": 100.0, "p999_ms": 100.0}
