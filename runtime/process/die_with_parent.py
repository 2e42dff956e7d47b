"""Ends a process when its parent dies, even by SIGKILL: the kernel sends it a signal. On Linux only.

A child that must notice this on other systems too reads a pipe or a socket of its parent.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def parent_death_signal(signum: int) -> Callable[[], None] | None:
    """Return a function that has the kernel send `signum` to the calling process when its parent dies.

    Everything is looked up here, so the function may run between fork and exec (`preexec_fn`). None where the kernel
    offers no such signal.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)

    return ask


def die_with_parent(parent: int, signum: int) -> None:
    """Have the kernel send `signum` to this process when its parent dies; exit with 1 if that has died already.

    `parent`: the parent's process id, as passed on by the parent.
    """
    if (ask := parent_death_signal(signum)) is not None:
        ask()
    if os.getppid() != parent:  # it died before the kernel knew our wish
        os._exit(1)
