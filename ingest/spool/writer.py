"""The spool's writer thread: group commit to the disk, off the event loop.

- Callbacks that gathered while the last commit ran go into the next one, as many as COMMIT_ROWS_MAX and the log's
  bound allow; one wake-up of the loop tells all who wait.
- Between two commits one other job runs: a page to drain, a deletion. Neither callbacks nor the drain starve.
- A commit that fails, fails its callbacks only; the next one tries again.
- All files of the process (`ingest.spool.files`) are touched by this thread alone. It looks every LOOK_INTERVAL_S
  whether they are still where they should be.
- Whatever goes wrong in it, it is told, and goes on: nobody else would answer those who wait.
"""

import asyncio
import contextlib
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, Protocol

from maskline.ingest.outcome import SPOOL_FAILED, Completions
from maskline.ingest.spool.directory import Slot, SpoolDirectory
from maskline.ingest.spool.errors import SpoolError, of_the_system
from maskline.ingest.spool.file import wal_max_bytes
from maskline.ingest.spool.files import LOOK_INTERVAL_S, SpoolFiles

COMMIT_ROWS_MAX: Final = 4096
"""The usual MASKLINE_IN_FLIGHT_MAX: a commit is no longer than what may wait for it."""
RESTART_S: Final = 0.1
"""Before the thread goes on after a fault of its own: bounds how often a lasting one is met."""
CLOSE_TIMEOUT_S: Final = 5.0
"""A disk that hangs must not hold up the end of the process for longer."""


class WriteRequest:
    """Callbacks of one loop tick on their way to the disk."""

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
        """Why they are spooled."""
        self.completions: Completions = []
        self.partition_hashes: list[int] = []
        self.values: list[bytes] = []
        self.size_bytes = 0
        self.timer: asyncio.TimerHandle | None = None
        self.given_up = False
        """Nobody waits any more, and nobody was told that they are kept: not worth writing."""
        self.written = False
        """They lie in the file, or in a commit that failed."""


class Committed(NamedTuple):
    """What became of some Puts."""

    requests: list[WriteRequest]
    error: SpoolError | None
    seconds: float
    """How long the commit took."""


class _Call(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: asyncio.Future[Any]


class WriterEvents(Protocol):
    """Whom the journal tells, on the loop."""

    def committed(self, committed: Committed) -> None: ...

    def opened(self, held: "array[int]", besides: bool) -> None: ...

    def damaged_file(self, name: str) -> None: ...

    def strayed(self, name: str, callbacks: int) -> None: ...

    def carried(self, partition_hashes: Sequence[int]) -> None: ...

    def ended(self, name: str, lost: int) -> None: ...

    def on_unhealthy(self, error: SpoolError) -> None:
        """The files cannot be looked at."""

    def thread_failed(self, error: BaseException) -> None:
        """A fault of the thread that nobody foresaw."""


class SpoolWriter:
    """The thread. What is public is the loop's; `files` may be read there, and called by way of `call`."""

    def __init__(self, directory: SpoolDirectory, slot: Slot, max_bytes: int, events: WriterEvents) -> None:
        self._loop = asyncio.get_running_loop()
        self._commit_bytes_max = wal_max_bytes(max_bytes) // 2
        self._events = events
        self._ended = asyncio.Event()
        self.files = SpoolFiles(directory, slot, max_bytes, self)
        self._queue: SimpleQueue[WriteRequest | _Call | None] = SimpleQueue()
        self._requests: deque[WriteRequest] = deque()
        self._calls: deque[_Call] = deque()
        self._closing = False
        self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def write(self, request: WriteRequest) -> None:
        """Have them written; the owner is told `committed`."""
        self._queue.put(request)

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

    # What happens to files, told in the thread

    def opened(self, held: "array[int]", besides: bool) -> None:
        self._tell(self._events.opened, held, besides)

    def damaged(self, name: str) -> None:
        self._tell(self._events.damaged_file, name)

    def strayed(self, name: str, callbacks: int) -> None:
        self._tell(self._events.strayed, name, callbacks)

    def carried(self, partition_hashes: Sequence[int]) -> None:
        self._tell(self._events.carried, partition_hashes)

    def ended(self, name: str, lost: int) -> None:
        self._tell(self._events.ended, name, lost)

    # In the thread

    def _run(self) -> None:
        while not (self._closing and not self._requests and not self._calls):
            try:
                self._turn()
            except BaseException as error:  # noqa: BLE001 - whatever it was, others wait for this thread
                self._tell(self._events.thread_failed, error)
                time.sleep(RESTART_S)
        self._tell(self._ended.set)

    def _turn(self) -> None:
        """Take what has come; where nothing has, work on what waits."""
        idle = not self._requests and not self._calls and not self.files.carries
        try:
            item = self._queue.get(block=idle, timeout=LOOK_INTERVAL_S)
        except Empty:
            self._check_files()
            self._commit(self._requests)
            self._answer(self._calls)
            if self.files.carries:
                self.files.carry()
            return
        if item is None:
            self._closing = True
        elif isinstance(item, WriteRequest):
            self._requests.append(item)
        else:
            self._calls.append(item)

    def _check_files(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_INTERVAL_S
            try:
                self.files.look()
            except SpoolError as error:
                self._tell(self._events.on_unhealthy, error)

    def _commit(self, waiting: deque[WriteRequest]) -> None:
        """One commit of what waits, as much as fits into one."""
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
        started = time.perf_counter()
        error = self._insert(batch)
        self._tell(self._events.committed, Committed(batch, error, time.perf_counter() - started))

    def _insert(self, batch: list[WriteRequest]) -> SpoolError | None:
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
        except Exception as error:  # noqa: BLE001 - no memory, say: whatever it was, these are not kept
            self._tell(self._events.thread_failed, error)
            return SpoolError(SPOOL_FAILED, type(error).__name__)
        return None

    def _answer(self, calls: deque[_Call]) -> None:
        if not calls:
            return
        call = calls.popleft()
        try:
            result = call.function(*call.arguments)
        except OSError as error:
            self._tell(_resolve, call.future, None, of_the_system(error))
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self._tell(_resolve, call.future, None, error)
        except BaseException as error:
            self._tell(_resolve, call.future, None, SpoolError(SPOOL_FAILED, type(error).__name__))
            raise
        else:
            self._tell(_resolve, call.future, result, None)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before its spool
            self._loop.call_soon_threadsafe(function, *arguments)


def _resolve(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
