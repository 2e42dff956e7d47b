"""Writes segments: callbacks gather in one until it reaches a bound, and whoever gave one waits until it is durable.

| a segment is closed | bound |
| --- | --- |
| at so many bytes of records | `SegmentBounds.bytes_max` (MASKLINE_ARCHIVE_SEGMENT_MAX_BYTES) |
| so long after its first record | `SegmentBounds.age_max_ms` (MASKLINE_ARCHIVE_SEGMENT_MAX_AGE_MS), or SOON_MS |
| at so many records | `SegmentBounds.records_max`: half of what may be under way (MASKLINE_CONCURRENCY) |

The last one lets a backlog run at full speed: while one half waits for its segment to be written, the other half
gathers. Nothing is kept here that is not waited for: what is not durable comes again from the stream.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from maskline.handlers.segments.errors import ArchiveError
from maskline.handlers.segments.names import SegmentName
from maskline.handlers.segments.segment import VERSION, Head, Numbers, encode_segment
from maskline.handlers.segments.stores import ArchiveStore

SOON_MS: Final = 200
"""The age at which a segment is closed that has a record to be kept soon: what is tried again, one at a time."""

WRITES_MAX: Final = 4
"""Segments that are written at once: an object store that takes a second for each still takes four a second."""


class SegmentBounds(NamedTuple):
    """When a segment is closed."""

    bytes_max: int
    age_max_ms: int
    records_max: int


class _Gathering:
    """A segment that is not closed yet."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.bytes = 0
        self.first_received_ms = 0
        self.last_received_ms = 0
        self.close_at = 0.0
        """By the loop's clock."""
        self.timer: asyncio.TimerHandle | None = None

    def add(self, record: bytes, received_at_ms: int) -> None:
        if not self.records:
            self.first_received_ms = self.last_received_ms = received_at_ms
        self.first_received_ms = min(self.first_received_ms, received_at_ms)
        self.last_received_ms = max(self.last_received_ms, received_at_ms)
        self.records.append(record)
        self.bytes += len(record)


class SegmentWriter:
    """Keeps records in the segments of one process.

    `group`, `numbers`: as the head has them. `key`: encrypts. `now_ms`: the wall clock, milliseconds since the epoch.
    """

    def __init__(
        self,
        store: ArchiveStore,
        bounds: SegmentBounds,
        *,
        group: str,
        numbers: Numbers = "plain",
        key: bytes | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._store = store
        self._bounds = bounds
        self._group = group
        self._numbers = numbers
        self._key = key
        self._now_ms = now_ms
        self._writer = secrets.token_hex(5)
        self._number = 0
        self._open: _Gathering | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(WRITES_MAX)

    async def keep(self, record: bytes, received_at_ms: int, *, soon: bool = False) -> None:
        """Return once the record is durable. `soon`: do not wait long for company.

        Raises ArchiveError if its segment could not be written. Cancelled, it may be durable or not.
        """
        segment = self._open
        if segment is None:
            segment = self._open = _Gathering()
        segment.add(record, received_at_ms)
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        segment.waiting.append(kept)
        if segment.bytes >= self._bounds.bytes_max or len(segment.records) >= self._bounds.records_max:
            self._close()
        else:
            self._close_within(
                segment, min(SOON_MS, self._bounds.age_max_ms) if soon else self._bounds.age_max_ms
            )
        await kept

    async def close(self) -> None:
        """Write what has gathered, and wait for all that is being written."""
        self._close()
        while self._writing:
            await asyncio.wait(self._writing)

    def _close_within(self, segment: _Gathering, milliseconds: int) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + milliseconds / 1000
        if segment.timer is not None:
            if at >= segment.close_at:
                return
            segment.timer.cancel()
        segment.close_at = at
        segment.timer = loop.call_at(at, self._close)

    def _close(self) -> None:
        segment, self._open = self._open, None
        if segment is None:
            return
        if segment.timer is not None:
            segment.timer.cancel()
        self._number += 1
        task = asyncio.create_task(self._write(segment, self._number), name=f"segment {self._number}")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, segment: _Gathering, number: int) -> None:
        reason = "the worker stops"
        try:
            async with self._slots:
                # A reader goes by the name: nothing in a segment was received after it was closed, whatever clocks say.
                closed_ms = max(self._now_ms(), segment.last_received_ms)
                name = SegmentName(closed_ms, segment.first_received_ms, self._writer, number)
                head = Head(VERSION, closed_ms, self._writer, number, self._group, self._numbers)
                received = segment.first_received_ms, segment.last_received_ms
                data = await asyncio.to_thread(encode_segment, head, segment.records, received, self._key)
                await self._store.put(name.path, data)
            reason = ""
        except ArchiveError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - a fault in here: whoever waits is to be told
            reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        finally:
            for kept in segment.waiting:
                if kept.done():
                    continue  # whoever waited was cancelled
                if reason:
                    kept.set_exception(ArchiveError(reason))  # one each: a raised error keeps its traceback
                else:
                    kept.set_result(None)
