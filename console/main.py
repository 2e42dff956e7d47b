"""The entry point of the command `maskline`."""

import sys

from maskline.runtime.startup.search_path import order_search_path

NODES = ("dev", "ingest", "worker")
"""Commands that run until a signal stops them.

Not `Final`: until the search path is ordered, `typing` may be a file of the user's.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit code; without it, run that of this process and exit."""
    # Imports follow `order_search_path`, so that none of them finds a module in the user's directories.
    if argv is None:
        order_search_path()
        if sys.argv[1:2] and sys.argv[1] in NODES:
            from maskline.runtime.startup import early_signals  # noqa: PLC0415

            early_signals.exit_on_signals()
        if sys.argv[1:2] == ["health"]:
            # A probe runs every few seconds, so it loads nothing that only other commands need, as the event loop.
            from maskline.console.health import run_and_exit  # noqa: PLC0415

            run_and_exit(sys.argv[2:])
    from maskline.console.commands import dispatch  # noqa: PLC0415
    from maskline.runtime.process.run import run_command  # noqa: PLC0415

    if argv is None:
        run_command(dispatch)
    return dispatch(argv)
