"""Assembled calls beside the truth of simulated sessions, with losses and shuffles. 10,000 calls: CALLS=10000."""

import os
import random
from collections import Counter

import msgspec
import pytest
from calls_kit import Arrived, Delivery, Truth, deliver, truth_of
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.console.simulate.sessions import SessionOptions
from maskline.schemas.calls.assembly import AssembledCall, SessionCalls, assemble
from maskline.schemas.calls.observation import Observation, is_recording
from maskline.schemas.calls.revisions import (
    Emitted,
    call_only_begins,
    digest_of,
    due_summaries,
    silent_after_ms,
)
from maskline.schemas.events import EVENT_TYPES

encode = msgspec.json.encode  # a NaN is equal to itself there

CALLS = int(os.environ.get("CALLS", "1000"))

OPTIONS = [
    SessionOptions(vocabulary=vocabulary, first_sequence=first, recording_sequence=recording)
    for vocabulary in ("old", "new")
    for first in (0, 1)
    for recording in ("own", "shared")
] + [SessionOptions(restart_numbering=True)]

WHOLE = Delivery()
SHUFFLED = Delivery(displaced_s=20.0, late=0.05)
LOSSY = Delivery(losses=0.1, late=0.05)
VERY_LOSSY = Delivery(losses=0.3, late=0.1, displaced_s=10.0)


def play(delivery: Delivery, share: float):
    """Sessions with `share` of all CALLS: their plans, what arrived of them, and the assembled calls."""
    calls, index = 0, 0
    while calls < CALLS * share:
        options = OPTIONS[index % len(OPTIONS)]
        arrived = deliver(17, index, options, delivery)
        truth = truth_of(arrived.events)
        calls, index = calls + len(truth), index + 1
        if arrived.observations:
            yield arrived, truth, assemble(arrived.observations)


def charges(call: AssembledCall) -> tuple:
    return call.amount, call.duration_s, call.billed_duration_s


def carried(arrived: Arrived, truth: list[Truth]) -> list[tuple]:
    """What the calls cost whose SessionPartiesHangup arrived."""
    return [
        (call.amount, call.duration_s, call.billed_duration_s)
        for call in truth
        if call.last in arrived.arrived
    ]


@pytest.mark.parametrize("delivery", [WHOLE, SHUFFLED], ids=["whole", "shuffled"])
def test_without_losses_every_field_is_the_truth(delivery):
    for arrived, truth, session in play(delivery, 0.2):
        assert [charges(call) for call in session.calls] == carried(arrived, truth)
        for call, played in zip(session.calls, truth, strict=True):
            assert (call.ended_by, call.complete, call.missing) == ("parties_hangup", True, ())
            assert call.answered == played.answered
            assert call.pin_failures == played.pins
            assert len(call.recordings) == played.recordings
        assert session.missing == ()


def agrees(arrived: Arrived, truth: list[Truth], session: SessionCalls) -> bool:
    """Each amount that arrived stands once, in order, with its durations."""
    return [charges(call) for call in session.calls if call.amount is not None] == carried(arrived, truth)


@pytest.mark.parametrize("delivery", [LOSSY, VERY_LOSSY], ids=["lossy", "very lossy"])
def test_amounts_and_durations_agree_wherever_the_events_that_carry_them_arrived(delivery):
    for arrived, truth, session in play(delivery, 0.3):
        assert agrees(arrived, truth, session)


def test_calls_are_as_many_as_were_played_where_their_ends_arrived():
    right = counted = 0
    for arrived, truth, session in play(LOSSY, 0.3):
        if all(call.last in arrived.arrived for call in truth):
            assert len(session.calls) == len(truth)
            for call, played in zip(session.calls, truth, strict=True):
                assert call.answered == played.answered or not call.complete
        counted += 1
        right += len(session.calls) == len(truth)
    assert right > 0.97 * counted


def test_assembly_is_a_function_of_the_set():
    rng = random.Random(5)
    for arrived, _, session in play(VERY_LOSSY, 0.05):
        shuffled = arrived.observations * 2
        rng.shuffle(shuffled)
        assert assemble(shuffled) == session


def total(observations) -> Counter:
    return Counter(call.amount for call in assemble(observations).calls if call.amount is not None)


def test_adding_an_event_never_loses_the_amount_of_a_call():
    rng = random.Random(6)
    for arrived, _, _ in play(VERY_LOSSY, 0.02):
        coming = list(arrived.observations)
        rng.shuffle(coming)
        before: Counter = Counter()
        for count in range(1, len(coming) + 1):
            now = total(coming[:count])
            assert before <= now
            before = now


NAMES = [*EVENT_TYPES, "SessionNew", "SessionRecordingNew", "(silence)", "(silence after the legs)"]
OBSERVATIONS = st.builds(
    Observation,
    idempotency_key=st.integers(0, 40).map("s:u:{}".format),
    entry_id=st.just("1-0"),
    event_name=st.sampled_from(NAMES),
    number=st.none() | st.integers(0, 12),
    run=st.integers(0, 2),
    recording=st.booleans(),
    own_lane=st.booleans(),
    order=st.sampled_from(["in_order", "after_gap", "late", "unsequenced"]),
    missing=st.lists(st.integers(0, 12), max_size=3).map(tuple),
    received_at_ms=st.integers(0, 9).map(lambda at: at * 10_000),
    event_timestamp_ms=st.none() | st.integers(0, 9).map(lambda at: at * 10_000),
    amount=st.none() | st.sampled_from(["0.01", "2", "NaN", "x"]),
    duration=st.none() | st.integers(0, 90),
    recording_uuid=st.none() | st.sampled_from(["a", "b"]),
).map(lambda one: msgspec.structs.replace(one, recording=is_recording(one.event_name), own_lane=_apart(one)))


def _apart(one: Observation) -> bool:
    return one.own_lane and is_recording(one.event_name)


@settings(max_examples=40)
@given(st.lists(OBSERVATIONS, max_size=25, unique_by=lambda one: one.idempotency_key), st.randoms())
def test_any_observations_give_the_same_calls_in_any_order_of_arrival(observations, rng):
    session = assemble(observations)
    shuffled = list(observations)
    rng.shuffle(shuffled)
    assert encode(assemble(shuffled)) == encode(session)
    keys = [key for call in session.calls for key in call.keys] + list(session.outside)
    real = [one.idempotency_key for one in observations if not one.event_name.startswith("(")]
    assert sorted(keys) == sorted(real)
    assert [call.call for call in session.calls] == list(range(1, len(session.calls) + 1))
    assert all(call.ended_by is not None for call in session.calls[:-1])
    done = sum(one.event_name == "SessionPartiesHangup" and not one.recording for one in observations)
    assert sum(call.ended_by == "parties_hangup" for call in session.calls) <= done


def test_calls_that_one_more_event_does_not_concern_are_not_assembled_anew():
    options = SessionOptions(calls_min=20, calls_max=20)
    observations = deliver(17, 1, options, LOSSY).observations
    before, taken, calls = None, 0, 0
    for count in range(1, len(observations) + 1):
        now = assemble(observations[:count], before)
        if before is not None:
            calls += len(before.calls)
            taken += sum(one is other for one, other in zip(before.calls, now.calls, strict=False))
        before = now
    assert taken > 0.85 * calls


@settings(max_examples=40)
@given(
    st.lists(OBSERVATIONS, max_size=20, unique_by=lambda one: one.idempotency_key),
    st.lists(OBSERVATIONS, max_size=5, unique_by=lambda one: one.idempotency_key),
)
def test_what_is_known_of_calls_before_changes_nothing(observations, more):
    known = {one.idempotency_key for one in observations}
    all_of_them = [*observations, *(one for one in more if one.idempotency_key not in known)]
    before = assemble(observations)
    emitted = {one.call: Emitted(1, digest_of(one)) for one in due_summaries("s", before, {})}
    session = assemble(all_of_them)
    assert encode(assemble(all_of_them, before)) == encode(session)
    due = due_summaries("s", assemble(all_of_them, before), emitted, before)
    assert encode(due) == encode(due_summaries("s", session, emitted))


@settings(max_examples=30)
@given(st.lists(OBSERVATIONS, max_size=25, unique_by=lambda one: one.idempotency_key))
def test_a_call_that_was_emitted_stays_over_and_is_emitted_again_only_if_it_changes(observations):
    emitted: dict[int, Emitted] = {}
    for count in range(1, len(observations) + 1):
        session = assemble(observations[:count])
        for summary in due_summaries("s", session, emitted):
            assert summary.revision == (emitted[summary.call].revision if summary.call in emitted else 0) + 1
            emitted[summary.call] = Emitted(summary.revision, digest_of(summary))
        assert due_summaries("s", session, emitted) == []
        over = {call.call for call in session.calls if call.ended_by is not None}
        assert over <= set(emitted)


def agrees_that_it_only_begins(observations: list[Observation]) -> bool:
    if call_only_begins(observations):
        session = assemble(observations)
        assert [call.ended_by for call in session.calls] == [None]
        assert silent_after_ms(session, 9) == 9
        return True
    return False


def test_quick_way_for_the_beginning_of_a_call_agrees_with_assembly():
    quick = 0
    for arrived, _, _ in play(LOSSY, 0.02):
        prefixes = range(1, len(arrived.observations) + 1)
        quick += sum(agrees_that_it_only_begins(arrived.observations[:count]) for count in prefixes)
    assert quick > 20


@settings(max_examples=40)
@given(st.lists(OBSERVATIONS, max_size=6, unique_by=lambda one: one.idempotency_key))
def test_quick_way_agrees_for_any_observations(observations):
    agrees_that_it_only_begins(observations)
