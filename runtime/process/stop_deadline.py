"""Deadlines that end a process which hangs at its stop, even where it can start no thread.

Where a thread is needed and none can be started, the kernel's alarm takes its place. Nothing here waits for a reader of
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
"""For dumping the stacks of a process that hangs at its stop; if the dump hangs too, the kernel then ends it."""


def arm_deadline(timeout_s: float) -> None:
    """End this process in `timeout_s`, unless it ends before: with its stacks on stderr and exit code 1.

    Where there is no thread for that, or the dump hangs, the kernel's SIGALRM ends it DUMP_S later.
    """
    # By a thread of the C runtime: it fires even while an extension holds the interpreter. Stacks, no values.
    # RuntimeError: there is no thread; the others: there is no stderr.
    with contextlib.suppress(RuntimeError, OSError, ValueError):
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=crash_dump_descriptor())
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_s + DUMP_S)


def disarm_deadline() -> None:
    """Cancel the deadline that `arm_deadline` has set."""
    faulthandler.cancel_dump_traceback_later()
    _cancel_alarm()


def exit_later(code: int, within_s: float = THREADS_GRACE_S) -> Callable[[], None]:
    """Exit with `code` in `within_s`, even if threads still run. Returns a function that cancels that."""
    timer = threading.Timer(within_s, os._exit, (code,))
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # no thread; Python's wait for other threads is interrupted by signals
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGALRM, lambda *_: os._exit(code))
            signal.setitimer(signal.ITIMER_REAL, within_s)
        return _cancel_alarm
    return timer.cancel


def _cancel_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
