"""`python -m bench`: set up, measure, show. `make bench` runs it; the environment gives the defaults."""

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from bench import prepare
from bench.machine import HOME, ROOT, BenchError, describe
from bench.paired import Sample
from bench.parts import cost, failures, growth, ingest, latency, postgres, spool, worker
from bench.plan import Options, Plan
from bench.plot import panels, svg
from bench.results import Report, write_report
from bench.table import part_table, target_table

PARTS: Final[dict[str, Callable[[Options], Plan]]] = {
    "ingest": ingest.plan,
    "worker": worker.plan,
    "latency": latency.plan,
    "cost": cost.plan,
    "growth": growth.plan,
    "spool": spool.plan,
    "failures": failures.plan,
    "postgres": postgres.plan,
}
PARTS_WITH_PEERS: Final = {"ingest", "worker"}
PLOT: Final = ROOT / "docs" / "bench.svg"
"""For the README; drawn when all parts have run."""
LOG_COLUMNS: Final = 120
"""Width if the output is no terminal."""


def main(argv: Sequence[str]) -> int:
    """Run the parts that the arguments select; the exit code."""
    arguments = _parser().parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=LOG_COLUMNS)
    try:
        report = run(arguments, console)
    except BenchError as error:
        console.print(f"[red]{error}[/]", highlight=False)
        return 1
    path = arguments.json or HOME / "results" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    write_report(path, report)
    console.print(f"results: {path}")
    if not arguments.only:
        PLOT.write_text(svg(panels(report.samples)))
        console.print(f"plot: {PLOT}")
    return 0


def run(arguments: argparse.Namespace, console: Console) -> Report:
    """Prepare, measure and print the selected parts."""
    prepare.prepare_load(console)
    names = [arguments.only] if arguments.only else list(PARTS)
    node = True
    if PARTS_WITH_PEERS & set(names):
        prepare.prepare_peers(console)
        node = prepare.prepare_node(console)
    options = Options(
        rounds=arguments.rounds,
        slice_s=arguments.slice_s,
        full=arguments.full,
        node=node,
        cases=cost.cases(arguments.rates),
        against=arguments.against,
    )
    samples: list[Sample] = []
    plans = [PARTS[name](options) for name in names]
    for plan in plans:
        samples += interleaved(plan, options.rounds, console)
        console.print(part_table(plan, samples))
        if plan.report is not None:
            print(plan.report(samples))  # noqa: T201 - as it is, to be copied
    targets = target_table(samples)
    if targets is not None:
        console.print(targets)
    return Report(datetime.now(UTC).isoformat(timespec="seconds"), describe(), samples)


def interleaved(plan: Plan, rounds: int, console: Console) -> list[Sample]:
    """Measure every slice once a round. The variants of a case follow each other, in an order drawn for the round."""
    rng = random.Random(len(plan.slices))
    samples: list[Sample] = []
    cases = list(dict.fromkeys(one.key.case for one in plan.slices))
    count, total, begun = 0, rounds * len(plan.slices), time.monotonic()
    for number in range(1, rounds + 1):
        for case in cases:
            slices = [one for one in plan.slices if one.key.case == case]
            for one in rng.sample(slices, len(slices)):
                values = one.measure()
                count += 1
                left_s = (time.monotonic() - begun) / count * (total - count)
                samples.append(Sample(plan.name, *one.key, number, values))
                console.print(
                    f"[dim]{plan.name} {number}/{rounds}[/] {one.key.case}, {one.key.variant}: "
                    f"{_figures(values)} [dim]({left_s / 60:.0f} min left)[/]",
                    highlight=False,
                )
    return samples


def _figures(values: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {value:,.4g}" if value < 1000 else f"{name} {value:,.0f}"
        for name, value in values.items()
        if ":" not in name
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="How fast maskline is, beside others."
    )
    environment = os.environ.get
    parser.add_argument(
        "--only", choices=[*PARTS], default=environment("ONLY") or None, help="one part (ONLY)"
    )
    parser.add_argument("--rounds", type=int, default=int(environment("ROUNDS") or 6), help="rounds (ROUNDS)")
    parser.add_argument(
        "--slice-s", type=float, default=float(environment("SLICE_S") or 2), help="seconds a slice (SLICE_S)"
    )
    parser.add_argument(
        "--full", action="store_true", default=bool(environment("FULL")), help="the large sizes, too (FULL)"
    )
    parser.add_argument(
        "--rates",
        default=environment("RATES", ""),
        help="of the part cost: some of 100,1000,4000,12000,idle,greatest (RATES)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        default=Path(environment("AGAINST", "")) if environment("AGAINST") else None,
        help="of the part cost: another checkout, with a .venv, to compare with (AGAINST)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path(environment("JSON", "")) if environment("JSON") else None,
        help="where the results go (JSON; default .bench/results/)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
