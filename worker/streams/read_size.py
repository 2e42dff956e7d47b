"""Sizes each read so that it comes quickly, however thin the network between the worker and Redis is. Pure.

`worker.streams.poller` and `worker.leases.pending_list` carry its decisions out. A read is sized in bytes, by the mean
size of recent entries. It starts small, so that a thin network brings something from the first second on. It grows
while full reads are quick, the quicker the more, and is halved after one that was slow or interrupted.

| bound | on |
| --- | --- |
| READ_MIN_BYTES, READ_MAX_BYTES | the bytes of a read, as predicted by the mean |
| READ_MAX | entries of a read |
"""

from typing import Final

READ_MAX: Final = 8_192
"""Entries asked for with one read, over all partitions: some eighty milliseconds of work, in slices
(`worker.streams.pipeline`). With half of it, each commit has half as many entries where there are many partitions: a
twentieth slower."""

READ_MIN_BYTES: Final = 64 << 10
"""One callback of the greatest size. It takes half a minute over the thinnest network that is worth waiting for, which
brings two kilobytes a second."""
READ_START_BYTES: Final = 1 << 20
READ_MAX_BYTES: Final = 32 << 20
"""READ_MAX entries of four kilobytes: far above what Plivo sends, and two reads of it are in memory at most."""

OUTSTANDING_MAX_BYTES: Final = 256 << 20
"""The bytes of callbacks read and not finished in a process, as predicted by the mean. For callbacks of the usual size
MASKLINE_OUTSTANDING_MAX is the tighter bound."""

ENTRY_START_BYTES: Final = 64 << 10
"""The assumed size of an entry before one was seen: the greatest. So the first read only finds out the real size."""

SLOW_S: Final = 1.0
"""If the poller waits longer for a read, the next one is halved. Lease renewals share the network with its reply."""
QUICK_S: Final = 0.5
"""How long a read may take for the next to grow. The longest that a read blocks at the server is half of it."""

GROWTH_MAX: Final = 8.0
"""The greatest factor by which a read grows: on a quick network the third read has the greatest size."""

MEAN_WEIGHT: Final = 0.25
"""The weight of the last read in the mean size when entries become smaller; greater ones count at once."""


class ReadSize:
    """The size of the next read from one server. Sizes in bytes, times in seconds."""

    __slots__ = ("_seen", "entry_bytes", "read_bytes", "slow")

    def __init__(self) -> None:
        self.read_bytes = READ_START_BYTES
        """How many bytes the next read may bring."""
        self.entry_bytes = float(ENTRY_START_BYTES)
        """The mean size of entries, as far as it is known."""
        self._seen = False
        self.slow = False
        """The last read was slow, or was interrupted."""

    @property
    def entries(self) -> int:
        """How many entries to ask for, one at least."""
        return min(READ_MAX, max(1, int(self.read_bytes / self.entry_bytes)))

    def room(self, outstanding: int) -> int:
        """How many more entries fit in memory beside the `outstanding` ones that are not finished."""
        return int(OUTSTANDING_MAX_BYTES / self.entry_bytes) - outstanding

    def completed(self, entries: int, size_bytes: int, took_s: float, waited_s: float, *, full: bool) -> None:
        """Size the next read by one that is complete.

        `entries`: how many it brought. `size_bytes`: of the whole reply. `took_s`: how long it took. `waited_s`: the
        part of it in which the worker had nothing else to do. A worker that is busy with the last read gets the next
        one late, which is no reason to ask for less. `full`: some stream brought as many entries as were asked for.
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

    def interrupted(self) -> None:
        """Halve the next read, as the connection was lost while one was under way."""
        self.slow = True
        self._halve()

    def _halve(self) -> None:
        self.read_bytes = max(self.read_bytes // 2, READ_MIN_BYTES)
