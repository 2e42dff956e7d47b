"""Keeps the observations of sessions, and emits the summaries of their calls in the same atomic change.

A change follows from a version of the session's record; if that is another by then, since a sweep or another owner has
changed it, it is worked out anew. So each call has one chain of revisions, whoever emits them.
"""

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from maskline.handlers.redis_store.records import EmittedEntry, Record, RecordChange, Stored, apply_change
from maskline.handlers.redis_store.store import RecordStore
from maskline.schemas.call_summary import CallSummary
from maskline.schemas.callback import encode_callback
from maskline.schemas.calls.assembly import OBSERVATIONS_MAX, SessionCalls, assemble
from maskline.schemas.calls.observation import ObservedContext, observe
from maskline.schemas.calls.revisions import (
    Emitted,
    call_only_begins,
    decode_emitted,
    digest_of,
    due_summaries,
    encode_emitted,
    silence_of,
    silent_after_ms,
)
from maskline.schemas.emission import emitted_callback
from maskline.schemas.errors import ConfigError, MasklineError, RedisUnavailableError
from maskline.schemas.events import Event
from maskline.schemas.settings import Settings

SESSIONS_CACHED_MAX: Final = 1_000
"""Records kept in memory, some 20 kB each: of those that are not, a change takes two round trips."""

TRIES_MAX: Final = 5
"""Of one change: a session has one owner, and a sweep changes it once."""

SWEPT_MAX: Final = 50
"""Silent sessions of a partition that one sweep ends."""


class SessionLostError(MasklineError):
    """A later owner of the session has written its record: this worker was cut off from Redis."""


class OwnedContext(ObservedContext, Protocol):
    """What `CallStore.add` takes of a handler's `Context`."""

    @property
    def fencing_token(self) -> int: ...  # noqa: D102 - as in Context


class CallStore:
    """The records of sessions, as call summaries need them.

    `records`: where they are kept. `settings`: the group for which summaries are emitted, how recording events are
    numbered, and after how long a call whose end did not arrive is over. `wall_ms`: the time, milliseconds since the
    epoch. Raises ConfigError where records would expire before their calls are over.
    """

    def __init__(
        self,
        records: RecordStore,
        settings: Settings,
        *,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        if settings.call_silence_s >= settings.call_summary_ttl_s:
            raise ConfigError("MASKLINE_CALL_SILENCE_S must be shorter than MASKLINE_CALL_SUMMARY_TTL_S")
        self._records, self._group = records, settings.group
        self._recording_shared = settings.recording_sequence == "shared"
        self._silence_ms = settings.call_silence_s * 1000
        self._wall_ms = wall_ms
        self._cached: OrderedDict[str, Record] = OrderedDict()

    async def add(self, event: Event, ctx: OwnedContext) -> list[CallSummary]:
        """Keep what an event says, and emit the summaries that follow from it; what was emitted. Repeated, it changes
        nothing.

        Raises SessionLostError if a greater fencing token has written, RedisUnavailableError as the store does.
        """
        one = observe(event, ctx, recording_shared=self._recording_shared)
        session_uuid = event.session_uuid
        record = self._cached.pop(session_uuid, Record())
        for _ in range(TRIES_MAX):
            kept = record.observations
            if one.idempotency_key not in kept and record.count < OBSERVATIONS_MAX:
                kept = {**kept, one.idempotency_key: one}
            summaries: list[CallSummary] = []
            due_in_ms = self._silence_ms
            if record.added or not call_only_begins(kept.values()):
                session = assemble(kept.values())
                summaries = due_summaries(session_uuid, session, _emitted(record))
                due_in_ms = self._due_in_ms(session)
            change = RecordChange(one, ctx.fencing_token, record.version, self._entries(summaries), due_in_ms)
            stored = await self._records.change(session_uuid, change)
            if stored.status == "fenced":
                raise SessionLostError(f"the session {session_uuid} has a later owner")
            if stored.status != "changed":
                self._remember(session_uuid, record, change, stored)
                return summaries
            record = stored.record or Record()
        raise MasklineError(f"the record of session {session_uuid} changes too often")

    async def sweep(self) -> list[CallSummary]:
        """End the calls of sessions that are silent, of each partition SWEPT_MAX at most; what was emitted.

        Any worker may sweep any session: only the first one that does changes it. A session whose server is away has
        its turn at a later sweep.
        """
        emitted: list[CallSummary] = []
        for session_uuid in await self._records.due(SWEPT_MAX):
            with contextlib.suppress(RedisUnavailableError):
                emitted += await self._end_silent(session_uuid)
        return emitted

    async def _end_silent(self, session_uuid: str) -> list[CallSummary]:
        record = await self._records.read(session_uuid)
        received = max((one.received_at_ms for one in record.observations.values()), default=0)
        session = assemble(record.observations.values())
        silence = silence_of(session_uuid, session, self._wall_ms(), received)
        summaries: list[CallSummary] = []
        if silence is not None:
            session = assemble([*record.observations.values(), silence])
            summaries = due_summaries(session_uuid, session, _emitted(record))
        change = RecordChange(silence, 0, record.version, self._entries(summaries), -1, only_if_due=True)
        stored = await self._records.change(session_uuid, change)
        return summaries if stored.status in ("stored", "full") else []

    def _entries(self, summaries: Iterable[CallSummary]) -> tuple[EmittedEntry, ...]:
        return tuple(
            EmittedEntry(
                str(summary.call),
                encode_emitted(Emitted(summary.revision, digest_of(summary))),
                encode_callback(emitted_callback(summary, self._group, self._wall_ms())),
            )
            for summary in summaries
        )

    def _due_in_ms(self, session: SessionCalls) -> int:
        due_ms = silent_after_ms(session, self._silence_ms)
        return -1 if due_ms is None else due_ms

    def _remember(self, session_uuid: str, record: Record, change: RecordChange, stored: Stored) -> None:
        after, _ = apply_change(record, change, observations_max=OBSERVATIONS_MAX, now_ms=stored.now_ms)
        self._cached[session_uuid] = after
        while len(self._cached) > SESSIONS_CACHED_MAX:
            self._cached.popitem(last=False)


def _emitted(record: Record) -> dict[int, Emitted]:
    return {int(call): decode_emitted(value) for call, value in record.added.items()}
