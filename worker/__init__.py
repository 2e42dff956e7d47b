"""The worker, and what handler modules import from it: `on`, `Context`, `Retry`, `Reject`, `resource`."""

import sys

# `python -m worker`: the working directory comes first, until it has been put last.
if sys.argv[:1] == ["-m"]:
    sys.path.insert(0, __path__[0].removesuffix("worker"))
    from runtime.search_path import arrange

    del sys.path[0]
    arrange()
    # Only now, as its own imports must not be found in the working directory.
    from runtime import first_signals

    first_signals.take()

from worker.context import Context
from worker.outcome import Reject, Retry
from worker.registry import on, resource

__all__ = ["Context", "Reject", "Retry", "on", "resource"]
