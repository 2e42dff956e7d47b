"""Shows how far a command is with a session's callbacks: a bar on a terminal, else a line now and then, on stderr."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from maskline.console.output import note

SHOWN_AFTER_S: Final = 1.0
PLAIN_PROGRESS_S: Final = 5.0
"""Between two lines of progress if stderr is no terminal."""


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how much is done, once it has taken SHOWN_AFTER_S. `what` is done, as `searching the stream`."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    told_at, next_s = time.monotonic(), SHOWN_AFTER_S
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn()
    bar = Progress(*columns, console=Console(file=sys.stderr), transient=True, redirect_stdout=False)
    task = bar.add_task("", total=total)

    def show(done: int) -> None:
        nonlocal told_at, next_s
        bar.update(task, completed=done, total=max(total, done))
        if time.monotonic() - told_at < next_s:
            return
        told_at, next_s = time.monotonic(), PLAIN_PROGRESS_S
        if terminal:
            bar.start()
        else:
            note(f"{what}: {done:,} of {max(total, done):,} callbacks")

    try:
        yield show
    finally:
        bar.stop()
