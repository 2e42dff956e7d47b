"""Judges what Redis has of a session: which callbacks were handled, what waits for what, what is gone. Pure.

| source | tells |
| --- | --- |
| the callbacks that are kept, put in order once more | what was late, after a gap, doubled |
| the session's order in the group, fed with what is not handled | what waits for a missing number, and until when |
| the retry queues and the dead letters | what waits for which handler, or behind which dead letter |
| what the order remembers of released numbers, beside the callbacks | what is not retained any more |
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from maskline.console.session.facts import KeptCallback, LetterFacts, QueueFacts, SessionFacts
from maskline.schemas.calls.observation import Observation, observe
from maskline.schemas.privacy import number_token
from maskline.worker.api.context import Context
from maskline.worker.jobs.session_replay import put_in_order
from maskline.worker.ordering.reorder import Arrival, Duplicate, Policy, Release, SessionOrder
from maskline.worker.ordering.state import (
    NEW_SESSION,
    SessionState,
    released_numbers,
    was_released_unsequenced,
)

EventState = Literal["handled", "under way", "held", "unread"]
"""`under way`: a worker has it and has not finished it. `held`: it waits for a number before it. `unread`: no worker of
the group has read it yet."""


class KnownEvent(NamedTuple):
    """One event of the session, of which a callback is kept or the timeline knows."""

    observation: Observation
    state: EventState = "handled"
    copies: int = 0
    """How often Plivo sent it again, as far as callbacks are kept."""
    in_timeline: bool = False


class Gap(NamedTuple):
    """A number that events wait for."""

    first: int
    """The lowest number that is missing."""
    last: int
    """The highest one before the first event that waits."""
    recording: bool
    """In the recordings' own numbering."""
    held: int
    """Events that wait."""
    until_ms: int
    """When the number is given up, by the stream's clock; later while an ingest node holds spooled callbacks."""


class Gone(NamedTuple):
    """What is known to have been a callback of the session, and is not kept any more."""

    numbers: tuple[int, ...] = ()
    recording_numbers: tuple[int, ...] = ()
    """In the recordings' own numbering."""
    others: int = 0
    """Callbacks without a number."""
    earlier: bool = False
    """What came before the first one that is kept cannot be told any more."""

    def __bool__(self) -> bool:
        return bool(self.numbers or self.recording_numbers or self.others or self.earlier)


class Standing(NamedTuple):
    """How a session stands."""

    events: Sequence[KnownEvent]
    """In the order in which handlers got them, or will."""
    gaps: Sequence[Gap]
    gone: Gone
    doubled: int
    """Callbacks that repeat another one, as far as they are kept."""


def judge(facts: SessionFacts, policy: Policy, *, recording_shared: bool) -> Standing:
    """How a session stands. `policy`: the group's settings. `recording_shared`: MASKLINE_RECORDING_SEQUENCE."""
    live = SessionOrder(facts.state or NEW_SESSION)
    states: dict[str, EventState] = {}
    repeats: list[Arrival] = []
    for kept in facts.callbacks:
        if kept.progress != "handled":
            states[kept.entry.entry_id] = "under way" if kept.progress == "pending" else "unread"
            outcomes = live.arrive(kept.arrival, policy)
            repeats += [it.arrival for it in outcomes if isinstance(it, Duplicate)]
    held = {it.payload.entry_id for it in live.waiting}
    held_keys = {_key(it) for it in live.waiting}
    for kept in facts.callbacks:  # one that repeats what is held was done at once
        if kept.progress == "handled" and _key(kept.arrival) in held_keys:
            repeats.append(kept.arrival)
    apart = held.union(it.payload.entry_id for it in repeats)
    in_order = [it.arrival for it in facts.callbacks if it.entry.entry_id not in apart]
    ordered, after = put_in_order(in_order, policy)
    releases = [it for it in ordered if isinstance(it, Release)]
    repeats += [it.arrival for it in ordered if isinstance(it, Duplicate)]
    copies = Counter(map(_key, repeats))
    waiting = sorted(live.waiting, key=lambda it: (it.recording, it.number or 0))
    releases += [Release(it, "in_order", (), _run_of(it, live.state), after) for it in waiting]
    recorded = {} if facts.timeline is None else dict(facts.timeline.observations)
    events: list[KnownEvent] = []
    for release in releases:
        entry_id = release.arrival.payload.entry_id
        state: EventState = "held" if entry_id in held else states.get(entry_id, "handled")
        found = _observation(release, recording_shared=recording_shared)
        known = recorded.pop(found.idempotency_key, None)
        events.append(KnownEvent(known or found, state, copies[found.idempotency_key], known is not None))
    events = [*(KnownEvent(it, in_timeline=True) for it in recorded.values()), *events]
    return Standing(
        events=events,
        gaps=list(_gaps(live, policy)),
        gone=_gone(facts, policy, [it.observation for it in events if it.in_timeline]),
        doubled=copies.total(),
    )


def letter_before(queue: QueueFacts, letters: Iterable[LetterFacts], group: str) -> LetterFacts | None:
    """The dead letter that a parked queue waits behind: the latest of its handler that is parked."""
    wanted = group, queue.handler, True
    behind = [it for it in letters if (it.letter.group, it.letter.handler, it.letter.parked) == wanted]
    return behind[-1] if behind and queue.parked else None


def _observation(release: Release, *, recording_shared: bool) -> Observation:
    event = release.arrival.payload.event
    context = Context(release, "", 1, 0)
    return observe(event, context, number_as=number_token, recording_shared=recording_shared)


def _key(arrival: Arrival) -> str:
    where = "u" if arrival.number is None else str(arrival.number)
    return f"{arrival.payload.event.session_uuid}:{where}:{arrival.fingerprint.hex()}"


def _run_of(arrival: Arrival, state: SessionState) -> int:
    return (state.recording if arrival.recording else state.status).run


def _gaps(live: SessionOrder, policy: Policy) -> Iterable[Gap]:
    for recording, lane in ((False, live.state.status), (True, live.state.recording)):
        held = [it for it in live.waiting if it.recording is recording and it.number is not None]
        if not held:
            continue
        due = policy.first_sequence if lane.next is None else lane.next
        beyond = [it.number for it in held if it.number is not None and it.number > due]
        until_ms = min(it.arrived_ms for it in held) + policy.gap_timeout_ms
        yield Gap(due, max(min(beyond, default=due + 1) - 1, due), recording, len(held), until_ms)


def _gone(facts: SessionFacts, policy: Policy, recorded: Iterable[Observation]) -> Gone:
    kept = facts.callbacks
    by_lane = [{it.arrival.number for it in kept if it.arrival.recording is lane} for lane in (False, True)]
    numbers, others = [set[int](), set[int]()], 0
    state = facts.state
    if state is not None:
        for lane, ring in enumerate((state.status.released, state.recording.released)):
            numbers[lane].update(set(released_numbers(ring)) - by_lane[lane])
        fingerprints = {it.arrival.fingerprint for it in kept if it.arrival.number is None}.union(
            facts.emitted
        )
        remembered = len(state.unsequenced) // 8
        others = remembered - sum(was_released_unsequenced(state.unsequenced, it) for it in fingerprints)
    keys = {_key(it.arrival) for it in kept}
    for observation in recorded:
        if observation.idempotency_key in keys:
            continue
        if observation.number is None:
            others = max(others, 1)
        elif observation.number not in by_lane[observation.own_lane]:
            numbers[observation.own_lane].add(observation.number)
    return Gone(
        numbers=tuple(sorted(numbers[False])),
        recording_numbers=tuple(sorted(numbers[True])),
        others=others,
        earlier=_begins_later(facts, kept, policy),
    )


def _begins_later(facts: SessionFacts, kept: Sequence[KeptCallback], policy: Policy) -> bool:
    """Whether something came before what is kept, and nothing tells what."""
    if not kept:
        return True
    if not facts.stream.trimmed:
        return False
    status = [it.arrival.number for it in kept if not it.arrival.recording and it.arrival.number is not None]
    opening = facts.state.status.opening if facts.state is not None and not facts.state.status.run else None
    first = policy.first_sequence if opening is None else opening
    return not status or min(status) > max(first, 0)
