"""Decides which events may have crashed a worker, and how their handlers run after that. Pure.

Workers read without a trace, so when one dies nobody knows which entries it had under way. Rules:

- After a takeover from a worker that died, the *suspects* are the entries of the pending list, and those after the
  cursor that the dead worker can have read. All other entries run as usual.
- The start of a suspect's handler is marked in Redis first. A mark found running at the next such takeover counts as a
  *crash* of that handler on that event. A mark ends with the attempt, and with the event's commit.
- The more crashes, the more the handler is isolated (`run_mode`):

| crashes | the handler runs |
| --- | --- |
| 0 | marked, as many at once as usual |
| 1 | marked, solo: alone among the suspects with crashes of the process |
| 2 | in a sandbox: a process of its own, which dies alone; marked so that the worker's own death is no crash |
| 2, where there is no sandbox | marked, solo |
| 3, where there is no sandbox | not again: dead letter |

So a handler that kills its worker has done so three times when the sandbox confirms it (once unmarked, twice marked).
The sandbox clears a handler that was merely under way each time somebody killed the worker.

Older names remain in interfaces: the metrics say `handler_strikes` and `trials`, a mark in Redis says `trial`.
"""

import contextlib
import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from maskline.worker.commands.marks import Mark, decode_mark, mark_field
from maskline.worker.entries.entry import entry_position

CRASHES_MAX: Final = 3
"""After so many crashes no attempt runs in a worker."""

CRASHES_FOR_SANDBOX: Final = 2
"""From so many crashes on, the handler runs in a sandbox."""

SUSPECTS_AHEAD_MAX: Final = 2_048
"""Entries after the cursor that are suspects. A worker reads on while at most half as many are not committed, and may
then have two reads under way."""

_ENTRY_ID: Final = re.compile(rb"[0-9]{1,20}-[0-9]{1,20}")


class RunMode(Enum):
    """How the handler of a suspect runs."""

    TOGETHER = "together"
    """Beside all others."""
    SOLO = "solo"
    """Beside no other suspect with crashes."""
    SANDBOX = "sandbox"
    """In a process of its own."""
    DEAD_LETTER = "dead letter"
    """Not again."""


def run_mode(crashes: int, *, sandbox_available: bool) -> RunMode:
    """How a handler runs on an event that it has so many crashes on; the table above."""
    if crashes >= CRASHES_FOR_SANDBOX and sandbox_available:
        return RunMode.SANDBOX
    if crashes >= CRASHES_MAX:
        return RunMode.DEAD_LETTER
    return RunMode.SOLO if crashes else RunMode.TOGETHER


class FoundMark(NamedTuple):
    """A mark that the new owner found in Redis at a takeover."""

    entry_id: str
    handler: str
    mark: Mark
    """Idle now, with the crash that the takeover has added, if any."""
    crashed: bool
    """The handler was running when the worker died: that added a crash."""
    stored: bool
    """Redis already has the mark in this form."""

    @property
    def field(self) -> str:
        """Its field in the hash of marks."""
        return mark_field(self.entry_id, self.handler)


def read_marks(fields: Sequence[bytes], *, unclean: bool) -> list[FoundMark]:
    """Read marks as HGETALL returns them, fields and values in turn; damaged ones are left out.

    `unclean`: the last owner died, so a handler that is marked as running has crashed once more.
    """
    found: list[FoundMark] = []
    for field, value in zip(fields[::2], fields[1::2], strict=False):
        entry_id, _, handler = field.partition(b" ")
        mark = decode_mark(value)
        if mark is None or not handler or _ENTRY_ID.fullmatch(entry_id) is None:
            continue
        crashed = unclean and mark.state == "running"
        now = Mark(min(mark.crashes + crashed, CRASHES_MAX), "idle")
        with contextlib.suppress(UnicodeDecodeError):
            found.append(FoundMark(entry_id.decode(), handler.decode(), now, crashed, stored=now == mark))
    return found


class Suspect:
    """One suspect entry: its crashes by handler, and the handlers that Redis has marks of."""

    __slots__ = ("_crashes", "marked")

    def __init__(self, found: Iterable[FoundMark] = ()) -> None:
        self._crashes: dict[str, int] = {}
        self.marked: set[str] = set()
        """Names of the handlers with a mark in Redis."""
        for one in found:
            self._crashes[one.handler] = one.mark.crashes
            self.marked.add(one.handler)

    def crashes(self, handler: str) -> int:
        """How often the handler of this name crashed on the entry."""
        return self._crashes.get(handler, 0)


class Suspects:
    """The suspects of a partition, while there are any: from its takeover until the last of them is done.

    `unclean`: the last owner died. `last_id`: the last entry that was in the stream when the partition was taken.
    `found`: the marks that were there, by `read_marks`.
    """

    def __init__(self, *, unclean: bool, last_id: str, found: Sequence[FoundMark]) -> None:
        self.found = found
        self._last = entry_position(last_id)
        self._pending = unclean
        self._ahead_left = SUSPECTS_AHEAD_MAX if unclean else 0
        self._unread: dict[str, list[FoundMark]] = {}
        """Marks of entries that were not read yet, by entry."""
        for one in found:
            self._unread.setdefault(one.entry_id, []).append(one)
        self._suspects: dict[str, Suspect] = {}
        self._more = True
        """Suspects may still be among the entries to come."""

    @property
    def over(self) -> bool:
        """Whether there are no suspects and none will come."""
        return not self._more and not self._suspects

    def __len__(self) -> int:
        return len(self._suspects)

    def get(self, entry_id: str) -> Suspect | None:
        """The suspect with this entry ID; None if the entry is none."""
        return self._suspects.get(entry_id)

    def entry_read(self, entry_id: str, *, pending: bool) -> list[str]:
        """Decide whether an entry just read is a suspect. Returns the fields of marks to delete.

        `pending`: it comes from the pending list rather than from beyond the cursor. The marks to delete are those of
        entries that are neither pending nor still to come: somebody has deleted these entries.
        """
        if not self._more:
            return []
        if not pending and entry_position(entry_id) > self._last:
            self._more = False
            gone, self._unread = self._unread, {}
            return [one.field for marks in gone.values() for one in marks]
        marks = self._unread.pop(entry_id, [])
        suspect = bool(marks) or (self._pending if pending else self._ahead_left > 0)
        if not pending:
            self._ahead_left -= 1
        if suspect:
            self._suspects[entry_id] = Suspect(marks)
        return []

    def entry_done(self, entry_id: str) -> list[str]:
        """Forget an entry that is done. Returns the fields of its marks, which its commit deletes."""
        suspect = self._suspects.pop(entry_id, None)
        return [] if suspect is None else [mark_field(entry_id, handler) for handler in suspect.marked]


def suspects_after_takeover(
    *, clean: bool, cursor: str, pending: int, last_id: str, marks: Sequence[bytes]
) -> Suspects | None:
    """The suspects of a partition just taken; None where there are none.

    `clean`: the last owner gave the lease back, or there was none. `cursor`, `pending`: where the group stands: the ID
    of its last delivered entry, and how many entries its pending list has. `last_id`: the stream's last entry.
    `marks`: the hash of marks, as HGETALL returns it.
    """
    found = read_marks(marks, unclean=not clean)
    if not found and (clean or (not pending and entry_position(cursor) >= entry_position(last_id))):
        return None
    return Suspects(unclean=not clean, last_id=last_id, found=found)
