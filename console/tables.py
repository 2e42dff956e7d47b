"""Prints tables as wide as they need to be: an ID cut off at 80 columns would be of no use to other commands."""

from typing import Final

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
