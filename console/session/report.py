"""A session as `maskline session` shows it: what `--json` prints, and all that the drawing draws. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec

from maskline.console.output import utc_time
from maskline.console.session.facts import SessionFacts
from maskline.console.session.standing import EventState, KnownEvent, Standing
from maskline.console.session.waits import WaitRow, waits_of
from maskline.schemas.call_summary import EndedBy, Leg, RecordingSummary
from maskline.schemas.calls.assembly import AssembledCall, assemble
from maskline.schemas.privacy import is_token, number_token, redact
from maskline.worker.ordering.reorder import Order

Source = Literal["timeline", "callbacks", "timeline and callbacks"]


class CallRow(msgspec.Struct, frozen=True, kw_only=True):
    """One call, its fields as those of a CallSummary; phone numbers are tokens."""

    call: int
    ended_by: EndedBy | None
    """What showed that it is over; null while it is under way."""
    complete: bool
    """Every number between its first and last event arrived."""
    missing: tuple[int, ...]
    started_at: datetime | None
    ended_at: datetime | None
    first_party_number: str | None
    second_party_number: str | None
    virtual_number: str | None
    first_party: Leg
    second_party: Leg
    answered: bool
    """Both parties were connected."""
    duration_s: int | None
    billed_duration_s: int | None
    amount: Decimal | None
    hangup_cause: str | None
    hangup_cause_code: int | None
    pin_failures: int
    pin_status: str | None
    recordings: tuple[RecordingSummary, ...]


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """One event."""

    call: int | None
    """The call it belongs to; null for those of the session."""
    event_name: str
    sequence_number: int | None
    own_lane: bool
    """Its number counts in the recordings' own numbering."""
    run: int
    order: Order | None
    """As the handlers got it; null if they have not yet."""
    missing: tuple[int, ...]
    """The numbers that were given up just before it."""
    state: EventState
    copies: int
    """How often Plivo sent it again, as far as callbacks are kept."""
    replayed: bool
    at: datetime | None
    """EventTimestamp; where that cannot be read, `received_at`."""
    received_at: datetime | None
    entry_id: str
    pin_status: str | None
    pin_counter: int | None
    amount: str | None
    hangup_cause: str | None
    hangup_cause_code: int | None
    duration_s: int | None
    problems: tuple[str, ...]
    """Plivo's names of the attributes that could not be read."""


class GoneRow(msgspec.Struct, frozen=True, kw_only=True):
    """What is known to have been there and is not retained any more."""

    numbers: tuple[int, ...]
    recording_numbers: tuple[int, ...]
    others: int
    """Callbacks without a number."""
    earlier: bool
    """What came before the first callback that is retained cannot be told."""
    beyond: int
    """Callbacks that are retained, and were left out as there are too many."""


class LetterRow(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter of the session."""

    id: str
    handler: str | None
    event_name: str | None
    sequence_number: int | None
    code: str
    reason: str
    failed_at: datetime | None
    attempts: int
    parked: bool
    group: str


class SessionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One session; `maskline session --json` prints these fields."""

    session_uuid: str
    partition: int
    group: str
    """The consumer group whose order and handlers are shown."""
    source: Source
    """`timeline`: what the module `handlers.timeline` recorded; `callbacks`: those that are retained, put in order."""
    complete: bool
    """Nothing is known to be gone."""
    gone: GoneRow
    now: datetime | None
    """The server's clock."""
    first_at: datetime | None
    """The first event, and the last one."""
    last_at: datetime | None
    timed_out_at: datetime | None
    first_party_number: str | None
    second_party_number: str | None
    virtual_number: str | None
    callbacks: int
    """Those that are retained, copies included."""
    doubled: int
    """Those of them that repeat another one."""
    calls: tuple[CallRow, ...]
    events: tuple[EventRow, ...]
    """By time."""
    missing: tuple[int, ...]
    """Numbers that did not arrive, those that are waited for included."""
    late: int
    """Events that came after their place."""
    skipped: Mapping[str, tuple[int, ...]]
    """Numbers that a handler never handled, by handler."""
    unrecorded: int
    """Events that the timeline had no room for."""
    unreadable: int
    """Events that another release recorded in the timeline, and this one cannot read."""
    waits: tuple[WaitRow, ...]
    dead_letters: tuple[LetterRow, ...]
    """The oldest first."""
    dead_letters_beyond: int
    """Those that are left out, as there are too many."""
    order_error: str | None
    """Why the session's order in the group cannot be read, if it cannot: what waits is not known then."""


def report_of(facts: SessionFacts, standing: Standing) -> SessionReport:
    """The report of a session."""
    known = standing.events
    assembled = assemble(it.observation for it in known)
    call_of = {key: call.call for call in assembled.calls for key in call.keys}
    events = sorted(
        (_event_row(it, call_of.get(it.observation.idempotency_key)) for it in known),
        key=lambda row: (row.at is not None, row.at, row.sequence_number or 0),
    )
    times = [row.at for row in events if row.at is not None]
    gone, skipped = standing.gone, _skipped(facts)
    return SessionReport(
        session_uuid=facts.session_uuid,
        partition=facts.partition,
        group=facts.group,
        source=_source(known),
        complete=not (gone or facts.beyond),
        gone=GoneRow(
            numbers=gone.numbers,
            recording_numbers=gone.recording_numbers,
            others=gone.others,
            earlier=gone.earlier,
            beyond=facts.beyond,
        ),
        now=utc_time(facts.now_ms),
        first_at=min(times, default=None),
        last_at=max(times, default=None),
        timed_out_at=None if assembled.timed_out_ms is None else utc_time(assembled.timed_out_ms),
        first_party_number=_last_token(known, "first_party"),
        second_party_number=_last_token(known, "second_party"),
        virtual_number=_last_token(known, "virtual_number"),
        callbacks=len(facts.callbacks) + facts.beyond,
        doubled=standing.doubled,
        calls=tuple(map(_call_row, assembled.calls)),
        events=tuple(events),
        missing=assembled.missing,
        late=len(assembled.late),
        skipped=skipped,
        unrecorded=0 if facts.timeline is None else facts.timeline.beyond,
        unreadable=0 if facts.timeline is None else facts.timeline.unreadable,
        waits=tuple(waits_of(facts, standing)),
        dead_letters=tuple(_letter_rows(facts)),
        dead_letters_beyond=facts.letters_beyond,
        order_error=facts.state_error,
    )


def _source(events: Iterable[KnownEvent]) -> Source:
    recorded = {it.in_timeline for it in events}
    if recorded == {True}:
        return "timeline"
    return "timeline and callbacks" if True in recorded else "callbacks"


def _event_row(known: KnownEvent, call: int | None) -> EventRow:
    one = known.observation
    waits = known.state in ("held", "unread")
    return EventRow(
        call=call,
        event_name=redact(one.event_name),
        sequence_number=one.number,
        own_lane=one.own_lane,
        run=one.run,
        order=None if waits else one.order,
        missing=one.missing,
        state=known.state,
        copies=known.copies,
        replayed=one.replayed,
        at=utc_time(one.at_ms),
        received_at=utc_time(one.received_at_ms),
        entry_id=one.entry_id,
        pin_status=_redacted(one.pin_status),
        pin_counter=one.pin_counter,
        amount=one.amount,
        hangup_cause=_redacted(one.cause),
        hangup_cause_code=one.code,
        duration_s=one.recording_duration if one.recording else one.duration,
        problems=one.problems,
    )


def _call_row(call: AssembledCall) -> CallRow:
    fields = {name: getattr(call, name) for name in CallRow.__struct_fields__}
    for name in ("first_party_number", "second_party_number", "virtual_number"):
        fields[name] = _token(fields[name])
    for name in ("first_party", "second_party"):
        fields[name] = msgspec.structs.replace(
            fields[name], hangup_cause=_redacted(fields[name].hangup_cause)
        )
    for name in ("hangup_cause", "pin_status"):
        fields[name] = _redacted(fields[name])
    fields["recordings"] = tuple(
        msgspec.structs.replace(it, url=_redacted(it.url), recording_uuid=_redacted(it.recording_uuid))
        for it in call.recordings
    )
    return CallRow(**fields)


def _letter_rows(facts: SessionFacts) -> Iterable[LetterRow]:
    for letter_id, letter in facts.letters:
        yield LetterRow(
            id=letter_id,
            handler=letter.handler,
            event_name=_redacted(letter.event_name),
            sequence_number=letter.sequence_number,
            code=letter.code,
            reason=redact(letter.reason),
            failed_at=utc_time(letter.failed_at_ms),
            attempts=letter.attempts,
            parked=letter.parked,
            group=letter.group,
        )


def _skipped(facts: SessionFacts) -> dict[str, tuple[int, ...]]:
    retries = (facts.state.retries if facts.state is not None else None) or {}
    return {handler: it.skipped for handler, it in retries.items() if it.skipped}


def _last_token(events: Sequence[KnownEvent], name: str) -> str | None:
    texts = [getattr(it.observation, name) for it in events]
    return _token(next((text for text in reversed(texts) if text is not None), None))


def _token(text: str | None) -> str | None:
    return text if text is None or is_token(text) else number_token(text)


def _redacted(text: str | None) -> str | None:
    return None if text is None else redact(text)
