"""`maskline dead list`: dead letters as rows, in the order in which they were written."""

import argparse
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Final

import hiredis
import msgspec

from maskline.console.dead.letters import Letter, by_time, letters_of_ids
from maskline.console.output import counted, print_json_array, printable, shortened, utc_time
from maskline.console.redis_reader import RedisReader, entry_order, query_for
from maskline.console.tables import print_columns
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.jobs import Selection
from maskline.schemas.keys import Keys
from maskline.schemas.privacy import redact

REASON_SHOWN_CHARS: Final = 60

TABLE_ROWS_MAX: Final = 500
"""Rows of one table, and letters whose queues are counted in one round trip; longer lists have several tables."""


class DeadLetterRow(msgspec.Struct, frozen=True):
    """A dead letter as listed; `--json` prints exactly these fields."""

    id: str
    session_uuid: str | None
    event_name: str | None
    sequence_number: int | None
    handler: str | None
    """None if no handler was reached."""
    code: str
    reason: str
    attempts: int
    received_at: datetime | None
    failed_at: datetime
    waiting: int
    """How many events of the session wait behind it for this handler."""
    parked: bool
    """Whether later events of the session wait for an operator: whether any does, `waiting` says."""
    group: str
    """The consumer group (MASKLINE_GROUP) whose workers gave it up."""
    group_key: str
    """Of its group in `dead groups`: what `--group` takes."""
    partition: int


async def find_letters(
    reader: RedisReader, selection: Selection, *, newest_first: bool = False
) -> AsyncIterator[Letter]:
    """The selected dead letters of all consumer groups: in the order of `selection.ids`, else in that of time."""
    letters = (
        letters_of_ids(reader, dict.fromkeys(selection.ids))
        if selection.ids
        else by_time(reader, newest_first=newest_first)
    )
    async for letter in letters:
        if selection.matches(letter.head, letter.id, letter.group_key):
            yield letter


async def latest_letters(reader: RedisReader, selection: Selection, limit: int) -> list[Letter]:
    """The latest `limit` of the selected dead letters, the oldest of these first. Reads little more than these."""
    if selection.ids:
        named = [letter async for letter in find_letters(reader, selection)]
        return sorted(named, key=lambda letter: (entry_order(letter.entry_id), letter.partition))[-limit:]
    found: list[Letter] = []
    async for letter in find_letters(reader, selection, newest_first=True):
        found.append(letter)
        if len(found) == limit:
            break
    return found[::-1]


async def waiting_behind(reader: RedisReader, letters: Sequence[Letter]) -> list[int]:
    """For each letter, how many events wait behind it: the length of its retry queue, if the letter is parked."""
    keys = {
        group: Keys(reader.settings.namespace, group) for group in {letter.head.group for letter in letters}
    }
    queues = [
        keys[head.group].retry_queue(partition, head.handler, head.session_uuid)
        if head.parked and head.handler is not None and head.session_uuid is not None
        else None
        for partition, _, head, _ in letters
    ]
    lengths = iter(await reader.send([query_for(queue, "LLEN", queue) for queue in queues if queue]))
    waiting = [0 if queue is None else next(lengths) for queue in queues]
    for reply in waiting:
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"a retry queue cannot be read: {reply}")
    return waiting


def row_of(letter: Letter, waiting: int) -> DeadLetterRow:
    """The row of a letter, without phone numbers; `waiting`: the events behind it."""
    head = letter.head
    return DeadLetterRow(
        id=letter.id,
        session_uuid=head.session_uuid,
        event_name=head.event_name,
        sequence_number=head.sequence_number,
        handler=head.handler,
        code=head.code,
        reason=redact(head.reason),
        attempts=head.attempts,
        received_at=None if head.received_at_ms is None else utc_time(head.received_at_ms),
        failed_at=utc_time(head.failed_at_ms)
        or utc_time(entry_order(letter.entry_id)[0])
        or datetime.max.replace(tzinfo=UTC),
        waiting=waiting,
        parked=head.parked,
        group=head.group,
        group_key=letter.group_key,
        partition=letter.partition,
    )


async def run(reader: RedisReader, arguments: argparse.Namespace, selection: Selection) -> int:
    """Print the selected letters; the exit code. `arguments`: `json` and `limit`."""
    tables = _tables(reader, selection, arguments.limit)
    if arguments.json:
        await print_json_array(row async for rows in tables for row in rows)
        return 0
    count = 0
    async for rows in tables:
        count += len(rows)
        _print_rows(rows)
    print(counted(count, "dead letter") if count else "no dead letters")
    return 0


async def _tables(
    reader: RedisReader, selection: Selection, limit: int | None
) -> AsyncIterator[list[DeadLetterRow]]:
    """The rows, TABLE_ROWS_MAX together."""
    letters: AsyncIterable[Letter] = find_letters(reader, selection)
    if limit is not None:
        letters = _each(await latest_letters(reader, selection, limit))
    batch: list[Letter] = []
    async for letter in letters:
        batch.append(letter)
        if len(batch) == TABLE_ROWS_MAX:
            yield await _rows(reader, batch)
            batch.clear()
    if batch:
        yield await _rows(reader, batch)


async def _each(letters: Sequence[Letter]) -> AsyncIterator[Letter]:
    for letter in letters:
        yield letter


async def _rows(reader: RedisReader, letters: Sequence[Letter]) -> list[DeadLetterRow]:
    return [
        row_of(letter, waiting)
        for letter, waiting in zip(letters, await waiting_behind(reader, letters), strict=True)
    ]


def _print_rows(rows: Sequence[DeadLetterRow]) -> None:
    names = ("id", "failed at", "session", "event", "number", "handler", "tries", "waiting", "reason")
    print_columns(
        names,
        [
            (
                row.id,
                f"{row.failed_at:%Y-%m-%d %H:%M:%S}",
                printable(row.session_uuid or ""),
                printable(row.event_name or ""),
                "" if row.sequence_number is None else str(row.sequence_number),
                printable(row.handler or "none"),
                str(row.attempts),
                str(row.waiting) if row.parked else "",
                shortened(row.reason, REASON_SHOWN_CHARS),
            )
            for row in rows
        ],
    )
