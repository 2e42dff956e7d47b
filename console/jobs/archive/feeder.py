"""Feeds sorted sessions to the workers, as `schemas.replay_feed` describes: a bounded number of bytes ahead of them.

All partitions are fed at the same time, each session as a whole. How far the workers are stands in the job's records.
A connection that breaks is opened again: what a failover has lost of a feed is added again, since an addition that is
there already is refused by its ID. A feed that has expired (its command was suspended) is not begun anew, as what was
in it is lost: the workers stop the job there.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

import hiredis

from maskline.console.jobs.archive.session_sort import SessionSort, SortedSession
from maskline.console.jobs.records import checked
from maskline.console.redis_reader import Query, RedisReader, entry_order, query_for
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.jobs import Job, decode_partition_job
from maskline.schemas.replay_feed import (
    BEGIN_FIELD,
    BEGIN_ID,
    END_FIELD,
    FEED_LEFT_TTL_MS,
    FEED_MAX_BYTES,
    FEED_TTL_MS,
    PART_FIELD,
    PART_MAX_BYTES,
    FeedPart,
    encode_part,
)

POLL_S: Final = 0.1
"""Between two looks at how far the workers are: a command for each partition that is fed."""

RENEW_S: Final = 30.0
"""Between two renewals of the feeds' time to live."""

SEND_MAX_BYTES: Final = 1 << 20
"""Callbacks that are sent in one round trip, roughly."""

RECONNECT_S: Final = 1.0

ALREADY_THERE: Final = "ERR The ID specified in XADD is equal or smaller"


class _PartitionFeed:
    """What was fed to one partition."""

    def __init__(self, partition: int, key: str) -> None:
        self.partition = partition
        self.key = key
        self.fed_to = 0
        """The number of the last session that is in the feed."""
        self.ahead: deque[tuple[int, int]] = deque()
        """Sessions that are not taken on: number and bytes."""
        self.bytes_ahead = 0
        self.all_fed = False
        """Its end is in the feed."""
        self.ended = False
        """The workers want nothing more of it."""

    def taken_up_to(self, session: int) -> None:
        """The workers have taken on all sessions up to this one."""
        while self.ahead and self.ahead[0][0] <= session:
            self.bytes_ahead -= self.ahead.popleft()[1]

    def rewind(self, session: int) -> None:
        """Feed again from this session on."""
        self.fed_to, self.all_fed = session - 1, False
        while self.ahead and self.ahead[-1][0] >= session:
            self.ahead.pop()
        self.bytes_ahead = sum(size for _, size in self.ahead)

    @property
    def has_room(self) -> bool:
        """Whether one more session may be added."""
        return not self.all_fed and not self.ended and self.bytes_ahead < FEED_MAX_BYTES


class ArchiveFeeder:
    """Feeds the sessions of `sort` to the workers that carry out a job."""

    def __init__(self, sort: SessionSort) -> None:
        self._sort = sort
        self._feeds: list[_PartitionFeed] = []
        self.sessions_fed = 0
        self.callbacks_fed = 0

    @property
    def all_fed(self) -> bool:
        """Whether the workers need nothing more of this command."""
        return bool(self._feeds) and all(feed.all_fed or feed.ended for feed in self._feeds)

    async def open(self, reader: RedisReader, job: Job) -> None:
        """Make the feeds of a job that nobody knows yet. Harmless to repeat."""
        self._feeds = [_PartitionFeed(number, reader.keys.feed(number, job.id)) for number in job.partitions]
        for feed in self._feeds:
            queries = [query_for(feed.key, "XADD", feed.key, BEGIN_ID, BEGIN_FIELD, b""), _renewal(feed)]
            _checked_additions(await reader.send(queries))

    async def run(self, reader: RedisReader, job: Job) -> None:
        """Feed all sessions, and keep the feeds alive until cancelled. The reader's connection is for this alone."""
        renewed_at = time.monotonic()
        while True:
            try:
                await self._look(reader, job)
                for feed in self._feeds:
                    while feed.has_room:
                        await self._feed_more(reader, feed)
                if time.monotonic() >= renewed_at + RENEW_S:
                    renewed_at = time.monotonic()
                    await self.renew(reader)
            except RedisUnavailableError:
                await self._reconnect(reader)
            await asyncio.sleep(POLL_S)

    async def renew(self, reader: RedisReader, ttl_ms: int = FEED_TTL_MS) -> None:
        """Let the feeds live so much longer; 1 ms removes them."""
        checked(await reader.send([_renewal(feed, ttl_ms) for feed in self._feeds]))

    async def leave(self, reader: RedisReader) -> None:
        """Let what is in the feeds be taken on without this command."""
        await self.renew(reader, FEED_LEFT_TTL_MS)

    async def _look(self, reader: RedisReader, job: Job) -> None:
        """See how far the workers are."""
        feeds = [feed for feed in self._feeds if not feed.ended]
        keys = [reader.keys.partition_jobs(feed.partition) for feed in feeds]
        replies = checked(await reader.send([query_for(key, "HGET", key, job.id) for key in keys]))
        for feed, value in zip(feeds, replies, strict=True):
            if value is None:
                feed.ended = True  # `follow` says so
                continue
            record = decode_partition_job(value)
            feed.ended = record.state != "running"
            feed.taken_up_to(entry_order(record.cursor)[0])

    async def _feed_more(self, reader: RedisReader, feed: _PartitionFeed) -> None:
        """Add the next sessions of a partition, about SEND_MAX_BYTES of them at most, or the feed's end."""
        queries: list[Query] = []
        size = 0
        ends = False
        while feed.has_room and not ends:
            session = self._sort.next_session(feed.partition, feed.fed_to)
            if session is None:
                queries.append(_addition(feed, f"{feed.fed_to + 1}-0", END_FIELD, b""))
                ends = True
                continue
            before = feed.bytes_ahead
            for number, (part, part_bytes) in enumerate(self._parts(session)):
                entry_id = f"{session.id}-{number}"
                queries.append(_addition(feed, entry_id, PART_FIELD, encode_part(part)))
                size += part_bytes
                feed.bytes_ahead += part_bytes
                self.callbacks_fed += len(part.callbacks)
                if size >= SEND_MAX_BYTES:  # in the middle of a large session
                    await self._add(reader, feed, queries)
                    queries, size = [], 0
            feed.ahead.append((session.id, feed.bytes_ahead - before))
            feed.fed_to = session.id
            self.sessions_fed += 1
        await self._add(reader, feed, queries)
        feed.all_fed = ends and not feed.ended

    async def _add(self, reader: RedisReader, feed: _PartitionFeed, additions: list[Query]) -> None:
        if None in _checked_additions(await reader.send(additions)):
            feed.ended = True  # it is gone

    def _parts(self, session: SortedSession) -> Iterator[tuple[FeedPart, int]]:
        """The parts of a session, each with its bytes."""
        some: list[tuple[str, bytes]] = []
        size = 0
        for entry_id, value in self._sort.callbacks_of(session.id):
            if some and size + len(value) > PART_MAX_BYTES:
                yield FeedPart(session.uuid, False, some), size
                some, size = [], 0
            some.append((entry_id, value))
            size += len(value)
        yield FeedPart(session.uuid, True, some), size

    async def _reconnect(self, reader: RedisReader) -> None:
        """Connect anew, and go back to where each feed ends now: a failover may have lost the end of some."""
        while True:
            try:
                await asyncio.sleep(RECONNECT_S)
                await reader.reconnect()
                await self._find_ends(reader)
            except RedisUnavailableError:
                continue
            return

    async def _find_ends(self, reader: RedisReader) -> None:
        feeds = [feed for feed in self._feeds if not feed.ended]
        replies = await reader.send([query_for(feed.key, "XINFO", "STREAM", feed.key) for feed in feeds])
        for feed, reply in zip(feeds, replies, strict=True):
            if isinstance(reply, hiredis.ReplyError) and "no such key" in str(reply):
                continue  # the workers stop the job there
            (info,) = checked([reply])
            facts = dict(zip(info[::2], info[1::2], strict=True))
            last = entry_order(facts[b"last-generated-id"].decode())[0]
            feed.rewind(max(last, 1))  # of that session parts may be missing


def _addition(feed: _PartitionFeed, entry_id: str, field: bytes, value: bytes) -> Query:
    return query_for(feed.key, "XADD", feed.key, "NOMKSTREAM", entry_id, field, value)


def _renewal(feed: _PartitionFeed, ttl_ms: int = FEED_TTL_MS) -> Query:
    return query_for(feed.key, "PEXPIRE", feed.key, ttl_ms)


def _checked_additions(replies: Iterable[Any]) -> list[Any]:
    """The replies but those to what is in the feed already; None where there is no feed. Raises as `checked`."""
    return checked(
        [
            reply
            for reply in replies
            if not (isinstance(reply, hiredis.ReplyError) and str(reply).startswith(ALREADY_THERE))
        ]
    )
