"""docs/scaling.md: the tables of how many it takes follow from the table of inputs, by the formulas that they show."""

import re
from collections.abc import Iterator
from math import ceil, log2
from pathlib import Path

from maskline.schemas.settings.definitions import Settings

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


def tables() -> dict[str, list[list[str]]]:
    """The rows of each table of the section, by the first cell of its head."""
    section = PAGE.read_text().partition("## How many it takes\n")[2].partition("\n## ")[0]
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        found[head[0]] = [head, *rows]
    return found


def number(cell: str) -> float:
    return float(cell.replace(",", "").removesuffix("/s"))


def inputs() -> dict[str, float]:
    return {row[0].strip("`"): number(row[2]) for row in tables()["input"][1:]}


def evaluate(formula: str, values: dict[str, float]) -> float:
    names = {"ceil": ceil, "log2": log2, "min": min, "max": max, "__builtins__": {}}
    return eval(formula.strip("`"), names, values)  # noqa: S307 - the project's own text


def shown(value: float) -> str:
    """A count as it is, anything else with two digits that count."""
    return f"{value:,}" if isinstance(value, int) else f"{float(f'{value:.2g}'):,.10g}"


def computed() -> Iterator[tuple[str, list[str], list[str]]]:
    """The label of each row with a formula, its cells, and what they should be."""
    for label, formula, *cells in tables()["one … carries"][1:]:
        yield label, cells, [shown(evaluate(formula, inputs()))]
    head, *rows = tables()["at a rate of"]
    columns = [inputs() | {"rate": number(cell)} for cell in head[2:]]
    for label, formula, *cells in rows:
        values = [evaluate(formula, column) for column in columns]
        if name := re.match(r"`(\w+)`", label):  # rows below may use it
            for column, value in zip(columns, values, strict=True):
                column[name[1]] = value
        yield label, cells, [shown(value) for value in values]


def test_each_figure_follows_from_the_inputs_by_its_formula():
    rows = list(computed())
    assert len(rows) > 10
    assert {label: cells for label, cells, _ in rows} == {label: expected for label, _, expected in rows}


def test_inputs_that_are_settings_are_their_defaults():
    settings, found = Settings(), inputs()
    assert found["retained_s"] == settings.retention_s
    assert found["retained_max"] == settings.retention_max_entries
    assert found["session_kept_s"] <= settings.session_ttl_s
