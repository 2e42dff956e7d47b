"""How a process ends, whatever is broken: by a deadline for the stop, and without a thread where none can be had.

Where a thread is wanted and all are used up, the kernel's alarm takes its place. Nothing here waits for whoever reads
stderr.
"""

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from maskline.runtime.logs import crash_dump_descriptor

THREADS_GRACE_S: Final = 5.0
"""How long threads may keep a process from ending once its main has returned."""
DUMP_S: Final = 2.0
"""For the stacks of a process that hangs at its stop; then the kernel ends it, if the dump hangs as well."""


def arm_deadline(timeout_s: float) -> None:
    """End this process so much later, unless it has ended by itself: with its stacks on stderr and exit code 1.

    Where there is no thread for that, or the dump hangs, the kernel's SIGALRM ends it DUMP_S later.
    """
    # By a thread of the C runtime: it fires even while an extension holds the interpreter. Stacks, no values.
    with contextlib.suppress(
        RuntimeError, OSError, ValueError
    ):  # RuntimeError: no thread; the others: no stderr
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=crash_dump_descriptor())
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_s + DUMP_S)


def disarm_deadline() -> None:
    faulthandler.cancel_dump_traceback_later()
    _cancel_alarm()


def exit_later(code: int) -> Callable[[], None]:
    """Exit with `code` in THREADS_GRACE_S, whatever threads still run, unless what is returned is called before."""
    timer = threading.Timer(THREADS_GRACE_S, os._exit, (code,))
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # no thread; Python's wait for other threads is interrupted by signals
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGALRM, lambda *_: os._exit(code))
            signal.setitimer(signal.ITIMER_REAL, THREADS_GRACE_S)
        return _cancel_alarm
    return timer.cancel


def _cancel_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
