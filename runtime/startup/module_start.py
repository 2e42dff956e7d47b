"""Prepares `python -m maskline.ingest` and `python -m maskline.worker` before their modules are imported.

The command `maskline` does the same in `console.main`. This module is imported before anything else, so it imports only
what Python itself has loaded by then.
"""

import sys


def prepare(module: str) -> None:
    """If the interpreter was started as `python -m module`, order the search path and handle SIGTERM from here on.

    Does nothing where the module is only imported. Exits with 2 as `search_path.order_search_path` does.
    """
    # While the interpreter searches for the module, sys.argv is "-m" and the module's own arguments.
    if sys.argv[:1] != ["-m"] or sys.orig_argv[-len(sys.argv)].removeprefix("-m") != module:
        return
    from maskline.runtime.startup.search_path import order_search_path  # noqa: PLC0415 - nobody else needs it

    order_search_path()
    # Only now, as its own imports must not be found in the working directory.
    from maskline.runtime.startup import early_signals  # noqa: PLC0415

    early_signals.exit_on_signals()
