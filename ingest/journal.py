"""The spool's writer thread: group commit to the disk, off the event loop.

- Callbacks that gathered while the last commit ran go into the next one, as many as COMMIT_ROWS_MAX and the log's
  bound allow; one wake-up of the loop tells all who wait.
- Between two commits one other job runs: a page to drain, a deletion. Neither callbacks nor the drain starve.
- A commit that fails, fails its callbacks only; the next one tries again. A file that turns out damaged is set
  aside and a new one begun.
- All files of the process, its own and those it took over, are touched by this thread alone.
"""

import asyncio
import contextlib
import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from ingest.journal_file import DamagedError, JournalFile, SpoolError, wal_max_bytes
from ingest.outcomes import SPOOL_FAILED
from ingest.publisher import Waiters
from ingest.spool_directory import Slot, SpoolDirectory

COMMIT_ROWS_MAX: Final = 4096
"""The usual MASKLINE_IN_FLIGHT_MAX: a commit is no longer than what may wait for it."""
LOOK_INTERVAL_S: Final = 1.0
"""How often the other processes' share of the directory is measured, and a file that does not open is tried."""
CLOSE_TIMEOUT_S: Final = 5.0
"""A disk that hangs must not hold up the end of the process for longer."""


class Puts:
    """Callbacks of one loop tick on their way to the disk."""

    __slots__ = ("given_up", "reason", "routes", "size_bytes", "timer", "values", "waiters", "written")

    def __init__(self, reason: str) -> None:
        self.reason = reason
        """Why they are spooled."""
        self.waiters: Waiters = []
        self.routes: list[int] = []
        self.values: list[bytes] = []
        self.size_bytes = 0
        self.timer: asyncio.TimerHandle | None = None
        self.given_up = False
        """Nobody waits any more, and nobody was told that they are kept: not worth writing."""
        self.written = False
        """They lie in the file, or in a commit that failed."""


class Committed(NamedTuple):
    """What became of some Puts."""

    puts: list[Puts]
    error: SpoolError | None
    seconds: float
    """How long the commit took."""


class _Call(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: asyncio.Future[Any]


class Taken(NamedTuple):
    """A journal of the directory that this process now uses."""

    slot: Slot
    file: JournalFile


class Journal:
    """The thread and this process's own file. Everything public but `open_own` and `open_leftovers` is the loop's."""

    def __init__(
        self,
        directory: SpoolDirectory,
        slot: Slot,
        max_bytes: int,
        *,
        on_committed: Callable[[Committed], None],
        on_opened: "Callable[[array[int]], None]",
        on_damaged: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._directory = directory
        self._max_bytes = max_bytes
        self._commit_bytes_max = wal_max_bytes(max_bytes) // 2
        self._on_committed = on_committed
        self._on_opened = on_opened
        self._on_damaged = on_damaged
        self._ended = asyncio.Event()
        self.own = Taken(slot, JournalFile(slot.path))
        self._queue: SimpleQueue[Puts | _Call | None] = SimpleQueue()
        self._look_at = 0.0
        self._open_error: SpoolError | None = None
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def put(self, puts: Puts) -> None:
        """Have them written; `on_committed` is called on the loop."""
        self._queue.put(puts)

    def call(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Run this in the thread, when its turn comes; the future has what it returns or raises."""
        future = self._loop.create_future()
        self._queue.put(_Call(function, arguments, future))
        return future

    async def close(self) -> bool:
        """Write what waits, close the files and end the thread; whether that was done in time."""
        self._queue.put(None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._ended.wait()
        return self._ended.is_set()

    # In the thread

    def open_own(self) -> JournalFile:
        """Open the own file unless it is open; a damaged one is set aside first. Raises SpoolError."""
        file = self.own.file
        if not file.is_open:
            now = time.monotonic()
            if self._open_error is not None and now < self._look_at:
                raise self._open_error
            self._look_at = now + LOOK_INTERVAL_S
            try:
                self._limit_by_others(self._open_or_renew)
            except SpoolError as error:
                self._open_error = error
                raise
            self._open_error = None
        elif time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_INTERVAL_S
            self._limit_by_others(file.limit)
        return file

    def renew_own(self) -> JournalFile:
        """Set the damaged own file aside and begin a new one. Raises SpoolError."""
        slot, file = self.own
        file.close()
        self._set_aside(slot)
        return self.open_own()

    def try_room(self) -> None:
        """Find out whether the own file takes callbacks. Raises SpoolError."""
        self.open_own().try_room()

    def open_leftovers(self) -> list[Taken]:
        """Take over what dead processes left; journals without callbacks are removed on the way."""
        found: list[Taken] = []
        for slot in self._directory.leftovers():
            file = JournalFile(slot.path)
            try:
                file.open(self._max_bytes)
            except DamagedError:
                self._set_aside(slot)
                slot.release()
            except SpoolError:  # the disk may be full, or the journal of a newer release: another time
                slot.release()
            else:
                taken = Taken(slot, file)
                if file.state.callbacks:
                    found.append(taken)
                else:
                    self.let_go(taken)
        return found

    def drop_damaged(self, taken: Taken) -> None:
        """Set a journal that was taken over aside, and be done with it."""
        taken.file.close()
        self._set_aside(taken.slot)
        taken.slot.release()

    def let_go(self, taken: Taken) -> None:
        """Close a journal for good, and remove it if nothing lies in it."""
        taken.file.close()
        with contextlib.suppress(OSError):
            # Never opened means never counted: then it stays, whatever is in it.
            taken.slot.release(remove=taken.file.was_opened and not taken.file.state.callbacks)

    def _run(self) -> None:
        puts: deque[Puts] = deque()
        calls: deque[_Call] = deque()
        closing = False
        while not (closing and not puts and not calls):
            try:
                item = self._queue.get(block=not puts and not calls)
            except Empty:
                self._commit(puts)
                self._answer(calls)
                continue
            if item is None:
                closing = True
                if not puts and not calls:
                    break
            elif isinstance(item, Puts):
                puts.append(item)
            else:
                calls.append(item)
        self._tell(self._ended.set)

    def _commit(self, waiting: deque[Puts]) -> None:
        """One commit of what waits, as much as fits into one."""
        if not waiting:
            return
        batch: list[Puts] = []
        rows: list[tuple[int, bytes]] = []
        size_bytes = 0
        while waiting and (
            not batch
            or (
                len(rows) + len(waiting[0].values) <= COMMIT_ROWS_MAX
                and size_bytes + waiting[0].size_bytes <= self._commit_bytes_max
            )
        ):
            puts = waiting.popleft()
            batch.append(puts)
            if not puts.given_up:
                puts.written = True
                size_bytes += puts.size_bytes
                rows += zip(puts.routes, puts.values, strict=True)
        started = time.perf_counter()
        error = self._insert(rows)
        self._tell(self._on_committed, Committed(batch, error, time.perf_counter() - started))

    def _insert(self, rows: list[tuple[int, bytes]]) -> SpoolError | None:
        try:
            try:
                self.open_own().insert(rows)
            except DamagedError:
                self.renew_own().insert(rows)
        except SpoolError as error:
            return error
        except Exception as error:  # noqa: BLE001 - no memory, say: whatever it was, these are not kept
            return SpoolError(SPOOL_FAILED, type(error).__name__)
        return None

    def _answer(self, calls: deque[_Call]) -> None:
        if not calls:
            return
        call = calls.popleft()
        try:
            result = call.function(*call.arguments)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self._tell(_settle, call.future, None, error)
        else:
            self._tell(_settle, call.future, result, None)

    def _open_or_renew(self, max_bytes: int) -> None:
        slot, file = self.own
        try:
            file.open(self._max_bytes)
        except DamagedError:
            self._set_aside(slot)
            file.open(self._max_bytes)
        self._tell(self._on_opened, file.held)
        file.limit(max_bytes)

    def _limit_by_others(self, limit: Callable[[int], None]) -> None:
        limit(self._max_bytes - self._directory.other_bytes(self.own.slot.path))

    def _set_aside(self, slot: Slot) -> None:
        try:
            name = slot.set_aside()
        except OSError as error:
            raise SpoolError(SPOOL_FAILED, error.strerror or os.strerror(error.errno or 0)) from None
        self._tell(self._on_damaged, name)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before its spool
            self._loop.call_soon_threadsafe(function, *arguments)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
