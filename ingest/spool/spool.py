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
from maskline.ingest.spool.files import SlotFile
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
        self._held = array("I", bytes(4 * HELD_BUCKETS))
        self._test: asyncio.Task[None] | None = None
        self.on_failed: Callable[[WriteRequest, str], None] = _tell
        """Tells those who wait that nothing was written, and why."""
        self.max_bytes = settings.spool_max_bytes
        self.log = SpoolLog()
        self.error: SpoolError | None = None
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
        writer = self._writer = SpoolWriter(self._directory, slot, self.max_bytes, self)
        self.damaged = self._directory.damaged()
        try:
            await writer.call(writer.files.open_own)
            await self.adopt()
        except SpoolError as error:
            self.on_unhealthy(error)
        if self.callbacks:
            self.log.found(self.callbacks, len(self.adopted))

    async def stop(self) -> None:
        """Close the files; those in which nothing lies are removed."""
        writer = self._writer
        if writer is None:
            return
        self.log.stopped(self.callbacks)
        self._writer = None
        if self._test is not None:
            self._test.cancel()
        writer.call(writer.files.close).add_done_callback(_look_away)
        if not await writer.close():
            self.log.hangs()

    # For the keeper

    def write(self, reason: str, partition_hash: int, value: bytes) -> asyncio.Future[None]:
        """Write a callback; the future is done once it is fsynced, or fails with NotKeptError."""
        completion: asyncio.Future[None] = self._loop.create_future()
        self.write_for(completion, reason, partition_hash, value)
        return completion

    def write_for(self, completion: Completion, reason: str, partition_hash: int, value: bytes) -> None:
        """The same for somebody who waits already."""
        request = self._gathering.get(reason) or self._gather(reason)
        size = len(value)
        request.completions.append(completion)
        request.partition_hashes.append(partition_hash)
        request.values.append(value)
        request.size_bytes += size
        self.waiting += 1
        self._in_flight.callbacks += 1
        self._in_flight.size_bytes += size
        self._held[partition_hash & _BUCKET] += 1

    def write_all(
        self, reason: str, completions: Completions, partition_hashes: list[int], values: list[bytes]
    ) -> None:
        """The same for several that somebody waits for already."""
        request = self._gathering.get(reason) or self._gather(reason)
        request.completions += completions
        request.partition_hashes += partition_hashes
        request.values += values
        size = sum(map(len, values))
        request.size_bytes += size
        self.waiting += len(values)
        self._in_flight.callbacks += len(values)
        self._in_flight.size_bytes += size
        held = self._held
        for partition_hash in partition_hashes:
            held[partition_hash & _BUCKET] += 1

    def holds(self, partition_hash: int) -> bool:
        """Whether earlier callbacks of the session may lie here."""
        return self._held[partition_hash & _BUCKET] > 0

    # For the drain

    def files(self) -> list[SlotFile]:
        """All journals that are to be drained: not those that are being carried into the own one."""
        if self._writer is None:
            return []
        files = self._writer.files
        return [slot_file for slot_file in files.all if files.stuck or slot_file not in files.strays]

    @property
    def adopted(self) -> tuple[SlotFile, ...]:
        """What dead processes left, until it is drained."""
        return () if self._writer is None else self._writer.files.adopted

    async def adopt(self) -> None:
        """Take over what dead processes have left since. Raises SpoolError where the directory cannot be read."""
        if self._writer is not None:
            await self._writer.call(self._writer.files.open_leftovers)

    async def page(self, slot_file: SlotFile, after: int, rows_max: int) -> list[Row]:
        """The next callbacks of a journal. Raises SpoolError."""
        writer = self._open_writer()
        return list(
            await self._call(slot_file, writer.files.page, slot_file, after, rows_max, PAGE_BYTES_MAX)
        )

    async def delete(self, slot_file: SlotFile, rows: list[Row]) -> None:
        """Delete what Redis has confirmed. Raises SpoolError, and then it has to be tried again."""
        writer = self._open_writer()
        if not await self._call(slot_file, writer.files.delete, slot_file, [row.id for row in rows]):
            return
        self._metrics.drained += len(rows)
        if not slot_file.adopted:
            for row in rows:
                self._let_go_of(row.partition_hash)
        left = self.callbacks + self.waiting
        if not left:
            self._held = array("I", bytes(4 * HELD_BUCKETS))  # however it was counted on the way
        self.log.drained(len(rows), left)

    # For whoever asks

    @property
    def callbacks(self) -> int:
        return sum(slot_file.file.state.callbacks for slot_file in self._all())

    @property
    def size_bytes(self) -> int:
        """On the disk."""
        return sum(slot_file.file.state.size_bytes for slot_file in self._all())

    @property
    def oldest_at_ms(self) -> int | None:
        """When the callback that has lain here longest was written, by the wall clock."""
        times = [slot_file.file.state.oldest_at_ms for slot_file in self._all()]
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    # Inside

    def _all(self) -> list[SlotFile]:
        return [] if self._writer is None else self._writer.files.all

    def _open_writer(self) -> SpoolWriter:
        if self._writer is None:
            raise SpoolError(SPOOL_FAILED, "it is closed")
        return self._writer

    async def _call(self, slot_file: SlotFile, function: Any, *arguments: Any) -> Any:
        writer = self._open_writer()
        try:
            return await writer.call(function, *arguments)
        except DamagedError:
            if slot_file in writer.files.adopted:
                await writer.call(writer.files.drop_damaged, slot_file)
            elif slot_file is writer.files.own:
                await writer.call(writer.files.renew_own)
            raise

    def _gather(self, reason: str) -> WriteRequest:
        if not self._gathering:
            self._loop.call_soon(self._hand_over)
        request = self._gathering[reason] = WriteRequest(reason)
        return request

    def _hand_over(self) -> None:
        gathered, self._gathering = self._gathering, {}
        for request in gathered.values():
            if self._writer is None:
                self._end(request, SpoolError(SPOOL_FAILED, "it is closed"))
                continue
            self.log.spooling(request.reason)
            request.timer = self._loop.call_later(PUT_TIMEOUT_S, self._look_again, request)
            self._writer.write(request)

    # What the journal tells

    def committed(self, committed: Committed) -> None:
        self._metrics.commit_s.observe(committed.seconds)
        written = False
        for request in committed.requests:
            try:
                self._end(request, committed.error)
            except Exception as error:  # noqa: BLE001 - of one who waits: the others are told all the same
                self._tasks.failed("spool answers", error)
            written = written or request.written
        if committed.error is not None:
            self.on_unhealthy(committed.error)
        elif written:
            self._on_healthy()
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

    def carried(self, partition_hashes: Sequence[int]) -> None:
        for partition_hash in partition_hashes:
            self._held[partition_hash & _BUCKET] += 1

    def ended(self, name: str, lost: int) -> None:
        self.log.ended(name, lost)
        self.changed.set()

    def on_unhealthy(self, error: SpoolError) -> None:
        if self.error is None or self.error.code != error.code:
            self.log.unwell(error)
        self.error = error
        if self._test is None and self._writer is not None:
            self._test = self._tasks.start("spool test", self._try_until_well)

    def thread_failed(self, error: BaseException) -> None:
        self._tasks.failed("spool writer", error)

    # Inside

    def _end(self, request: WriteRequest, error: SpoolError | None) -> None:
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
            self._let_go_of(partition_hash)
        if error is not None:
            self._metrics.spool_failures[error.code] += count
            self.on_failed(request, error.code)

    def _look_again(self, request: WriteRequest) -> None:
        request.timer = self._loop.call_later(LOOK_AGAIN_S, self._give_up, request)

    def _give_up(self, request: WriteRequest) -> None:
        request.given_up = True
        self._metrics.spool_failures[SPOOL_SLOW] += len(request.values)
        self.on_failed(request, SPOOL_SLOW)
        self.on_unhealthy(SpoolError(SPOOL_SLOW, f"the disk has not confirmed within {PUT_TIMEOUT_S:g} s"))

    def _let_go_of(self, partition_hash: int) -> None:
        if self._held[
            partition_hash & _BUCKET
        ]:  # counted anew meanwhile, where the file had to be opened again
            self._held[partition_hash & _BUCKET] -= 1

    def _on_healthy(self) -> None:
        if self.error is not None:
            self.error = None
            self.log.well()

    async def _try_until_well(self) -> None:
        """Write now and then, so that it gets well without a callback."""
        while self.error is not None and self._writer is not None:
            await asyncio.sleep(TRY_INTERVAL_S)
            try:
                await self._writer.call(self._writer.files.try_room)
            except SpoolError as error:
                self.on_unhealthy(error)
            else:
                self._on_healthy()
        self._test = None


def _tell(request: WriteRequest, code: str) -> None:
    for completion in request.completions:
        if not completion.done():
            completion.set_exception(NotStoredError(code))


def _look_away(future: asyncio.Future[Any]) -> None:
    """What cannot be closed properly at the end is for the next start."""
    if not future.cancelled():
        future.exception()
