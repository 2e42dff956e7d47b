"""Keeps the observations of sessions, and emits the summaries of their calls in the same atomic change.

A change follows from a version of the session's record; if that is another by then, since a sweep or another owner has
changed it, it is worked out anew. So each call has one chain of revisions, whoever emits them.
"""

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

import structlog

from maskline.handlers.redis_store.records import EmittedEntry, Record, RecordChange, apply_change
from maskline.handlers.redis_store.store import RecordStore
from maskline.schemas.call_summary import CallSummary
from maskline.schemas.callback import encode_callback
from maskline.schemas.calls.assembly import OBSERVATIONS_MAX, SessionCalls, assemble
from maskline.schemas.calls.observation import Observation, ObservedContext, observe
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
from maskline.schemas.errors import (
    ConfigError,
    MasklineError,
    RedisRefusesError,
    RedisUnavailableError,
)
from maskline.schemas.events import Event
from maskline.schemas.privacy import redact
from maskline.schemas.settings import Settings

_log = structlog.get_logger("maskline.handlers")

OBSERVATIONS_CACHED_MAX: Final = 20_000
"""Observations kept in memory, of all sessions, some 1 kB each: of a session without any there, a change takes two
round trips. Some 1,000 sessions of ordinary length."""

TRIES_MAX: Final = 5
"""Of one change: a session has one owner, and a sweep changes it once."""

SWEPT_MAX: Final = 50
"""Silent sessions of a partition that one sweep ends."""

POSTPONED_MS: Final = 600_000
"""A silent session whose record cannot be read or written is tried again after this: others have their turn first."""


class _Known(NamedTuple):
    """A session as this process has left it."""

    record: Record
    calls: SessionCalls | None
    """The calls of the record, of which nothing is due any more; None where they were not assembled."""


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
        self._cached: OrderedDict[str, _Known] = OrderedDict()
        self._observations_cached = 0

    async def add(self, event: Event, ctx: OwnedContext) -> list[CallSummary]:
        """Keep what an event says, and emit the summaries that follow from it; what was emitted. Repeated, it changes
        nothing.

        Raises SessionLostError if a greater fencing token has written, RedisUnavailableError as the store does.
        """
        one = observe(event, ctx, recording_shared=self._recording_shared)
        session_uuid = event.session_uuid
        record, before = self._take(session_uuid)
        for _ in range(TRIES_MAX):
            calls, summaries = self._worked_out(session_uuid, record, before, one)
            due_in_ms = self._silence_ms if calls is None else self._due_in_ms(calls)
            change = RecordChange(one, ctx.fencing_token, record.version, self._entries(summaries), due_in_ms)
            stored = await self._records.change(session_uuid, change)
            if stored.status == "fenced":
                raise SessionLostError(f"the session {session_uuid} has a later owner")
            if stored.status != "changed":
                after, _ = apply_change(
                    record, change, observations_max=OBSERVATIONS_MAX, now_ms=stored.now_ms
                )
                self._remember(session_uuid, _Known(after, calls))
                return summaries
            record, before = stored.record or Record(), None
        raise MasklineError(f"the record of session {session_uuid} changes too often")

    def _worked_out(
        self, session_uuid: str, record: Record, before: SessionCalls | None, one: Observation
    ) -> tuple[SessionCalls | None, list[CallSummary]]:
        """The session's calls with one more observation, and the summaries that are due; None for the calls while only
        the first of them has begun.
        """
        kept = record.observations
        if one.idempotency_key in kept or record.count >= OBSERVATIONS_MAX:
            if before is not None:
                return before, []  # it changes nothing
        else:
            kept = {**kept, one.idempotency_key: one}
        if not record.added and call_only_begins(kept.values()):
            return None, []
        calls = assemble(kept.values(), before)
        return calls, due_summaries(session_uuid, calls, _emitted(record), before)

    async def sweep(self) -> list[CallSummary]:
        """End the calls of sessions that are silent, of each partition SWEPT_MAX at most; what was emitted.

        Any worker may sweep any session: only the first one that does changes it. A session whose server is away has
        its turn at a later sweep, and one whose record is broken after POSTPONED_MS: it is in no other's way.
        """
        emitted: list[CallSummary] = []
        for session_uuid in await self._records.due(SWEPT_MAX):
            try:
                emitted += await self._end_silent(session_uuid)
            except Exception as error:  # noqa: BLE001 - one session is not to keep the others from their end
                with contextlib.suppress(RedisUnavailableError):
                    await self._postpone(session_uuid, error)
        return emitted

    async def _postpone(self, session_uuid: str, error: Exception) -> None:
        if isinstance(error, RedisUnavailableError) and not isinstance(error, RedisRefusesError):
            return
        reason = redact(f"{type(error).__name__}: {error}")
        _log.warning("silent session not ended", session=session_uuid, reason=reason)
        await self._records.postpone(session_uuid, POSTPONED_MS)

    async def _end_silent(self, session_uuid: str) -> list[CallSummary]:
        record = await self._records.read(session_uuid)
        received = max((one.received_at_ms for one in record.observations.values()), default=0)
        session = assemble(record.observations.values())
        silence = silence_of(session_uuid, session, self._wall_ms(), received)
        summaries: list[CallSummary] = []
        if silence is not None:
            session = assemble([*record.observations.values(), silence], session)
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

    def _take(self, session_uuid: str) -> _Known:
        """What is known of a session; it is cached no more, until a change has succeeded."""
        known = self._cached.pop(session_uuid, _Known(Record(), None))
        self._observations_cached -= len(known.record.observations)
        return known

    def _remember(self, session_uuid: str, known: _Known) -> None:
        self._take(session_uuid)
        self._cached[session_uuid] = known
        self._observations_cached += len(known.record.observations)
        while self._observations_cached > OBSERVATIONS_CACHED_MAX:
            self._take(next(iter(self._cached)))


def _emitted(record: Record) -> dict[int, Emitted]:
    return {int(call): decode_emitted(value) for call, value in record.added.items()}
