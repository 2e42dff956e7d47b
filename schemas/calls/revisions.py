"""Which summaries a session's calls call for, beside those that were emitted before. Pure."""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from maskline.schemas.call_summary import CallSummary, encode_summary
from maskline.schemas.calls.assembly import SessionCalls
from maskline.schemas.calls.call_end import LEGS_SILENCE_MS
from maskline.schemas.calls.observation import Observation
from maskline.schemas.calls.vocabulary import LANDED, LEGS_SILENCE, PIN, REPLACED, SILENCE, UPDATED

DIGEST_BYTES: Final = 12


class Emitted(NamedTuple):
    """The last summary of a call that was emitted."""

    revision: int
    digest: bytes
    """DIGEST_BYTES bytes, equal for summaries that differ in nothing but the revision."""


encode_emitted: Final = msgspec.msgpack.Encoder().encode
decode_emitted: Final = msgspec.msgpack.Decoder(Emitted).decode


def digest_of(summary: CallSummary) -> bytes:
    """As `Emitted.digest`."""
    content = encode_summary(msgspec.structs.replace(summary, revision=0))
    return blake2b(content, digest_size=DIGEST_BYTES).digest()


_BESIDE: Final = frozenset(
    {
        PIN,
        REPLACED,
        UPDATED,
        "SessionRecordingInitiated",
        "SessionRecordingCompleted",
        "SessionRecordingFailed",
    }
)
"""Events that neither begin a call nor end one."""

_BEGINNING: Final = {
    name: rank
    for rank, name in enumerate(
        (
            LANDED,
            "SessionFirstPartyInitiated",
            "SessionFirstPartyRinging",
            "SessionFirstPartyAnswer",
            "SessionSecondPartyInitiated",
            "SessionSecondPartyRing",
            "SessionSecondPartyAnswer",
        )
    )
}
"""The events of a call until both parties talk, in their order."""


def call_only_begins(observations: Iterable[Observation]) -> bool:
    """Whether a session has had nothing but the beginning of its first call, in order: then none is over.

    It is the quick way to know what `assemble` would say, for many of all events: their kinds, numbers and times must
    all grow. `observations`: as they came.
    """
    reached = (-1, -1, -1)
    for one in observations:
        rank, number, at_ms = _BEGINNING.get(one.event_name), one.number, one.event_timestamp_ms
        if rank is None:
            if one.event_name not in _BESIDE:
                return False
            continue
        if number is None or at_ms is None or one.order == "late" or one.run:
            return False
        if rank <= reached[0] or number <= reached[1] or at_ms < reached[2]:
            return False
        reached = rank, number, at_ms
    return reached[0] >= 0


def due_summaries(
    session_uuid: str,
    session: SessionCalls,
    emitted: Mapping[int, Emitted],
    before: SessionCalls | None = None,
) -> list[CallSummary]:
    """The summaries to emit now: of calls that are over and were not emitted yet, or are otherwise than they were.

    `emitted`: by call. `before`: the session for which nothing was due any more when `emitted` was as it is; calls that
    `assemble` has taken from it are passed over. A call that was emitted and is no more, since what arrived later
    belongs to another one after all, is emitted once more without anything in it, so that a store does not count it
    twice.
    """
    settled = () if before is None else before.calls
    due = [
        summary
        for at, call in enumerate(session.calls)
        if call.ended_by is not None and not (at < len(settled) and call is settled[at])
        for summary in _changed(call.summary(0), emitted)
    ]
    for call in sorted(set(emitted) - {one.call for one in session.calls}):
        void = CallSummary(
            session_uuid=session_uuid, call=call, revision=0, ended_by="next_call", complete=False
        )
        due += _changed(void, emitted)
    return due


def _changed(summary: CallSummary, emitted: Mapping[int, Emitted]) -> list[CallSummary]:
    before = emitted.get(summary.call)
    if before is not None and before.digest == digest_of(summary):
        return []
    return [msgspec.structs.replace(summary, revision=1 if before is None else before.revision + 1)]


def silent_after_ms(session: SessionCalls, silence_ms: int) -> int | None:
    """After how long without an event a call of the session is over by silence; None if none is under way.

    `silence_ms`: MASKLINE_CALL_SILENCE_S, as milliseconds.
    """
    under_way = [call for call in session.calls if call.ended_by is None]
    if not under_way:
        return None
    return min(LEGS_SILENCE_MS, silence_ms) if under_way[-1].legs_over else silence_ms


def silence_of(session_uuid: str, session: SessionCalls, now_ms: int, last_ms: int) -> Observation | None:
    """The observation that a session with a call under way is silent; None if none is under way.

    `now_ms`: the time, `last_ms`: when the last of its events was received; milliseconds since the epoch.
    """
    under_way = [call for call in session.calls if call.ended_by is None]
    if not under_way:
        return None
    at_ms = max(now_ms, last_ms + 1)
    return Observation(
        idempotency_key=f"{session_uuid}:u:silence-{at_ms}",
        entry_id="",
        event_name=LEGS_SILENCE if under_way[-1].legs_over else SILENCE,
        received_at_ms=at_ms,
    )
