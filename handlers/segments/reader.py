"""Reads an archive: the segments that may have callbacks of a range of time, the oldest first."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from maskline.handlers.segments.errors import DamagedSegmentError
from maskline.handlers.segments.names import SegmentName, TimeRange
from maskline.handlers.segments.record import ArchivedCallback
from maskline.handlers.segments.segment import Segment
from maskline.handlers.segments.stores import ArchiveStore


class SegmentFile(NamedTuple):
    """A file of the archive that was read."""

    path: str
    records: Sequence[ArchivedCallback]
    tokens: bool = False
    """Whether phone numbers in it are tokens."""
    problem: str = ""
    """Why it was passed over; empty if it was not. It has no records then."""


class ArchiveReader:
    """Reads segments. `keys`: those that it may be encrypted with."""

    def __init__(self, store: ArchiveStore, keys: Sequence[bytes] = ()) -> None:
        self._store = store
        self._keys = keys

    async def paths(self, wanted: TimeRange) -> AsyncIterator[str]:
        """The paths of the files that may have callbacks of the range, sorted; of other files as well, that are in
        the way. Raises ArchiveError. A day's names are in memory at a time.
        """
        async for day in self._store.days():
            if not wanted.may_hold_day(day):
                continue
            for path in await self._store.names(day):
                name = SegmentName.read(path)
                if name is None or wanted.may_hold(name):
                    yield path

    async def read(self, path: str) -> SegmentFile:
        """A file of the archive. Raises ArchiveError if the store does not give it, and ArchiveKeyError."""
        if SegmentName.read(path) is None:
            return SegmentFile(path, (), problem="it has not the name of a segment")
        try:
            segment = Segment(await self._store.get(path), self._keys)
            return SegmentFile(path, [*segment.records()], segment.head.numbers == "tokens")
        except DamagedSegmentError as error:
            return SegmentFile(path, (), problem=str(error))
