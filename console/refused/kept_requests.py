"""Reads kept refused requests by pages that are bounded in bytes, the oldest first, or by their IDs."""

from collections.abc import AsyncIterator
from itertools import islice
from typing import Any, Final, NamedTuple

import hiredis

from maskline.console.redis_reader import RedisReader, entry_order, query_for
from maskline.console.selectors import RefusedSelection
from maskline.ingest.refused.request import RefusedRequest, decode_refused
from maskline.ingest.refused.scripts import REQUEST_FIELD
from maskline.schemas.errors import RedisUnavailableError

PAGE_MAX_BYTES: Final = 256 * 1024
"""Of a page, roughly: a tenth of a second on a link of 2 MB/s, and no burden on the server's memory."""
PAGE_REQUESTS_MAX: Final = 250
PAGE_REQUESTS_FIRST: Final = 4
"""Their size is not known yet: each may have 64 KiB and more."""

IDS_A_ROUND_TRIP: Final = 16
"""Requests read by their IDs in one round trip: they may be of the largest."""


class KeptRequest(NamedTuple):
    """A refused request, and the ID of its entry in Redis, by which operators name it."""

    id: str
    request: RefusedRequest


async def pages(
    reader: RedisReader, selection: RefusedSelection, *, last_id: str = "+"
) -> AsyncIterator[list[KeptRequest]]:
    """The selected requests that are not too old, page by page; a page may be empty.

    `last_id`: requests that were kept after that one are left out.
    """
    async for page in _of_ids(reader, selection.ids) if selection.ids else _all(reader, last_id):
        yield [kept for kept in page if _matches(selection, kept.request)]


def _matches(selection: RefusedSelection, request: RefusedRequest) -> bool:
    return (selection.reason is None or request.code == selection.reason) and (
        selection.since_ms is None or request.received_at_ms >= selection.since_ms
    )


async def _all(reader: RedisReader, last_id: str) -> AsyncIterator[list[KeptRequest]]:
    stream = reader.keys.refused.requests
    start, count = await _oldest_id(reader), PAGE_REQUESTS_FIRST
    while True:
        (reply,) = await reader.send([query_for(stream, "XRANGE", stream, start, last_id, "COUNT", count)])
        page = _read_page(reply)
        yield page
        if len(reply) < count:
            return
        start = f"({reply[-1][0].decode()}"
        mean_bytes = sum(len(field) for _, fields in reply for field in fields) / len(reply)
        count = max(1, min(int(PAGE_MAX_BYTES / max(mean_bytes, 1.0)), PAGE_REQUESTS_MAX))


async def _of_ids(reader: RedisReader, ids: tuple[str, ...]) -> AsyncIterator[list[KeptRequest]]:
    stream, oldest, rest = reader.keys.refused.requests, await _oldest_id(reader), iter(ids)
    while batch := list(islice(rest, IDS_A_ROUND_TRIP)):
        known = [text for text in batch if is_id(text) and entry_order(text) >= entry_order(oldest)]
        replies = await reader.send([query_for(stream, "XRANGE", stream, text, text) for text in known])
        yield [kept for reply in replies for kept in _read_page(reply)]


async def _oldest_id(reader: RedisReader) -> str:
    """The least ID of a request that is not too old, by the clock of its server: older ones are only not gone yet."""
    stream = reader.keys.refused.requests
    (time,) = await reader.send([query_for(stream, "TIME")])
    if isinstance(time, hiredis.ReplyError):
        raise RedisUnavailableError(f"Redis does not say its time: {time}")
    now_ms = int(time[0]) * 1000 + int(time[1]) // 1000
    return f"{max(now_ms - reader.settings.refused_ttl_s * 1000, 0)}-0"


def is_id(text: str) -> bool:
    """Whether a text has the form of an entry's ID: two numbers of at most 19 digits, with a hyphen between."""
    parts = text.split("-")
    return len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) <= 19 for part in parts)


def _read_page(reply: Any) -> list[KeptRequest]:
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"the refused callbacks cannot be read: {reply}")
    found = []
    for entry_id, fields in reply:
        values = dict(zip(fields[::2], fields[1::2], strict=True))
        request = decode_refused(values.get(REQUEST_FIELD, b""))
        if request is not None:  # else not ours, or a newer release's
            found.append(KeptRequest(entry_id.decode(), request))
    return found
