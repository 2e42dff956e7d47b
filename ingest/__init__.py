"""Ingest: HTTP in, Redis stream out."""

import sys

# `python -m ingest`: the working directory comes first, until it has been put last.
if sys.argv[:1] == ["-m"]:
    sys.path.insert(0, __path__[0].removesuffix("ingest"))
    from runtime.search_path import arrange

    del sys.path[0]
    arrange()
    # Only now, as its own imports must not be found in the working directory.
    from runtime import first_signals

    first_signals.take()
