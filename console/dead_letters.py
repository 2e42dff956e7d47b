"""Reads dead letters in pages that are bounded by count and by bytes; the newest first where only some are wanted.

Redis takes a count for a page and no bytes, so the count follows from the size of the letters before. Partitions are
read one after the other, and the caller keeps only its result for each letter. So listing a million letters takes a few
MiB of memory at either end, and works over a slow link.
"""

import heapq
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import hiredis
import msgspec

from maskline.console.redis_reader import RedisReader, query_for
from maskline.schemas.errors import RedisUnavailableError
from maskline.worker.entries.dead_letter import DEAD_FIELD, DeadLetter, decode_dead_letter

PAGE_LETTERS_MAX: Final = 64
"""Of a page, however small the letters before it were. A page of the largest letters then has 5 MB."""

PAGE_MAX_BYTES: Final = 256 * 1024
"""Of a page, roughly: a tenth of a second on a link of 2 MB/s, and no burden on the server's memory."""

LETTER_MAX_BYTES: Final = 80 * 1024
"""Assumed size of a partition's first letter: a callback has up to 64 KiB, and older letters add 17 kB."""

Letter = tuple[int, str, DeadLetter]
"""Partition, ID of the stream entry, and the dead letter."""


class _Pages:
    """The letters of one partition, from one end to the other."""

    def __init__(self, reader: RedisReader, partition: int, *, newest_first: bool) -> None:
        self._reader = reader
        self._partition = partition
        self._newest_first = newest_first
        self._from = "+" if newest_first else "-"
        self._bytes_each = float(LETTER_MAX_BYTES)
        self._letters_max = 1 if newest_first else PAGE_LETTERS_MAX
        self.at_end = False
        """Whether all were read."""

    async def next(self) -> list[Letter]:
        """The next page of letters, without entries that maskline did not write: so an empty page is not the end."""
        stream = self._reader.keys.dead(self._partition)
        count = max(1, min(int(PAGE_MAX_BYTES / self._bytes_each), self._letters_max))
        # A caller that starts at the newest wants few: pages grow so that at most twice as many are read as it wants.
        self._letters_max = min(2 * self._letters_max, PAGE_LETTERS_MAX)
        command = (
            ("XREVRANGE", stream, self._from, "-")
            if self._newest_first
            else ("XRANGE", stream, self._from, "+")
        )
        (reply,) = await self._reader.send([query_for(stream, *command, "COUNT", count)])
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(
                f"the dead letters of partition {self._partition} cannot be read: {reply}"
            )
        self.at_end = len(reply) < count
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
    """ID and dead letter of an entry as XRANGE returns it; None for the letter if maskline did not write the entry."""
    entry_id, fields = entry
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        return entry_id.decode(), decode_dead_letter(values.get(DEAD_FIELD, b""))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return entry_id.decode(), None


async def all_letters(reader: RedisReader) -> AsyncIterator[Letter]:
    """All dead letters, partition by partition, the oldest of each first."""
    for partition in await _partitions(reader):
        pages = _Pages(reader, partition, newest_first=False)
        while not pages.at_end:
            for letter in await pages.next():
                yield letter


async def latest_letters(
    reader: RedisReader, limit: int, wanted: Callable[[DeadLetter], bool] = lambda _: True
) -> list[Letter]:
    """The latest `limit` letters for which `wanted` is true, the latest first. Reads little more than these."""
    heads: list[tuple[int, int, int, _Pages, list[Letter]]] = []

    async def push_next(pages: _Pages, letters: list[Letter]) -> None:
        """Push a partition onto the heap, ordered by its next letter."""
        while not letters and not pages.at_end:
            letters = [*reversed(await pages.next())]
        if letters:
            milliseconds, _, counter = letters[-1][1].partition("-")
            heapq.heappush(heads, (-int(milliseconds), -int(counter), letters[-1][0], pages, letters))

    for partition in await _partitions(reader):
        await push_next(_Pages(reader, partition, newest_first=True), [])
    found: list[Letter] = []
    while heads and len(found) < limit:
        *_, pages, letters = heapq.heappop(heads)
        letter = letters.pop()
        if wanted(letter[2]):
            found.append(letter)
        if len(found) < limit:
            await push_next(pages, letters)
    return found


async def _partitions(reader: RedisReader) -> list[int]:
    """The partitions that have dead letters."""
    streams = [reader.keys.dead(number) for number in range(reader.partitions)]
    lengths = await reader.send([query_for(stream, "XLEN", stream) for stream in streams])
    return [number for number, length in enumerate(lengths) if length]
