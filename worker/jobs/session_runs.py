"""Puts the selected events of one session into its retry queues, to run again: in order, by one commit or a few.

It is the same for callbacks that are kept in the streams and for those of an archive. Live events of the session wait
behind them. What waits in a retry queue as it is, or is the dead letter that the queue waits behind, is left out: it
has not been handled yet.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from maskline.runtime.clock import wall_clock_ms
from maskline.runtime.redis.pipeline import pack
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.jobs import PartitionJob
from maskline.worker.entries.decode import StreamEntries
from maskline.worker.entries.entry import EntryPosition, entry_id_at
from maskline.worker.entries.queue_item import QueueItem, decode_item
from maskline.worker.jobs.job_run import CHECK_S, JobRun
from maskline.worker.jobs.letter_scan import PARKED_WITHIN_MS, SESSION_BUSY_S, letter_in
from maskline.worker.jobs.session_replay import Run, replayed_item, runs_again, without
from maskline.worker.jobs.stream_pages import StreamPages
from maskline.worker.ordering.reorder import Arrival
from maskline.worker.ordering.state import NEW_SESSION, SessionState
from maskline.worker.partitions.partition_jobs import queue_name, took_on
from maskline.worker.partitions.session import LiveSession

RUNS_PER_COMMIT_MAX: Final = 500
"""Runs that one commit puts into queues. A session with more takes several, and live events may come in between."""

QUEUE_PAGE_ITEMS: Final = 64
"""Items of a retry queue that are read at a time, to see which entries wait there."""


async def wait_handled(run: JobRun, last: str) -> None:
    """Wait until every entry up to `last` is done, and Redis knows."""
    partition = run.partition
    while partition.has_open_up_to(last):
        await asyncio.sleep(CHECK_S)
        run.require_active()
    number = partition.last_commit_wanted
    while not partition.is_confirmed(number):
        await asyncio.sleep(CHECK_S)
        run.require_active()


def decoded(run: JobRun, entries: StreamEntries) -> Iterable[Arrival]:
    """The events of those entries that can be decoded; the others are dead letters."""
    tools = run.tools
    for entry_id, fields in entries:
        try:
            yield tools.decoder.arrival_of(entry_id.decode(), fields, tools.recording_shared)
        except (UndecodableEntryError, ValueError):
            continue


async def replay_session(run: JobRun, uuid: str, arrivals: Sequence[Arrival], last: EntryPosition) -> None:
    """Put a session's runs into its retry queues. `arrivals`: all that is known of it, in the order of their entries.
    `last`: the job's cursor after it.

    Raises JobInactiveError, and RedisUnavailableError: it goes on from the record when it is called again.
    """
    runs = _runs(run, arrivals, NEW_SESSION)
    while True:
        done = run.record.appended
        some = _bounded(runs[done:])
        if some:
            await run.wait_admitted(*_size(uuid, some))
        session, waiting = await _ready_session(
            run, uuid, {handler for one in some for handler in one.handlers}
        )
        runs = _runs(run, arrivals, session.state)
        record = _append(run, session, without(runs[done : done + len(some)], waiting))
        if done + len(some) >= len(runs):
            run.update(replace(record, appended=0, cursor=entry_id_at(last)))
            return
        run.update(replace(record, appended=done + len(some)))


async def _ready_session(
    run: JobRun, uuid: str, handlers: Iterable[str]
) -> tuple[LiveSession, set[tuple[str, str]]]:
    """The session, once its queues may be changed, and what waits in those of the handlers (`_waiting`)."""
    partition = run.partition
    while True:
        waiting = await _waiting(run, uuid, handlers)
        (state,) = await run.ask(pack("GET", run.tools.keys.session(partition.number, uuid)), 1)
        session = partition.session_of(uuid, state)
        if partition.may_change_queues(session):
            return session, waiting
        await asyncio.sleep(SESSION_BUSY_S)
        run.require_active()


def _runs(run: JobRun, arrivals: Sequence[Arrival], now: SessionState) -> list[Run]:
    """What runs again of a session. `now`: its order as it is."""
    tools = run.tools
    return runs_again(arrivals, run.job.selection, tools.handlers_of, tools.policy, now)


def _bounded(runs: Sequence[Run]) -> Sequence[Run]:
    """As many of the runs, at least one, as one commit takes."""
    count = 0
    for place, one in enumerate(runs):
        count += len(one.handlers)
        if place and count > RUNS_PER_COMMIT_MAX:
            return runs[:place]
    return runs


def _size(uuid: str, runs: Sequence[Run]) -> tuple[int, set[str]]:
    """How many runs, of every handler, and in which retry queues."""
    queues = {queue_name(handler, uuid) for one in runs for handler in one.handlers}
    return sum(len(one.handlers) for one in runs), queues


async def _waiting(run: JobRun, uuid: str, handlers: Iterable[str]) -> set[tuple[str, str]]:
    """The handlers, each with the ID of an entry that waits in its retry queue of the session, or is parked there."""
    found: set[tuple[str, str]] = set()
    for handler in handlers:
        found.update((handler, entry_id) for entry_id in await _given_up(run, uuid, handler))
        key, first = run.tools.keys.retry_queue(run.partition.number, handler, uuid), 0
        items: Sequence[bytes] = ()
        while not first or len(items) == QUEUE_PAGE_ITEMS:
            (items,) = await run.ask(pack("LRANGE", key, first, first + QUEUE_PAGE_ITEMS - 1), 1)
            found.update((handler, _entry_of(item)) for item in items)
            first += QUEUE_PAGE_ITEMS
    return found


async def _given_up(run: JobRun, uuid: str, handler: str) -> set[str]:
    """The entry of the dead letter that the handler's queue of the session is parked behind; empty if it is not."""
    keys, number = run.tools.keys, run.partition.number
    (parked_ms,) = await run.ask(pack("ZSCORE", keys.retry_parked(number, handler), uuid), 1)
    found: set[str] = set()
    if parked_ms is None:
        return found
    last_ms = int(float(parked_ms))
    first, last = str(last_ms - PARKED_WITHIN_MS), str(last_ms)
    pages = StreamPages(run.tools.connections, run.partition, keys.dead(number), first=first, last=last)
    wanted = run.partition.group, uuid, handler, True
    while not pages.at_end:
        for letter in (letter_in(fields) for _, fields in await pages.next()):
            if letter and (letter.group, letter.session_uuid, letter.handler, letter.parked) == wanted:
                found.add(letter.entry_id)
    return found


def _entry_of(item: bytes) -> str:
    """The entry of an item; empty if this release cannot read it."""
    try:
        return decode_item(item).entry_id
    except ValueError:
        return ""


def _append(run: JobRun, session: LiveSession, runs: Sequence[Run]) -> PartitionJob:
    """Put runs into the session's retry queues, and return the job's record after that, its cursor where it was."""
    items: defaultdict[str, list[QueueItem]] = defaultdict(list)
    now_ms = wall_clock_ms()
    for release, handlers in runs:
        item = replayed_item(release, now_ms, run.job.id)
        for handler in handlers:
            items[handler].append(item)
    queued, parked = Counter[str](), 0
    for handler, those in items.items():
        run.partition.append_replayed(session, handler, those)
        if session.retries is not None and session.retries[handler].parked:
            parked += len(those)
        else:
            queued[queue_name(handler, session.uuid)] = len(those)
    return took_on(run.record, cursor=run.record.cursor, queued=queued, parked=parked)
