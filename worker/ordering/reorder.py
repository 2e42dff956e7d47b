"""Puts one session's arrivals in order: the pure core, without I/O and clocks.

Rules: the table of docs/ordering.md. `_decide` is the table for one arrival; `SessionOrder` carries it out.
Strategy: what cannot be released yet waits in the order of the stream, whatever it waits for: for the numbers before
it (held), or for an opening that shows that numbering started again (undecided). After every release, all that
waits is decided anew, in that order, as though it arrived just now. So what follows a release depends on the
state right after it and on the arrivals not yet handled, and on nothing else: a worker that loads that state
after a crash, and is fed those arrivals again, decides exactly as the one that died.
Time is what the arrivals and the watermark say. An arrival first expires whatever its own time has passed,
oldest first, so it makes no difference how often, or whether, the runtime called `expire` before it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, Literal, cast

import msgspec

from maskline.worker.ordering.state import (
    NEW_SESSION,
    LaneState,
    SessionState,
    released_numbers,
    remember_released,
    remember_unsequenced,
    was_number_released,
    was_released,
    was_released_unsequenced,
)

Order = Literal["in_order", "after_gap", "late", "unsequenced"]

MISSING_MAX: Final = 1_000
"""Numbers that one release names as missing, the lowest ones."""

AHEAD_MAX: Final = 1_000
"""How far beyond the number that is due another is believed. A session has a few dozen events; a single damaged number
must not make all that follow it late. Also how near to it another number must be that shows that it was meant."""


class Policy(msgspec.Struct, frozen=True):
    """The settings that decide; the same for every session of a worker."""

    gap_timeout_ms: int
    """How long an arrival waits for the numbers before it."""
    first_sequence: int
    """The number that opens a run; 0 always does."""
    held_max: int
    """Arrivals of one session that wait at once, held or undecided. Each makes the next dearer: keep to hundreds."""


class Arrival(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One callback as the reorderer sees it. Those of a session come with `arrived_ms` that never falls."""

    number: int | None
    """SequenceNumber, 0 … 2**53 - 1."""
    fingerprint: bytes
    """8 bytes, equal for equal parameters."""
    timestamp_us: int | None
    """EventTimestamp in microseconds since the epoch."""
    recording: bool
    """Counts in the recordings' lane."""
    ends_session: bool
    """A SessionTimeout."""
    may_open: bool
    """The event may be the first of a call, or of a recording (schemas.events.MAY_OPEN_CALL, MAY_OPEN_RECORDING)."""
    arrived_ms: int
    """The time in its stream ID."""
    payload: Any
    """The caller's own."""

    def __repr__(self) -> str:
        # Without the payload, which may hold phone numbers.
        return (
            f"Arrival(number={self.number}, fingerprint={self.fingerprint.hex()}, "
            f"timestamp_us={self.timestamp_us}, recording={self.recording}, "
            f"ends_session={self.ends_session}, may_open={self.may_open}, arrived_ms={self.arrived_ms})"
        )


class Release(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An arrival that is now to be handled, after those released before it."""

    arrival: Arrival
    order: Order
    missing: tuple[int, ...]
    """Numbers given up just before; never more than MISSING_MAX."""
    run: int
    state: SessionState
    """The session right after this release, to be committed once it was handled."""


class Duplicate(msgspec.Struct, frozen=True, eq=False):
    """An arrival that waits or was released already.

    It is done with before whatever is released after it: once that is committed, this is not fed again.
    """

    arrival: Arrival


_Verdict = Literal["in_order", "late", "wait", "restart"]
_Outcomes = list[Release | Duplicate]


def _decide(lane: LaneState, arrival: Arrival, number: int, first_sequence: int) -> _Verdict:
    """The table, for an arrival that has a number and is no duplicate."""
    at_us = arrival.timestamp_us
    if at_us is not None:
        if lane.floor_us is not None and at_us < lane.floor_us:
            return "late"
        if lane.ending_us is not None and at_us > lane.ending_us:
            return "wait"  # the next run's
    following = lane.next
    if following is None:
        if number in (first_sequence, 0):
            return "in_order"
        return "wait" if number > first_sequence else "late"
    if number >= following:
        return "in_order" if number == following else "wait"
    later = at_us is not None and lane.top_us is not None and at_us > lane.top_us
    return _decide_passed(lane, arrival, number, first_sequence) if later else "late"


def _decide_passed(lane: LaneState, arrival: Arrival, number: int, first_sequence: int) -> _Verdict:
    """The same for a number that was passed, stamped later than all that was released."""
    if 0 < number < first_sequence:
        return "late"  # in no run would it have a place
    if number > first_sequence:
        return "wait"
    if arrival.timestamp_us == lane.ending_us:
        return "restart" if arrival.may_open else "wait"
    if (
        number != first_sequence
        and lane.opening == first_sequence
        and not was_number_released(lane.released, 0)
    ):
        return "late"  # the run's own zero, which the first number has overtaken
    if lane.opening == 0 and number != 0:
        return "wait"  # for the 0 before it; see _opens_after_all
    return "restart" if arrival.may_open else "wait"


def _opens_after_all(lane: LaneState, waiting: Arrival, first_sequence: int) -> bool:
    """Whether what has waited long enough opens a run: the first number that was passed, where no 0 came before it."""
    number = _number(waiting)
    return lane.opening == 0 and number == first_sequence < cast("int", lane.next) and waiting.may_open


NONE_WAITING: Final = cast("list[Arrival]", ())
"""What waits in a session where nothing ever did: in most nothing ever does, and a list is a hundred bytes."""


class SessionOrder:
    """The order of one session: its state, and what waits."""

    __slots__ = ("state", "waiting")

    def __init__(self, state: SessionState = NEW_SESSION) -> None:
        self.state = state
        """After everything released so far, and, where numbering has started again since, in the new run."""
        self.waiting = NONE_WAITING
        """In the order of the stream: all that `_decide` says "wait" of. To be read only."""

    @property
    def held(self) -> int:
        """How many arrivals wait."""
        return len(self.waiting)

    def deadline_ms(self, policy: Policy) -> int | None:
        """The watermark at which `expire` has something to do; None while nothing waits."""
        return self.waiting[0].arrived_ms + policy.gap_timeout_ms if self.waiting else None

    def arrive(self, arrival: Arrival, policy: Policy) -> Sequence[Release | Duplicate]:
        """Take the session's next arrival: what is released now, in order, and whether it was a duplicate."""
        # Here, with few calls, what `_arrive_rarely` would do with nearly every arrival: the one that is due, or one
        # that waits for it.
        number, waiting = arrival.number, self.waiting
        if number is None or arrival.ends_session or (waiting and self._expires(arrival.arrived_ms, policy)):
            return self._arrive_rarely(arrival, policy)
        lane = self.state.recording if arrival.recording else self.state.status
        due = number == lane.next and lane.floor_us is None and lane.ending_us is None
        if not due:
            verdict = _decide(lane, arrival, number, policy.first_sequence)
            due = verdict == "in_order"
            if not due and (verdict != "wait" or len(waiting) >= policy.held_max):
                return self._arrive_rarely(arrival, policy)
        # `find`: `in` asks its left side for a number first, and pays for the refusal.
        if (waiting or lane.released.find(arrival.fingerprint) >= 0) and self._is_duplicate(arrival):
            return (Duplicate(arrival),)
        if not due:
            self._hold(arrival)
            return ()
        release = self._release(arrival, lane, number, "in_order", ())
        if not waiting:
            return (release,)
        outcomes: _Outcomes = [release]
        self._settle(policy, outcomes)
        return outcomes

    def _arrive_rarely(self, arrival: Arrival, policy: Policy) -> Sequence[Release | Duplicate]:
        """The rules for any arrival."""
        number, outcomes = arrival.number, _Outcomes()
        self._expire(arrival.arrived_ms, policy, outcomes)
        if self._is_duplicate(arrival):
            outcomes.append(Duplicate(arrival))
            return outcomes
        if arrival.ends_session:
            while self.waiting:
                status = (held for held in self.waiting if not held.recording)
                self._give_up(next(status, self.waiting[0]), policy, outcomes)
        if number is None:
            outcomes.append(self._release_unsequenced(arrival))
            return outcomes
        self._hold(arrival)
        self._settle(policy, outcomes, len(self.waiting) - 1)
        while len(self.waiting) > (0 if arrival.ends_session else policy.held_max):
            self._give_up(self._to_spare(arrival.recording, policy), policy, outcomes)
        return outcomes

    def _hold(self, arrival: Arrival) -> None:
        if self.waiting is NONE_WAITING:
            self.waiting = []
        self.waiting.append(arrival)

    def expire(self, watermark_ms: int, policy: Policy) -> Sequence[Release]:
        """Release what has waited long enough. The watermark never falls, nor passes an arrival to come."""
        if not self._expires(watermark_ms, policy):
            return ()
        outcomes: _Outcomes = []
        self._expire(watermark_ms, policy, outcomes)
        return [outcome for outcome in outcomes if isinstance(outcome, Release)]

    def _expires(self, watermark_ms: int, policy: Policy) -> bool:
        return bool(self.waiting) and self.waiting[0].arrived_ms + policy.gap_timeout_ms <= watermark_ms

    def _expire(self, watermark_ms: int, policy: Policy, outcomes: _Outcomes) -> None:
        while self._expires(watermark_ms, policy):
            self._give_up(self.waiting[0], policy, outcomes)

    def _is_duplicate(self, arrival: Arrival) -> bool:
        if arrival.number is None:
            return was_released_unsequenced(self.state.unsequenced, arrival.fingerprint)
        if was_released(self._lane(arrival).released, arrival.number, arrival.fingerprint):
            return True
        return self._is_held(arrival)

    def _is_held(self, arrival: Arrival) -> bool:
        for held in self.waiting:
            if (
                held.number == arrival.number
                and held.fingerprint == arrival.fingerprint
                and held.recording == arrival.recording
            ):
                return True
        return False

    def _lane(self, arrival: Arrival) -> LaneState:
        return self.state.recording if arrival.recording else self.state.status

    def _settle(self, policy: Policy, outcomes: _Outcomes, at: int = 0) -> None:
        """Decide what waits, from `at` on in the stream's order; all of it when the state has changed."""
        held = self.waiting
        while at < len(held):
            arrival = held[at]
            lane = self._lane(arrival)
            number = _number(arrival)
            verdict = _decide(lane, arrival, number, policy.first_sequence)
            if verdict == "wait":
                at += 1
                continue
            if verdict == "restart":
                self._restart(arrival, held[:at], policy, outcomes)
            else:
                del held[at]
                outcomes.append(self._release(arrival, lane, number, verdict, ()))
            at = 0

    def _restart(self, opening: Arrival, before: list[Arrival], policy: Policy, outcomes: _Outcomes) -> None:
        """One step towards the next run: what this one still holds goes first; once there is none, the next begins.

        Of what came before the opening, those stamped later than it are the next run's. What is undecided stays, to be
        decided in the next run: there it has its turn, or was stamped before the run began.
        """
        opening_us = cast("int", opening.timestamp_us)  # without one, nothing starts a run
        lane = self._lane(opening)
        following = cast("int", lane.next)  # before the first release, nothing does
        old = [
            held
            for held in before
            if held.recording == opening.recording
            and _number(held) >= following
            and (held.timestamp_us is None or held.timestamp_us <= opening_us)
        ]
        if old:
            self._replace(opening.recording, msgspec.structs.replace(lane, ending_us=opening_us))
            outcomes.append(self._release_lowest(old, policy) or self._release_late(old[0]))
        else:
            self.waiting.remove(opening)
            next_run = LaneState(run=lane.run + 1, released=lane.released, top_us=lane.top_us)
            outcomes.append(self._release(opening, next_run, _number(opening), "in_order", ()))

    def _give_up(self, waiting: Arrival, policy: Policy, outcomes: _Outcomes) -> None:
        """Bring one that waits nearer to its release: the lowest gap of its lane is given up, or it is late itself."""
        lane = self._lane(waiting)
        if lane.ending_us is not None:
            # A worker died while the run was ending, and what should end it never came again: it was deleted.
            self._replace(waiting.recording, msgspec.structs.replace(lane, ending_us=None))
        elif _opens_after_all(lane, waiting, policy.first_sequence):
            self._restart(waiting, self.waiting[: self.waiting.index(waiting)], policy, outcomes)
        elif self._believed([waiting], policy):
            in_lane = [held for held in self.waiting if held.recording == waiting.recording]
            outcomes.append(cast("Release", self._release_lowest(in_lane, policy)))
        else:
            outcomes.append(self._release_late(waiting))
        self._settle(policy, outcomes)

    def _to_spare(self, recording: bool, policy: Policy) -> Arrival:
        """Which of a lane that waits for too much is the first to give up: better one that cannot disturb the run."""
        in_lane = [held for held in self.waiting if held.recording == recording]
        believed = set(self._believed(in_lane, policy))
        return next((held for held in in_lane if held not in believed), in_lane[0])

    def _believed(self, candidates: list[Arrival], policy: Policy) -> list[Arrival]:
        """With which of these, of one lane, the numbering may go on: they are ahead, and not far, or others are where
        they are.

        Of all at once: looked at one by one, a thousand that wait far ahead would keep a worker for half a minute.
        """
        recording = candidates[0].recording
        lane = self.state.recording if recording else self.state.status
        following = policy.first_sequence if lane.next is None else lane.next
        plausible = range(following, following + AHEAD_MAX + 1)
        if all(_number(candidate) in plausible for candidate in candidates):
            return candidates
        others = {_number(held) for held in self.waiting if held.recording == recording}
        numbers = sorted(others.union(released_numbers(lane.released)))
        beside = {
            number
            for lower, upper in pairwise(numbers)
            if upper - lower <= AHEAD_MAX
            for number in (lower, upper)
            if number > following
        }
        return [held for held in candidates if _number(held) in plausible or _number(held) in beside]

    def _release_lowest(self, candidates: list[Arrival], policy: Policy) -> Release | None:
        """Release the lowest number that is believed, after its gap; None if there is none."""
        believed = self._believed(candidates, policy)
        if not believed:
            return None
        lowest = min(believed, key=_number)  # of several with one number the first that came
        self.waiting.remove(lowest)
        lane, number = self._lane(lowest), _number(lowest)
        following = policy.first_sequence if lane.next is None else lane.next
        missing = tuple(range(following, min(number, following + MISSING_MAX)))
        return self._release(lowest, lane, number, "after_gap", missing)

    def _release_late(self, waiting: Arrival) -> Release:
        self.waiting.remove(waiting)
        return self._release(waiting, self._lane(waiting), _number(waiting), "late", ())

    def _release(
        self, arrival: Arrival, lane: LaneState, number: int, order: Order, missing: tuple[int, ...]
    ) -> Release:
        """Release an arrival that has a number."""
        at_us, top_us, floor_us = arrival.timestamp_us, lane.top_us, lane.floor_us
        following, opening, ending_us = lane.next, lane.opening, lane.ending_us
        if order != "late":
            if following is None:
                opening = number
                if lane.run and at_us is not None:
                    floor_us = at_us
            following = number + 1
        if at_us is not None:
            if ending_us is not None and at_us >= ending_us:
                at_us = ending_us - 1  # what ends the run stays later than everything released in it
            if top_us is None or at_us > top_us:
                top_us = at_us
        released = remember_released(lane.released, number, arrival.fingerprint)
        lane = LaneState(following, lane.run, opening, released, top_us, floor_us, ending_us)
        state, recording = self.state, arrival.recording
        self.state = state = SessionState(
            state.version,
            state.status if recording else lane,
            lane if recording else state.recording,
            state.unsequenced,
            state.closed or arrival.ends_session,
        )
        return Release(arrival, order, missing, lane.run, state)

    def _release_unsequenced(self, arrival: Arrival) -> Release:
        state = self.state
        self.state = SessionState(
            state.version,
            state.status,
            state.recording,
            remember_unsequenced(state.unsequenced, arrival.fingerprint),
            state.closed or arrival.ends_session,
        )
        return Release(arrival, "unsequenced", (), self._lane(arrival).run, self.state)

    def _replace(self, recording: bool, lane: LaneState) -> None:
        state = self.state
        self.state = SessionState(
            state.version,
            state.status if recording else lane,
            lane if recording else state.recording,
            state.unsequenced,
            state.closed,
        )


def _number(arrival: Arrival) -> int:
    return cast("int", arrival.number)  # for what waits: without a number, nothing does
