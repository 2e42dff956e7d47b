"""Tables, targets, results and the plot, from samples made up here."""

from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from bench.cost_table import joined, markdown, put_between_marks
from bench.load import Load
from bench.machine import BenchError
from bench.paired import Key, Sample
from bench.parts.cost import cases, greatest
from bench.parts.latency import find_capacity
from bench.plan import CPU_RATIO, RATE, RATIO, Plan, Slice
from bench.plot import panels, svg
from bench.results import Report, read_report, write_report
from bench.table import part_table, target_table
from bench.targets import TARGETS, Target, outcome
from bench.whole_path import Clocks, Traffic, Window, figures

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


@pytest.mark.parametrize("capacity", [900.0, 6_700.0, 23_000.0])
@pytest.mark.parametrize(("start", "step"), [(8_000.0, 2.0), (6_700.0, 1.2), (900.0, 1.2)])
def test_the_greatest_rate_is_found_from_wherever_the_search_begins(capacity, start, step):
    asked = []

    def is_good(rate):
        asked.append(rate)
        return rate <= capacity

    found = greatest(is_good, start, step)
    assert capacity / 1.05 <= found <= capacity
    assert found in asked


def test_a_system_that_sustains_nothing_is_not_searched_for_ever():
    with pytest.raises(BenchError, match="not even"):
        greatest(lambda _: False, 8_000.0, 2.0)


def test_a_system_that_sustains_everything_is_not_searched_for_ever():
    assert greatest(lambda _: True, 8_000.0, 2.0) <= 64_000


def test_the_cases_of_the_cost_are_chosen_by_short_words():
    assert cases("1000,greatest,idle") == {"1,000/s", "greatest rate", "idle"}
    assert cases("") == frozenset()
    with pytest.raises(BenchError, match="RATES: 1001"):
        cases("1001")


def window(notes, unanswered=0):
    load = Load(150, 100, 100, 0, 0, unanswered, 0, 1.0, 0.0, 900.0, 4_000.0, 5_000.0, 6_000.0)
    clocks = [
        Clocks(at_s, {"ingest": used_s, "Valkey": used_s, "worker": used_s * 2})
        for at_s, used_s in ((10.0, 1.0), (11.0, 1.01))
    ]
    return figures(Window(load, *clocks, Traffic(50_000, 90_000, 80_000), {"xadd": (100, 500)}), notes)


def test_costs_and_latencies_are_of_what_came_in_and_was_handled_in_the_window():
    inside = [value for place in range(100) for value in (10 + place / 100, 10 - place / 10)]
    found = window([9.0, 500.0, *inside, 11.0, 500.0])
    assert found["per_s"] == pytest.approx(100)
    assert (found["p50_ms"], found["p99_ms"]) == (pytest.approx(5.0), pytest.approx(9.9))
    assert found["cpu_us"] == pytest.approx(100 + 100 + 200)
    assert (found["to_redis_bytes"], found["from_redis_bytes"]) == (900, 800)
    assert (found["aof_bytes"], found["calls:xadd"], found["us:xadd"]) == (500, 1, 5)
    assert found["kept_up"] == 1


def test_what_is_handled_too_late_or_not_answered_did_not_keep_up():
    late = [value for place in range(100) for value in (10 + place / 100, 300.0)]
    assert window(late)["kept_up"] == 0
    soon = [value for place in range(100) for value in (10 + place / 100, 1.0)]
    assert [window(soon, unanswered)["kept_up"] for unanswered in (1, 5)] == [1, 0]


def cost_sample(case, variant, number, cpu_us):
    values = {
        "per_s": 1000.0,
        "kept_up": 1.0,
        "cpu_us": cpu_us,
        "ingest_us": cpu_us / 2,
        "valkey_us": cpu_us / 4,
    }
    values |= {
        "worker_us": cpu_us / 4,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "answer_p50_ms": 0.5,
        "answer_p99_ms": 0.9,
    }
    values |= {"aof_bytes": 512.0, "to_redis_bytes": 900.0, "from_redis_bytes": 800.0}
    values |= {"calls:xadd": 1.0, "us:xadd": 4.0, "calls:ping": 0.1, "us:ping": 0.1}
    return Sample("cost", case, variant, number, values)


def test_the_cost_is_shown_as_markdown_by_rate_with_the_base_first():
    samples = [
        cost_sample("1,000/s", variant, number, cpu_us)
        for number in (1, 2, 3)
        for variant, cpu_us in (("maskline", 200.0), ("hand-written", 400.0))
    ]
    lines = markdown(samples).splitlines()
    assert (
        lines[2]
        == "| 1,000/s | hand-written | 200 + 100 + 100 = 400 | 1 | 1 | 1.0 / 2.0 | 0.5 / 0.9 | 512, 900, 800 |"
    )
    assert lines[3].startswith("| 1,000/s | maskline | 100 + 50 + 50 = 200 | 0.50 (0.50\u20130.50) | 0.50")
    assert lines[-1] == "| 1,000/s | maskline | xadd 1.00 (4.0) |"


def test_the_rounds_of_several_runs_are_paired_each_in_its_run():
    runs = [
        [cost_sample("1,000/s", "maskline", 1, ours), cost_sample("1,000/s", "hand-written", 1, theirs)]
        for ours, theirs in ((100.0, 200.0), (300.0, 400.0), (90.0, 100.0))
    ]
    assert "0.75 (0.50\u20130.90)" in markdown(joined(runs))


def test_tables_replace_those_that_a_page_has():
    page = "above\n<!-- make bench ONLY=cost -->\nold\n<!-- end of make bench -->\nbelow\n"
    once = put_between_marks(page, "| a |")
    assert once == "above\n<!-- make bench ONLY=cost -->\n\n| a |\n\n<!-- end of make bench -->\nbelow\n"
    assert put_between_marks(once, "| b |") == once.replace("| a |", "| b |")
    with pytest.raises(ValueError, match="no <!-- make bench"):
        put_between_marks("a page of another kind", "| a |")
