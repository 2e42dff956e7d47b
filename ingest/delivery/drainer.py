"""Moves callbacks from the spool to Redis while it takes them.

- One page at a time, in order of arrival: read, publish, delete what was confirmed. A process that dies between the
  last two leaves duplicates, which the worker counts and drops.
- Rate-bounded by MASKLINE_SPOOL_DRAIN_PER_S, so that a Redis that has just come back is not run over. Callbacks that
  come while Redis takes them, and only queue behind others, are granted on top: the spool gets empty whatever comes.
- While the breaker is open, a single callback is the probe: what becomes of a probe is often unknown, and it
  is repeated.
- A server that is slow for good is given larger pages, one after the other: a page may wait longer than a request.
  In a cluster the others do not wait for it. One that is slow, and in time all the same, is given pages that are
  larger by as much: else what comes could be more than what goes, and the spool never get empty.
- A callback that Redis refuses for itself (its stream is none) stays, with those of its partition behind it; the
  others go on. After RETRY_REFUSED_S it is tried again from the beginning.
- Journals of the process take turns, page by page.
- An error of the disk or the directory ends nothing: it is logged, shown by /readyz, and tried again (`runtime.tasks`).
"""

import asyncio
import contextlib
from time import monotonic
from typing import Final

from maskline.ingest.delivery.rate_limiter import SLOW_PAGE_ROWS_MAX, RateLimiter
from maskline.ingest.outcome import MOVED, OF_THE_SERVER
from maskline.ingest.publish.pool import PublisherPool
from maskline.ingest.publish.publisher import Publisher
from maskline.ingest.spool.errors import SpoolError
from maskline.ingest.spool.file import Row
from maskline.ingest.spool.files import SlotFile
from maskline.ingest.spool.spool import Spool
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.settings import Settings

PROBE_ROWS: Final = 1
IDLE_S: Final = 0.25
"""How often Redis and the disk are looked at while they do not work. Callbacks that come in wake the drain."""
RETRY_REFUSED_S: Final = 5.0
RETRY_AWAY_S: Final = 1.0
"""The same where one server of several is away, or a partition moves to another."""
ADOPT_INTERVAL_S: Final = 10.0
"""How often the directory is searched for what dead processes left."""

DRAIN: Final = "drain"
ADOPTION: Final = "spool adoption"
"""Names of background tasks."""

_WAITS: Final = "waits"
"""In place of a code: not tried, its partition is held up."""
_AWAY: Final = "away"
"""In place of a code: not tried, the server of its partition is away."""


class _Source:
    """How far a journal has been drained."""

    def __init__(self, slot_file: SlotFile) -> None:
        self.slot_file = slot_file
        self.published: list[Row] = []
        """Confirmed and not deleted yet."""
        self.pending: dict[Publisher, tuple[list[Row], asyncio.Future[list[str]]]] = {}
        """Pages that slow servers of a cluster, or those that are probed, have not answered."""
        self.retry_at = 0.0
        self.restart()

    def restart(self) -> None:
        self.after = 0
        self.passed = 0
        """Callbacks before `after` that are still there."""
        self.held_up: set[int] = set()
        """Partitions of these."""

    def collect(self) -> None:
        """See what has become of pending pages."""
        for publisher, (rows, page) in [*self.pending.items()]:
            if page.done():
                del self.pending[publisher]
                codes = page.result()
                self.published += [row for row, code in zip(rows, codes, strict=True) if not code]

    def has_work(self, now: float) -> bool:
        if self.published or any(page.done() for _, page in self.pending.values()):
            return True
        if self.passed and now >= self.retry_at:
            self.restart()
        return self.slot_file.file.state.callbacks > self.passed


class Drainer:
    """The task that does it."""

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
        self._sources: list[_Source] = []
        self._turn = 0
        self._adopt_at = monotonic() + ADOPT_INTERVAL_S
        self._finishing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._tasks.start(DRAIN, self._run)

    async def finish(self, timeout_s: float) -> None:
        """Go on until the spool is empty or Redis does not take any more, at most so long; then end."""
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
            source = self._next() if self._pool.can_drain else None
            if source is not None:
                try:
                    if await self._page(source):
                        continue
                except SpoolError as error:  # it would end nothing, but the next journal has its turn
                    self._tasks.failed(DRAIN, error)
            if self._finishing.is_set() and not self._soon():
                return
            await self._idle()

    async def _idle(self) -> None:
        """Until there may be something to do."""
        # While Redis is away every commit of the spool would wake it for nothing.
        news = self._spool.changed if self._pool.can_drain else self._finishing
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDLE_S):
                await news.wait()
        self._spool.changed.clear()

    def _soon(self) -> bool:
        """Whether what was passed over is about to be tried again."""
        soon = monotonic() + RETRY_AWAY_S
        return self._pool.accepts_pages and any(s.passed and s.retry_at <= soon for s in self._sources)

    async def _adopt(self) -> None:
        now = monotonic()
        if now >= self._adopt_at and not self._finishing.is_set():
            self._adopt_at = now + ADOPT_INTERVAL_S
            try:
                await self._spool.adopt()
            except SpoolError as error:
                self._tasks.failed(ADOPTION, error)

    def _next(self) -> _Source | None:
        """The journal whose turn it is, of those with something to do."""
        files = self._spool.files()
        known = {id(source.slot_file): source for source in self._sources}
        self._sources = [known.get(id(slot_file)) or _Source(slot_file) for slot_file in files]
        now = monotonic()
        for offset in range(1, len(files) + 1):
            turn = (self._turn + offset) % len(files)
            if self._sources[turn].has_work(now):
                self._turn = turn
                return self._sources[turn]
        return None

    async def _page(self, source: _Source) -> bool:
        """Move one page on; False where nothing can be done for now. Raises SpoolError."""
        spool, slot_file = self._spool, source.slot_file
        source.collect()
        if source.published:
            await spool.delete(slot_file, source.published)
            source.published = []
        if not slot_file.file.state.callbacks:
            return True
        while (wait_s := self._rate_limiter.wait_s(monotonic())) > 0:  # noqa: ASYNC110 - it is the rate that is waited for
            await asyncio.sleep(wait_s)
        rows = await spool.page(slot_file, source.after, self._rows_max())
        if not rows:  # as it seems, nothing is left behind the cursor: look from the beginning, later
            source.passed = slot_file.file.state.callbacks
            source.retry_at = monotonic() + RETRY_REFUSED_S
            return True
        self._rate_limiter.take(len(rows))
        began_at = monotonic()
        codes = await self._publish(source, rows)
        self._rate_limiter.page_took(monotonic() - began_at)
        went_on = self._judge(source, rows, codes)
        if source.published:
            await spool.delete(slot_file, source.published)
            source.published = []
        return went_on

    def _rows_max(self) -> int:
        if self._pool.ready:
            return self._rate_limiter.page_rows
        return SLOW_PAGE_ROWS_MAX if self._pool.accepts_pages else PROBE_ROWS

    async def _publish(self, source: _Source, rows: list[Row]) -> list[str]:
        """Publish what may be; a code for each row, empty where Redis took it."""
        codes = [_WAITS] * len(rows)
        groups: dict[Publisher, list[int]] = {}
        for number, row in enumerate(rows):
            if row.partition_hash % self._partitions not in source.held_up:
                groups.setdefault(self._pool.publisher_of(row.partition_hash), []).append(number)
        pages: list[tuple[list[int], asyncio.Future[list[str]]]] = []
        for publisher, numbers in groups.items():
            chosen = self._chosen(source, publisher, numbers)
            waited_for = publisher.ready or len(self._pool.publishers) == 1
            for number in numbers[len(chosen) if waited_for else 0 :]:
                codes[number] = _AWAY
            if chosen:
                page = publisher.publish_page([(rows[n].partition_hash, rows[n].value) for n in chosen])
                if waited_for:
                    pages.append((chosen, page))
                else:
                    source.pending[publisher] = [rows[n] for n in chosen], page
        for chosen, page in pages:
            for number, code in zip(chosen, await page, strict=True):
                codes[number] = code
        return codes

    def _chosen(self, source: _Source, publisher: Publisher, numbers: list[int]) -> list[int]:
        """Which of these its server may have now."""
        if publisher in source.pending:
            return []
        if publisher.accepts_pages:
            return numbers
        return numbers[:PROBE_ROWS] if publisher.try_probe() else []

    def _judge(self, source: _Source, rows: list[Row], codes: list[str]) -> bool:
        """Decide by the codes what to delete, and where to go on; False where nothing can be done for now."""
        source.published = [row for row, code in zip(rows, codes, strict=True) if not code]
        refused = {*codes} - {"", _WAITS, _AWAY}
        if not refused.isdisjoint(OF_THE_SERVER) or {*codes} == {_AWAY}:
            source.restart()
            return bool(source.published)
        retry_s = RETRY_REFUSED_S if refused - MOVED else RETRY_AWAY_S
        for row, code in zip(rows, codes, strict=True):
            if code:
                source.held_up.add(row.partition_hash % self._partitions)
                source.passed += 1
                source.retry_at = max(source.retry_at, monotonic() + retry_s)
        source.after = rows[-1].id
        for code in refused:
            self._spool.log.refused(code, codes.count(code))
        return True
