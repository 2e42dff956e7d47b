"""The clock for leases: monotonic, and it goes on while the machine is suspended.

`time.monotonic()` stands still meanwhile on Linux, on a laptop with its lid closed as in a paused virtual machine: a
worker would wake up and believe in leases that lapsed long ago. Every time of a lease, and every time compared with
one, comes from here. Code that only waits (backoffs, deadlines of a stop) uses `time.monotonic()`.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", None)
"""Linux's clock; None elsewhere, where `time.monotonic()` takes its place."""


def _clock() -> Callable[[], float]:
    if CLOCK is not None:
        try:
            time.clock_gettime(CLOCK)
        except OSError:  # a kernel, or a sandbox, without it
            return time.monotonic
        return partial(time.clock_gettime, CLOCK)
    return time.monotonic


lease_clock: Final = _clock()
"""Returns seconds since an arbitrary moment in the past. A call costs 0.03 µs more than `time.monotonic()`."""


def wall_clock_ms() -> int:
    """The time of day: milliseconds since the epoch. It may be set back or forth."""
    return time.time_ns() // 1_000_000
