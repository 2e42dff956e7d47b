"""Prints tables as wide as they need to be: an ID cut off at 80 columns would be of no use to other commands."""

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

WIDTH_MAX_CHARS: Final = 1_000


def plain_console() -> Console:
    """A console that prints whole lines as given: no mark-up, no colours except explicit ones, none in a pipe."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table on stdout without cutting or wrapping a cell."""
    console = plain_console()
    needed = console.measure(table, options=console.options.update(max_width=WIDTH_MAX_CHARS)).maximum
    console.width = max(console.width, needed)
    console.print(table, soft_wrap=False)


def print_columns(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of texts in columns on stdout, a hundred times as fast as `print_table`, for those of many rows."""
    widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
        return "  ".join(padded).rstrip()

    print("\n".join([line(names), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(line, rows), ""]))
