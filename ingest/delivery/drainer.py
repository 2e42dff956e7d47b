"""Moves callbacks from the spool to Redis while Redis takes them.

- One page at a time, in order of arrival: read, publish, delete what was confirmed. A process that dies between the
  last two leaves duplicates, which the worker counts and drops.
- The rate limiter bounds the rate (`ingest.delivery.rate_limiter`).
- While the breaker is open, a single callback is the probe. Often nobody knows whether a probe was stored, and then it
  is repeated.
- A server that is slow for good gets larger pages, one after the other: a page may wait longer than a request. In a
  cluster the other servers do not wait for it. A server that is slow, but in time, gets pages that are larger in
  proportion: otherwise more could arrive than is drained, and the spool would never get empty.
- A callback that Redis refuses for itself (its key holds no stream) stays in the spool, with those of its partition
  behind it; other partitions go on. After RETRY_REFUSED_S it is tried again from the beginning.
- The spool files of the process take turns, page by page.
- An error of the disk or the directory ends nothing: it is logged, shown by /readyz, and tried again (`runtime.tasks`).
"""

import asyncio
import contextlib
from time import monotonic
from typing import Final

from maskline.ingest.delivery.rate_limiter import SLOW_PAGE_ROWS_MAX, RateLimiter
from maskline.ingest.outcome import MOVED, SERVER_FAILURES
from maskline.ingest.publish.pool import PublisherPool
from maskline.ingest.publish.publisher import Publisher
from maskline.ingest.spool.errors import SpoolError
from maskline.ingest.spool.file_set import SlotFile
from maskline.ingest.spool.spool import Spool
from maskline.ingest.spool.sqlite_file import Row
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.settings import Settings

PROBE_ROWS: Final = 1
"""Rows of a page that only probes whether a server takes callbacks."""
IDLE_S: Final = 0.25
"""How often Redis and the disk are checked while they do not work. New callbacks wake the drainer at once."""
RETRY_REFUSED_S: Final = 5.0
"""How long the drainer passes over callbacks that Redis refused for themselves."""
RETRY_AWAY_S: Final = 1.0
"""The same where one server of several is away, or a partition moves to another."""
ADOPT_INTERVAL_S: Final = 10.0
"""How often the directory is searched for spool files of dead processes."""

DRAIN_TASK: Final = "drain"
ADOPTION_TASK: Final = "spool adoption"
"""Names of background tasks, as the metric `background_failures` shows them."""

_NOT_TRIED_HELD_UP: Final = "waits"
"""In place of a code: not published, because an earlier callback holds its partition up."""
_NOT_TRIED_AWAY: Final = "away"
"""In place of a code: not published, because the server of its partition is away."""
_NOT_REFUSED: Final = frozenset({"", _NOT_TRIED_HELD_UP, _NOT_TRIED_AWAY})
"""Codes that are no refusal: these two, and the empty code of a callback that was taken."""


class _Cursor:
    """How far one spool file has been drained."""

    def __init__(self, slot_file: SlotFile) -> None:
        self.slot_file = slot_file
        self.published: list[Row] = []
        """Rows confirmed by Redis, and not deleted yet."""
        self.pending: dict[Publisher, tuple[list[Row], asyncio.Future[list[str]]]] = {}
        """Pages that slow servers, or probed ones, have not answered yet."""
        self.retry_at = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin anew with the oldest callback."""
        self.after_id = 0
        """The last row that was read."""
        self.passed_over = 0
        """Callbacks up to `after_id` that are still in the file."""
        self.held_up: set[int] = set()
        """The partitions of these callbacks."""

    def collect_pending(self) -> None:
        """Collect the outcomes of pending pages that were answered meanwhile."""
        for publisher, (rows, page) in [*self.pending.items()]:
            if page.done():
                del self.pending[publisher]
                codes = page.result()
                self.published += [row for row, code in zip(rows, codes, strict=True) if not code]

    def has_work(self, now: float) -> bool:
        """Whether there is a row to publish or to delete. Restarts when the rows passed over are due again."""
        if self.published or any(page.done() for _, page in self.pending.values()):
            return True
        if self.passed_over and now >= self.retry_at:
            self.restart()
        return self.slot_file.file.state.callbacks > self.passed_over

    def pass_over(self, rows: list[Row], codes: list[str], partitions: int, retry_at: float) -> None:
        """Go on behind these rows, and try those with a code again at `retry_at`."""
        for row, code in zip(rows, codes, strict=True):
            if code:
                self.held_up.add(row.partition_hash % partitions)
                self.passed_over += 1
                self.retry_at = max(self.retry_at, retry_at)
        self.after_id = rows[-1].id


class Drainer:
    """The background task that drains the spool files of the process, and adopts those of dead processes."""

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        pool: PublisherPool,
        tasks: BackgroundTasks,
        rate_limiter: RateLimiter,
    ) -> None:
        self._partitions = settings.partitions
        self._spool = spool
        self._pool = pool
        self._tasks = tasks
        self._rate_limiter = rate_limiter
        self._cursors: list[_Cursor] = []
        self._turn = 0
        """The file that had the last turn, as an index of `_cursors`."""
        self._adopt_at = monotonic() + ADOPT_INTERVAL_S
        self._finishing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Drain in the background."""
        self._task = self._tasks.start(DRAIN_TASK, self._run)

    async def finish(self, timeout_s: float) -> None:
        """Drain until the spool is empty or Redis takes no more, for `timeout_s` at most; then end."""
        if self._task is None:
            return
        self._finishing.set()
        self._spool.changed.set()
        await asyncio.wait([self._task], timeout=max(0.0, timeout_s))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    async def _run(self) -> None:
        while True:
            await self._adopt()
            cursor = self._next_cursor() if self._pool.can_drain else None
            if cursor is not None:
                try:
                    if await self._drain_page(cursor):
                        continue
                except SpoolError as error:  # the next file has its turn all the same
                    self._tasks.failed(DRAIN_TASK, error)
            if self._finishing.is_set() and not self._retry_soon():
                return
            await self._idle()

    async def _idle(self) -> None:
        """Wait until there may be something to do."""
        # While Redis is away, every commit of the spool would wake the drainer without need.
        wake_up = self._spool.changed if self._pool.can_drain else self._finishing
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_S):
                await wake_up.wait()
        self._spool.changed.clear()

    def _retry_soon(self) -> bool:
        """Whether rows that were passed over are about to be tried again."""
        soon = monotonic() + RETRY_AWAY_S
        return self._pool.accepts_pages and any(c.passed_over and c.retry_at <= soon for c in self._cursors)

    async def _adopt(self) -> None:
        now = monotonic()
        if now >= self._adopt_at and not self._finishing.is_set():
            self._adopt_at = now + ADOPT_INTERVAL_S
            try:
                await self._spool.adopt()
            except SpoolError as error:
                self._tasks.failed(ADOPTION_TASK, error)

    def _next_cursor(self) -> _Cursor | None:
        """The cursor of the file whose turn it is, of those with something to do."""
        files = self._spool.files()
        known = {id(cursor.slot_file): cursor for cursor in self._cursors}
        self._cursors = [known.get(id(slot_file)) or _Cursor(slot_file) for slot_file in files]
        now = monotonic()
        for offset in range(1, len(files) + 1):
            turn = (self._turn + offset) % len(files)
            if self._cursors[turn].has_work(now):
                self._turn = turn
                return self._cursors[turn]
        return None

    async def _drain_page(self, cursor: _Cursor) -> bool:
        """Move one page. Returns False if nothing can be done for now. Raises SpoolError."""
        slot_file = cursor.slot_file
        cursor.collect_pending()
        await self._delete_published(cursor)
        if not slot_file.file.state.callbacks:
            return True
        while (wait_s := self._rate_limiter.wait_s(monotonic())) > 0:  # noqa: ASYNC110 - waits for the rate
            await asyncio.sleep(wait_s)
        rows = await self._spool.page(slot_file, cursor.after_id, self._rows_max())
        if not rows:  # nothing seems to be left after the cursor: start again from the beginning, later
            cursor.passed_over = slot_file.file.state.callbacks
            cursor.retry_at = monotonic() + RETRY_REFUSED_S
            return True
        self._rate_limiter.take(len(rows))
        began_at = monotonic()
        codes = await self._publish(cursor, rows)
        self._rate_limiter.page_took(monotonic() - began_at)
        went_on = self._advance(cursor, rows, codes)
        await self._delete_published(cursor)
        return went_on

    async def _delete_published(self, cursor: _Cursor) -> None:
        """Delete the rows that Redis has confirmed. Raises SpoolError; the next call then tries again."""
        if cursor.published:
            await self._spool.delete(cursor.slot_file, cursor.published)
            cursor.published = []

    def _rows_max(self) -> int:
        if self._pool.ready:
            return self._rate_limiter.page_rows
        return SLOW_PAGE_ROWS_MAX if self._pool.accepts_pages else PROBE_ROWS

    async def _publish(self, cursor: _Cursor, rows: list[Row]) -> list[str]:
        """Publish the rows that may be published now. Returns a code for each row, empty if Redis took it."""
        codes = [_NOT_TRIED_HELD_UP] * len(rows)
        groups: dict[Publisher, list[int]] = {}
        for number, row in enumerate(rows):
            if row.partition_hash % self._partitions not in cursor.held_up:
                groups.setdefault(self._pool.publisher_of(row.partition_hash), []).append(number)
        pages: list[tuple[list[int], asyncio.Future[list[str]]]] = []
        for publisher, numbers in groups.items():
            chosen = self._choose(cursor, publisher, numbers)
            awaited = publisher.ready or len(self._pool.publishers) == 1
            for number in numbers[len(chosen) if awaited else 0 :]:
                codes[number] = _NOT_TRIED_AWAY
            if chosen:
                page = publisher.publish_page([(rows[n].partition_hash, rows[n].value) for n in chosen])
                if awaited:
                    pages.append((chosen, page))
                else:
                    cursor.pending[publisher] = [rows[n] for n in chosen], page
        for chosen, page in pages:
            for number, code in zip(chosen, await page, strict=True):
                codes[number] = code
        return codes

    def _choose(self, cursor: _Cursor, publisher: Publisher, numbers: list[int]) -> list[int]:
        """The rows, by number, that the publisher may send now."""
        if publisher in cursor.pending:
            return []
        if publisher.accepts_pages:
            return numbers
        return numbers[:PROBE_ROWS] if publisher.try_probe() else []

    def _advance(self, cursor: _Cursor, rows: list[Row], codes: list[str]) -> bool:
        """Decide by the codes which rows to delete and where to go on. Returns False if nothing can be done for now."""
        cursor.published = [row for row, code in zip(rows, codes, strict=True) if not code]
        refused = {*codes} - _NOT_REFUSED
        if not refused.isdisjoint(SERVER_FAILURES) or {*codes} == {_NOT_TRIED_AWAY}:
            cursor.restart()
            return bool(cursor.published)
        retry_s = RETRY_REFUSED_S if refused - MOVED else RETRY_AWAY_S
        cursor.pass_over(rows, codes, self._partitions, monotonic() + retry_s)
        for code in refused:
            self._spool.log.refused(code, codes.count(code))
        return True
