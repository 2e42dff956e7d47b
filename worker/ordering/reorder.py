"""Puts one session's arrivals in order: the pure core, without I/O and clocks.

Rules: the table of docs/ordering.md. `decision` has the table for one arrival; `SessionOrder` carries it out.

Strategy: arrivals that cannot be released yet wait, in the order of the stream: for the numbers before them (held), or
for an opening that shows that numbering started again (undecided). After every release, all waiting arrivals are
decided anew, in that order, as though they arrived just now. So the outcome after a release depends on the state right
after it and on the arrivals not yet handled, and on nothing else: a worker that loads that state after a crash, and is
fed those arrivals again, decides exactly as the one that died.

Time comes from the arrivals and the watermark. An arrival first expires the gaps whose deadlines its own time has
passed, oldest first, so it makes no difference how often, or whether, the runtime called `expire` before it.

While a missing callback may lie in an ingest node's spool (`worker.ordering.spool_history`), what is due waits on, for
`gap_spool_ms` at most, and so does a SessionTimeout.

This is the plain statement of the rules. `worker.native.order` does the two ordinary cases in C (an arrival that is
due, and one that waits for its turn) and leaves all others to this file; without a compiler it does everything.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, cast

import msgspec

from maskline.worker.ordering.decision import decide, opens_run_after_waiting, plausible
from maskline.worker.ordering.spool_history import SpoolHistory
from maskline.worker.ordering.state import (
    NEW_SESSION,
    LaneState,
    SessionState,
    remember_released,
    remember_unsequenced,
    was_released,
    was_released_unsequenced,
)

Order = Literal["in_order", "after_gap", "late", "unsequenced"]

MISSING_MAX: Final = 1_000
"""Numbers that one release names as missing, the lowest ones."""


class Policy(msgspec.Struct, frozen=True):
    """The settings that the rules depend on; the same for every session of a worker."""

    gap_timeout_ms: int
    """How long an arrival waits for the numbers before it: MASKLINE_GAP_TIMEOUT_MS."""
    first_sequence: int
    """The number that opens a run, MASKLINE_FIRST_SEQUENCE; 0 always does."""
    held_max: int
    """Arrivals of one session that may wait at once, held or undecided. Each makes the next one dearer: keep to
    hundreds."""
    gap_spool_ms: int = 0
    """How much longer it waits while a node is known to hold spooled callbacks: MASKLINE_GAP_SPOOL_MS."""


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
    """The caller's own; in a worker the `Entry`."""

    def __repr__(self) -> str:
        # The payload is left out, as it may hold phone numbers.
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

    It is done before any later release: once such a release is committed, the duplicate is not fed again.
    """

    arrival: Arrival


_Outcomes = list[Release | Duplicate]


NO_SPOOLS: Final = SpoolHistory()  # never changed

NONE_WAITING: Final = cast("list[Arrival]", ())
"""The empty list that nearly all sessions share: a list of its own would take a hundred bytes."""


class SessionOrder:
    """The order of one session: its state, and its waiting arrivals."""

    __slots__ = ("state", "waiting")

    def __init__(self, state: SessionState = NEW_SESSION) -> None:
        self.state = state
        """After everything released so far, and, where numbering has started again since, in the new run."""
        self.waiting = NONE_WAITING
        """The arrivals of which `decide` says "wait", and SessionTimeouts that wait for spools; in the stream's order.
        Read-only."""

    @property
    def held(self) -> int:
        """How many arrivals wait."""
        return len(self.waiting)

    def deadline_ms(self, policy: Policy) -> int | None:
        """As `ends_ms` if no spool is waited for; None while nothing waits."""
        first = self._first_due(policy)
        return None if first is None else _due_ms(first, policy)

    def ends_ms(self, policy: Policy, spools: SpoolHistory) -> int:
        """The watermark, in ms, at which `expire` has something to do. To be called only while something waits."""
        return ends_ms(cast("Arrival", self._first_due(policy)), policy, spools)

    def arrive(
        self, arrival: Arrival, policy: Policy, spools: SpoolHistory = NO_SPOOLS
    ) -> Sequence[Release | Duplicate]:
        """Take the session's next arrival; return what is released now, in order, and whether it was a duplicate."""
        outcomes = _Outcomes()
        self._expire(arrival.arrived_ms, policy, spools, outcomes)
        if self._is_duplicate(arrival):
            outcomes.append(Duplicate(arrival))
        elif arrival.ends_session and ends_ms(arrival, policy, spools) <= arrival.arrived_ms:
            self._end_session(arrival, policy, outcomes)
        elif arrival.number is None and not arrival.ends_session:
            outcomes.append(self._release_unsequenced(arrival))
        else:
            self._wait(arrival)
            self._decide_waiting(policy, outcomes, len(self.waiting) - 1)
            while len(self.waiting) > policy.held_max:
                self._give_up_one(arrival.recording, policy, outcomes)
        return outcomes

    def expire(
        self, watermark_ms: int, policy: Policy, spools: SpoolHistory = NO_SPOOLS
    ) -> Sequence[Release]:
        """Release the arrivals that have waited long enough. Returns them in order.

        `watermark_ms`: the stream's time, which never falls and is never later than an arrival to come.
        """
        outcomes: _Outcomes = []
        self._expire(watermark_ms, policy, spools, outcomes)
        return [outcome for outcome in outcomes if isinstance(outcome, Release)] if outcomes else ()

    def _expire(self, watermark_ms: int, policy: Policy, spools: SpoolHistory, outcomes: _Outcomes) -> None:
        while (first := self._first_due(policy)) is not None:
            if ends_ms(first, policy, spools) > watermark_ms:
                return
            if first.ends_session:
                self.waiting.remove(first)
                self._end_session(first, policy, outcomes)
            else:
                self._give_up(first, policy, outcomes)

    def _first_due(self, policy: Policy) -> Arrival | None:
        """Of those that wait the one that is due first: the oldest, or a SessionTimeout, which is due as it arrives."""
        waiting = self.waiting
        if not waiting:
            return None
        ending = next((held for held in waiting if held.ends_session), None)
        first = waiting[0]
        if ending is not None and ending.arrived_ms < first.arrived_ms + policy.gap_timeout_ms:
            return ending
        return first

    def _wait(self, arrival: Arrival) -> None:
        if self.waiting is NONE_WAITING:
            self.waiting = []
        self.waiting.append(arrival)

    def _end_session(self, ending: Arrival, policy: Policy, outcomes: _Outcomes) -> None:
        """Release everything that waits in the session, status events first, and then its SessionTimeout."""
        while waiting := [held for held in self.waiting if not held.ends_session]:
            status = (held for held in waiting if not held.recording)
            self._give_up(next(status, waiting[0]), policy, outcomes)
        if ending.number is None:
            outcomes.append(self._release_unsequenced(ending))
            self.waiting = self.waiting or NONE_WAITING
            return
        self._wait(ending)
        self._decide_waiting(policy, outcomes, len(self.waiting) - 1, ending)
        while ending in self.waiting:
            self._give_up(ending, policy, outcomes)

    def _is_duplicate(self, arrival: Arrival) -> bool:
        if arrival.number is None:
            released = was_released_unsequenced(self.state.unsequenced, arrival.fingerprint)
        else:
            released = was_released(self._lane(arrival).released, arrival.number, arrival.fingerprint)
        return released or self._is_held(arrival)

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

    def _decide_waiting(
        self, policy: Policy, outcomes: _Outcomes, at: int = 0, ending: Arrival | None = None
    ) -> None:
        """Decide waiting arrivals in the stream's order: from the index `at` on, and all of them anew after each
        release. SessionTimeouts wait for spools, and are not decided, but for `ending`, whose wait is over.
        """
        held = self.waiting
        while at < len(held):
            arrival = held[at]
            if arrival.ends_session and arrival is not ending:
                at += 1
                continue
            lane = self._lane(arrival)
            number = _number(arrival)
            verdict = decide(lane, arrival, number, policy.first_sequence)
            if verdict == "wait":
                at += 1
                continue
            if verdict == "restart":
                self._restart(arrival, held[:at], policy, outcomes)
            else:
                del held[at]
                outcomes.append(self._release(arrival, lane, number, verdict, ()))
            at = 0
        if not held:
            self.waiting = NONE_WAITING

    def _restart(self, opening: Arrival, before: list[Arrival], policy: Policy, outcomes: _Outcomes) -> None:
        """Release what the ended run still holds, one at a time; once nothing is left, begin the next run.

        `before`: what waits and came before the opening. Those stamped later than the opening belong to the next run.
        What is undecided stays, to be decided in the next run: there it has its turn, or was stamped before it began.
        """
        opening_us = cast("int", opening.timestamp_us)  # without one, nothing starts a run
        lane = self._lane(opening)
        due = cast("int", lane.next)  # before the first release, nothing does
        old = [
            held
            for held in before
            if held.recording == opening.recording
            and not held.ends_session
            and _number(held) >= due
            and (held.timestamp_us is None or held.timestamp_us <= opening_us)
        ]
        if old:
            self._set_lane(opening.recording, msgspec.structs.replace(lane, ending_us=opening_us))
            outcomes.append(self._release_lowest(old, policy) or self._release_late(old[0]))
        else:
            self.waiting.remove(opening)
            next_run = LaneState(run=lane.run + 1, released=lane.released, top_us=lane.top_us)
            outcomes.append(self._release(opening, next_run, _number(opening), "in_order", ()))

    def _give_up(self, waiting: Arrival, policy: Policy, outcomes: _Outcomes) -> None:
        """Bring an arrival that waits nearer to its release: give up the lowest gap of its lane, or release it late."""
        lane = self._lane(waiting)
        if lane.ending_us is not None:
            # A worker died while the run was ending, and what should end it never came again: it was deleted.
            self._set_lane(waiting.recording, msgspec.structs.replace(lane, ending_us=None))
        elif opens_run_after_waiting(lane, waiting, _number(waiting), policy.first_sequence):
            self._restart(waiting, self.waiting[: self.waiting.index(waiting)], policy, outcomes)
        elif self._plausible([waiting], policy):
            in_lane = [waiting] if waiting.ends_session else self._in_lane(waiting.recording)
            outcomes.append(cast("Release", self._release_lowest(in_lane, policy)))
        else:
            outcomes.append(self._release_late(waiting))
        self._decide_waiting(policy, outcomes, ending=waiting)

    def _give_up_one(self, recording: bool, policy: Policy, outcomes: _Outcomes) -> None:
        """Too many wait, in this lane if there are any: give up one, if possible one that cannot disturb the run."""
        in_lane = self._in_lane(recording) or self._in_lane(not recording)
        if in_lane:
            believed = set(self._plausible(in_lane, policy))
            one = next((held for held in in_lane if held not in believed), in_lane[0])
            self._give_up(one, policy, outcomes)
        else:
            self._end_session(self.waiting.pop(0), policy, outcomes)

    def _in_lane(self, recording: bool) -> list[Arrival]:
        """Those of a lane that wait for numbers."""
        return [held for held in self.waiting if held.recording == recording and not held.ends_session]

    def _plausible(self, candidates: list[Arrival], policy: Policy) -> list[Arrival]:
        """Those of the candidates, all of one lane, with whose numbers the numbering may go on."""
        recording = candidates[0].recording
        lane = self.state.recording if recording else self.state.status
        due = policy.first_sequence if lane.next is None else lane.next
        return plausible(lane, candidates, self._in_lane(recording), due)

    def _release_lowest(self, candidates: list[Arrival], policy: Policy) -> Release | None:
        """Release the lowest plausible number, after its gap; None if there is none."""
        believed = self._plausible(candidates, policy)
        if not believed:
            return None
        lowest = min(believed, key=_number)  # of several with one number the first that came
        self.waiting.remove(lowest)
        lane, number = self._lane(lowest), _number(lowest)
        due = policy.first_sequence if lane.next is None else lane.next
        missing = tuple(range(due, min(number, due + MISSING_MAX)))
        return self._release(lowest, lane, number, "after_gap", missing)

    def _release_late(self, waiting: Arrival) -> Release:
        self.waiting.remove(waiting)
        return self._release(waiting, self._lane(waiting), _number(waiting), "late", ())

    def _release(
        self, arrival: Arrival, lane: LaneState, number: int, order: Order, missing: tuple[int, ...]
    ) -> Release:
        """Release an arrival that has a number."""
        at_us, top_us, floor_us = arrival.timestamp_us, lane.top_us, lane.floor_us
        due, opening, ending_us = lane.next, lane.opening, lane.ending_us
        if order != "late":
            if due is None:
                opening = number
                if lane.run and at_us is not None:
                    floor_us = at_us
            due = number + 1
        if at_us is not None:
            if ending_us is not None and at_us >= ending_us:
                at_us = ending_us - 1  # what ends the run stays later than everything released in it
            if top_us is None or at_us > top_us:
                top_us = at_us
        released = remember_released(lane.released, number, arrival.fingerprint)
        lane = LaneState(due, lane.run, opening, released, top_us, floor_us, ending_us)
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

    def _set_lane(self, recording: bool, lane: LaneState) -> None:
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


def ends_ms(waiting: Arrival, policy: Policy, spools: SpoolHistory) -> int:
    """The watermark, in ms, at which an arrival has waited long enough: for the numbers before it, and for spools."""
    due_ms = _due_ms(waiting, policy)
    waits_until_ms = spools.timeout_waits_until_ms if waiting.ends_session else spools.gap_waits_until_ms
    return min(waits_until_ms(due_ms), due_ms + policy.gap_spool_ms)


def _due_ms(waiting: Arrival, policy: Policy) -> int:
    return waiting.arrived_ms if waiting.ends_session else waiting.arrived_ms + policy.gap_timeout_ms
