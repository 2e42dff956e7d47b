"""The spool files of this process, and the rescue of callbacks from a file that is gone from its path.

| a file is | it |
| --- | --- |
| `own` | takes this process's callbacks |
| one of `adopted` | was left by a dead process, and is drained |
| one of `displaced` | is open, but its path leads elsewhere: it was removed, moved or replaced. It is being rescued |

A displaced file takes no more callbacks. Those in it were answered 200 and end with this process. So they are rescued:
copied, page by page, into the own file, which the next start finds. Where there can be no own file for now, a displaced
file is drained like the others. A file that was moved away with its whole directory is not rescued at once: the
operator may move it back (MOVED_GRACE_S).

Everything here runs in the thread of `ingest.spool.writer`; the three attributes above may be read by others.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Final, Protocol

from maskline.ingest.outcome import SPOOL_FAILED
from maskline.ingest.spool.counts import SpoolCounts
from maskline.ingest.spool.directory import Slot, SpoolDirectory
from maskline.ingest.spool.errors import DamagedError, SpoolError, from_os_error
from maskline.ingest.spool.file_identity import Identity, Stamp, stamp_of
from maskline.ingest.spool.sqlite_file import Row, SpoolFile
from maskline.schemas.errors import ConfigError

CHECK_INTERVAL_S: Final = 1.0
"""How often files are checked while nothing is written, the other processes' share of the directory is measured, and
failures are retried. For as long callbacks are exposed in a file that was removed."""
MOVED_GRACE_S: Final = 30.0
"""An operator who moves the directory away and back (another disk, a copy) needs seconds; until then no new one is made
without need. Moved callbacks are not lost, so waiting risks nothing."""
RESCUE_ROWS_MAX: Final = 512
"""Rows of a page to rescue: one statement. At 1 kB each it takes some milliseconds, for which new callbacks wait."""
RESCUE_BYTES_MAX: Final = 1 << 20
"""Of one page, except that a page holds at least one callback."""


class SlotFile:
    """A spool file that this process uses, with the slot of the directory that it holds for it.

    `partitions`: MASKLINE_PARTITIONS. `adopted`: its callbacks were another process's.
    """

    __slots__ = ("adopted", "file", "missing_since", "seen_in_place", "slot")

    def __init__(self, slot: Slot, partitions: int, *, adopted: bool = False) -> None:
        self.slot = slot
        self.file = SpoolFile(slot.path, partitions)
        self.adopted = adopted
        self.missing_since: float | None = None
        """When its path was first found to lead elsewhere, by the monotonic clock."""
        self.seen_in_place: Stamp | None = None
        """The state of the directory when all of the file was found in its place."""


class FileEvents(Protocol):
    """Receives the events of files, in the writer thread."""

    def on_opened(self, counts: SpoolCounts, add: bool) -> None:
        """The own file was opened, with so many callbacks; `add`: those counted before still count."""

    def on_damaged(self, name: str) -> None:
        """A damaged file was set aside under this name."""

    def on_displaced(self, name: str, callbacks: int) -> None:
        """The file of this name, with this many callbacks in it, is gone from its path."""

    def on_rescued(self, partition_hashes: Sequence[int]) -> None:
        """Callbacks of dead processes are in the own file now, with these partition hashes."""

    def on_displaced_closed(self, name: str, lost: int) -> None:
        """The displaced file of this name is closed; this many callbacks are lost with it."""


class SpoolFiles:
    """All spool files of a process.

    `slot`: for its own. `partitions`: MASKLINE_PARTITIONS. `max_bytes`: of all files in the directory together.
    """

    def __init__(
        self, directory: SpoolDirectory, slot: Slot, partitions: int, max_bytes: int, events: FileEvents
    ) -> None:
        self._directory = directory
        self._partitions = partitions
        self._max_bytes = max_bytes
        self._events = events
        self._check_at = 0.0
        self._retry_at = 0.0
        self._open_error: SpoolError | None = None
        self.own: SlotFile | None = SlotFile(slot, partitions)
        self.adopted: tuple[SlotFile, ...] = ()
        self.displaced: tuple[SlotFile, ...] = ()
        self.rescue_failed = False
        """Displaced files cannot be rescued for now: there can be no own file."""

    @property
    def all(self) -> list[SlotFile]:
        """The own file first, then the displaced and the adopted ones."""
        own = self.own
        return [*([] if own is None else [own]), *self.displaced, *self.adopted]

    @property
    def rescue_due(self) -> bool:
        """Whether `rescue` has something to do now."""
        return bool(self.displaced) and (not self.rescue_failed or time.monotonic() >= self._retry_at)

    def insert(self, rows: Sequence[tuple[int, bytes]], at_ms: int | None = None) -> None:
        """Write (partition_hash, value) rows, fsynced, where the next start finds them. Raises SpoolError.

        `at_ms`: when they were spooled, in milliseconds of the wall clock; now, if not given.
        """
        own = self.open_own()
        try:
            ids = own.file.insert(rows, at_ms)
        except DamagedError:
            own = self.renew_own()
            ids = own.file.insert(rows, at_ms)
        if self._in_place(own):
            return
        self._mark_displaced(own)
        again = self.open_own()
        again.file.insert(rows, at_ms)
        if not self._in_place(again):
            raise SpoolError(SPOOL_FAILED, "its files are removed again and again")
        with contextlib.suppress(SpoolError):  # their callbacks then come twice
            own.file.delete(ids)

    def page(self, slot_file: SlotFile, after_id: int, rows_max: int, bytes_max: int) -> list[Row]:
        """The next rows of a file, as `SpoolFile.page`; none where it was rescued meanwhile. Raises SpoolError."""
        return slot_file.file.page(after_id, rows_max, bytes_max) if slot_file in self.all else []

    def delete(self, slot_file: SlotFile, ids: Sequence[int]) -> bool:
        """Delete rows by id; False where the file was rescued meanwhile. Raises SpoolError.

        With its last callback an adopted file is removed, and the own one gives its space back.
        """
        if slot_file not in self.all:
            return False
        slot_file.file.delete(ids)
        if slot_file.file.state.callbacks:
            return True
        if slot_file is self.own:
            slot_file.file.shrink()
        elif slot_file.adopted and slot_file not in self.displaced:
            self.adopted = tuple(it for it in self.adopted if it is not slot_file)
            self.close_for_good(slot_file)
        return True

    def probe_room(self) -> None:
        """Check by writing that the own file takes callbacks, and is found by the next start. Raises SpoolError."""
        own = self.open_own()
        own.file.probe_room()
        if not self._in_place(own):
            self._mark_displaced(own)
            self.open_own().file.probe_room()

    def open_own(self) -> SlotFile:
        """The own file, open. A damaged one is set aside, one that is gone is replaced. Raises SpoolError."""
        own = self.own
        now = time.monotonic()
        if own is not None and own.file.is_open:
            if now >= self._check_at:
                self._check_at = now + CHECK_INTERVAL_S
                self._limit(own)
            return own
        if self._open_error is not None and now < self._check_at:
            raise self._open_error
        self._check_at = now + CHECK_INTERVAL_S
        try:
            own = self._own_slot_file()
            try:
                own.file.open(self._max_bytes)
            except DamagedError:
                self._set_aside(own)
                own.file.open(self._max_bytes)
        except SpoolError as error:
            self._open_error = error
            raise
        self._open_error = None
        self._events.on_opened(own.file.counts, bool(self.displaced))
        self._limit(own)
        return own

    def renew_own(self) -> SlotFile:
        """Set the damaged own file aside and begin a new one. Raises SpoolError."""
        own = self.own
        if own is not None:
            own.file.close()
            self._set_aside(own)
        return self.open_own()

    def adopt_leftovers(self) -> None:
        """Adopt the files of dead processes, and remove those without callbacks. Raises SpoolError."""
        try:
            for slot in self._directory.leftovers(self._identities()):
                slot_file = SlotFile(slot, self._partitions, adopted=True)
                try:
                    slot_file.file.open(self._max_bytes)
                except DamagedError:
                    self.drop_damaged(slot_file)
                except SpoolError:  # the disk may be full, or the file of a newer release: another time
                    slot.release()
                else:
                    if slot_file.file.state.callbacks:
                        self.adopted += (slot_file,)
                    else:
                        self.close_for_good(slot_file)
        except OSError as error:
            raise from_os_error(error) from None

    def drop_damaged(self, slot_file: SlotFile) -> None:
        """Set a damaged adopted file aside, and release its slot. Raises SpoolError."""
        self.adopted = tuple(it for it in self.adopted if it is not slot_file)
        slot_file.file.close()
        try:
            self._set_aside(slot_file)
        finally:
            slot_file.slot.release()

    def close_for_good(self, slot_file: SlotFile) -> None:
        """Close a file, remove it if it is empty, and release its slot."""
        removed = slot_file.file.remove()
        with contextlib.suppress(OSError):
            slot_file.slot.release(remove=removed)

    def check_in_place(self) -> None:
        """Check that the files are still in place. Raises SpoolError where that cannot be determined."""
        for slot_file in self.all:
            if slot_file in self.displaced or not slot_file.file.is_open:
                continue
            if self._in_place(slot_file):
                slot_file.missing_since = None
            elif self._is_displaced(slot_file):
                self._mark_displaced(slot_file)

    def rescue(self) -> None:
        """Copy a page of a displaced file into the own file, or close it when it is empty. Never raises SpoolError."""
        displaced_file = self.displaced[0]
        try:
            rows = displaced_file.file.page(0, RESCUE_ROWS_MAX, RESCUE_BYTES_MAX)
            if rows:
                self.insert(
                    [(row.partition_hash, row.value) for row in rows], displaced_file.file.state.oldest_at_ms
                )
                if displaced_file.adopted:
                    self._events.on_rescued([row.partition_hash for row in rows])
                displaced_file.file.delete([row.id for row in rows])
            else:
                self._close_displaced(displaced_file)
            self.rescue_failed = False
        except DamagedError:
            self._close_displaced(displaced_file)
        except SpoolError:
            self.rescue_failed = True
            self._retry_at = time.monotonic() + CHECK_INTERVAL_S

    def close(self) -> None:
        """Rescue callbacks that would be lost with this process, close all files, and remove the empty ones."""
        for slot_file in self.all:
            with contextlib.suppress(SpoolError):
                if (
                    slot_file not in self.displaced
                    and slot_file.file.is_open
                    and not self._in_place(slot_file)
                ):
                    self._mark_displaced(slot_file)
        self.rescue_failed = False
        while self.displaced and not self.rescue_failed:
            self.rescue()
        for displaced_file in self.displaced:
            self._close_displaced(displaced_file)
        for slot_file in self.all:
            self.close_for_good(slot_file)

    # Inside

    def _own_slot_file(self) -> SlotFile:
        """The own slot of the directory, another one where it is gone. Raises SpoolError."""
        own = self.own
        try:
            if own is not None and not own.slot.ensure_locked():
                self.own = None
                own.slot.release()
                own = None
            if own is None:
                slot = self._directory.acquire_slot(self._identities())
                own = self.own = SlotFile(slot, self._partitions)
        except OSError as error:
            raise from_os_error(error) from None
        except ConfigError as error:
            raise SpoolError(SPOOL_FAILED, str(error)) from None
        return own

    def _identities(self) -> set[Identity]:
        """The open files' identities: none may be opened twice, since closing one drops the locks of both."""
        identities = (slot_file.file.open_file.identity for slot_file in self.all if slot_file.file.is_open)
        return {identity for identity in identities if identity is not None}

    def _in_place(self, slot_file: SlotFile) -> bool:
        """Whether the paths of the file, its log and its lock lead to what is open. Raises SpoolError.

        Checked at every commit, beside a busy event loop, where each system call may cost a turn of the interpreter's
        lock. So only the directory is checked as long as nothing has changed in it.
        """
        try:
            stamp = stamp_of(self._directory.path)
            if stamp is not None and stamp == slot_file.seen_in_place:
                return True
            in_place = slot_file.file.open_file.in_place() and slot_file.slot.ensure_locked()
            stable = (
                in_place
                and stamp is not None
                and stamp.shows_next_change()
                and not slot_file.file.open_file.is_link
            )
            slot_file.seen_in_place = stamp if stable else None
        except OSError as error:
            raise from_os_error(error) from None
        return in_place

    def _is_displaced(self, slot_file: SlotFile) -> bool:
        """Whether a file that is not in place counts as displaced before anything is written. Raises SpoolError."""
        now = time.monotonic()
        since = now if slot_file.missing_since is None else slot_file.missing_since
        try:
            displaced = (
                not slot_file.file.state.callbacks
                or slot_file.file.open_file.is_lost()
                or self._directory.path.exists()
                or now - since >= MOVED_GRACE_S
            )
        except OSError as error:
            raise from_os_error(error) from None
        finally:
            slot_file.missing_since = since
        return displaced

    def _mark_displaced(self, slot_file: SlotFile) -> None:
        """Count a file, own or adopted until now, among the displaced ones."""
        if slot_file is self.own:
            self.own = None
            self._open_error = None
        self.adopted = tuple(it for it in self.adopted if it is not slot_file)
        self.displaced += (slot_file,)
        self._events.on_displaced(slot_file.file.path.name, slot_file.file.state.callbacks)

    def _close_displaced(self, displaced_file: SlotFile) -> None:
        """Close a displaced file; callbacks in it are lost where no path leads to it."""
        lost = 0
        with contextlib.suppress(OSError):
            lost = displaced_file.file.state.callbacks if displaced_file.file.open_file.is_lost() else 0
        self.displaced = tuple(it for it in self.displaced if it is not displaced_file)
        self.close_for_good(displaced_file)
        self._events.on_displaced_closed(displaced_file.file.path.name, lost)

    def _limit(self, own: SlotFile) -> None:
        others = self._directory.other_bytes(own.slot.path)
        if others is not None:
            own.file.limit(self._max_bytes - others)

    def _set_aside(self, slot_file: SlotFile) -> None:
        """Move a damaged file out of the way, unless another one lies at its path. Raises SpoolError."""
        try:
            if slot_file.file.open_file.is_own():
                self._events.on_damaged(slot_file.slot.set_aside())
        except OSError as error:
            raise from_os_error(error) from None
