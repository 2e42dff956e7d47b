"""Notes latencies where the benchmark reads them at any time: two doubles an event in the file BENCH_LATENCIES.

Unix time of receipt, milliseconds until now. A receipt is known to the millisecond, so a latency is half a millisecond
too long on average. This file imports nothing of the benchmark's: it also serves the handlers of another checkout.
"""

import mmap
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path


def open_notes() -> Callable[[float], None] | None:
    """A function that notes an event received at so many milliseconds since the epoch; None without the setting."""
    path = os.environ.get("BENCH_LATENCIES")
    if path is None:
        return None
    with Path(path).open("r+b") as file:
        slots = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")
    places = count(step=2)

    def note(received_at_ms: float) -> None:
        place = next(places)
        slots[place + 1] = time.time() * 1000 - received_at_ms
        slots[place] = received_at_ms / 1000  # last: the file ends where this is 0

    return note
