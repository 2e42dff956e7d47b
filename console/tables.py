"""Tables as wide as they must be: an id that is cut off at 80 columns can be given to no other command."""

from typing import Final

from rich.console import Console
from rich.table import Table

WIDTH_MAX_CHARS: Final = 1_000


def plain_console() -> Console:
    """Whole lines, as written: no mark-up, no colours but those asked for, none at all in a pipe."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table on stdout without cutting or wrapping a cell."""
    console = plain_console()
    needed = console.measure(table, options=console.options.update(max_width=WIDTH_MAX_CHARS)).maximum
    console.width = max(console.width, needed)
    console.print(table, soft_wrap=False)
