"""Carries out jobs about dead letters in one partition: replays those that are selected, or discards them.

The dead letters are read in pages, up to the last one that was there when the job was created: what fails again becomes
a letter beyond it. A replay removes the letter, puts its event into a retry queue and moves the job's cursor in one
commit, so a crash in between repeats nothing and leaves nothing out.

Others may remove letters too: another job, an operator. So those that are about to be replayed are read once more, with
the states of their sessions, over the connection of the partition's commits.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from maskline.runtime.clock import wall_clock_ms
from maskline.runtime.redis.pipeline import pack
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.jobs import PartitionJob
from maskline.worker.commands.retry_ops import Requeue
from maskline.worker.entries.dead_letter import (
    DEAD_FIELD,
    DeadLetter,
    decode_dead_letter,
    public_id,
    split_public_id,
)
from maskline.worker.entries.decode import StreamEntries
from maskline.worker.entries.entry import entry_position
from maskline.worker.jobs.job_run import JobRun
from maskline.worker.jobs.letter_plan import GONE, LetterPlan, plan_replay
from maskline.worker.jobs.letter_replay import discard, put_back
from maskline.worker.jobs.stream_pages import StreamPages
from maskline.worker.partitions.partition_jobs import queue_name, took_on
from maskline.worker.partitions.session import LiveSession

BATCH_LETTERS_MAX: Final = 32
"""Letters that are dealt with by one commit."""

SESSION_BUSY_S: Final = 0.05
"""Before the next try to replay into a session that has events under way and no retry queue."""


PARKED_WITHIN_MS: Final = 1_000
"""A queue's time of parking is no more than this after the time in the ID of the letter that it is parked behind: both
are written by one script. What has expired has waited for longer (MASKLINE_DEAD_TTL_S)."""


class Selected(NamedTuple):
    """A dead letter that is selected."""

    entry_id: str
    """Its own, in `{ns:p}:dead`."""
    letter: DeadLetter
    plan: LetterPlan

    @property
    def queues(self) -> list[str]:
        """The retry queues that its event goes to, by their names in the job's record."""
        return [queue_name(handler, self.letter.session_uuid or "") for handler in self.plan.handlers]


class Stored(NamedTuple):
    """What Redis has of a selected letter when it is dealt with."""

    there: bool
    """The letter is still there."""
    state: bytes | None
    """The state of its session."""
    parked_ms: float | None
    """Since when its handler's queue of the session is parked, by the server's clock; None if it is not."""


async def carry_out_letters(run: JobRun) -> None:
    """Replay or discard the selected letters from the job's cursor on, until its end.

    Raises JobInactiveError, and RedisUnavailableError: it goes on from the record when it is called again.
    """
    pages = _pages_of(run)
    while not pages.at_end:
        entries = await pages.next()
        run.require_active()
        await _deal_with(run, _selected(run, entries))
        if entries:
            run.update(replace(run.record, cursor=entries[-1][0].decode()))
    run.update(replace(run.record, cursor=run.record.end, scanned=True))


def _pages_of(run: JobRun) -> "StreamPages | _NamedLetters":
    record, ids = run.record, run.job.selection.ids
    if ids:
        return _NamedLetters(run, ids)
    stream = run.tools.keys.dead(run.partition.number)
    return StreamPages(
        run.tools.connections, run.partition, stream, first=f"({record.cursor}", last=record.end
    )


def _selected(run: JobRun, entries: StreamEntries) -> list[Selected]:
    """The letters among these entries that the job selects; another group's are none of ours."""
    found: list[Selected] = []
    for encoded_id, fields in entries:
        letter, entry_id = letter_in(fields), encoded_id.decode()
        if letter is None or letter.group != run.partition.group:
            continue
        name = public_id(run.partition.number, entry_id)
        if run.job.selection.matches(letter, name, letter.group_key or letter.code):
            found.append(Selected(entry_id, letter, _plan(run, letter)))
    return found


def letter_in(fields: Sequence[bytes]) -> DeadLetter | None:
    """The dead letter in an entry; None if maskline did not write the entry."""
    try:
        return decode_dead_letter(fields[1]) if len(fields) == 2 and fields[0] == DEAD_FIELD else None
    except msgspec.MsgspecError:
        return None


def _plan(run: JobRun, letter: DeadLetter) -> LetterPlan:
    if run.job.kind == "discard":
        return GONE  # of a discard nothing runs
    tools = run.tools
    fields = CALLBACK_FIELD, letter.callback
    try:
        arrival = tools.decoder.arrival_of(letter.entry_id, fields, tools.recording_shared)
    except (UndecodableEntryError, ValueError):
        arrival = None
    return plan_replay(letter, arrival, tools.handlers_of)


async def _deal_with(run: JobRun, selected: Sequence[Selected]) -> None:
    """Deal with the letters of a page, in batches, as fast as more may begin."""
    batch: list[Selected] = []
    for one in selected:
        runs = max(len(one.plan.handlers), 1)
        queues = [queue for other in (*batch, one) for queue in other.queues]
        if len(batch) == BATCH_LETTERS_MAX or not (run.has_room(queues) and run.take_rate(runs)):
            await _apply(run, batch)
            await run.wait_admitted(runs, one.queues)
            batch = []
        batch.append(one)
    await _apply(run, batch)


async def _apply(run: JobRun, batch: Sequence[Selected]) -> None:
    """Replay or discard the letters of a batch that are still there."""
    while batch:
        found = await _read_again(run, batch)
        being_deleted = run.partition.letters_being_deleted()
        dealt_with = 0
        for one, stored in zip(batch, found, strict=True):
            if stored.there and one.entry_id not in being_deleted:
                deal_with = _discard if run.job.kind == "discard" else _replay
                record = deal_with(run, one, stored)
                if record is None:
                    break
                run.update(record)
            dealt_with += 1
        batch = batch[dealt_with:]
        if batch:
            await asyncio.sleep(SESSION_BUSY_S)
            run.require_active()


async def _read_again(run: JobRun, batch: Sequence[Selected]) -> list[Stored]:
    """What Redis has of each letter now."""
    keys, number = run.tools.keys, run.partition.number
    asked = b"".join(
        pack("XRANGE", keys.dead(number), one.entry_id, one.entry_id)
        + pack("GET", keys.session(number, one.letter.session_uuid or ""))
        + pack("ZSCORE", keys.retry_parked(number, one.letter.handler or ""), one.letter.session_uuid or "")
        for one in batch
    )
    replies = await run.ask(asked, 3 * len(batch))
    return [
        Stored(bool(found), state, None if parked is None else float(parked))
        for found, state, parked in zip(replies[::3], replies[1::3], replies[2::3], strict=True)
    ]


def _discard(run: JobRun, one: Selected, stored: Stored) -> PartitionJob | None:
    """Discard a letter, and return the job's record after that; None if its session must be asked again later."""
    letter, partition, session, parks = one.letter, run.partition, None, False
    if letter.parked and letter.handler is not None and letter.session_uuid is not None:
        session = partition.session_of(letter.session_uuid, stored.state)
        if not partition.may_change_queues(session):
            return None
        parks = _parks(one, stored, session, letter.handler)
    discard(partition, session, one.entry_id, letter, parks=parks)
    return took_on(run.record, cursor=one.entry_id, discarded=1)


def _replay(run: JobRun, one: Selected, stored: Stored) -> PartitionJob | None:
    """Replay a letter, and return the job's record after that; None if its session must be asked again later."""
    letter, plan, partition = one.letter, one.plan, run.partition
    if plan.action == "gone":
        return took_on(run.record, cursor=one.entry_id, gone=1)
    if plan.action == "requeue":
        partition.add_retry_op(Requeue(one.entry_id, letter.callback))
        return took_on(run.record, cursor=one.entry_id, succeeded=1)
    session = partition.session_of(plan.session_uuid, stored.state)
    if not partition.may_change_queues(session):
        return None
    parks = letter.parked and letter.handler is not None and _parks(one, stored, session, letter.handler)
    put = put_back(
        partition, session, one.entry_id, letter, plan, parks=parks, now_ms=wall_clock_ms(), job=run.job.id
    )
    queued = {queue_name(handler, letter.session_uuid or ""): 1 for handler in put.queued}
    return took_on(run.record, cursor=one.entry_id, queued=queued, parked=put.parked)


def _parks(one: Selected, stored: Stored, session: LiveSession, handler: str) -> bool:
    """Whether the handler's queue is parked behind this letter.

    It may be parked behind a later one, if what waited behind this one has expired. The commit that wrote the letter
    has parked the queue, so it is not parked since later. A session whose state was lost does not know of its queue.
    """
    if stored.parked_ms is None or stored.parked_ms > entry_position(one.entry_id)[0] + PARKED_WITHIN_MS:
        return False
    return session.retries is None or session.retries[handler].parked


class _NamedLetters:
    """Pages of the letters that an operator has named, from the job's cursor up to its end."""

    def __init__(self, run: JobRun, ids: Sequence[str]) -> None:
        self._run = run
        record = run.record
        first, last = entry_position(record.cursor), entry_position(record.end)
        own = {entry_id for number, entry_id in map(split_public_id, ids) if number == run.partition.number}
        self._left = sorted((one for one in own if first < entry_position(one) <= last), key=entry_position)

    @property
    def at_end(self) -> bool:
        """Whether all were read."""
        return not self._left

    async def next(self) -> StreamEntries:
        """The next letters of those that are still there. Raises RedisUnavailableError."""
        some, stream = self._left[:BATCH_LETTERS_MAX], self._run.tools.keys.dead(self._run.partition.number)
        replies = await self._run.ask(b"".join(pack("XRANGE", stream, one, one) for one in some), len(some))
        self._left = self._left[BATCH_LETTERS_MAX:]
        return [entry for reply in replies for entry in reply]
