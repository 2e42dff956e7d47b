"""Puts a session's observations in order, and divides them into calls. Pure.

Rules of the order: numbered events by (run, number). A run is told by time, by EventTimestamp or, without one, by the
clock of ingest: where two events have one number, or one has a number that an earlier one had reached (both with an
EventTimestamp), numbering has started again in between, whether or not the worker saw its opening. Events without a
number, or with one that is not believed, stand by their time. A single late event that repeats another one's number and
name, stamped anew, says nothing new; nor does one that was sent again as it was, but for a parameter of no call.

Rules of the division: an event begins the next call where the present one cannot have it any more. They look at how
far the legs have come, and at times, never at whether a number is missing: so a number that arrives late may add a
call, and never joins two into one.

| event | begins the next call if, in the present one, |
| --- | --- |
| of another run | (always: numbering starts again with a call) |
| a leg is initiated, rings, answers | the leg has come as far, or a leg has ended; or as below (1) |
| a leg ends | the same event ended it, or another one did more than TRAILING_MS ago; or as below (2) |
| `SessionVirtualNumberAnswer` | another one came, or a leg has rung, or `SessionPartiesHangup` came |
| `SessionPartiesHangup` | another one came |
| any other | (never) |

(1) `SessionPartiesHangup` came; or it is the first party's, and the second party's phone has rung. (2)
`SessionPartiesHangup` came more than TRAILING_MS ago.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from maskline.schemas.calls.observation import Observation
from maskline.schemas.calls.vocabulary import (
    ANSWERED,
    DONE,
    ENDED,
    LANDED,
    OF_SESSION,
    RINGING,
    SILENCES,
    STEPS,
    Side,
    Step,
)

TRAILING_MS: Final = 15_000
"""A leg's end may come so long after SessionPartiesHangup, or after another event that ended it, and still be of the
same call: both say the same, and no page says in which order."""

CALLS_MAX: Final = 500
"""Calls of a session that are told apart; what comes after them is counted, and belongs to none."""

STAMPS_APART_MS: Final = 15_000
"""The clocks that stamp a call's events may be apart by so much. Between the last event of a call and the first of the
next one, more time passes than that."""


SENT_AGAIN_MS: Final = 60_000
"""Plivo sends a callback again within 55 s, as its page on callback configuration says."""


class Placed(NamedTuple):
    """An event in its place."""

    run: int | None
    """0, 1, …; None for one that stands by its time."""
    observation: Observation


class Division(NamedTuple):
    """A session's events in order, and which call each of them belongs to."""

    line: list[Placed]
    """All numbered events of the calls' lane, and all events of calls, in order."""
    call_of: list[int | None]
    """For each: the place of its call, from 0; None for an event that is of no call."""
    calls: int
    repeated: set[str]
    """Idempotency keys of the events that only repeat another one, and say nothing new."""


def divide(observations: Iterable[Observation]) -> Division:
    """Put observations in order and divide them into calls. Recordings and events of the session stand in no call."""
    observations = list(observations)
    counted = [one for one in observations if not one.own_lane and one.event_name not in SILENCES]
    repeated = _sent_again(observations) | _repeated(counted)
    line = _in_line([one for one in counted if one.idempotency_key not in repeated])
    call_of: list[int | None] = []
    present: _Present | None = None
    calls = 0
    for placed in line:
        if placed.observation.recording or placed.observation.event_name in OF_SESSION:
            call_of.append(None)
            continue
        if present is None or present.is_over_for(placed):
            present = _Present()
            calls += 1
        present.add(placed)
        call_of.append(calls - 1 if calls <= CALLS_MAX else None)
    return Division(line, call_of, min(calls, CALLS_MAX), repeated)


def _sent_again(observations: Sequence[Observation]) -> set[str]:
    """Idempotency keys of callbacks that Plivo has sent again with another parameter that says nothing of a call: such
    a one is no duplicate for the worker (MASKLINE_IGNORED_PARAMETERS).
    """
    alike: dict[tuple[Any, ...], list[Observation]] = defaultdict(list)
    for one in observations:
        if one.event_name not in SILENCES:
            stamp = one.event_timestamp_ms
            when = stamp if stamp is not None or one.number is None else f"run {one.run}"
            alike[when, *_said(one)].append(one)
    again: set[str] = set()
    for those in alike.values():
        if len(those) > 1:
            those.sort(key=lambda one: (one.received_at_ms, one.idempotency_key))
            first = those[0]
            for one in those[1:]:
                if one.received_at_ms - first.received_at_ms <= SENT_AGAIN_MS:
                    again.add(one.idempotency_key)
                else:
                    first = one
    return again


def _repeated(observations: Sequence[Observation]) -> set[str]:
    """Idempotency keys of late events that only repeat another event: they say nothing new.

    Two or more of them in one run of the worker's are no repeats: numbering has started again, and their opening was
    lost or came too late.
    """
    first = {(one.run, *_said(one)): one for one in observations if one.order != "late"}
    found: dict[int, list[str]] = defaultdict(list)
    for one in observations:
        if one.order == "late" and one.number is not None and one.event_timestamp_ms is not None:
            other = first.get((one.run, *_said(one)))
            if other is not None and one.at_ms > other.at_ms:
                found[one.run].append(one.idempotency_key)
    return {keys[0] for keys in found.values() if len(keys) == 1}


def _said(one: Observation) -> tuple[Any, ...]:
    """What an event says, but for when."""
    charged = (one.amount, one.duration, one.billed_duration)
    pin = (one.pin_status, one.pin_counter)
    return one.number, one.event_name, *charged, one.cause, one.code, one.recording_uuid, *pin


class _Present:
    """The call that is being read: how far it has come."""

    def __init__(self) -> None:
        self.run: int | None = None
        self.stages: dict[Side, int] = {"first": 0, "second": 0}
        self.ended_at: dict[Side, int] = {}
        self.names: set[str] = set()
        self.done_at: int | None = None

    def is_over_for(self, placed: Placed) -> bool:
        """Whether the event is of a later call: the table above."""
        event, name = placed.observation, placed.observation.event_name
        if placed.run is not None and self.run is not None and placed.run != self.run:
            return True
        if name == DONE:
            return self.done_at is not None
        if name == LANDED:
            return self.done_at is not None or LANDED in self.names or max(self.stages.values()) >= RINGING
        step = STEPS.get(name)
        if step is None:
            return False
        return self._is_over_at_end(step, event) if step.stage == ENDED else self._is_over_before(step)

    def _is_over_before(self, step: Step) -> bool:
        return (
            self.done_at is not None
            or self.stages[step.side] >= step.stage
            or ENDED in self.stages.values()
            or (step.side == "first" and self.stages["second"] >= RINGING)
        )

    def _is_over_at_end(self, step: Step, event: Observation) -> bool:
        ended_at = self.ended_at.get(step.side)
        if ended_at is not None:
            return event.event_name in self.names or event.at_ms - ended_at > TRAILING_MS
        return self.done_at is not None and event.at_ms - self.done_at > TRAILING_MS

    def add(self, placed: Placed) -> None:
        """Add an event of this call."""
        event, step = placed.observation, STEPS.get(placed.observation.event_name)
        self.run = self.run if placed.run is None else placed.run
        self.names.add(event.event_name)
        if event.event_name == DONE:
            self.done_at = event.at_ms
        if step is not None:
            self.stages[step.side] = max(self.stages[step.side], step.stage)
            if step.stage == ENDED:
                self.ended_at.setdefault(step.side, event.at_ms)
            if step.stage == ANSWERED and step.side == "second":
                self.stages["first"] = max(self.stages["first"], RINGING)  # it was there before


def _in_line(observations: Sequence[Observation]) -> list[Placed]:
    """All numbered events by run and number, with the events of calls that have no number between them, by time."""
    runs, by_time = _numbered(observations)
    placed = [
        Placed(run, one)
        for run, events in enumerate(runs)
        for one in sorted(events, key=lambda one: (one.number or 0, one.at_ms, one.idempotency_key))
    ]
    by_time.sort(key=lambda one: (one.at_ms, one.idempotency_key))
    if not placed or not by_time:
        return placed or [Placed(None, one) for one in by_time]
    # An event without a number stands behind the last numbered one that is not later; so times need not grow.
    lowest_from: list[int] = [0] * len(placed)
    lowest = placed[-1].observation.at_ms
    for at in range(len(placed) - 1, -1, -1):
        lowest = lowest_from[at] = min(lowest, placed[at].observation.at_ms)
    line: list[Placed] = []
    done = 0
    for one in by_time:
        until = max(done, bisect_right(lowest_from, one.at_ms))
        line += placed[done:until]
        done = until
        line.append(Placed(None, one))
    return line + placed[done:]


def _numbered(observations: Sequence[Observation]) -> tuple[list[list[Observation]], list[Observation]]:
    """The numbered events by run, and those of calls that stand by their time."""
    numbered: list[Observation] = []
    by_time = [one for one in observations if one.number is None and one.event_name not in OF_SESSION]
    highest = max((one.number or 0 for one in observations if one.order != "late"), default=None)
    for one in observations:
        if one.number is None:
            continue
        believed = one.order != "late" or highest is None or one.number <= highest
        (numbered if believed else by_time).append(one)
    return [part for events in _runs(numbered) for part in _without_repeats(events)], by_time


def _runs(numbered: list[Observation]) -> list[list[Observation]]:
    """Numbered events by run, as their times tell it."""
    line = sorted(numbered, key=lambda one: (one.at_ms, one.run, one.number or 0, one.idempotency_key))
    restarts = [pair for pair in _repeats(line) if line[pair[0]].at_ms < line[pair[1]].at_ms]
    return _parts(line, [*restarts, *_falls(line)])


def _without_repeats(events: list[Observation]) -> list[list[Observation]]:
    """The events of a run in parts of which none has a number twice, by the order in which ingest received them.

    A number that stands there twice shows that numbering has started again where EventTimestamp does not tell it: it
    cannot be read, or is the same throughout.
    """
    if len({one.number for one in events}) == len(events):
        return [events]
    line = sorted(events, key=lambda one: (one.received_at_ms, one.number or 0, one.idempotency_key))
    return _parts(line, _repeats(line))


def _repeats(line: Sequence[Observation]) -> list[tuple[int, int]]:
    """Places of two events with one number, without another of it between them."""
    last: dict[int, int] = {}
    found = []
    for at, one in enumerate(line):
        number = one.number or 0
        if number in last:
            found.append((last[number], at))
        last[number] = at
    return found


def _falls(line: Sequence[Observation]) -> list[tuple[int, int]]:
    """For each event the place of the last one that was surely before it and has its number or a higher one, if there
    is one, and its own: of those with an EventTimestamp, since any other may have come late. `line`: by time.
    """
    found: list[tuple[int, int]] = []
    # The events that were surely before, but for those with a later and higher one: numbers fall in it.
    before: list[tuple[int, int]] = []
    settled = 0
    for at, one in enumerate(line):
        while line[settled].at_ms < one.at_ms - STAMPS_APART_MS:
            number = line[settled].number or 0
            if line[settled].event_timestamp_ms is not None:
                while before and -before[-1][0] <= number:
                    before.pop()
                before.append((-number, settled))
            settled += 1
        if one.event_timestamp_ms is None:
            continue
        place = bisect_right(before, (-(one.number or 0), at))
        if place:
            found.append((before[place - 1][1], at))
    return found


def _parts(line: list[Observation], restarts: Iterable[tuple[int, int]]) -> list[list[Observation]]:
    """The events in as few parts as can be, one behind the other. `restarts`: places of two events between which
    numbering has started again.
    """
    cuts = [0]
    lowest = highest = 0  # the places where the next cut may be
    for first, last in sorted(restarts, key=lambda pair: pair[1]):
        if first < highest:  # the same cut serves, also for this pair
            lowest = max(lowest, first + 1)
            continue
        if highest:
            cuts.append(_deepest_fall(line, lowest, highest))
        lowest, highest = first + 1, last
    if highest:
        cuts.append(_deepest_fall(line, lowest, highest))
    return [line[begin:end] for begin, end in pairwise([*cuts, len(line)])] if line else []


def _deepest_fall(line: Sequence[Observation], lowest: int, highest: int) -> int:
    """The event, of these places, before which numbering has most likely started again."""

    def fall(at: int) -> tuple[int, int]:
        before, after = line[at - 1], line[at]
        return (before.number or 0) - (after.number or 0), after.at_ms - before.at_ms

    return max(range(lowest, highest + 1), key=fall)
