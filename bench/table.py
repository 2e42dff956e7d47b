"""Samples as tables for the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from bench.paired import Key, Sample, Spread, by_round, ratios, spread
from bench.plan import Column, Plan
from bench.targets import TARGETS, outcome

_STYLES = {"aim": "green", "reached": "green", "missed": "red"}


def part_table(plan: Plan, samples: Sequence[Sample]) -> Table:
    """A row for every variant of the part, in the order of its slices."""
    table = Table(title=plan.title, title_justify="left", box=SIMPLE)
    table.add_column("variant", no_wrap=True)
    for column in plan.columns:
        table.add_column(column.label, justify="right", no_wrap=True)
    shown = ""
    for one in plan.slices:
        if one.key.case != shown:
            table.add_row(f"[bold]{one.key.case}[/]")
        shown = one.key.case
        cells = [cell(plan, samples, one.key, column) for column in plan.columns]
        table.add_row(f"  {one.key.variant}", *cells)
    return table


def cell(plan: Plan, samples: Sequence[Sample], key: Key, column: Column) -> str:
    """`1.23 (1.10–1.31)`: median, least and greatest of the rounds; `1` for the base, empty if unknown."""
    values = by_round(samples, plan.name, key, column.metric)
    if not column.ratio:
        found = spread(list(values.values()))
        return "" if found is None else f"{found.median:{column.format}}"
    base = plan.bases.get(key.case)
    if base is None or not values:
        return ""
    if base == key:
        return "1"
    bases = by_round(samples, plan.name, base, column.metric)
    found = spread(ratios(bases, values) if column.inverse else ratios(values, bases))
    return "" if found is None else shown_spread(found, column.format)


def shown_spread(found: Spread, form: str) -> str:
    """`1.23 (1.10–1.31)`: median, least and greatest."""
    return f"{found.median:{form}} ({found.low:{form}}–{found.high:{form}})"


def target_table(samples: Sequence[Sample]) -> Table | None:
    """A row for each target whose slices were measured; None if there is none."""
    outcomes = [found for found in (outcome(samples, target) for target in TARGETS) if found is not None]
    if not outcomes:
        return None
    table = Table(title="Targets, by the median of paired rounds", title_justify="left", box=SIMPLE)
    table.add_column("path")
    for label in ("measured", "target", "aim", ""):
        table.add_column(label, justify="right")
    for target, found in outcomes:
        sign = "≤" if target.at_most else "≥"
        unit = "" if target.unit == "×" else f" {target.unit}"
        verdict = next(one.verdict for one in outcomes if one.target == target)
        table.add_row(
            target.label,
            shown_spread(found, ".2f") + unit,
            f"{sign} {target.bound:g}{unit}",
            f"{sign} {target.aim:g}{unit}",
            f"[{_STYLES[verdict]}]{verdict}[/]",
        )
    return table
