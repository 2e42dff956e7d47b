"""Reading dead letters: by pages that are bounded by count and by bytes, newest first where only some are wanted.

A page is asked for by count, as Redis takes no bytes; the count follows from what letters took so far. Letters are read
one partition at a time, and only what a reader makes of each is kept: so listing a million of them takes a few MiB of
memory at either end, and goes through a thin link.
"""

import heapq
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import hiredis
import msgspec

from maskline.console.inquiry import Inquiry, about
from maskline.schemas.errors import RedisUnavailableError
from maskline.worker.entries.dead_letter import DEAD_FIELD, DeadLetter, decode_dead_letter

PAGE_LETTERS_MAX: Final = 64
"""Of a page, however small the letters before it were: should all of them be as large as they can be, it has 5 MB."""

PAGE_MAX_BYTES: Final = 256 * 1024
"""Of a page, about: a tenth of a second on a link of 2 MB/s, and nothing that the server would have to hold."""

LETTER_MAX_BYTES: Final = 80 * 1024
"""What the first letter of a partition is taken for: a callback has up to 64 KiB, and older letters 17 kB besides."""

Letter = tuple[int, str, DeadLetter]
"""Partition, entry ID, and what it says."""


class _Pages:
    """The letters of one partition, from one end to the other."""

    def __init__(self, inquiry: Inquiry, partition: int, *, newest_first: bool) -> None:
        self._inquiry = inquiry
        self._partition = partition
        self._newest_first = newest_first
        self._from = "+" if newest_first else "-"
        self._bytes_each = float(LETTER_MAX_BYTES)
        self._letters_max = 1 if newest_first else PAGE_LETTERS_MAX
        self.over = False
        """There are no more."""

    async def next(self) -> list[Letter]:
        """Some more letters, those that somebody else wrote left out: no letters are no end, `over` is."""
        stream = self._inquiry.keys.dead(self._partition)
        count = max(1, min(int(PAGE_MAX_BYTES / self._bytes_each), self._letters_max))
        # Who begins at the new end wants few: never more is read than twice what was wanted.
        self._letters_max = min(2 * self._letters_max, PAGE_LETTERS_MAX)
        command = (
            ("XREVRANGE", stream, self._from, "-")
            if self._newest_first
            else ("XRANGE", stream, self._from, "+")
        )
        (reply,) = await self._inquiry.send([about(stream, *command, "COUNT", count)])
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(
                f"the dead letters of partition {self._partition} cannot be read: {reply}"
            )
        self.over = len(reply) < count
        if not reply:
            return []
        self._from = f"({reply[-1][0].decode()}"
        size = sum(len(field) for _, fields in reply for field in fields)
        self._bytes_each = max(size / len(reply), 1.0)
        return [
            (self._partition, entry_id, letter)
            for entry_id, letter in map(decode_entry, reply)
            if letter is not None
        ]


def decode_entry(entry: Any) -> tuple[str, DeadLetter | None]:
    """An entry's id and letter; None where somebody else wrote it."""
    entry_id, fields = entry
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        return entry_id.decode(), decode_dead_letter(values.get(DEAD_FIELD, b""))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return entry_id.decode(), None


async def all_letters(inquiry: Inquiry) -> AsyncIterator[Letter]:
    """All dead letters, by partition, the oldest of each first."""
    for partition in await _partitions(inquiry):
        pages = _Pages(inquiry, partition, newest_first=False)
        while not pages.over:
            for letter in await pages.next():
                yield letter


async def latest_letters(
    inquiry: Inquiry, limit: int, wanted: Callable[[DeadLetter], bool] = lambda _: True
) -> list[Letter]:
    """The latest `limit` of the wanted letters, the latest first. Little more than these is read."""
    waiting: list[tuple[int, int, int, _Pages, list[Letter]]] = []

    async def put(pages: _Pages, letters: list[Letter]) -> None:
        """Stand with the next letter of a partition among those of the others."""
        while not letters and not pages.over:
            letters = [*reversed(await pages.next())]
        if letters:
            milliseconds, _, counter = letters[-1][1].partition("-")
            heapq.heappush(waiting, (-int(milliseconds), -int(counter), letters[-1][0], pages, letters))

    for partition in await _partitions(inquiry):
        await put(_Pages(inquiry, partition, newest_first=True), [])
    found: list[Letter] = []
    while waiting and len(found) < limit:
        *_, pages, letters = heapq.heappop(waiting)
        letter = letters.pop()
        if wanted(letter[2]):
            found.append(letter)
        if len(found) < limit:
            await put(pages, letters)
    return found


async def _partitions(inquiry: Inquiry) -> list[int]:
    """Those that have dead letters."""
    streams = [inquiry.keys.dead(number) for number in range(inquiry.partitions)]
    lengths = await inquiry.send([about(stream, "XLEN", stream) for stream in streams])
    return [number for number, length in enumerate(lengths) if length]
