"""Carries out a job about callbacks of an archive in one partition: runs the sessions again that the command feeds.

`schemas.replay_feed` says what a feed is. Each session is put in order and into retry queues as those of kept callbacks
are (`worker.jobs.session_runs`). The job's cursor is the last entry of the feed that was taken on; what is before it is
trimmed once Redis has the commit that says so, and a worker that takes over goes on from there.

An archive may have callbacks that this group has not handled yet. Those are left out, as they will be anyway: the
entries that are open in the partition are waited for, and entries beyond the group's cursor that are still in the
stream are not run.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.pipeline import pack
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.replay_feed import END_FIELD, PART_FIELD, FeedPart, decode_part
from maskline.worker.entries.entry import EntryPosition, entry_id_at, entry_position
from maskline.worker.jobs.job_run import JobRun
from maskline.worker.jobs.session_runs import decoded, replay_session, wait_handled
from maskline.worker.jobs.stream_pages import StreamPages
from maskline.worker.ordering.reorder import Arrival

FEED_POLL_S: Final = 0.1
"""Between two looks at a feed that was read to its end."""

ASKED_ENTRIES_MAX: Final = 500
"""Entries that one round trip asks the stream for."""

_log = get_logger("maskline.worker")


class FedSession(NamedTuple):
    """A session as it stands in a feed."""

    uuid: str
    callbacks: Sequence[tuple[str, bytes]]
    """As in FeedPart, of all parts."""
    last: EntryPosition
    """Its last entry in the feed."""


async def carry_out_archive(run: JobRun) -> None:
    """Run the sessions of the feed again from the job's cursor on, until the feed's end.

    Raises JobInactiveError, and RedisUnavailableError: it goes on from the record when it is called again.
    """
    feed = _Feed(run)
    while (session := await feed.next()) is not None:
        arrivals = await _handled_arrivals(run, session)
        await replay_session(run, session.uuid, arrivals, session.last)
        feed.took_on(session)
    if run.record.state == "running":
        run.update(replace(run.record, scanned=True))


class _Feed:
    """Reads the feed of a job in a partition, and trims it behind the job."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self._key = run.tools.keys.feed(run.partition.number, run.job.id)
        self._read_to = run.record.cursor
        self._parts: deque[tuple[str, bytes, bytes]] = deque()
        """ID, field and value of entries that were read."""
        self._taken: deque[tuple[int, EntryPosition]] = deque()
        """Sessions taken on and not trimmed: the number of the commit that says so, and their last entry."""

    async def next(self) -> FedSession | None:
        """The next session, waiting for it; None at the end of the feed, or if no more can come of it."""
        callbacks: list[tuple[str, bytes]] = []
        parts = 0
        while True:
            while self._parts:
                entry_id, field, value = self._parts.popleft()
                if field == END_FIELD:
                    return None
                if field == PART_FIELD:
                    position = entry_position(entry_id)
                    if position[1] != parts:
                        self._stop("a part of a session is missing")
                        return None
                    part: FeedPart = decode_part(value)
                    parts += 1
                    callbacks += part.callbacks
                    if part.last:
                        return FedSession(part.session_uuid, callbacks, position)
            if not await self._read_on():
                return None

    def took_on(self, session: FedSession) -> None:
        """The session's runs are in the partition's next commit."""
        self._taken.append((self._run.partition.last_commit_wanted, session.last))

    async def _read_on(self) -> bool:
        """Read what follows, waiting for it. Returns False, and stops the job here, if the feed is gone."""
        await self._trim()
        pages = StreamPages(
            self._run.tools.connections, self._run.partition, self._key, first=f"({self._read_to}", last="+"
        )
        entries = await pages.next()
        self._run.require_active()
        if entries:
            self._parts.extend((entry_id.decode(), fields[0], fields[1]) for entry_id, fields in entries)
            self._read_to = entries[-1][0].decode()
            return True
        (there,) = await self._run.ask(pack("EXISTS", self._key), 1)
        if there:
            await asyncio.sleep(FEED_POLL_S)
            self._run.require_active()
            return True
        self._stop("there is no feed any more")
        return False

    def _stop(self, reason: str) -> None:
        """Stop the job here: not all that was selected would come."""
        job, partition = self._run.job.id, self._run.partition.number
        _log.warning("archive feed broken", job=job, partition=partition, reason=reason)
        self._run.update(replace(self._run.record, state="stopped"))

    async def _trim(self) -> None:
        """Remove what was taken on by commits that Redis has confirmed."""
        last: EntryPosition | None = None
        while self._taken and self._run.partition.is_confirmed(self._taken[0][0]):
            last = self._taken.popleft()[1]
        if last is not None:
            await self._run.ask(pack("XTRIM", self._key, "MINID", "=", entry_id_at((last[0] + 1, 0))), 1)


async def _handled_arrivals(run: JobRun, session: FedSession) -> list[Arrival]:
    """The session's events, without those that the group is yet to handle; the ones under way are waited for."""
    cursor = entry_position(run.partition.cursor)
    positions = {entry_id: entry_position(entry_id) for entry_id, _ in session.callbacks}
    read = [position for position in positions.values() if position <= cursor]
    if read:
        await wait_handled(run, entry_id_at(max(read)))
    ahead = [entry_id for entry_id, position in positions.items() if position > cursor]
    to_come = await _in_stream(run, ahead)
    entries = [
        (entry_id.encode(), [CALLBACK_FIELD, value])
        for entry_id, value in session.callbacks
        if entry_id not in to_come
    ]
    return [
        arrival for arrival in decoded(run, entries) if arrival.payload.event.session_uuid == session.uuid
    ]


async def _in_stream(run: JobRun, entry_ids: Sequence[str]) -> set[str]:
    """Those of the entries that the partition's stream has. Entries of a stream that was lost are not among them."""
    stream = run.tools.keys.callbacks(run.partition.number)
    found: set[str] = set()
    for start in range(0, len(entry_ids), ASKED_ENTRIES_MAX):
        some = entry_ids[start : start + ASKED_ENTRIES_MAX]
        packed = b"".join(pack("XRANGE", stream, one, one) for one in some)
        replies = await run.ask(packed, len(some))
        found.update(one for one, reply in zip(some, replies, strict=True) if reply)
    return found
