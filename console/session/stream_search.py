"""Finds a session's callbacks in the stream of its partition, page by page: memory is bounded by the session's size.

A stream has no index by session, so all of it is read: a million callbacks in 64 partitions are 16,000 in one. If that
takes more than a second, progress is shown on stderr.
"""

from typing import Final, NamedTuple

import hiredis

from maskline.console.redis_reader import RedisReader, query_for
from maskline.console.session.facts import CALLBACKS_MAX, CALLBACKS_MAX_BYTES
from maskline.console.session.progress import progress
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.events import Event
from maskline.worker.entries.decode import EntryDecoder
from maskline.worker.ordering.reorder import Arrival

PAGE_ENTRIES_FIRST: Final = 64
PAGE_ENTRIES_MAX: Final = 2_000
PAGE_MAX_BYTES: Final = 1024 * 1024
"""Of a page, roughly: Redis takes a count, which follows from the size of the entries before. The first page of the
largest callbacks has 4 MB."""


class Found(NamedTuple):
    """The callbacks of a session in a stream."""

    arrivals: list[Arrival]
    beyond: int
    """How many were left out, after CALLBACKS_MAX or CALLBACKS_MAX_BYTES."""
    emitted: set[bytes]
    """The fingerprints of what handler modules emitted for the session, as call summaries are: no callbacks."""


async def find_callbacks(
    reader: RedisReader, partition: int, session_uuid: str, decoder: EntryDecoder, entries: int
) -> Found:
    """All callbacks of a session in its partition's stream. `entries`: how many the stream has, for the progress.

    Raises RedisUnavailableError.
    """
    name, start, count, at_end = reader.keys.callbacks(partition), "-", PAGE_ENTRIES_FIRST, False
    found, emitted, beyond, held_bytes, read = list[Arrival](), set[bytes](), 0, 0, 0
    shared = reader.settings.recording_sequence == "shared"
    with progress("searching the stream", entries) as show:
        while not at_end:
            (page,) = await reader.send([query_for(name, "XRANGE", name, start, "+", "COUNT", count)])
            if isinstance(page, hiredis.ReplyError):
                raise RedisUnavailableError(f"the stream of partition {partition} cannot be read: {page}")
            _, arrivals, _, _ = decoder.decode(page, shared, {})
            for arrival in arrivals:
                entry = arrival.payload
                if entry.event.session_uuid != session_uuid:
                    continue
                if not isinstance(entry.event, Event):
                    if len(emitted) < CALLBACKS_MAX:
                        emitted.add(arrival.fingerprint)
                    continue
                held_bytes += len(entry.encoded)
                if len(found) >= CALLBACKS_MAX or held_bytes > CALLBACKS_MAX_BYTES:
                    beyond += 1
                else:
                    found.append(arrival)
            at_end = len(page) < count
            if page:
                start = f"({page[-1][0].decode()}"
                size = sum(len(field) for _, fields in page for field in fields)
                fitting = PAGE_MAX_BYTES * len(page) // max(size, 1)
                count = max(1, min(fitting, 2 * count, PAGE_ENTRIES_MAX))
            read += len(page)
            show(read)
    return Found(found, beyond, emitted)
