"""What Redis says, at one moment, of a callback that stands in the stream: read again and again while it is followed.

Workers write nothing for this. What became of an entry follows from what they commit anyway:

| read, in this order | says |
| --- | --- |
| the group's cursor and pending list | whether a worker is done with the entry |
| the retry queues of the session | for which handlers it waits, since it failed or as they are held |
| dead letters, from the end before it was sent | who has given it up |

A commit finishes an entry and writes the rest at once, and an item goes from its queue to the dead letters at once. So
in this order nothing is missed, though other commands come in between.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import hiredis
import msgspec

from maskline.console.handler_status import live_workers
from maskline.console.jobs.records import checked
from maskline.console.redis_reader import RedisReader, entry_order, query_for
from maskline.console.trigger.snapshot import SessionSnapshot, group_cursor
from maskline.schemas.handler_control import HandlerReport, Pause, decode_reports, read_control
from maskline.worker.entries.dead_letter import DEAD_FIELD, DeadLetter, decode_dead_letter, public_id
from maskline.worker.entries.queue_item import QueueItem, decode_item

QUEUE_MAX: Final = 500
"""Items of a retry queue that are looked at, the last ones: the callback was put at the end."""

LETTERS_MAX: Final = 1_000
"""Dead letters since the callback was sent that are looked at."""


class Queued(NamedTuple):
    """The callback in the retry queue of a handler."""

    item: QueueItem
    due_ms: int | None
    """When the queue is tried next, by Redis's clock; None if it is parked, or being tried."""
    parked: bool


class Facts(NamedTuple):
    """What is known of an entry."""

    now_ms: int
    """Redis's clock."""
    workers: int
    """Live ones."""
    takers: tuple[str, ...] | None
    """The handlers of live workers that take the event, in calling order; None if no worker has said which it has."""
    read: bool
    """A worker has read beyond the entry, so it is done with it, unless it is pending."""
    pending: bool
    queued: Mapping[str, Queued]
    """By handler."""
    letters: tuple[tuple[str, DeadLetter], ...]
    """Public ids and dead letters of the entry in this group."""
    held: Mapping[str, str]
    """By handler that may not run now: `paused` or `down`."""


async def read_facts(reader: RedisReader, snapshot: SessionSnapshot, entry_id: str, kind: str) -> Facts:
    """Read them. `kind`: the name of the event's type. Raises RedisUnavailableError and JobError."""
    keys = reader.keys
    time, heartbeats, fields, control = checked(
        await reader.send(
            [
                query_for(keys.workers, "TIME"),
                query_for(keys.workers, "ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
                query_for(keys.handlers, "HGETALL", keys.handlers),
                query_for(keys.control, "HGETALL", keys.control),
            ]
        )
    )
    live, now_ms = live_workers(time, heartbeats, reader.settings.lease_ttl_ms)
    by_worker = {name.decode(): decode_reports(value) for name, value in _pairs(fields)}
    reports = [by_worker[worker] for worker in live if by_worker.get(worker)]
    takers = tuple(
        dict.fromkeys(name for of_one in reports for name, report in of_one.items() if _takes(report, kind))
    )
    paused = read_control({name.decode(): value for name, value in _pairs(control)}).paused
    return await _read_entry(
        reader,
        snapshot,
        entry_id,
        Facts(now_ms, len(live), takers if reports else None, False, False, {}, (), _held(reports, paused)),
    )


async def _read_entry(reader: RedisReader, snapshot: SessionSnapshot, entry_id: str, facts: Facts) -> Facts:
    keys, partition = reader.keys, snapshot.partition
    stream, dead, group = keys.callbacks(partition), keys.dead(partition), keys.group
    handlers = facts.takers or ()
    queries = [
        query_for(stream, "XINFO", "GROUPS", stream),
        query_for(stream, "XPENDING", stream, group, entry_id, entry_id, 1),
    ]
    for handler in handlers:
        queue = keys.retry_queue(partition, handler, snapshot.session_uuid)
        queries += [
            query_for(queue, "LRANGE", queue, -QUEUE_MAX, -1),
            *(
                query_for(index, "ZSCORE", index, snapshot.session_uuid)
                for index in (keys.retry_due(partition, handler), keys.retry_parked(partition, handler))
            ),
        ]
    queries.append(query_for(dead, "XRANGE", dead, f"({snapshot.dead_end}", "+", "COUNT", LETTERS_MAX))
    groups, pending, *rest, letters = await reader.send(queries)
    checked([*rest, letters])
    return facts._replace(
        read=entry_order(group_cursor(groups, group)) >= entry_order(entry_id),
        pending=not isinstance(pending, hiredis.ReplyError) and bool(pending),
        queued=dict(_queued(handlers, rest, entry_id)),
        letters=tuple(_letters(letters, partition, entry_id, group)),
    )


def _takes(report: HandlerReport, kind: str) -> bool:
    return kind in report.events or not report.events  # of an older release: it may


def _held(reports: Iterable[Mapping[str, HandlerReport]], paused: Mapping[str, Pause]) -> dict[str, str]:
    down = {name for of_one in reports for name, report in of_one.items() if report.down_since_ms}
    return dict.fromkeys(down, "down") | dict.fromkeys(paused, "paused")


def _queued(handlers: Iterable[str], replies: list[Any], entry_id: str) -> Iterable[tuple[str, Queued]]:
    for handler, items, due, parked in zip(handlers, replies[::3], replies[1::3], replies[2::3], strict=True):
        for encoded in reversed(items):
            try:
                item = decode_item(encoded)
            except ValueError:  # of another release
                continue
            if item.entry_id == entry_id:
                yield handler, Queued(item, None if due is None else int(float(due)), parked is not None)
                break


def _letters(
    entries: list[Any], partition: int, entry_id: str, group: str
) -> Iterable[tuple[str, DeadLetter]]:
    for letter_id, fields in entries:
        try:
            letter = decode_dead_letter(dict(_pairs(fields)).get(DEAD_FIELD, b""))
        except msgspec.MsgspecError:
            continue
        if letter.entry_id == entry_id and letter.group == group:
            yield public_id(partition, letter_id.decode()), letter


def _pairs(flat: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)
