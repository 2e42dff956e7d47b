"""Which events may have brought a worker down, and what is to be done with them. Pure.

Workers read without a trace, so when one dies nobody knows which entries it had under way. Rules:

- After a takeover from a worker that died, *suspects* are the entries of the pending list, and those after the cursor
  that the dead worker can have read. Everything else runs as ever.
- The start of a suspect's handler is marked in Redis first. A mark found running at the next such takeover is a
  *strike* against that handler and that event. A mark ends with the attempt, and with the event's commit.
- The more strikes, the more it is kept apart:

| strikes | its handler runs |
| --- | --- |
| 0 | marked, as many at once as ever |
| 1 | marked, alone among the suspects with strikes of the process |
| 2 | in a trial: a process of its own, which alone dies of it; marked so that the worker's own death is no strike |
| 2, where no trial can be had | marked, alone |
| 3, where no trial can be had | no more: dead letter |

So a handler that kills its worker has done so three times when the trial convicts it (once unmarked, twice marked), and
one that was merely under way whenever somebody killed the worker is acquitted by it.
"""

import contextlib
import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from maskline.worker.commands.marks import Mark, decode_mark, mark_field

STRIKES_MAX: Final = 3

STRIKES_FOR_TRIAL: Final = 2

SUSPECTS_AHEAD_MAX: Final = 2_048
"""Entries after the cursor that are suspects. A worker reads on while at most half as many are not committed, and may
then have two reads under way."""

_ENTRY_ID: Final = re.compile(rb"[0-9]{1,20}-[0-9]{1,20}")


class Step(Enum):
    """How a suspect's handler is to run."""

    RUN = "run"
    ALONE = "alone"
    TRIAL = "trial"
    BURY = "bury"


def step(strikes: int, *, triable: bool) -> Step:
    """What to do with a handler that has so many strikes for an event. `triable`: a trial can be had."""
    if strikes >= STRIKES_FOR_TRIAL and triable:
        return Step.TRIAL
    if strikes >= STRIKES_MAX:
        return Step.BURY
    return Step.ALONE if strikes else Step.RUN


class Found(NamedTuple):
    """A mark as a takeover found it."""

    entry_id: str
    handler: str
    mark: Mark
    """With the strike that the takeover has added, if any."""
    struck: bool
    """It was running when the worker died."""
    settled: bool
    """Redis has it so already."""

    @property
    def field(self) -> str:
        return mark_field(self.entry_id, self.handler)


def read_marks(fields: Sequence[bytes], *, unclean: bool) -> list[Found]:
    """Marks as HGETALL returns them, fields and values in turn; those that are damaged count as nothing.

    `unclean`: the last owner died, so that a handler still running is a strike more.
    """
    found: list[Found] = []
    for field, value in zip(fields[::2], fields[1::2], strict=False):
        entry_id, _, handler = field.partition(b" ")
        mark = decode_mark(value)
        if mark is None or not handler or _ENTRY_ID.fullmatch(entry_id) is None:
            continue
        struck = unclean and mark.state == "running"
        now = Mark(min(mark.strikes + struck, STRIKES_MAX), "idle")
        with contextlib.suppress(UnicodeDecodeError):
            found.append(Found(entry_id.decode(), handler.decode(), now, struck, settled=now == mark))
    return found


class Standing:
    """One suspect: its strikes by handler, and for which handlers Redis has marks."""

    __slots__ = ("_strikes", "marked")

    def __init__(self, found: Iterable[Found] = ()) -> None:
        self._strikes: dict[str, int] = {}
        self.marked: set[str] = set()
        for one in found:
            self._strikes[one.handler] = one.mark.strikes
            self.marked.add(one.handler)

    def strikes(self, handler: str) -> int:
        return self._strikes.get(handler, 0)


class Suspicion:
    """The suspects of a partition, while there are any: from its takeover until the last of them is done.

    `unclean`: the last owner died. `last_id`: the last entry that was in the stream when the partition was taken.
    `found`: the marks that were there, by `read_marks`.
    """

    def __init__(self, *, unclean: bool, last_id: str, found: Sequence[Found]) -> None:
        self.found = found
        self._last = _place(last_id)
        self._pending = unclean
        self._ahead_left = SUSPECTS_AHEAD_MAX if unclean else 0
        self._unseen: dict[str, list[Found]] = {}
        for one in found:
            self._unseen.setdefault(one.entry_id, []).append(one)
        self._standings: dict[str, Standing] = {}
        self._more = True
        """Entries may yet come that are suspects."""

    @property
    def over(self) -> bool:
        """There are no suspects and none will come."""
        return not self._more and not self._standings

    def __len__(self) -> int:
        return len(self._standings)

    def of(self, entry_id: str) -> Standing | None:
        """The entry's standing; None if it is no suspect."""
        return self._standings.get(entry_id)

    def take_in(self, entry_id: str, *, pending: bool) -> list[str]:
        """An entry is read: from the pending list, or after it from beyond the cursor. Returns fields to delete.

        Those are marks of entries that are neither pending nor still to come: somebody has deleted them.
        """
        if not self._more:
            return []
        if not pending and _place(entry_id) > self._last:
            self._more = False
            gone, self._unseen = self._unseen, {}
            return [one.field for marks in gone.values() for one in marks]
        marks = self._unseen.pop(entry_id, [])
        suspect = bool(marks) or (self._pending if pending else self._ahead_left > 0)
        if not pending:
            self._ahead_left -= 1
        if suspect:
            self._standings[entry_id] = Standing(marks)
        return []

    def done(self, entry_id: str) -> list[str]:
        """An entry is done: returns the fields of its marks, which are to be deleted with its commit."""
        standing = self._standings.pop(entry_id, None)
        return [] if standing is None else [mark_field(entry_id, handler) for handler in standing.marked]


def suspicion(
    *, clean: bool, cursor: str, pending: int, last_id: str, marks: Sequence[bytes]
) -> Suspicion | None:
    """What is to be suspected in a partition just taken; None where nothing is.

    `clean`: the last owner gave the lease back, or there was none. `cursor`, `pending`: where the group stands.
    """
    found = read_marks(marks, unclean=not clean)
    if not found and (clean or (not pending and _place(cursor) >= _place(last_id))):
        return None
    return Suspicion(unclean=not clean, last_id=last_id, found=found)


def _place(entry_id: str) -> tuple[int, int]:
    milliseconds, _, counter = entry_id.partition("-")
    return int(milliseconds), int(counter)
