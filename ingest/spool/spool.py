"""The spool as the event loop sees it: callbacks in, pages out, how much lies there, whether it is well.

- What gathers in a loop tick is one item for the writer thread (`ingest.spool.writer`).
- A callback that is not fsynced within PUT_TIMEOUT_S is given up: the answer is due, the disk hangs.
- A commit that fails makes the spool unwell: it is tried by writing every TRY_INTERVAL_S until that succeeds, so that
  a node out of which the load balancer took all traffic gets well again.
- A file that was removed, moved or replaced is noticed before a commit counts, and at least every second; what lies in
  it goes into a new one (`ingest.spool.files`).
- Sessions with callbacks here are counted by buckets of their route: later ones of theirs queue behind.
"""

import asyncio
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import (
    SPOOL_FAILED,
    SPOOL_SLOW,
    Completion,
    Completions,
    InFlight,
    NotStoredError,
)
from maskline.ingest.spool.directory import SpoolDirectory
from maskline.ingest.spool.errors import DamagedError, SpoolError
from maskline.ingest.spool.file import HELD_BUCKETS, Row
from maskline.ingest.spool.files import Taken
from maskline.ingest.spool.log import SpoolLog
from maskline.ingest.spool.writer import Committed, SpoolWriter, WriteRequest
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.settings import Settings

PUT_TIMEOUT_S: Final = 5.0
"""An ordinary fsync takes milliseconds, one behind a busy disk a second; whoever sent it waits no longer than this."""
LOOK_AGAIN_S: Final = 0.25
"""After PUT_TIMEOUT_S: where the loop itself stood still, the news of the commit is there and was not read yet."""
TRY_INTERVAL_S: Final = 1.0
PAGE_BYTES_MAX: Final = 1 << 20
"""Of one page, besides a single callback larger than that."""

_BUCKET: Final = HELD_BUCKETS - 1


class Spool:
    """The journals of this process."""

    def __init__(self, settings: Settings, metrics: Metrics, load: InFlight, tasks: BackgroundTasks) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._load = load
        self._tasks = tasks
        self._directory = SpoolDirectory(settings.spool_dir, settings.namespace)
        self._journal: SpoolWriter | None = None
        self._gathering: dict[str, WriteRequest] = {}
        self._held = array("I", bytes(4 * HELD_BUCKETS))
        self._test: asyncio.Task[None] | None = None
        self.on_failed: Callable[[WriteRequest, str], None] = _tell
        """Tells those who wait that nothing was written, and why."""
        self.max_bytes = settings.spool_max_bytes
        self.log = SpoolLog()
        self.trouble: SpoolError | None = None
        """Why it does not take callbacks; None while it does."""
        self.damaged: list[str] = []
        """Journals set aside, by name."""
        self.waiting = 0
        """Callbacks on their way to the disk."""
        self.changed = asyncio.Event()
        """Set whenever callbacks were written."""

    async def start(self) -> None:
        """Take a slot of the directory, with what lies in it, and all that dead processes left.

        Raises ConfigError where the directory cannot be used. A file that cannot be opened yet (the disk is full) is
        tried again later.
        """
        slot = self._directory.take_slot()
        journal = self._journal = SpoolWriter(self._directory, slot, self.max_bytes, self)
        self.damaged = self._directory.damaged()
        try:
            await journal.call(journal.files.open_own)
            await self.adopt()
        except SpoolError as error:
            self.not_well(error)
        if self.callbacks:
            self.log.found(self.callbacks, len(self.adopted))

    async def stop(self) -> None:
        """Close the files; those in which nothing lies are removed."""
        journal = self._journal
        if journal is None:
            return
        self.log.stopped(self.callbacks)
        self._journal = None
        if self._test is not None:
            self._test.cancel()
        journal.call(journal.files.close).add_done_callback(_look_away)
        if not await journal.close():
            self.log.hangs()

    # For the keeper

    def put(self, reason: str, route: int, value: bytes) -> asyncio.Future[None]:
        """Write a callback; the future is done once it is fsynced, or fails with NotKeptError."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self.put_for(waiter, reason, route, value)
        return waiter

    def put_for(self, waiter: Completion, reason: str, route: int, value: bytes) -> None:
        """The same for somebody who waits already."""
        puts = self._gathering.get(reason) or self._gather(reason)
        size = len(value)
        puts.waiters.append(waiter)
        puts.routes.append(route)
        puts.values.append(value)
        puts.size_bytes += size
        self.waiting += 1
        self._load.callbacks += 1
        self._load.size_bytes += size
        self._held[route & _BUCKET] += 1

    def put_all(self, reason: str, waiters: Completions, routes: list[int], values: list[bytes]) -> None:
        """The same for several that somebody waits for already."""
        puts = self._gathering.get(reason) or self._gather(reason)
        puts.waiters += waiters
        puts.routes += routes
        puts.values += values
        size = sum(map(len, values))
        puts.size_bytes += size
        self.waiting += len(values)
        self._load.callbacks += len(values)
        self._load.size_bytes += size
        held = self._held
        for route in routes:
            held[route & _BUCKET] += 1

    def holds(self, route: int) -> bool:
        """Whether earlier callbacks of the session may lie here."""
        return self._held[route & _BUCKET] > 0

    # For the drain

    def files(self) -> list[Taken]:
        """All journals that are to be drained: not those that are being carried into the own one."""
        if self._journal is None:
            return []
        files = self._journal.files
        return [taken for taken in files.all if files.stuck or taken not in files.strays]

    @property
    def adopted(self) -> tuple[Taken, ...]:
        """What dead processes left, until it is drained."""
        return () if self._journal is None else self._journal.files.adopted

    async def adopt(self) -> None:
        """Take over what dead processes have left since. Raises SpoolError where the directory cannot be read."""
        if self._journal is not None:
            await self._journal.call(self._journal.files.open_leftovers)

    async def page(self, taken: Taken, after: int, rows_max: int) -> list[Row]:
        """The next callbacks of a journal. Raises SpoolError."""
        journal = self._open_journal()
        return list(await self._call(taken, journal.files.page, taken, after, rows_max, PAGE_BYTES_MAX))

    async def delete(self, taken: Taken, rows: list[Row]) -> None:
        """Delete what Redis has confirmed. Raises SpoolError, and then it has to be tried again."""
        journal = self._open_journal()
        if not await self._call(taken, journal.files.delete, taken, [row.id for row in rows]):
            return
        self._metrics.drained += len(rows)
        if not taken.adopted:
            for row in rows:
                self._let_go_of(row.route)
        left = self.callbacks + self.waiting
        if not left:
            self._held = array("I", bytes(4 * HELD_BUCKETS))  # however it was counted on the way
        self.log.drained(len(rows), left)

    # For whoever asks

    @property
    def callbacks(self) -> int:
        return sum(taken.file.state.callbacks for taken in self._all())

    @property
    def size_bytes(self) -> int:
        """On the disk."""
        return sum(taken.file.state.size_bytes for taken in self._all())

    @property
    def oldest_at_ms(self) -> int | None:
        """When the callback that has lain here longest was written, by the wall clock."""
        times = [taken.file.state.oldest_at_ms for taken in self._all()]
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    # Inside

    def _all(self) -> list[Taken]:
        return [] if self._journal is None else self._journal.files.all

    def _open_journal(self) -> SpoolWriter:
        if self._journal is None:
            raise SpoolError(SPOOL_FAILED, "it is closed")
        return self._journal

    async def _call(self, taken: Taken, function: Any, *arguments: Any) -> Any:
        journal = self._open_journal()
        try:
            return await journal.call(function, *arguments)
        except DamagedError:
            if taken in journal.files.adopted:
                await journal.call(journal.files.drop_damaged, taken)
            elif taken is journal.files.own:
                await journal.call(journal.files.renew_own)
            raise

    def _gather(self, reason: str) -> WriteRequest:
        if not self._gathering:
            self._loop.call_soon(self._hand_over)
        puts = self._gathering[reason] = WriteRequest(reason)
        return puts

    def _hand_over(self) -> None:
        gathered, self._gathering = self._gathering, {}
        for puts in gathered.values():
            if self._journal is None:
                self._end(puts, SpoolError(SPOOL_FAILED, "it is closed"))
                continue
            self.log.spooling(puts.reason)
            puts.timer = self._loop.call_later(PUT_TIMEOUT_S, self._look_again, puts)
            self._journal.put(puts)

    # What the journal tells

    def committed(self, committed: Committed) -> None:
        self._metrics.commit_s.observe(committed.seconds)
        written = False
        for puts in committed.puts:
            try:
                self._end(puts, committed.error)
            except Exception as error:  # noqa: BLE001 - of one who waits: the others are told all the same
                self._tasks.failed("spool answers", error)
            written = written or puts.written
        if committed.error is not None:
            self.not_well(committed.error)
        elif written:
            self._well()
            self.changed.set()

    def opened(self, held: "array[int]", besides: bool) -> None:
        if besides:
            held = array("I", map(int.__add__, self._held, held))
        self._held = held
        self.changed.set()

    def damaged_file(self, name: str) -> None:
        self.damaged.append(name)
        self.log.damaged(name)

    def strayed(self, name: str, callbacks: int) -> None:
        self._metrics.spool_files_gone += 1
        self.log.strayed(name, callbacks)

    def carried(self, routes: Sequence[int]) -> None:
        for route in routes:
            self._held[route & _BUCKET] += 1

    def ended(self, name: str, lost: int) -> None:
        self.log.ended(name, lost)
        self.changed.set()

    def not_well(self, error: SpoolError) -> None:
        if self.trouble is None or self.trouble.code != error.code:
            self.log.unwell(error)
        self.trouble = error
        if self._test is None and self._journal is not None:
            self._test = self._tasks.start("spool test", self._try_until_well)

    def thread_failed(self, error: BaseException) -> None:
        self._tasks.failed("spool writer", error)

    # Inside

    def _end(self, puts: WriteRequest, error: SpoolError | None) -> None:
        if puts.timer is not None:
            puts.timer.cancel()
        count = len(puts.values)
        self.waiting -= count
        self._load.callbacks -= count
        self._load.size_bytes -= puts.size_bytes
        if error is None and puts.written:
            self._metrics.spooled[puts.reason] += count
            for waiter in puts.waiters:
                if not waiter.done():
                    waiter.set_result(None)
            return
        for route in puts.routes:
            self._let_go_of(route)
        if error is not None:
            self._metrics.spool_failures[error.code] += count
            self.on_failed(puts, error.code)

    def _look_again(self, puts: WriteRequest) -> None:
        puts.timer = self._loop.call_later(LOOK_AGAIN_S, self._give_up, puts)

    def _give_up(self, puts: WriteRequest) -> None:
        puts.given_up = True
        self._metrics.spool_failures[SPOOL_SLOW] += len(puts.values)
        self.on_failed(puts, SPOOL_SLOW)
        self.not_well(SpoolError(SPOOL_SLOW, f"the disk has not confirmed within {PUT_TIMEOUT_S:g} s"))

    def _let_go_of(self, route: int) -> None:
        if self._held[route & _BUCKET]:  # counted anew meanwhile, where the file had to be opened again
            self._held[route & _BUCKET] -= 1

    def _well(self) -> None:
        if self.trouble is not None:
            self.trouble = None
            self.log.well()

    async def _try_until_well(self) -> None:
        """Write now and then, so that it gets well without a callback."""
        while self.trouble is not None and self._journal is not None:
            await asyncio.sleep(TRY_INTERVAL_S)
            try:
                await self._journal.call(self._journal.files.try_room)
            except SpoolError as error:
                self.not_well(error)
            else:
                self._well()
        self._test = None


def _tell(puts: WriteRequest, code: str) -> None:
    for waiter in puts.waiters:
        if not waiter.done():
            waiter.set_exception(NotStoredError(code))


def _look_away(future: asyncio.Future[Any]) -> None:
    """What cannot be closed properly at the end is for the next start."""
    if not future.cancelled():
        future.exception()
