"""The entry of the command `maskline`."""

import sys
from typing import Final

from maskline.runtime.startup.search_path import arrange

NODES: Final = ("dev", "ingest", "worker")
"""Commands that run until they are told to stop."""


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code; without arguments, this process's own, and exit."""
    # After it: what these import must not be found in the user's directories.
    if argv is None:
        arrange()
        if sys.argv[1:2] and sys.argv[1] in NODES:
            from maskline.runtime.startup import early_signals  # noqa: PLC0415

            early_signals.exit_on_signals()
        if sys.argv[1:2] == ["health"]:
            # A probe runs every few seconds: it does without what other commands load, most of which is the event loop.
            from maskline.console.health import end  # noqa: PLC0415

            end(sys.argv[2:])
    from maskline.console.commands import dispatch  # noqa: PLC0415
    from maskline.runtime.process.run import run_command  # noqa: PLC0415

    if argv is None:
        run_command(dispatch)
    return dispatch(argv)
