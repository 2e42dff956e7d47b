"""Gathers everything that Redis has of one session.

Rules: nothing is changed. The session's order, what is pending of it and its retry queues change while they are read,
so they are read in one round trip, with the order at both ends of it, and again if the two differ.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import hiredis

from maskline.console.dead.letters import batches_of_partition, read_whole
from maskline.console.redis_reader import Query, RedisReader, query_for
from maskline.console.session.facts import (
    CALLBACKS_MAX,
    LETTERS_MAX,
    QUEUE_ITEMS_MAX,
    KeptCallback,
    KeptIn,
    LetterFacts,
    Progress,
    QueueFacts,
    SessionFacts,
    StreamFacts,
)
from maskline.console.session.stream_search import find_callbacks
from maskline.handlers.redis_store.records import Record, read_record
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.errors import RedisUnavailableError, UndecodableEntryError
from maskline.schemas.events import Event
from maskline.schemas.handler_control import read_control
from maskline.schemas.keys import partition_of
from maskline.worker.entries.decode import EntryDecoder, entry_decoder, entry_ms
from maskline.worker.entries.entry import entry_position
from maskline.worker.entries.queue_item import QueueItem, decode_item
from maskline.worker.ordering.state import SessionState, decode_state

READS_MAX: Final = 5
"""How often a session that changes meanwhile is read, before what was read last is taken."""


class _Order(NamedTuple):
    state: SessionState | None
    error: str | None


class _Live(NamedTuple):
    """What changes while the session's events are handled."""

    now_ms: int
    order: _Order
    cursor: str | None
    pending: set[str]
    queues: list[QueueFacts]


async def read_session(reader: RedisReader, session_uuid: str) -> SessionFacts:
    """Everything that Redis has of a session, for the consumer group of the settings. Raises RedisUnavailableError."""
    partition = partition_of(session_uuid, reader.partitions)
    decoder = entry_decoder(frozenset(reader.settings.ignored_parameters))
    stream = await _read_stream(reader, partition)
    arrivals, beyond, emitted = await find_callbacks(reader, partition, session_uuid, decoder, stream.entries)
    letters, letters_beyond = await _read_letters(reader, partition, session_uuid)
    live = await _read_live(reader, partition, session_uuid, [it.payload.entry_id for it in arrivals])
    callbacks = [KeptCallback(it, "stream", _progress(it.payload.entry_id, live)) for it in arrivals]
    return SessionFacts(
        session_uuid=session_uuid,
        partition=partition,
        group=reader.keys.group,
        now_ms=live.now_ms,
        stream=stream._replace(cursor=live.cursor),
        callbacks=_with_trimmed(reader, decoder, callbacks, live.queues, letters),
        beyond=beyond,
        emitted=emitted,
        state=live.order.state,
        state_error=live.order.error,
        queues=live.queues,
        letters=letters,
        letters_beyond=letters_beyond,
        timeline=await _read_timeline(reader, partition, session_uuid),
        pauses=await _read_pauses(reader),
    )


async def is_known_as(reader: RedisReader, session_uuid: str) -> bool:
    """Whether the session has an order in the group: a look at one key, for a name that may be meant."""
    key = reader.keys.session(partition_of(session_uuid, reader.partitions), session_uuid)
    (reply,) = await reader.send([query_for(key, "GET", key)])
    return isinstance(reply, bytes)


async def _read_stream(reader: RedisReader, partition: int) -> StreamFacts:
    name = reader.keys.callbacks(partition)
    (info,) = await reader.send([query_for(name, "XINFO", "STREAM", name)])
    if isinstance(info, hiredis.ReplyError):
        if "no such key" in str(info):
            return StreamFacts()
        raise RedisUnavailableError(f"the stream of partition {partition} cannot be read: {info}")
    facts = _pairs(info)
    first, length = facts[b"first-entry"], int(facts[b"length"])
    return StreamFacts(
        entries=length,
        kept_since_ms=None if first is None else entry_ms(first[0].decode()),
        trimmed=int(facts.get(b"entries-added", 0)) > length,
    )


async def _read_live(
    reader: RedisReader, partition: int, session_uuid: str, entry_ids: Sequence[str]
) -> _Live:
    """The session's order, what of these entries is not handled yet, and its retry queues."""
    keys, handlers = reader.keys, list[str]()
    state_key, stream, group = keys.session(partition, session_uuid), keys.callbacks(partition), keys.group
    live = None
    for _ in range(READS_MAX):
        state_query = query_for(state_key, "GET", state_key)
        pending = [query_for(stream, "XPENDING", stream, group, it, it, 1) for it in entry_ids]
        queues = [
            query for name in handlers for query in _queue_queries(reader, partition, name, session_uuid)
        ]
        time, groups, before, *replies, after = await reader.send(
            [
                query_for(stream, "TIME"),
                query_for(stream, "XINFO", "GROUPS", stream),
                state_query,
                *pending,
                *queues,
                state_query,
            ]
        )
        order = _order_of(after)
        wanted = list(order.state.retries or ()) if order.state is not None else []
        answers = replies[len(pending) :]
        live = _Live(
            now_ms=int(time[0]) * 1000 + int(time[1]) // 1000,
            order=order,
            cursor=_cursor_of(groups, group),
            pending={it for it, reply in zip(entry_ids, replies, strict=False) if _is_pending(reply)},
            queues=[_queue_of(name, answers[at * 5 : at * 5 + 5]) for at, name in enumerate(handlers)],
        )
        if before == after and wanted == handlers:
            break
        handlers = wanted
    if live is None:
        raise AssertionError
    return live


def _queue_queries(reader: RedisReader, partition: int, handler: str, session_uuid: str) -> list[Query]:
    keys = reader.keys
    queue = keys.retry_queue(partition, handler, session_uuid)
    due, parked, since = (
        make(partition, handler) for make in (keys.retry_due, keys.retry_parked, keys.retry_since)
    )
    return [
        query_for(queue, "LLEN", queue),
        query_for(queue, "LRANGE", queue, 0, QUEUE_ITEMS_MAX - 1),
        *(query_for(key, "ZSCORE", key, session_uuid) for key in (due, parked, since)),
    ]


def _queue_of(handler: str, replies: Sequence[Any]) -> QueueFacts:
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"a retry queue cannot be read: {reply}")
    waiting, items, due, parked, since = replies
    return QueueFacts(
        handler=handler,
        waiting=waiting,
        items=list(_items(items)),
        parked=parked is not None,
        parked_ms=_score(parked),
        since_ms=_score(since),
        due_ms=_score(due),
    )


def _items(encoded: Iterable[bytes]) -> Iterable[QueueItem]:
    for item in encoded:
        try:
            yield decode_item(item)
        except ValueError:  # another release wrote it
            continue


def _score(reply: Any) -> int | None:
    return None if reply is None else int(float(reply))


def _order_of(reply: Any) -> _Order:
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"the session's order cannot be read: {reply}")
    if reply is None:
        return _Order(None, None)
    try:
        return _Order(decode_state(reply), None)
    except ValueError as error:
        return _Order(None, str(error))


def _is_pending(reply: Any) -> bool:
    """Whether XPENDING has found an entry. Without a stream or a group, none is."""
    if isinstance(reply, hiredis.ReplyError):
        if "NOGROUP" in str(reply):
            return False
        raise RedisUnavailableError(f"what is pending cannot be read: {reply}")
    return bool(reply)


def _cursor_of(groups: Any, group: str) -> str | None:
    if isinstance(groups, hiredis.ReplyError):
        if "no such key" in str(groups):
            return None
        raise RedisUnavailableError(f"the consumer groups cannot be read: {groups}")
    for facts in map(_pairs, groups):
        if facts[b"name"].decode(errors="replace") == group:
            return str(facts[b"last-delivered-id"].decode())
    return None


def _progress(entry_id: str, live: _Live) -> Progress:
    if live.cursor is None or entry_position(entry_id) > entry_position(live.cursor):
        return "unread"
    return "pending" if entry_id in live.pending else "handled"


def _with_trimmed(
    reader: RedisReader,
    decoder: EntryDecoder,
    callbacks: list[KeptCallback],
    queues: Iterable[QueueFacts],
    letters: Iterable[LetterFacts],
) -> list[KeptCallback]:
    """The callbacks, and those that are in no stream any more, but in a retry queue or a dead letter."""
    known = {it.entry.entry_id for it in callbacks}
    elsewhere: list[KeptCallback] = []
    shared = reader.settings.recording_sequence == "shared"

    def add(entry_id: str, encoded: bytes, kept_in: KeptIn) -> None:
        if entry_id in known or len(known) >= CALLBACKS_MAX:
            return
        try:
            arrival = decoder.arrival_of(entry_id, [CALLBACK_FIELD, encoded], shared)
        except (UndecodableEntryError, ValueError):
            return
        if isinstance(arrival.payload.event, Event):
            known.add(entry_id)
            elsewhere.append(KeptCallback(arrival, kept_in))

    for queue in queues:
        for item in queue.items:
            add(item.entry_id, item.callback, "retry queue")
    for _, letter in letters:
        add(letter.entry_id, letter.callback, "dead letter")
    return sorted([*callbacks, *elsewhere], key=lambda it: entry_position(it.entry.entry_id))


async def _read_letters(
    reader: RedisReader, partition: int, session_uuid: str
) -> tuple[list[LetterFacts], int]:
    """The session's dead letters, and how many more there are than LETTERS_MAX."""
    ids: list[str] = []
    beyond = 0
    async for batch in batches_of_partition(reader, partition):
        for head in batch:
            if head.head.session_uuid == session_uuid:
                if len(ids) < LETTERS_MAX:
                    ids.append(head.id)
                else:
                    beyond += 1
    letters = [LetterFacts(it, found[1]) for it in ids if (found := await read_whole(reader, it)) is not None]
    return letters, beyond


async def _read_timeline(reader: RedisReader, partition: int, session_uuid: str) -> Record | None:
    key = reader.keys.timeline(partition, session_uuid)
    (reply,) = await reader.send([query_for(key, "HGETALL", key)])
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"the timeline cannot be read: {reply}")
    return read_record(_pairs(reply)) if reply else None


async def _read_pauses(reader: RedisReader) -> Mapping[str, Any]:
    key = reader.keys.control
    (reply,) = await reader.send([query_for(key, "HGETALL", key)])
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"Redis does not say which handlers are paused: {reply}")
    fields = {
        name.decode(errors="replace"): value for name, value in zip(reply[::2], reply[1::2], strict=True)
    }
    return read_control(fields).paused


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    """Names and values in turn, as XINFO returns them."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
