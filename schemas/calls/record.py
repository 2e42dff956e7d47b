"""Makes the record of one call from its events. Pure.

Which event counts where several say it:

| field | counts | reason |
| --- | --- | --- |
| `amount` | `SessionPartiesHangup`; else the last leg's end that has one; else the last unknown event's | (1) |
| `duration_s`, `billed_duration_s` | the same, but of the legs' ends the longest | (2) |
| `hangup_cause`, its code | `SessionPartiesHangup`; else a leg not answered; else the first leg's end | (3) |
| numbers | the last event of the call that has one | one that was replaced counts from then on |

(1) Plivo: "total charge of the call", so amounts are never added up, and the last one knows most. Other events bear an
amount too, but what they say before the end is no charge yet. (2) A call lasts as long as its longest leg. (3) Of two
parties that were connected one leaves first, and the other because of that.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple, TypeVar

from maskline.schemas.call_summary import Leg, LegOutcome, RecordingStatus, RecordingSummary
from maskline.schemas.calls.observation import Observation, at
from maskline.schemas.calls.vocabulary import (
    ANSWERED,
    DONE,
    ENDED,
    FAILED,
    INITIATED,
    LANDED,
    PIN,
    RINGING,
    STEPS,
    Side,
)
from maskline.schemas.events import EVENT_TYPES

Value = TypeVar("Value")

PIN_FAILED: Final = "failed"


class Charge(NamedTuple):
    """What a call has cost and how long it lasted."""

    amount: Decimal | None
    duration_s: int | None
    billed_duration_s: int | None


def charge_of(events: Sequence[Observation]) -> Charge:
    """The charge of a call, by the table above. `events`: those of the call, in order."""
    done = [one for one in events if one.event_name == DONE]
    ends = [one for one in events if _ends_leg(one)]
    unknown = [one for one in events if one.event_name not in EVENT_TYPES]
    amount = _last(_amount(one) for one in (*unknown, *ends, *done))
    return Charge(
        amount,
        _length([one.duration for one in unknown], [one.duration for one in ends], done, "duration"),
        _length(
            [one.billed_duration for one in unknown],
            [one.billed_duration for one in ends],
            done,
            "billed_duration",
        ),
    )


def _length(
    unknown: Iterable[int | None], ends: Iterable[int | None], done: Iterable[Observation], field: str
) -> int | None:
    said = _last(getattr(one, field) for one in done)
    if said is not None:
        return int(said)
    longest = max((length for length in ends if length is not None), default=None)
    return _last(unknown) if longest is None else longest


def leg_of(side: Side, events: Sequence[Observation], *, caller: bool) -> Leg:
    """A party's leg. `caller`: it is the one that called the virtual number."""
    mine = [one for one in events if (step := STEPS.get(one.event_name)) and step.side == side]
    times: dict[int, datetime | None] = {}
    for stage in (INITIATED, RINGING, ANSWERED, ENDED):
        found = [one.event_timestamp_ms for one in mine if STEPS[one.event_name].stage == stage]
        times[stage] = at(_last(found))
    landed = [one for one in events if one.event_name == LANDED] if caller else []
    if landed and times[ANSWERED] is None:
        times[ANSWERED] = at(_last(one.event_timestamp_ms for one in landed))
    outcome = _outcome(mine, events, landed=bool(landed))
    ends = [one for one in mine if _ends_leg(one)]
    return Leg(
        initiated_at=times[INITIATED],
        ringing_at=times[RINGING],
        answered_at=times[ANSWERED],
        ended_at=times[ENDED],
        outcome=outcome,
        ring_s=_seconds(times[RINGING], times[ANSWERED] or (times[ENDED] if outcome != "answered" else None)),
        talk_s=_seconds(times[ANSWERED], times[ENDED]),
        hangup_cause=_last(one.cause for one in ends),
        hangup_cause_code=_last(one.code for one in ends),
    )


def _outcome(
    mine: Sequence[Observation], events: Sequence[Observation], *, landed: bool
) -> LegOutcome | None:
    """What became of a leg, also where the event that says so was lost and another implies it."""
    if landed or any(STEPS[one.event_name].stage == ANSWERED for one in mine):
        return "answered"
    if any(one.event_name in FAILED for one in mine):
        return "failed"
    lengths = [length for one in mine if _ends_leg(one) for length in (one.duration, one.billed_duration)]
    if any(length for length in lengths if length):
        return "answered"
    if any(one.recording and one.event_name != "SessionRecordingFailed" for one in events):
        return "answered"  # recording begins when both parties are connected
    if any(_ends_leg(one) for one in mine):
        return "unanswered"
    talked = any(one.event_name == DONE and one.duration for one in events)
    others_failed = any(
        one.event_name in FAILED or (_ends_leg(one) and one.duration == 0)
        for one in events
        if one not in mine
    )
    return "answered" if talked and not others_failed else None


def caller_of(events: Sequence[Observation]) -> Side | None:
    """Which party called the virtual number: the one that was not dialled; None if nobody did, as far as is known."""
    if not any(one.event_name == LANDED for one in events):
        return None
    dialled = {
        step.side
        for one in events
        if (step := STEPS.get(one.event_name)) and step.stage in (INITIATED, RINGING)
    }
    return "second" if dialled == {"first"} else "first"


def cause_of(events: Sequence[Observation], first: Leg, second: Leg) -> tuple[str | None, int | None]:
    """Why the call ended, and the code of it, by the table above."""
    ends = [one for one in events if _ends_leg(one)]
    unanswered = {
        side
        for side, leg in (("first", first), ("second", second))
        if leg.outcome in ("failed", "unanswered")
    }
    ranked = [
        *reversed([one for one in events if one.event_name == DONE]),
        *(one for one in ends if STEPS[one.event_name].side in unanswered),
        *ends,
    ]
    named = next((one for one in ranked if one.cause is not None or one.code is not None), None)
    return (None, None) if named is None else (named.cause, named.code)


def span_of(events: Sequence[Observation]) -> tuple[datetime | None, datetime | None]:
    """When a call began, and when it ended, by EventTimestamp: None where no event tells."""
    began = min((ms for one in events if (ms := one.event_timestamp_ms) is not None), default=None)
    done = _last(one.event_timestamp_ms for one in events if one.event_name == DONE)
    ended = max((ms for one in events if _ends_leg(one) and (ms := one.event_timestamp_ms)), default=None)
    return at(began), at(ended if done is None else done)


def pins_of(pins: Iterable[Observation]) -> tuple[int, str | None]:
    """How many wrong PINs were reported, and the last status. `pins`: by their time."""
    statuses = [one.pin_status for one in pins if one.event_name == PIN]
    return statuses.count(PIN_FAILED), _last(statuses)


def recordings_of(recordings: Iterable[Observation]) -> tuple[RecordingSummary, ...]:
    """The recordings of a call, one for each RecordingUUID; `recordings`: the events, by their time."""
    grouped: dict[str, list[Observation]] = {}
    for one in recordings:
        grouped.setdefault(recording_key(one), []).append(one)
    return tuple(_recording(events) for events in grouped.values())


def recording_key(one: Observation) -> str:
    """What the events of one recording share; an event without a RecordingUUID stands for itself."""
    return one.recording_uuid or f"without UUID: {one.idempotency_key}"


def _recording(events: Sequence[Observation]) -> RecordingSummary:
    names = {one.event_name for one in events}
    status: RecordingStatus = "initiated"
    if "SessionRecordingCompleted" in names:
        status = "completed"
    elif "SessionRecordingFailed" in names:
        status = "failed"
    began, ended = (
        _last(getattr(one, f"recording_{side}_ms") for one in events) for side in ("start", "end")
    )
    duration = _last(one.recording_duration for one in events)
    if duration is None and began is not None and ended is not None:
        duration = max(0, (ended - began) // 1000)
    return RecordingSummary(
        recording_uuid=events[0].recording_uuid,
        url=_last(one.recording_url for one in events),
        duration_s=duration,
        status=status,
    )


def last_value(events: Iterable[Observation], field: str) -> str | None:
    """The last value that an event has in a text field; None if none has one."""
    return _last(getattr(one, field) for one in events)


def _ends_leg(one: Observation) -> bool:
    step = STEPS.get(one.event_name)
    return step is not None and step.stage == ENDED


def _amount(one: Observation) -> Decimal | None:
    try:
        return None if one.amount is None else Decimal(one.amount)
    except InvalidOperation:
        return None


def _last(values: Iterable[Value | None]) -> Value | None:
    last = None
    for value in values:
        last = last if value is None else value
    return last


def _seconds(since: datetime | None, until: datetime | None) -> int | None:
    """Whole seconds; None where either is unknown, 0 where the clock has stepped back."""
    return None if since is None or until is None else max(0, int((until - since).total_seconds()))
