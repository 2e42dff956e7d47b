"""File descriptors: how many this process may have, how many it has, and how many are kept from its clients.

Each connection of a client is one. What works for the process itself (Redis, the spool, the admin port, names that are
looked up) must find some left when clients have taken all they can get: so clients get the limit less a reserve. And
where nothing is left all the same, a few that were set aside early can be given up, for what must not fail then.
"""

import contextlib
import errno
import os
import resource
import sys
from pathlib import Path
from typing import Final

RESERVE_MIN: Final = 32
RESERVE_SHARE: Final = 8
"""Kept free: this part of the limit, and at least RESERVE_MIN. Each server of a cluster, each probe, each file of the
spool takes one. Never more than RESERVE_MOST of the limit: some thirty are open when a node has started."""
RESERVE_MOST: Final = 4
SPARES: Final = 8
"""A probe and a scrape at once, what a few before them leave behind until it is closed, and some to refuse with."""
LISTING: Final = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
LIMIT_OF_MACOS: Final = 10_240
"""OPEN_MAX: what macOS allows where it names no bound."""


_spares: list[int] = []
"""Of /dev/null. Early, so that their numbers are low: what is given up is of use under a limit that was lowered."""


def raise_limit() -> None:
    """Let this process have as many as it may: the soft limit, often 1,024, becomes the hard one."""
    set_aside()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, LIMIT_OF_MACOS):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


def set_aside() -> bool:
    """Take spares until there are enough; whether there are."""
    with contextlib.suppress(OSError):
        while len(_spares) < SPARES:
            _spares.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    return len(_spares) == SPARES


def give_spare_up() -> bool:
    """Close a spare, so that something can be opened at once; whether there was one."""
    if not _spares:
        return False
    os.close(_spares.pop())
    return True


def is_short() -> bool:
    """Whether spares have been given up that could not be taken back."""
    return len(_spares) < SPARES


def descriptors_max() -> int:
    """How many this process may have open; an operator can change it while it runs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def descriptors_open() -> int:
    """How many it has open; all it may have, where there is not one left to look with."""
    try:
        return sum(1 for _ in Path(LISTING).iterdir()) - 1  # without the one that looks
    except OSError as error:
        return descriptors_max() if error.errno in (errno.EMFILE, errno.ENFILE) else 0


def for_clients(limit: int) -> int:
    """Up to how many in use, of so many, clients may take one more."""
    return limit - min(max(RESERVE_MIN, limit // RESERVE_SHARE), limit // RESERVE_MOST)
