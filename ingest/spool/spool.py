"""The spool's interface on the event loop: callbacks in, pages out, its size, its health.

- The callbacks of a loop tick are one write request for the writer thread (`ingest.spool.writer`), which owns the files
  (`ingest.spool.file_set`).
- A callback that is not fsynced within WRITE_TIMEOUT_S is given up: the answer is due, the disk hangs.
- A commit that fails makes the spool unhealthy. It is then probed by a write every PROBE_INTERVAL_S, so that a node
  that the load balancer took out of service recovers without a callback.
- A file that was removed, moved or replaced is noticed before a commit counts, and at least every second; its callbacks
  go into a new file.
- Sessions with callbacks here are counted by buckets of their partition hash: their later callbacks queue behind.
  Partitions are counted as well: workers are told of which this node holds some (`ingest.delivery.spool_notices`).
"""

import asyncio
import socket
import time
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
from maskline.ingest.spool.counts import SpoolCounts
from maskline.ingest.spool.directory import SpoolDirectory
from maskline.ingest.spool.errors import DamagedError, SpoolError
from maskline.ingest.spool.file_set import SlotFile
from maskline.ingest.spool.log import SpoolLog
from maskline.ingest.spool.sqlite_file import Row
from maskline.ingest.spool.writer import CommitResult, SpoolWriter, WriteRequest
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.settings import Settings

WRITE_TIMEOUT_S: Final = 5.0
"""An ordinary fsync takes milliseconds, one behind a busy disk a second; no request waits longer than this."""
COMMIT_RECHECK_S: Final = 0.25
"""After WRITE_TIMEOUT_S: where the loop itself stood still, the result of the commit is there and was not read yet."""
PROBE_INTERVAL_S: Final = 1.0
"""Between two writes that find out whether an unhealthy spool takes callbacks again."""
PAGE_BYTES_MAX: Final = 1 << 20
"""Of one page, except that a page holds at least one callback, however large."""


class Spool:
    """The spool of this process, from `start` to `stop`. All of it runs on the event loop.

    `in_flight`: counts the process's callbacks that await an outcome, those on their way to the disk among them.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, in_flight: InFlight, tasks: BackgroundTasks
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._in_flight = in_flight
        self._tasks = tasks
        self._directory = SpoolDirectory(settings.spool_dir, settings.namespace)
        self._writer: SpoolWriter | None = None
        self._gathering: dict[str, WriteRequest] = {}
        """The write requests of this loop tick, by reason."""
        self._counts = SpoolCounts(settings.partitions)
        """Of callbacks here and on their way here; those in adopted files are not among them."""
        self._held_since: dict[int, float] = {}
        """By partition: when its first callback came here, by the loop's clock; those found here are not among them."""
        self.on_held: Callable[[], None] = lambda: None
        """Called when the first callback of a partition comes here."""
        self._probe_task: asyncio.Task[None] | None = None
        self.on_failed: Callable[[WriteRequest, str], None] = _fail_all
        """Takes over a write request that was not written, with the code of the failure."""
        self.max_bytes = settings.spool_max_bytes
        self.log = SpoolLog()
        self.error: SpoolError | None = None
        """Why the spool does not take callbacks; None while it does."""
        self.damaged: list[str] = []
        """Damaged files that were set aside, by name."""
        self.waiting = 0
        """Callbacks on their way to the disk."""
        self.name = ""
        """`<host>:<path of the file>`: the next process here has the same."""
        self.changed = asyncio.Event()
        """Set whenever callbacks were written."""

    async def start(self) -> None:
        """Acquire a slot of the directory, with the callbacks in it, and adopt the files of dead processes.

        Raises ConfigError where the directory cannot be used. A file that cannot be opened yet (the disk is full) is
        tried again later.
        """
        slot = self._directory.acquire_slot()
        partitions = len(self._counts.partitions)
        writer = self._writer = SpoolWriter(self._directory, slot, partitions, self.max_bytes, self)
        self.name = f"{socket.gethostname()}:{slot.path.resolve()}"
        self.damaged = self._directory.damaged()
        try:
            await writer.call(writer.files.open_own)
            await self.adopt()
        except SpoolError as error:
            self.on_unhealthy(error)
        if self.callbacks:
            self.log.found(self.callbacks, len(self.adopted))

    async def stop(self) -> None:
        """Close the files, and remove those that are empty."""
        writer = self._writer
        if writer is None:
            return
        self.log.stopped(self.callbacks)
        self._writer = None
        if self._probe_task is not None:
            self._probe_task.cancel()
        writer.call(writer.files.close).add_done_callback(_ignore_outcome)
        if not await writer.close():
            self.log.not_closed()

    # For the router

    def write(self, reason: str, partition_hash: int, value: bytes) -> asyncio.Future[None]:
        """Write a callback; the future is done once it is fsynced, or fails with NotStoredError.

        `reason`: the code why it is spooled. `partition_hash`: the CRC-32 of the SessionUUID. `value`: the msgpack of a
        RawCallback.
        """
        completion: asyncio.Future[None] = self._loop.create_future()
        self.write_for(completion, reason, partition_hash, value)
        return completion

    def write_for(self, completion: Completion, reason: str, partition_hash: int, value: bytes) -> None:
        """Like `write`, but completes an existing completion."""
        request = self._gathering.get(reason) or self._new_request(reason)
        size = len(value)
        request.completions.append(completion)
        request.partition_hashes.append(partition_hash)
        request.values.append(value)
        request.size_bytes += size
        self.waiting += 1
        self._in_flight.callbacks += 1
        self._in_flight.size_bytes += size
        if self._counts.add(partition_hash):
            self._on_first(partition_hash)

    def write_all(
        self, reason: str, completions: Completions, partition_hashes: list[int], values: list[bytes]
    ) -> None:
        """Like `write_for`, for several callbacks at once: one item of each list is one callback."""
        request = self._gathering.get(reason) or self._new_request(reason)
        request.completions += completions
        request.partition_hashes += partition_hashes
        request.values += values
        size = sum(map(len, values))
        request.size_bytes += size
        self.waiting += len(values)
        self._in_flight.callbacks += len(values)
        self._in_flight.size_bytes += size
        for partition_hash in partition_hashes:
            if self._counts.add(partition_hash):
                self._on_first(partition_hash)

    def holds(self, partition_hash: int) -> bool:
        """Whether earlier callbacks of the session may be here, or on their way here."""
        return self._counts.holds_session(partition_hash)

    # For the drainer

    def files(self) -> list[SlotFile]:
        """All files to be drained: not those that are being rescued into the own one."""
        if self._writer is None:
            return []
        files = self._writer.files
        return [
            slot_file for slot_file in files.all if files.rescue_failed or slot_file not in files.displaced
        ]

    @property
    def adopted(self) -> tuple[SlotFile, ...]:
        """Files of dead processes that are not drained yet."""
        return () if self._writer is None else self._writer.files.adopted

    async def adopt(self) -> None:
        """Adopt the files that dead processes have left since. Raises SpoolError where the directory cannot be read."""
        if self._writer is not None:
            await self._writer.call(self._writer.files.adopt_leftovers)

    async def page(self, slot_file: SlotFile, after_id: int, rows_max: int) -> list[Row]:
        """The next callbacks of a file, in order of arrival: rows with a larger id, PAGE_BYTES_MAX at most.

        Raises SpoolError.
        """
        writer = self._open_writer()
        return list(
            await self._call(slot_file, writer.files.page, slot_file, after_id, rows_max, PAGE_BYTES_MAX)
        )

    async def delete(self, slot_file: SlotFile, rows: list[Row]) -> None:
        """Delete rows that Redis has confirmed. Raises SpoolError; the caller then has to try again."""
        writer = self._open_writer()
        if not await self._call(slot_file, writer.files.delete, slot_file, [row.id for row in rows]):
            return
        self._metrics.drained += len(rows)
        counts = slot_file.file.counts if slot_file.adopted else self._counts
        for row in rows:
            counts.remove(row.partition_hash)
        left = self.callbacks + self.waiting
        if not left:  # also corrects miscounts
            self._counts = SpoolCounts(len(self._counts.partitions))
        self.log.drained(len(rows), left)

    # For the notices to workers

    def held_ms(self) -> dict[int, int]:
        """The partitions with callbacks here, or on their way here, and for how long there have been any, in ms."""
        oldest_at_ms = self.oldest_at_ms
        found_ms = 0 if oldest_at_ms is None else max(0, int(time.time() * 1000) - oldest_at_ms)
        own, now = self._counts.held_partitions(), self._loop.time()
        self._held_since = {
            partition: since for partition in own if (since := self._held_since.get(partition)) is not None
        }
        held = dict.fromkeys(own, found_ms)
        held |= {partition: int((now - since) * 1000) for partition, since in self._held_since.items()}
        for slot_file in self._all():
            if slot_file.adopted:
                held |= dict.fromkeys(slot_file.file.counts.held_partitions(), found_ms)
        return held

    # For /readyz and the metrics

    @property
    def callbacks(self) -> int:
        """Callbacks in all files."""
        return sum(slot_file.file.state.callbacks for slot_file in self._all())

    @property
    def size_bytes(self) -> int:
        """Bytes that they take on the disk."""
        return sum(slot_file.file.state.size_bytes for slot_file in self._all())

    @property
    def oldest_at_ms(self) -> int | None:
        """When the oldest callback here was written, in milliseconds of the wall clock; None where there is none."""
        times = [slot_file.file.state.oldest_at_ms for slot_file in self._all()]
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    # For the writer, whose events come in on the loop (`ingest.spool.writer.WriterEvents`)

    def on_committed(self, result: CommitResult) -> None:
        """Complete the write requests of a commit."""
        self._metrics.commit_s.observe(result.took_s)
        written = False
        for request in result.requests:
            try:
                self._complete(request, result.error)
            except Exception as error:  # noqa: BLE001 - of one completion: the others are completed all the same
                self._tasks.failed("spool answers", error)
            written = written or request.written
        if result.error is not None:
            self.on_unhealthy(result.error)
        elif written:
            self._on_healthy()
            self.changed.set()

    def on_opened(self, counts: SpoolCounts, add: bool) -> None:
        """Take over the counts of the own file, which was opened; `add`: on top of those there are."""
        self._counts = self._counts.plus(counts) if add else counts
        self.changed.set()

    def on_damaged(self, name: str) -> None:
        """Record that a damaged file was set aside under this name."""
        self.damaged.append(name)
        self.log.damaged(name)

    def on_displaced(self, name: str, callbacks: int) -> None:
        """Record that the file of this name, with this many callbacks, is gone from its path."""
        self._metrics.spool_files_gone += 1
        self.log.displaced(name, callbacks)

    def on_rescued(self, partition_hashes: Sequence[int]) -> None:
        """Count callbacks of dead processes that are in the own file now."""
        for partition_hash in partition_hashes:
            self._counts.add(partition_hash)

    def on_displaced_closed(self, name: str, lost: int) -> None:
        """Record that a displaced file is closed, and how many callbacks are lost with it."""
        self.log.displaced_closed(name, lost)
        self.changed.set()

    def on_unhealthy(self, error: SpoolError) -> None:
        """Record why the spool does not take callbacks, and probe it until it does."""
        if self.error is None or self.error.code != error.code:
            self.log.failed(error)
        self.error = error
        if self._probe_task is None and self._writer is not None:
            self._probe_task = self._tasks.start("spool test", self._probe_until_healthy)

    def on_thread_failed(self, error: BaseException) -> None:
        """Report a fault in the writer thread."""
        self._tasks.failed("spool writer", error)

    # Inside

    def _all(self) -> list[SlotFile]:
        return [] if self._writer is None else self._writer.files.all

    def _open_writer(self) -> SpoolWriter:
        if self._writer is None:
            raise SpoolError(SPOOL_FAILED, "it is closed")
        return self._writer

    async def _call(self, slot_file: SlotFile, function: Any, *arguments: Any) -> Any:
        """Call this in the writer thread; a file that turns out to be damaged is set aside."""
        writer = self._open_writer()
        try:
            return await writer.call(function, *arguments)
        except DamagedError:
            if slot_file in writer.files.adopted:
                await writer.call(writer.files.drop_damaged, slot_file)
            elif slot_file is writer.files.own:
                await writer.call(writer.files.renew_own)
            raise

    def _on_first(self, partition_hash: int) -> None:
        self._held_since[partition_hash % len(self._counts.partitions)] = self._loop.time()
        self.on_held()

    def _new_request(self, reason: str) -> WriteRequest:
        if not self._gathering:
            self._loop.call_soon(self._hand_over)
        request = self._gathering[reason] = WriteRequest(reason)
        return request

    def _hand_over(self) -> None:
        """Pass the write requests of the last loop tick to the writer."""
        gathered, self._gathering = self._gathering, {}
        for request in gathered.values():
            if self._writer is None:
                self._complete(request, SpoolError(SPOOL_FAILED, "it is closed"))
                continue
            self.log.spooling(request.reason)
            request.timer = self._loop.call_later(WRITE_TIMEOUT_S, self._recheck, request)
            self._writer.write(request)

    def _complete(self, request: WriteRequest, error: SpoolError | None) -> None:
        if request.timer is not None:
            request.timer.cancel()
        count = len(request.values)
        self.waiting -= count
        self._in_flight.callbacks -= count
        self._in_flight.size_bytes -= request.size_bytes
        if error is None and request.written:
            self._metrics.spooled[request.reason] += count
            for completion in request.completions:
                if not completion.done():
                    completion.set_result(None)
            return
        for partition_hash in request.partition_hashes:
            self._counts.remove(partition_hash)
        if error is not None:
            self._metrics.spool_failures[error.code] += count
            self.on_failed(request, error.code)

    def _recheck(self, request: WriteRequest) -> None:
        request.timer = self._loop.call_later(COMMIT_RECHECK_S, self._give_up, request)

    def _give_up(self, request: WriteRequest) -> None:
        request.given_up = True
        self._metrics.spool_failures[SPOOL_SLOW] += len(request.values)
        self.on_failed(request, SPOOL_SLOW)
        self.on_unhealthy(SpoolError(SPOOL_SLOW, f"the disk has not confirmed within {WRITE_TIMEOUT_S:g} s"))

    def _on_healthy(self) -> None:
        if self.error is not None:
            self.error = None
            self.log.recovered()

    async def _probe_until_healthy(self) -> None:
        """Probe by a write every PROBE_INTERVAL_S, so that the spool recovers without a callback."""
        while self.error is not None and self._writer is not None:
            await asyncio.sleep(PROBE_INTERVAL_S)
            try:
                await self._writer.call(self._writer.files.probe_room)
            except SpoolError as error:
                self.on_unhealthy(error)
            else:
                self._on_healthy()
        self._probe_task = None


def _fail_all(request: WriteRequest, code: str) -> None:
    for completion in request.completions:
        if not completion.done():
            completion.set_exception(NotStoredError(code))


def _ignore_outcome(future: asyncio.Future[Any]) -> None:
    """Retrieve the error of the close: a file that is not closed properly is for the next start."""
    if not future.cancelled():
        future.exception()
