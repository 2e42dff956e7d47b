"""File descriptors: how many this process may have, how many it has, and how many clients may take.

Each client connection takes one. The process itself (Redis, the spool, the admin port, name resolution) must find some
left when clients have taken all they can get: so clients get the limit less a reserve. If none is left all the same, a
few spares that were opened early are given up for uses that must not fail.
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
"""For a probe and a scrape at once, for a few before them that are not closed yet, and some to refuse with."""
LISTING: Final = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
LIMIT_OF_MACOS: Final = 10_240
"""OPEN_MAX: what macOS allows where it names no bound."""


_spares: list[int] = []
"""Open descriptors of /dev/null. Opened early, so that their numbers are low and of use under a limit that was
lowered."""


def raise_limit() -> None:
    """Raise the soft limit of this process, often 1,024, to the hard one, and open the spares."""
    open_spares()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, LIMIT_OF_MACOS):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


def open_spares() -> bool:
    """Open spares until there are SPARES. Returns whether there are."""
    with contextlib.suppress(OSError):
        while len(_spares) < SPARES:
            _spares.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    return len(_spares) == SPARES


def give_up_spare() -> bool:
    """Close a spare, so that something else can be opened at once. Returns whether there was one."""
    if not _spares:
        return False
    os.close(_spares.pop())
    return True


def is_short() -> bool:
    """Whether spares were given up and could not be opened again."""
    return len(_spares) < SPARES


def descriptors_max() -> int:
    """How many descriptors this process may have open now; an operator can change that while it runs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def descriptors_open() -> int:
    """How many descriptors this process has open; its limit, if none is left to count them with."""
    try:
        return sum(1 for _ in Path(LISTING).iterdir()) - 1  # without the one that lists
    except OSError as error:
        return descriptors_max() if error.errno in (errno.EMFILE, errno.ENFILE) else 0


def for_clients(limit: int) -> int:
    """How many of `limit` descriptors may be in use before clients get no more."""
    return limit - min(max(RESERVE_MIN, limit // RESERVE_SHARE), limit // RESERVE_MOST)
