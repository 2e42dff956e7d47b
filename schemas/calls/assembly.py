"""Makes a session's calls from its observations. Pure: a function of the set, whatever the order of arrival.

`division` puts the events in order and divides them into calls; here what has no number finds its call by time: PINs,
recordings, missing numbers. `record` has the fields of one call, `call_end` says when it is over.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import Any, Final, NamedTuple

import msgspec

from maskline.schemas.call_summary import CallRecord, CallSummary, EndedBy
from maskline.schemas.calls import record
from maskline.schemas.calls.call_end import EndSigns, ended_by
from maskline.schemas.calls.division import Division, divide
from maskline.schemas.calls.observation import MISSING_MAX, Observation
from maskline.schemas.calls.vocabulary import (
    DONE,
    ENDED,
    LANDED,
    LEGS_SILENCE,
    PIN,
    REPLACED,
    SILENCE,
    SILENCES,
    STEPS,
    TIMED_OUT,
)

OBSERVATIONS_MAX: Final = 2_000
"""Observations of a session that whoever keeps them keeps: a session with a call a minute for an hour has some 500.
Assembling so many takes some 25 ms, and some 12 ms where what was made before is at hand."""


class AssembledCall(CallRecord, frozen=True, kw_only=True, gc=False):
    """A call, whether or not it is over."""

    ended_by: EndedBy | None
    """None while it is under way."""
    legs_over: bool
    """Each party that took part has left, as far as is known."""
    keys: tuple[str, ...] = ()
    """Idempotency keys of the observations that belong to it, in the session's order: its calls' events, PINs,
    recordings."""

    def summary(self, revision: int) -> CallSummary:
        """The summary of a call that is over. Raises ValueError for one that is not."""
        if self.ended_by is None:
            raise ValueError(f"call {self.call} is not over")
        return CallSummary(revision=revision, **{name: getattr(self, name) for name in _SUMMARY_FIELDS})


_SUMMARY_FIELDS: Final = tuple(name for name in CallSummary.__struct_fields__ if name != "revision")


class Pin(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A PIN that was right or wrong, or a caller who needs none."""

    at_ms: int
    status: str | None
    counter: int | None
    call: int | None
    """None if no call has followed."""


class SessionCalls(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The calls of a session, and what is known of the session besides."""

    calls: tuple[AssembledCall, ...] = ()
    """In order; their `call` is 1, 2, …"""
    pins: tuple[Pin, ...] = ()
    timed_out_ms: int | None = None
    """When SessionTimeout was stamped, or came; milliseconds since the epoch, as all times here."""
    replaced: tuple[tuple[int, str | None], ...] = ()
    """When the virtual number was replaced, and by which."""
    silent_ms: int | None = None
    """When it was last noted that the session is silent."""
    late: tuple[str, ...] = ()
    """Idempotency keys of the events that came too late for their place."""
    missing: tuple[int, ...] = ()
    """Numbers of the calls' lane that did not arrive, those of all runs, MISSING_MAX at most."""
    skipped: tuple[int, ...] = ()
    """Numbers that the keeper of the observations never handled."""
    outside: tuple[str, ...] = ()
    """Idempotency keys of the observations that belong to no call."""


def assemble(observations: Iterable[Observation], before: SessionCalls | None = None) -> SessionCalls:
    """A session's calls. Several observations of one callback count once, the first that was handled.

    `before`: what this function made of other observations of the same record, where an idempotency key stands for the
    same observation as here. Calls that are the same as there are taken from it, which changes nothing but the time
    that it takes.
    """
    kept = _distinct(observations)
    return _Assembly(kept, before.calls if before else ()).session() if kept else SessionCalls()


def _distinct(observations: Iterable[Observation]) -> list[Observation]:
    """One observation for each callback, by time."""
    kept: dict[str, Observation] = {}
    for one in observations:
        other = kept.get(one.idempotency_key)
        if other is None or _handled(one) < _handled(other):
            kept[one.idempotency_key] = one
    return sorted(kept.values(), key=lambda one: (one.at_ms, one.number or 0, one.idempotency_key))


def _handled(one: Observation) -> tuple[Any, ...]:
    return (
        one.replayed,
        one.received_at_ms,
        len(one.entry_id),
        one.entry_id,
        one.order,
        one.run,
        one.missing,
    )


class _Span(NamedTuple):
    """When a call began, and when it surely ended; None if that is not known. Milliseconds since the epoch."""

    began_ms: int
    ended_ms: int | None


class _Assembly:
    """One session's observations on the way to its calls."""

    def __init__(self, kept: list[Observation], before: Sequence[AssembledCall]) -> None:
        self.kept, self.before = kept, before
        self.session_uuid = kept[0].idempotency_key.rsplit(":", 2)[0]
        self.division = divide(kept)
        self.events: list[list[Observation]] = [[] for _ in range(self.division.calls)]
        for placed, call in zip(self.division.line, self.division.call_of, strict=True):
            if call is not None:
                self.events[call].append(placed.observation)
        self.spans = _spans(self.events)
        begun = sorted((span.began_ms, at) for at, span in enumerate(self.spans))
        self.begun_ms = [began_ms for began_ms, _ in begun]
        self.last_begun = list(accumulate((at for _, at in begun), max))
        repeated = self.division.repeated
        self.pins = self.place(
            [one for one in kept if one.event_name == PIN and one.idempotency_key not in repeated]
        )
        self.recordings = self.place_recordings([one for one in kept if one.recording])
        self.missing, self.missing_of = _missing(self.division, kept)

    def session(self) -> SessionCalls:
        named = {one.event_name: one for one in self.kept}  # the last of each name
        calls = tuple(self.call(at, named) for at in range(self.division.calls))
        inside = {key for call in calls for key in call.keys}
        real = [one for one in self.kept if one.event_name not in SILENCES]
        timed_out, silent = named.get(TIMED_OUT), named.get(SILENCE)
        return SessionCalls(
            calls=calls,
            pins=tuple(
                Pin(
                    at_ms=one.at_ms,
                    status=one.pin_status,
                    counter=one.pin_counter,
                    call=None if call is None else call + 1,
                )
                for call, pins in self.pins.items()
                for one in pins
            ),
            timed_out_ms=None if timed_out is None else timed_out.at_ms,
            replaced=tuple(
                (one.at_ms, one.virtual_number) for one in self.kept if one.event_name == REPLACED
            ),
            silent_ms=None if silent is None else silent.received_at_ms,
            late=tuple(one.idempotency_key for one in self.kept if one.order == "late"),
            missing=tuple(self.missing),
            skipped=tuple(sorted({number for one in self.kept for number in one.skipped})),
            outside=tuple(one.idempotency_key for one in real if one.idempotency_key not in inside),
        )

    def call(self, at: int, named: dict[str, Observation]) -> AssembledCall:
        events, pins, recordings = self.events[at], self.pins.get(at, []), self.recordings.get(at, [])
        keys = tuple([one.idempotency_key for one in (*events, *pins, *recordings)])
        missing = tuple(sorted(self.missing_of.get(at, ())))
        call = self.before[at] if at < len(self.before) else None
        if call is None or call.keys != keys or call.missing != missing:
            call = self.assembled(at, keys, missing)
        over = ended_by(self.signs(at, events, named, legs_over=call.legs_over))
        return call if over == call.ended_by else msgspec.structs.replace(call, ended_by=over)

    def assembled(self, at: int, keys: tuple[str, ...], missing: tuple[int, ...]) -> AssembledCall:
        """A call as its own events tell it: `ended_by` is None."""
        events, pins, recordings = self.events[at], self.pins.get(at, []), self.recordings.get(at, [])
        told = [*events, *recordings]
        caller = record.caller_of(events)
        first, second = (record.leg_of(side, told, caller=caller == side) for side in ("first", "second"))
        charge = record.charge_of(events)
        cause, code = record.cause_of(events, first, second)
        began, ended = record.span_of(events)
        failures, status = record.pins_of(pins)
        return AssembledCall(
            session_uuid=self.session_uuid,
            call=at + 1,
            ended_by=None,
            legs_over=_legs_over(events),
            keys=keys,
            complete=not missing,
            missing=missing,
            started_at=began,
            ended_at=ended,
            first_party_number=record.last_value(events, "first_party"),
            second_party_number=record.last_value(events, "second_party"),
            virtual_number=record.last_value(events, "virtual_number"),
            first_party=first,
            second_party=second,
            answered=first.outcome == "answered" == second.outcome,
            duration_s=charge.duration_s,
            billed_duration_s=charge.billed_duration_s,
            amount=charge.amount,
            hangup_cause=cause,
            hangup_cause_code=code,
            pin_failures=failures,
            pin_status=status,
            recordings=record.recordings_of(recordings),
        )

    def signs(
        self, at: int, events: Sequence[Observation], named: dict[str, Observation], *, legs_over: bool
    ) -> EndSigns:
        silent, legs_silent = named.get(SILENCE), named.get(LEGS_SILENCE)
        return EndSigns(
            done=any(one.event_name == DONE for one in events),
            legs_over=legs_over,
            later_call=at + 1 < self.division.calls,
            timed_out=TIMED_OUT in named,
            silence=silent is not None and _any_before(silent, events),
            legs_silence=legs_silent is not None and _any_before(legs_silent, filter(_ends_leg, events)),
        )

    def place(self, observations: Iterable[Observation]) -> dict[int | None, list[Observation]]:
        """Events by their call: the one that is under way at their time, else the next one; None if there is none."""
        placed: dict[int | None, list[Observation]] = defaultdict(list)
        for one in observations:
            at = self.at(one.at_ms)
            over = at is None or _is_before(self.spans[at].ended_ms, one.at_ms)
            following = 0 if at is None else at + 1
            placed[at if not over else following if following < len(self.spans) else None].append(one)
        return placed

    def place_recordings(self, observations: Sequence[Observation]) -> dict[int | None, list[Observation]]:
        """Recordings by their call, all events of one together: the call in which it began; else, if only its end is
        known, the last one that began before that.
        """
        grouped: dict[str, list[Observation]] = defaultdict(list)
        for one in observations:
            grouped[record.recording_key(one)].append(one)
        placed: dict[int | None, list[Observation]] = defaultdict(list)
        for events in grouped.values():
            starts = [one.at_ms for one in events if one.event_name != "SessionRecordingCompleted"]
            starts += [one.recording_start_ms for one in events if one.recording_start_ms is not None]
            moment = min(starts, default=events[0].at_ms)
            at = self.at(moment)
            if starts and (at is None or _is_before(self.spans[at].ended_ms, moment)):
                following = 0 if at is None else at + 1
                at = following if following < len(self.spans) else at
            placed[0 if at is None and self.spans else at] += events
        for events in placed.values():
            events.sort(key=lambda one: (one.at_ms, one.number or 0, one.idempotency_key))
        return placed

    def at(self, at_ms: int) -> int | None:
        """The last call that began at this time or before; None if none did."""
        place = bisect_right(self.begun_ms, at_ms)
        return self.last_begun[place - 1] if place else None


def _spans(events: Sequence[Sequence[Observation]]) -> list[_Span]:
    spans = []
    for of_call in events:
        done = [one.at_ms for one in of_call if one.event_name == DONE]
        ends = [one.at_ms for one in of_call if _ends_leg(one)]
        ended = max(done, default=max(ends) if ends and _legs_over(of_call) else None)
        spans.append(_Span(min(one.at_ms for one in of_call), ended))
    return spans


def _legs_over(events: Sequence[Observation]) -> bool:
    """Whether each party that took part has left."""
    steps = [step for one in events if (step := STEPS.get(one.event_name))]
    ended = {step.side for step in steps if step.stage == ENDED}
    began = {step.side for step in steps}
    if any(one.event_name == LANDED for one in events):
        began.add(record.caller_of(events) or "first")
    return bool(ended) and began == ended


def _missing(division: Division, kept: Sequence[Observation]) -> tuple[list[int], dict[int, list[int]]]:
    """The numbers of the calls' lane that did not arrive; and those of each call.

    A number between two calls is of the one before it, unless that has its SessionPartiesHangup, or there is none.
    """
    done = [False] * division.calls
    for placed, call in zip(division.line, division.call_of, strict=True):
        if call is not None and placed.observation.event_name == DONE:
            done[call] = True
    missing: list[int] = []
    of_call: dict[int, list[int]] = defaultdict(list)
    named = _named_missing(division, kept)
    for run, numbers in _arrived(division).items():
        places = sorted((number, call) for number, call in numbers.items() if call is not None)
        for hole in _holes(sorted(numbers), named.get(run, set())):
            missing += islice(hole, MISSING_MAX - len(missing))
            at = bisect_right(places, (hole.start, -1))
            before = places[at - 1][1] if at else None
            after = places[at][1] if at < len(places) else None
            call = after if before is None or (done[before] and after != before) else before
            if call is not None:
                of_call[call] += islice(hole, MISSING_MAX - len(of_call[call]))
    return missing, of_call


def _arrived(division: Division) -> dict[Any, dict[int, int | None]]:
    """By run: the numbers that arrived, each with its call."""
    arrived: dict[Any, dict[int, int | None]] = defaultdict(dict)
    for placed, call in zip(division.line, division.call_of, strict=True):
        number = placed.observation.number
        if placed.run is not None and number is not None:
            numbers = arrived[placed.run]
            numbers[number] = call if numbers.get(number) is None else numbers[number]
    return arrived


def _named_missing(division: Division, kept: Sequence[Observation]) -> dict[Any, set[int]]:
    """The numbers that the worker gave up, by run: those before the first number that arrived are known by it alone."""
    run_of = {placed.observation.idempotency_key: placed.run for placed in division.line}
    named: dict[Any, set[int]] = defaultdict(set)
    for one in kept:
        run = run_of.get(one.idempotency_key)
        if one.missing and not one.own_lane and run is not None:
            named[run].update(one.missing)
    return named


def _holes(numbers: Sequence[int], named: Iterable[int]) -> Iterator[range]:
    """The holes between the numbers that arrived, and the named ones before the first and behind the last."""
    outside = (number for number in sorted(named) if not numbers[0] <= number <= numbers[-1])
    yield from (range(number, number + 1) for number in outside)
    yield from (range(lower + 1, upper) for lower, upper in pairwise(numbers) if upper - lower > 1)


def _ends_leg(one: Observation) -> bool:
    step = STEPS.get(one.event_name)
    return step is not None and step.stage == ENDED


def _any_before(silence: Observation, events: Iterable[Observation]) -> bool:
    return any(one.received_at_ms < silence.received_at_ms for one in events)


def _is_before(ended_ms: int | None, at_ms: int) -> bool:
    return ended_ms is not None and ended_ms < at_ms
