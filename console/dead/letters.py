"""Reads dead letters by pages, so that a million of them take a few MiB of memory at either end.

Redis takes a count for a page and no bytes, so the count follows from the size of letters. Several partitions share a
round trip as far as their pages are small. What is kept of a letter is its `LetterHead`, without callback and
traceback.

| order | read by | for |
| --- | --- | --- |
| none | `batches_of_all` | sums over all of them |
| by time, over all partitions | `by_time` | lists: the oldest or the newest first |
| within a partition | `batches_of_partition` | the letters of one session |
| by id | `letters_of_ids` | letters that the operator names |
"""

import heapq
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import hiredis
import msgspec

from maskline.console.redis_reader import Query, RedisReader, query_for
from maskline.schemas.errors import RedisUnavailableError
from maskline.worker.entries.dead_letter import (
    DEAD_FIELD,
    DeadLetter,
    decode_dead_letter,
    group_key_of,
    public_id,
    split_public_id,
)

PAGE_LETTERS_MAX: Final = 64
"""Of a page, however small the letters before it were. A page of the largest letters then has 5 MB."""

ROUND_TRIP_MAX_BYTES: Final = 256 * 1024
"""Of the pages of one round trip, roughly: a tenth of a second on a link of 2 MB/s, and no burden on the server's
memory."""

LETTER_MAX_BYTES: Final = 80 * 1024
"""Assumed size of a letter where the server does not say how large a stream is: a callback has up to 64 KiB, and older
letters add 17 kB."""

IDS_A_ROUND_TRIP: Final = 16
"""Letters read by their IDs in one round trip: they may be of the largest."""

HEADS_HELD_MAX: Final = 16_384
"""Heads held while letters of all partitions are put in order: some 16 MB. With more partitions, one of each."""


class LetterHead(msgspec.Struct, frozen=True, gc=False):
    """The fields of a `DeadLetter` that lists and selections look at; the others are skipped when it is decoded."""

    group: str
    code: str
    reason: str
    failed_at_ms: int
    session_uuid: str | None = None
    event_name: str | None = None
    sequence_number: int | None = None
    handler: str | None = None
    attempts: int = 0
    received_at_ms: int | None = None
    parked: bool = False
    error_type: str | None = None
    frame: str | None = None
    group_key: str | None = None


class Letter(NamedTuple):
    """A dead letter's head, where the letter lies, and what it belongs to."""

    partition: int
    entry_id: str
    """Of the letter itself, in `{ns:p}:dead`."""
    head: LetterHead
    group_key: str
    """The key of the letters that failed alike, also for letters of older releases."""

    @property
    def id(self) -> str:
        """The ID by which operators name it."""
        return public_id(self.partition, self.entry_id)


_decode_head: Final = msgspec.msgpack.Decoder(LetterHead).decode


class _Pages:
    """The letters of one partition, from one end to the other. `mean_bytes`: of a letter, as far as is known."""

    def __init__(
        self, stream: str, partition: int, mean_bytes: float, *, letters_max: int, newest_first: bool
    ) -> None:
        self.partition = partition
        self._stream = stream
        self._bytes_each = mean_bytes
        self._newest_first = newest_first
        self._from = "+" if newest_first else "-"
        self._limit = letters_max
        self._letters_max = 1 if newest_first else letters_max
        self._count = 0
        self.at_end = False
        """Whether all were read."""

    @property
    def next_bytes(self) -> float:
        """The expected size of the next page."""
        return self._next_count() * self._bytes_each

    def _next_count(self) -> int:
        return max(1, min(int(ROUND_TRIP_MAX_BYTES / self._bytes_each), self._letters_max))

    def query(self) -> Query:
        """The query for the next page, whose reply `take` takes."""
        self._count = self._next_count()
        # A caller that starts at the newest wants few: pages grow so that at most twice as many are read as it wants.
        self._letters_max = min(2 * self._letters_max, self._limit)
        name, start, end = (
            ("XREVRANGE", self._from, "-") if self._newest_first else ("XRANGE", self._from, "+")
        )
        return query_for(self._stream, name, self._stream, start, end, "COUNT", self._count)

    def take(self, reply: Any) -> list[Letter]:
        """The page, without entries that maskline did not write: so an empty page is not the end."""
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(
                f"the dead letters of partition {self.partition} cannot be read: {reply}"
            )
        self.at_end = len(reply) < self._count
        if not reply:
            return []
        self._from = f"({reply[-1][0].decode()}"
        self._bytes_each = max(sum(len(field) for _, fields in reply for field in fields) / len(reply), 1.0)
        return [letter for entry in reply if (letter := _letter_of(self.partition, entry)) is not None]


def _letter_of(partition: int, entry: Any) -> Letter | None:
    """The letter of an entry as XRANGE returns it; None if maskline did not write the entry."""
    entry_id, fields = entry
    try:
        if len(fields) == 2 and fields[0] == DEAD_FIELD:
            head = _decode_head(fields[1])
            return Letter(partition, entry_id.decode(), head, head.group_key or group_key_of(head))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    return None


async def batches_of_all(reader: RedisReader) -> AsyncIterator[list[Letter]]:
    """All dead letters in no order, those of one round trip together."""
    unread = deque(await _open_all(reader))
    while unread:
        turn = _next_turn(unread)
        yield [letter for page in await _read(reader, turn) for letter in page]
        unread.extendleft(pages for pages in reversed(turn) if not pages.at_end)


async def by_time(reader: RedisReader, *, newest_first: bool = False) -> AsyncIterator[Letter]:
    """All dead letters in the order in which they were written, or the other way round, by the IDs of their entries."""
    heads: list[tuple[int, int, int, _Pages, list[Letter]]] = []

    def push(pages: _Pages, letters: list[Letter]) -> None:
        """Push a partition onto the heap, ordered by its next letter: the last of `letters`."""
        milliseconds, _, counter = letters[-1].entry_id.partition("-")
        sign = -1 if newest_first else 1
        heapq.heappush(
            heads, (sign * int(milliseconds), sign * int(counter), pages.partition, pages, letters)
        )

    unread = deque(await _open_all(reader, newest_first=newest_first))
    while unread or heads:
        while unread:
            turn = _next_turn(unread)
            for pages, page in zip(turn, await _read(reader, turn), strict=True):
                if page:
                    push(pages, page[::-1])
                elif not pages.at_end:
                    unread.append(pages)
        if heads:
            *_, pages, letters = heapq.heappop(heads)
            yield letters.pop()
            if letters:
                push(pages, letters)
            elif not pages.at_end:
                unread.append(pages)


async def letters_of_ids(reader: RedisReader, ids: Iterable[str]) -> AsyncIterator[Letter]:
    """The dead letters of these IDs, in their order, without those that do not exist."""
    for batch in _batches(ids):
        places = [place for text in batch if (place := place_of(reader, text)) is not None]
        streams = [reader.keys.dead(partition) for partition, _ in places]
        replies = await reader.send(
            [
                query_for(stream, "XRANGE", stream, entry_id, entry_id)
                for stream, (_, entry_id) in zip(streams, places, strict=True)
            ]
        )
        for (partition, _), reply in zip(places, replies, strict=True):
            if reply and not isinstance(reply, hiredis.ReplyError):
                letter = _letter_of(partition, reply[0])
                if letter is not None:
                    yield letter


def _batches(ids: Iterable[str]) -> Iterable[list[str]]:
    rest = iter(ids)
    return iter(lambda: list(islice(rest, IDS_A_ROUND_TRIP)), [])


async def read_whole(reader: RedisReader, text: str) -> tuple[Letter, DeadLetter] | None:
    """The dead letter that an operator names, with its callback; None if there is none."""
    place = place_of(reader, text)
    if place is None:
        return None
    partition, entry_id = place
    stream = reader.keys.dead(partition)
    (reply,) = await reader.send([query_for(stream, "XRANGE", stream, entry_id, entry_id)])
    letter = None if not reply or isinstance(reply, hiredis.ReplyError) else _letter_of(partition, reply[0])
    return None if letter is None else (letter, decode_dead_letter(reply[0][1][1]))


def place_of(reader: RedisReader, text: str) -> tuple[int, str] | None:
    """The partition and entry ID in the ID that an operator gave; None if no dead letter can have it."""
    try:
        partition, entry_id = split_public_id(text)
    except ValueError:
        return None
    return (partition, entry_id) if partition < reader.partitions else None


async def batches_of_partition(reader: RedisReader, partition: int) -> AsyncIterator[list[Letter]]:
    """The dead letters of one partition, the oldest first, those of one round trip together."""
    for pages in await _open_all(reader, (partition,)):
        while not pages.at_end:
            (page,) = await _read(reader, [pages])
            yield page


async def _open_all(
    reader: RedisReader, partitions: Sequence[int] | None = None, *, newest_first: bool = False
) -> list[_Pages]:
    """The pages of each partition, of these or of all, that has dead letters."""
    numbers = range(reader.partitions) if partitions is None else partitions
    streams = [reader.keys.dead(number) for number in numbers]
    replies = await reader.send(
        [
            query
            for stream in streams
            for query in (
                query_for(stream, "XLEN", stream),
                query_for(stream, "MEMORY", "USAGE", stream, "SAMPLES", 1),
            )
        ]
    )
    lengths = replies[::2]
    for reply in lengths:
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"the dead letters cannot be counted: {reply}")
    found = [
        (number, stream, size / length if isinstance(size, int) else LETTER_MAX_BYTES)
        for number, stream, length, size in zip(numbers, streams, lengths, replies[1::2], strict=True)
        if length
    ]
    letters_max = max(1, min(PAGE_LETTERS_MAX, HEADS_HELD_MAX // max(len(found), 1)))
    return [
        _Pages(stream, number, mean, letters_max=letters_max, newest_first=newest_first)
        for number, stream, mean in found
    ]


def _next_turn(unread: deque[_Pages]) -> list[_Pages]:
    """Takes away those at the front whose next pages fit into one round trip; one at least."""
    turn = [unread.popleft()]
    room = ROUND_TRIP_MAX_BYTES - turn[0].next_bytes
    while unread and unread[0].next_bytes <= room:
        room -= unread[0].next_bytes
        turn.append(unread.popleft())
    return turn


async def _read(reader: RedisReader, turn: Sequence[_Pages]) -> list[list[Letter]]:
    """The next page of each, in one round trip."""
    replies = await reader.send([pages.query() for pages in turn])
    return [pages.take(reply) for pages, reply in zip(turn, replies, strict=True)]
