"""Records in memory, for a harness: the same changes as in Redis, in a test's own time."""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from maskline.handlers.redis_store.records import Record, RecordChange, Stored, apply_change
from maskline.schemas.callback import RawCallback, decode_callback
from maskline.schemas.calls.assembly import OBSERVATIONS_MAX


class HarnessStream(Protocol):
    """What a harness offers the twin of a resource, as `maskline.testing` has it."""

    @property
    def now_ms(self) -> int:
        """The harness's time, milliseconds since the epoch."""

    def emit(self, callback: RawCallback) -> None:
        """Append an entry to the harness's stream."""

    def call_at(self, at_ms: int, function: Callable[[], None]) -> None:
        """Call a function once the harness's time is `at_ms`."""


class MemoryRecordStore:
    """Records in memory. `sweep`: set by the owner of the store, and called when a session is due."""

    def __init__(self, harness: HarnessStream) -> None:
        self._harness = harness
        self._records: dict[str, Record] = {}
        self._due: dict[str, int] = {}
        self.sweep: Callable[[], Coroutine[Any, Any, Any]] | None = None

    async def read(self, session_uuid: str) -> Record:
        """As `RecordStore.read`."""
        return self._records.get(session_uuid, Record())

    async def change(self, session_uuid: str, change: RecordChange) -> Stored:
        """As `RecordStore.change`."""
        record, now_ms = await self.read(session_uuid), self._harness.now_ms
        if change.only_if_due and self._due.get(session_uuid, now_ms + 1) > now_ms:
            return Stored("early", record.version, now_ms)
        after, stored = apply_change(record, change, observations_max=OBSERVATIONS_MAX, now_ms=now_ms)
        if stored.status in ("fenced", "changed"):
            return stored
        self._records[session_uuid] = after
        for emission in change.emissions:
            if emission.entry:
                self._harness.emit(decode_callback(emission.entry))
        if change.due_in_ms is not None:
            self._due.pop(session_uuid, None)
            if change.due_in_ms >= 0:
                self._due[session_uuid] = now_ms + change.due_in_ms
                self._harness.call_at(self._due[session_uuid], self._run_sweep)
        return stored

    async def due(self, limit: int) -> list[str]:
        """As `RecordStore.due`."""
        due = [session for session, at_ms in self._due.items() if at_ms <= self._harness.now_ms]
        return sorted(due, key=self._due.__getitem__)[:limit]

    async def postpone(self, session_uuid: str, for_ms: int) -> None:
        """As `RecordStore.postpone`."""
        if session_uuid in self._due:
            self._due[session_uuid] = self._harness.now_ms + for_ms
            self._harness.call_at(self._due[session_uuid], self._run_sweep)

    def _run_sweep(self) -> None:
        if self.sweep is not None:
            work = self.sweep()
            try:
                work.send(None)  # nothing here waits, so it is over at once
            except StopIteration:
                return
            work.close()
            raise RuntimeError("a sweep in memory has waited")
