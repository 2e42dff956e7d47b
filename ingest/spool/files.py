"""The journals of this process, and what becomes of one whose file is no longer where it should be.

| a journal is | it |
| --- | --- |
| `own` | takes this process's callbacks |
| one of `adopted` | was left by a dead process, and is drained |
| one of `strays` | is open, but its path leads elsewhere: removed, moved, replaced. It is carried into the own one |

A stray takes nothing more. What lies in it was answered 200 and ends with this process, so it is carried, page by page,
into a file that the next start finds; where there can be none for now it is drained like the others. A file that was
moved away with its whole directory is not at once carried: whoever moved it may bring it back (MOVED_GRACE_S).

Everything here runs in the thread of `ingest.spool.writer`; the three attributes above may be read by others.
"""

import contextlib
import time
from array import array
from collections.abc import Sequence
from typing import Final, Protocol

from maskline.ingest.outcome import SPOOL_FAILED
from maskline.ingest.spool.directory import Slot, SpoolDirectory
from maskline.ingest.spool.errors import DamagedError, SpoolError, of_the_system
from maskline.ingest.spool.file import Row, SpoolFile
from maskline.ingest.spool.open_file import Identity, Stamp, stamp_of
from maskline.schemas.errors import ConfigError

LOOK_INTERVAL_S: Final = 1.0
"""How often the files are looked at while nothing is written, the other processes' share of the directory is measured,
and what failed is tried again: callbacks in a file that was removed are exposed for so long."""
MOVED_GRACE_S: Final = 30.0
"""An operator who moves the directory away and back (another disk, a copy) needs seconds; until then nothing is put in
its place without need. What was moved is not lost, so waiting risks nothing."""
CARRY_ROWS_MAX: Final = 512
"""One statement; at 1 kB each some milliseconds, for which fresh callbacks wait."""
CARRY_BYTES_MAX: Final = 1 << 20


class SlotFile:
    """A journal of the directory that this process now uses."""

    __slots__ = ("adopted", "file", "missing_since", "seen_in_place", "slot")

    def __init__(self, slot: Slot, *, adopted: bool = False) -> None:
        self.slot = slot
        self.file = SpoolFile(slot.path)
        self.adopted = adopted
        """Its callbacks were another process's."""
        self.missing_since: float | None = None
        """When its path was first seen to lead elsewhere."""
        self.seen_in_place: Stamp | None = None
        """What the directory was like when all of it was found in its place."""


class FileEvents(Protocol):
    """Who is told of what happens to files; called in the thread."""

    def opened(self, held: "array[int]", besides: bool) -> None:
        """The own file was opened, with so many callbacks by bucket; `besides`: those of strays still count."""

    def damaged(self, name: str) -> None:
        """A file was set aside under this name."""

    def strayed(self, name: str, callbacks: int) -> None:
        """The file of this name is not where it should be; with so many callbacks in it."""

    def carried(self, partition_hashes: Sequence[int]) -> None:
        """Callbacks of dead processes are in the own file now."""

    def ended(self, name: str, lost: int) -> None:
        """A stray is closed; so many callbacks ended with it."""


class SpoolFiles:
    """All journals of a process. `slot`: for its own."""

    def __init__(self, directory: SpoolDirectory, slot: Slot, max_bytes: int, events: FileEvents) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._events = events
        self._look_at = 0.0
        self._retry_at = 0.0
        self._open_error: SpoolError | None = None
        self.own: SlotFile | None = SlotFile(slot)
        self.adopted: tuple[SlotFile, ...] = ()
        self.strays: tuple[SlotFile, ...] = ()
        self.stuck = False
        """Strays cannot be carried for now."""

    @property
    def all(self) -> list[SlotFile]:
        own = self.own
        return [*([] if own is None else [own]), *self.strays, *self.adopted]

    @property
    def carries(self) -> bool:
        """Whether `carry` has something to do now."""
        return bool(self.strays) and (not self.stuck or time.monotonic() >= self._retry_at)

    def insert(self, rows: Sequence[tuple[int, bytes]], at_ms: int | None = None) -> None:
        """Write (route, value) rows, fsynced, to where the next start finds them. Raises SpoolError."""
        own = self.open_own()
        try:
            ids = own.file.insert(rows, at_ms)
        except DamagedError:
            own = self.renew_own()
            ids = own.file.insert(rows, at_ms)
        if self._in_place(own):
            return
        self._lose(own)
        again = self.open_own()
        again.file.insert(rows, at_ms)
        if not self._in_place(again):
            raise SpoolError(SPOOL_FAILED, "its files are removed again and again")
        with contextlib.suppress(SpoolError):  # then they come twice
            own.file.delete(ids)

    def page(self, slot_file: SlotFile, after: int, rows_max: int, bytes_max: int) -> list[Row]:
        """The next rows of a journal; none where it has been carried meanwhile. Raises SpoolError."""
        return slot_file.file.page(after, rows_max, bytes_max) if slot_file in self.all else []

    def delete(self, slot_file: SlotFile, ids: Sequence[int]) -> bool:
        """Delete rows; False where the journal has been carried meanwhile. Raises SpoolError.

        Its end comes with its last callback: what was adopted is removed, the own one gives its space back.
        """
        if slot_file not in self.all:
            return False
        slot_file.file.delete(ids)
        if slot_file.file.state.callbacks:
            return True
        if slot_file is self.own:
            slot_file.file.shrink()
        elif slot_file.adopted and slot_file not in self.strays:
            self.adopted = tuple(it for it in self.adopted if it is not slot_file)
            self.let_go(slot_file)
        return True

    def try_room(self) -> None:
        """Find out whether the own file takes callbacks, and is found by the next start. Raises SpoolError."""
        own = self.open_own()
        own.file.try_room()
        if not self._in_place(own):
            self._lose(own)
            self.open_own().file.try_room()

    def open_own(self) -> SlotFile:
        """The own journal, open. A damaged file is set aside first, one that is gone replaced. Raises SpoolError."""
        own = self.own
        now = time.monotonic()
        if own is not None and own.file.is_open:
            if now >= self._look_at:
                self._look_at = now + LOOK_INTERVAL_S
                self._limit(own)
            return own
        if self._open_error is not None and now < self._look_at:
            raise self._open_error
        self._look_at = now + LOOK_INTERVAL_S
        try:
            own = self._place()
            try:
                own.file.open(self._max_bytes)
            except DamagedError:
                self._set_aside(own)
                own.file.open(self._max_bytes)
        except SpoolError as error:
            self._open_error = error
            raise
        self._open_error = None
        self._events.opened(own.file.held, bool(self.strays))
        self._limit(own)
        return own

    def renew_own(self) -> SlotFile:
        """Set the damaged own file aside and begin a new one. Raises SpoolError."""
        own = self.own
        if own is not None:
            own.file.close()
            self._set_aside(own)
        return self.open_own()

    def open_leftovers(self) -> None:
        """Take over what dead processes left; journals without callbacks are removed on the way. Raises SpoolError."""
        try:
            for slot in self._directory.leftovers(self._identities()):
                slot_file = SlotFile(slot, adopted=True)
                try:
                    slot_file.file.open(self._max_bytes)
                except DamagedError:
                    self.drop_damaged(slot_file)
                except SpoolError:  # the disk may be full, or the journal of a newer release: another time
                    slot.release()
                else:
                    if slot_file.file.state.callbacks:
                        self.adopted += (slot_file,)
                    else:
                        self.let_go(slot_file)
        except OSError as error:
            raise of_the_system(error) from None

    def drop_damaged(self, slot_file: SlotFile) -> None:
        """Set a journal aside, and be done with it. Raises SpoolError."""
        self.adopted = tuple(it for it in self.adopted if it is not slot_file)
        slot_file.file.close()
        try:
            self._set_aside(slot_file)
        finally:
            slot_file.slot.release()

    def let_go(self, slot_file: SlotFile) -> None:
        """Close a journal for good, and remove it if nothing lies in it."""
        removed = slot_file.file.remove()
        with contextlib.suppress(OSError):
            slot_file.slot.release(remove=removed)

    def look(self) -> None:
        """See whether the files are still where they should be. Raises SpoolError where that cannot be told."""
        for slot_file in self.all:
            if slot_file in self.strays or not slot_file.file.is_open:
                continue
            if self._in_place(slot_file):
                slot_file.missing_since = None
            elif self._is_given_up(slot_file):
                self._lose(slot_file)

    def carry(self) -> None:
        """Move a page of what strays hold into the own file; close them when nothing lies in them. Never raises."""
        stray = self.strays[0]
        try:
            rows = stray.file.page(0, CARRY_ROWS_MAX, CARRY_BYTES_MAX)
            if rows:
                self.insert([(row.partition_hash, row.value) for row in rows], stray.file.state.oldest_at_ms)
                if stray.adopted:
                    self._events.carried([row.partition_hash for row in rows])
                stray.file.delete([row.id for row in rows])
            else:
                self._end(stray)
            self.stuck = False
        except DamagedError:
            self._end(stray)
        except SpoolError:
            self.stuck = True
            self._retry_at = time.monotonic() + LOOK_INTERVAL_S

    def close(self) -> None:
        """Carry what would end with this process, close all, and remove what is empty."""
        for slot_file in self.all:
            with contextlib.suppress(SpoolError):
                if slot_file not in self.strays and slot_file.file.is_open and not self._in_place(slot_file):
                    self._lose(slot_file)
        self.stuck = False
        while self.strays and not self.stuck:
            self.carry()
        for stray in self.strays:
            self._end(stray)
        for slot_file in self.all:
            self.let_go(slot_file)

    # Inside

    def _place(self) -> SlotFile:
        """The own place in the directory, another one where it is gone."""
        own = self.own
        try:
            if own is not None and not own.slot.hold():
                self.own = None
                own.slot.release()
                own = None
            if own is None:
                own = self.own = SlotFile(self._directory.take_slot(self._identities()))
        except OSError as error:
            raise of_the_system(error) from None
        except ConfigError as error:
            raise SpoolError(SPOOL_FAILED, str(error)) from None
        return own

    def _identities(self) -> set[Identity]:
        """Of the files that are open: none may be opened twice, since closing one drops the locks of both."""
        identities = (slot_file.file.which.identity for slot_file in self.all if slot_file.file.is_open)
        return {identity for identity in identities if identity is not None}

    def _in_place(self, slot_file: SlotFile) -> bool:
        """Whether the paths of the file, its log and its lock lead to what is open.

        Asked at every commit, beside a busy event loop, where each question may cost a turn of the interpreter's lock.
        So the directory alone is asked as long as nothing has changed in it.
        """
        try:
            stamp = stamp_of(self._directory.path)
            if stamp is not None and stamp == slot_file.seen_in_place:
                return True
            in_place = slot_file.file.which.in_place() and slot_file.slot.hold()
            settled = (
                in_place and stamp is not None and stamp.is_settled() and not slot_file.file.which.is_link
            )
            slot_file.seen_in_place = stamp if settled else None
        except OSError as error:
            raise of_the_system(error) from None
        return in_place

    def _is_given_up(self, slot_file: SlotFile) -> bool:
        """Whether to act on a file that is not in its place though nothing is to be written."""
        now = time.monotonic()
        if slot_file.missing_since is None:
            slot_file.missing_since = now
        try:
            return (
                not slot_file.file.state.callbacks
                or slot_file.file.which.is_lost()
                or self._directory.path.exists()
                or now - slot_file.missing_since >= MOVED_GRACE_S
            )
        except OSError as error:
            raise of_the_system(error) from None

    def _lose(self, slot_file: SlotFile) -> None:
        """What was own or adopted is a stray from now on."""
        if slot_file is self.own:
            self.own = None
            self._open_error = None
        self.adopted = tuple(it for it in self.adopted if it is not slot_file)
        self.strays += (slot_file,)
        self._events.strayed(slot_file.file.path.name, slot_file.file.state.callbacks)

    def _end(self, stray: SlotFile) -> None:
        """Be done with a stray; what lies in it is lost where no path leads to it."""
        lost = 0
        with contextlib.suppress(OSError):
            lost = stray.file.state.callbacks if stray.file.which.is_lost() else 0
        self.strays = tuple(it for it in self.strays if it is not stray)
        self.let_go(stray)
        self._events.ended(stray.file.path.name, lost)

    def _limit(self, own: SlotFile) -> None:
        others = self._directory.other_bytes(own.slot.path)
        if others is not None:
            own.file.limit(self._max_bytes - others)

    def _set_aside(self, slot_file: SlotFile) -> None:
        """Raises SpoolError."""
        try:
            if slot_file.file.which.is_own():
                self._events.damaged(slot_file.slot.set_aside())
        except OSError as error:
            raise of_the_system(error) from None
