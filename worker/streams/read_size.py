"""How much one read asks for: as much as comes quickly, through whatever pipe there is.

Decisions alone; `worker.streams.poller` and `worker.leases.manager` carry them out. A read is sized in bytes, by the
mean size of the entries that came lately. It starts small, so that a thin pipe brings something from the first second
on; it grows while reads that leave something behind are quick, the more the quicker, and is halved when one was slow,
or was cut.

| bound | on |
| --- | --- |
| READ_MIN_BYTES, READ_MAX_BYTES | what a read may bring, as far as the mean foretells it |
| READ_MAX | entries of a read |
"""

from typing import Final

READ_MAX: Final = 8_192
"""Entries asked for with one read, over all partitions: some eighty milliseconds of work, in turns
(worker.streams.pipeline). Half of it leaves half as many entries to each commit where there are many partitions: a
twentieth slower."""

READ_MIN_BYTES: Final = 64 << 10
"""One callback of the greatest size. It takes half a minute through the thinnest pipe that is worth waiting for, a link
that brings two kilobytes a second."""
READ_START_BYTES: Final = 1 << 20
READ_MAX_BYTES: Final = 32 << 20
"""READ_MAX entries of four kilobytes: far above what Plivo sends, and two reads of it are in memory at most."""

OUTSTANDING_MAX_BYTES: Final = 256 << 20
"""Of callbacks read and not finished, in a process, as far as the mean foretells it: besides MASKLINE_OUTSTANDING_MAX,
which is enough for callbacks of the usual size."""

ENTRY_START_BYTES: Final = 64 << 10
"""What an entry is taken to be before one was seen: as great as any. So the first read only finds out how great."""

SLOW_S: Final = 1.0
"""A read that is waited for longer is halved. Renewals of leases go through the same pipe, behind what it carries."""
QUICK_S: Final = 0.5
"""What a read grows towards. The longest that one blocks at the server is half of it."""

GROWTH_MAX: Final = 8.0
"""The most that a read grows by at once: on a quick link the third one is as great as any."""

MEAN_WEIGHT: Final = 0.25
"""Of the last read, in the mean size of entries, where they become smaller; greater ones count at once."""


class Pace:
    """The size of the next read from one server. Sizes in bytes, times in seconds."""

    __slots__ = ("_seen", "entry_bytes", "read_bytes", "slow")

    def __init__(self) -> None:
        self.read_bytes = READ_START_BYTES
        """What the next read may bring."""
        self.entry_bytes = float(ENTRY_START_BYTES)
        """The mean size of entries, as far as it is known."""
        self._seen = False
        self.slow = False
        """The last read was slow, or was cut."""

    @property
    def entries(self) -> int:
        """What to ask for, one entry at least."""
        return min(READ_MAX, max(1, int(self.read_bytes / self.entry_bytes)))

    def room(self, outstanding: int) -> int:
        """How many more entries fit in memory beside so many that are not finished."""
        return int(OUTSTANDING_MAX_BYTES / self.entry_bytes) - outstanding

    def brought(self, entries: int, size_bytes: int, took_s: float, waited_s: float, *, full: bool) -> None:
        """A read has come to its end.

        `size_bytes`: of the whole reply. `full`: some stream had as many entries as were asked for, or more.
        `waited_s`: what of the time nothing else was done in. A worker that is busy with the last read has the next
        one late by itself: that is no reason to ask for less.
        """
        if entries:
            mean = size_bytes / entries
            weight = MEAN_WEIGHT if self._seen and mean < self.entry_bytes else 1.0
            self.entry_bytes += (mean - self.entry_bytes) * weight
            self._seen = True
        self.slow = waited_s > SLOW_S
        if self.slow:
            self._halve()
        elif full and took_s < QUICK_S:
            growth = min(QUICK_S / took_s, GROWTH_MAX) if took_s > 0 else GROWTH_MAX
            self.read_bytes = min(int(self.read_bytes * growth), READ_MAX_BYTES)

    def cut(self) -> None:
        """The connection was lost while a read was under way."""
        self.slow = True
        self._halve()

    def _halve(self) -> None:
        self.read_bytes = max(self.read_bytes // 2, READ_MIN_BYTES)
