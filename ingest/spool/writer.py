"""The spool's writer thread: group commit to the disk, off the event loop.

- Callbacks that gathered while the last commit ran go into the next one, as many as COMMIT_ROWS_MAX and the bound of
  the write-ahead log allow. One wake-up of the loop completes all of them.
- Between two commits one call runs: a page to drain, a deletion. So neither callbacks nor the drainer starve.
- A failed commit fails its own callbacks only; the next one tries again.
- Only this thread touches the files of the process (`ingest.spool.file_set`). Every CHECK_INTERVAL_S it checks whether
  they are still in place.
- The thread survives every error of its own, and reports it: nothing else would complete the requests.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, Protocol

from maskline.ingest.outcome import SPOOL_FAILED, Completions
from maskline.ingest.spool.counts import SpoolCounts
from maskline.ingest.spool.directory import Slot, SpoolDirectory
from maskline.ingest.spool.errors import SpoolError, from_os_error
from maskline.ingest.spool.file_set import CHECK_INTERVAL_S, FileEvents, SpoolFiles
from maskline.ingest.spool.sqlite_file import wal_max_bytes

COMMIT_ROWS_MAX: Final = 4096
"""The default MASKLINE_IN_FLIGHT_MAX, since no more can wait for a commit."""
RESTART_S: Final = 0.1
"""The pause after a fault of the thread's own: bounds how often a lasting fault is reported."""
CLOSE_TIMEOUT_S: Final = 5.0
"""How long a disk that hangs may hold up the end of the process."""


class WriteRequest:
    """Callbacks of one loop tick on their way to the disk, all spooled for the same reason."""

    __slots__ = (
        "completions",
        "given_up",
        "partition_hashes",
        "reason",
        "size_bytes",
        "timer",
        "values",
        "written",
    )

    def __init__(self, reason: str) -> None:
        self.reason = reason
        """The code why they are spooled."""
        self.completions: Completions = []
        self.partition_hashes: list[int] = []
        self.values: list[bytes] = []
        self.size_bytes = 0
        self.timer: asyncio.TimerHandle | None = None
        self.given_up = False
        """Nobody awaits them any more, and none was answered "stored": not worth writing."""
        self.written = False
        """They lie in the file, or in a commit that failed."""


class CommitResult(NamedTuple):
    """The outcome of a commit."""

    requests: list[WriteRequest]
    error: SpoolError | None
    took_s: float


class _Call(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: asyncio.Future[Any]


class WriterEvents(FileEvents, Protocol):
    """Receives the writer's events on the event loop: those of files, and these."""

    def on_committed(self, result: CommitResult) -> None:
        """A commit has ended, well or not."""

    def on_unhealthy(self, error: SpoolError) -> None:
        """The files cannot be checked."""

    def on_thread_failed(self, error: BaseException) -> None:
        """An unforeseen error in the thread, which goes on."""


class SpoolWriter:
    """Starts the thread. Its public methods are for the event loop, which may read `files` and reach it by `call`.

    `slot`: of this process's own file. `partitions`: MASKLINE_PARTITIONS. `max_bytes`: MASKLINE_SPOOL_MAX_BYTES.
    """

    def __init__(
        self, directory: SpoolDirectory, slot: Slot, partitions: int, max_bytes: int, events: WriterEvents
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._commit_bytes_max = wal_max_bytes(max_bytes) // 2
        self._events = events
        self._ended = asyncio.Event()
        self.files = SpoolFiles(directory, slot, partitions, max_bytes, self)
        self._queue: SimpleQueue[WriteRequest | _Call | None] = SimpleQueue()
        self._requests: deque[WriteRequest] = deque()
        self._calls: deque[_Call] = deque()
        self._closing = False
        self._check_at = 0.0
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def write(self, request: WriteRequest) -> None:
        """Write the callbacks of a request; `on_committed` reports the outcome."""
        self._queue.put(request)

    def call(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Call this in the thread, when its turn comes; the future has what it returns or raises."""
        future = self._loop.create_future()
        self._queue.put(_Call(function, arguments, future))
        return future

    async def close(self) -> bool:
        """Write and call what waits, and end the thread. Returns whether that was done within CLOSE_TIMEOUT_S."""
        self._queue.put(None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._ended.wait()
        return self._ended.is_set()

    # Events of the files, which happen in the thread (`ingest.spool.file_set.FileEvents`): handed on to the loop

    def on_opened(self, counts: SpoolCounts, add: bool) -> None:
        """Hand the event on to the loop."""
        self._call_on_loop(self._events.on_opened, counts, add)

    def on_damaged(self, name: str) -> None:
        """Hand the event on to the loop."""
        self._call_on_loop(self._events.on_damaged, name)

    def on_displaced(self, name: str, callbacks: int) -> None:
        """Hand the event on to the loop."""
        self._call_on_loop(self._events.on_displaced, name, callbacks)

    def on_rescued(self, partition_hashes: Sequence[int]) -> None:
        """Hand the event on to the loop."""
        self._call_on_loop(self._events.on_rescued, partition_hashes)

    def on_displaced_closed(self, name: str, lost: int) -> None:
        """Hand the event on to the loop."""
        self._call_on_loop(self._events.on_displaced_closed, name, lost)

    # In the thread

    def _run(self) -> None:
        while not (self._closing and not self._requests and not self._calls):
            try:
                self._run_once()
            except BaseException as error:  # noqa: BLE001 - any error: requests wait for this thread
                self._call_on_loop(self._events.on_thread_failed, error)
                time.sleep(RESTART_S)
        self._call_on_loop(self._ended.set)

    def _run_once(self) -> None:
        """Take one item off the queue; if it is empty, commit and call the items taken."""
        idle = not self._requests and not self._calls and not self.files.rescue_due
        try:
            item = self._queue.get(block=idle, timeout=CHECK_INTERVAL_S)
        except Empty:
            self._check_files()
            self._commit()
            self._run_call()
            if self.files.rescue_due:
                self.files.rescue()
            return
        if item is None:
            self._closing = True
        elif isinstance(item, WriteRequest):
            self._requests.append(item)
        else:
            self._calls.append(item)

    def _check_files(self) -> None:
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + CHECK_INTERVAL_S
            try:
                self.files.check_in_place()
            except SpoolError as error:
                self._call_on_loop(self._events.on_unhealthy, error)

    def _commit(self) -> None:
        """Commit the requests that wait, as many as fit into one commit."""
        waiting = self._requests
        if not waiting:
            return
        batch: list[WriteRequest] = []
        count = size_bytes = 0
        while waiting and (
            not batch
            or (
                count + len(waiting[0].values) <= COMMIT_ROWS_MAX
                and size_bytes + waiting[0].size_bytes <= self._commit_bytes_max
            )
        ):
            request = waiting.popleft()
            batch.append(request)
            if not request.given_up:
                count += len(request.values)
                size_bytes += request.size_bytes
        began_at = time.perf_counter()
        error = self._insert(batch)
        self._call_on_loop(
            self._events.on_committed, CommitResult(batch, error, time.perf_counter() - began_at)
        )

    def _insert(self, batch: list[WriteRequest]) -> SpoolError | None:
        """Write and fsync the requests that were not given up. Returns the error, None if there was none."""
        try:
            rows: list[tuple[int, bytes]] = []
            for request in batch:
                if not request.given_up:
                    request.written = True
                    rows += zip(request.partition_hashes, request.values, strict=True)
            if rows:
                self.files.insert(rows)
        except SpoolError as error:
            return error
        except Exception as error:  # noqa: BLE001 - no memory, for example: these are not stored
            self._call_on_loop(self._events.on_thread_failed, error)
            return SpoolError(SPOOL_FAILED, type(error).__name__)
        return None

    def _run_call(self) -> None:
        if not self._calls:
            return
        call = self._calls.popleft()
        try:
            result = call.function(*call.arguments)
        except OSError as error:
            self._call_on_loop(_resolve, call.future, None, from_os_error(error))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self._call_on_loop(_resolve, call.future, None, error)
        except BaseException as error:
            self._call_on_loop(_resolve, call.future, None, SpoolError(SPOOL_FAILED, type(error).__name__))
            raise
        else:
            self._call_on_loop(_resolve, call.future, result, None)

    def _call_on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before its spool
            self._loop.call_soon_threadsafe(function, *arguments)


def _resolve(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
