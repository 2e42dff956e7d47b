"""`make bench-check`: has something become slow? Exit code 1 if a bound is missed, in less than two minutes.

This is a guard, not a measurement: a few short slices, the ratio of each to its base in the same round, and bounds so
generous that a busy machine does not break them. It compares CPU time, which neighbours hardly change, and which shows
a change that makes the processor do half as much again. Waiting instead of working shows in `p99`.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench import prepare, whole_path
from bench.machine import BenchError
from bench.paired import Spread, spread
from bench.parts import cost, ingest, spool, worker
from bench.plan import Measure, Options

ROUNDS: Final = 3
OPTIONS: Final = Options(slice_s=1.0, warm_s=0.3, events=20_000)


class Bound(NamedTuple):
    """Requires that a metric is at most `at_most` times that of the base, by the median of the rounds."""

    label: str
    measure: Measure
    base: Measure
    metric: str
    at_most: float


BOUNDS: Final = (
    # What is measured, its base, the figure compared, and how many times the base's it may be.
    Bound(
        "ingest: CPU of a request ÷ empty aiohttp web.Server",
        partial(ingest.closed, ingest.MASKLINE, OPTIONS), partial(ingest.closed, ingest.EMPTY, OPTIONS),
        "cpu_us", 1.6,
    ),
    Bound(
        "ingest: CPU of a request, 1 % GETs, 404s and wrong signatures ÷ callbacks alone",
        partial(ingest.mixed, ingest.MASKLINE, OPTIONS), partial(ingest.closed, ingest.MASKLINE, OPTIONS),
        "cpu_us", 1.4,
    ),
    Bound(
        "ingest: p99 at half load ÷ empty aiohttp web.Server",
        partial(ingest.half_load, ingest.MASKLINE, OPTIONS), partial(ingest.half_load, ingest.EMPTY, OPTIONS),
        "p99_us", 6.0,
    ),
    Bound(
        "worker: CPU of an event in a backlog ÷ hand-written loop",
        partial(worker.backlog, worker.MASKLINE, OPTIONS.events),
        partial(worker.backlog, worker.HANDWRITTEN, OPTIONS.events), "cpu_us", 2.0,
    ),
    Bound(
        "worker: CPU of an event under light load ÷ hand-written loop",
        partial(worker.light, worker.MASKLINE, OPTIONS.slice_s),
        partial(worker.light, worker.HANDWRITTEN_64, OPTIONS.slice_s), "cpu_us", 2.2,
    ),
    Bound(
        "spool: CPU of a callback ÷ SQLite committing one by one",
        partial(spool.journal, spool.MASKLINE, OPTIONS), partial(spool.journal, spool.EACH, OPTIONS),
        "cpu_us", 0.2,
    ),
    Bound(
        "cost: CPU of a callback at 1,000/s, request to commit ÷ hand-written pair",
        partial(cost.at_rate, whole_path.MASKLINE, 1_000, OPTIONS),
        partial(cost.at_rate, whole_path.HANDWRITTEN, 1_000, OPTIONS),
        "cpu_us", 1.1,
    ),
)  # fmt: skip


def main() -> int:
    """Measure every bound; the exit code."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        prepare.prepare_load(console)
        ratios = measured(BOUNDS, ROUNDS, lambda text: console.print(f"[dim]{text}[/]", highlight=False))
    except BenchError as error:
        console.print(f"[red]{error}[/]", highlight=False)
        return 1
    return report(ratios, console)


def measured(
    bounds: tuple[Bound, ...], rounds: int, report_progress: Callable[[str], None]
) -> list[tuple[Bound, Spread]]:
    """The ratios of all rounds, by bound; a round measures each bound once."""
    found: dict[str, list[float]] = {bound.label: [] for bound in bounds}
    for number in range(1, rounds + 1):
        for bound in bounds:
            base = bound.base()[bound.metric]
            found[bound.label].append(bound.measure()[bound.metric] / base)
            report_progress(f"{number}/{rounds} {bound.label}: {found[bound.label][-1]:.2f}")
    return [(bound, them) for bound in bounds if (them := spread(found[bound.label])) is not None]


def report(ratios: list[tuple[Bound, Spread]], console: Console) -> int:
    """Print a line for each bound; 1 if one is missed, else 0."""
    table = Table(box=SIMPLE)
    for label in ("bound", "measured", "at most", ""):
        table.add_column(label, justify="left" if label in ("bound", "") else "right")
    missed = 0
    for bound, found in ratios:
        is_met = found.median <= bound.at_most
        missed += not is_met
        table.add_row(
            bound.label,
            f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})",
            f"{bound.at_most:g}",
            "[green]well[/]" if is_met else "[red]missed[/]",
        )
    console.print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
