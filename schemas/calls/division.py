"""Puts a session's observations in order, and divides them into calls. Pure.

Rules of the order: numbered events by (run, number). A run is told by EventTimestamp: where an event has a number that
an earlier one had reached, numbering has started again, whether or not the worker saw its opening. An event without
EventTimestamp is of the run that the worker counted. Events without a number, or with one that is not believed, stand
by their time. A single late event that repeats another one's number and name, stamped anew, says nothing new.

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


def divide(observations: Iterable[Observation]) -> Division:
    """Put observations in order and divide them into calls. Recordings and events of the session stand in no call."""
    counted = [one for one in observations if not one.own_lane and one.event_name not in SILENCES]
    repeated = _repeated(counted)
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
    return Division(line, call_of, min(calls, CALLS_MAX))


def _repeated(observations: Sequence[Observation]) -> set[str]:
    """Idempotency keys of late events that only repeat another event: they say nothing new.

    Two or more of them in one run of the worker's are no repeats: numbering has started again, and their opening was
    lost or came too late.
    """
    first = {_said(one): one for one in observations if one.order != "late"}
    found: dict[int, list[str]] = defaultdict(list)
    for one in observations:
        if one.order == "late" and one.number is not None and one.event_timestamp_ms is not None:
            other = first.get(_said(one))
            if other is not None and one.at_ms > other.at_ms:
                found[one.run].append(one.idempotency_key)
    return {keys[0] for keys in found.values() if len(keys) == 1}


def _said(one: Observation) -> tuple[Any, ...]:
    """What an event says, but for when."""
    charged = (one.amount, one.duration, one.billed_duration)
    return one.run, one.number, one.event_name, *charged, one.cause, one.code, one.recording_uuid


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
    runs = _runs([one for one in numbered if one.event_timestamp_ms is not None])
    for one in numbered:
        if one.event_timestamp_ms is None:
            _add_unstamped(runs, one)
    return runs, by_time


def _runs(stamped: list[Observation]) -> list[list[Observation]]:
    """Numbered events with an EventTimestamp, by run."""
    runs: list[list[Observation]] = []
    settled, reached = 0, -1
    for one in sorted(stamped, key=lambda one: (one.at_ms, one.number or 0, one.idempotency_key)):
        if runs:
            present = runs[-1]
            # The highest number of an event that was surely before this one.
            while settled < len(present) and present[settled].at_ms < one.at_ms - STAMPS_APART_MS:
                reached = max(reached, present[settled].number or 0)
                settled += 1
        if not runs or (one.number or 0) <= reached:
            runs.append([])
            settled, reached = 0, -1
        runs[-1].append(one)
    return runs


def _add_unstamped(runs: list[list[Observation]], one: Observation) -> None:
    """Add an event without EventTimestamp to the last run that has an event of the run that the worker counted."""
    mine = [events for events in runs if any(other.run == one.run for other in events)]
    if not mine:
        runs.append([])
        mine = runs[-1:]
    mine[-1].append(one)
