"""Ends a node with 0 at SIGTERM or SIGINT while its modules are still being imported, as nothing is under way yet.

Python itself would die by SIGTERM, and show a traceback at SIGINT. And the kernel delivers to the first process of a
container only signals that it handles, so that one would not stop at all.
"""

import os
import signal


def exit_on_signals() -> None:
    """Exit with 0 at SIGTERM or SIGINT, until `runtime.process.signals` handles them."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: os._exit(0))
