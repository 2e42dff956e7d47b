"""The partitions that a worker process owns, and which of them are read. No I/O.

Everything that works on owned partitions shares this object: the stream pipeline, the pollers, retention, the history
check. The partition manager alone adds and removes partitions, and moves them through their phases
(`worker.partitions.phase`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.phase import Phase

SESSION_CACHE_MIN: Final = 64
"""Sessions that every partition may keep in memory, however many partitions there are."""


class OwnedPartitions:
    """The owned partitions, by number.

    `session_cache`: how many sessions the process keeps in memory; the open partitions share them evenly.
    """

    def __init__(self, session_cache: int) -> None:
        self._session_cache = session_cache
        self._by_number: dict[int, Partition] = {}
        self._open: list[Partition] = []
        self._observers: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Partition]:
        """All owned partitions, as they are now: adding and removing others meanwhile is safe."""
        return iter([*self._by_number.values()])

    def __contains__(self, partition: Partition) -> bool:
        return self._by_number.get(partition.number) is partition

    def get(self, number: int) -> Partition | None:
        """The partition of this number; None if it is not owned."""
        return self._by_number.get(number)

    @property
    def open(self) -> Sequence[Partition]:
        """The partitions to read: owned, and in the phase OPEN."""
        return self._open

    def on_change(self, observer: Callable[[], None]) -> None:
        """Call `observer()` each time a partition has changed its phase: others may be open now."""
        self._observers.append(observer)

    def add(self, partition: Partition) -> None:
        """Add a partition that was acquired."""
        self._by_number[partition.number] = partition

    def remove(self, partition: Partition) -> None:
        """Remove a partition whose lease is not ours any more."""
        if partition in self:
            del self._by_number[partition.number]

    def move(self, partition: Partition, phase: Phase) -> None:
        """Move a partition to a phase. Raises ValueError if `phase.TRANSITIONS` does not allow it."""
        partition.move_to(phase)
        self._open = [one for one in self._by_number.values() if one.phase is Phase.OPEN]
        for one in self._open:
            one.session_cache = max(self._session_cache // len(self._open), SESSION_CACHE_MIN)
        for observer in self._observers:
            observer()
