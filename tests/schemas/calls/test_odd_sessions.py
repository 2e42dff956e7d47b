"""Sessions that are odd and genuine: what calls cost, and how many there were. Longer: ODD_SESSIONS=500."""

import itertools
import os

import msgspec
import pytest
from odd_sessions_kit import Odd, OddSession

from maskline.schemas.calls.assembly import AssembledCall, SessionCalls, assemble

SESSIONS = int(os.environ.get("ODD_SESSIONS", "5"))

NUMBERED = [
    Odd(new_names=new, first=first, restart=restart, shared=shared)
    for new, first, restart, shared in itertools.product((False, True), (0, 1), (False, True), (False, True))
]


def play(**kind):
    for seed, odd in itertools.product(range(SESSIONS), NUMBERED):
        session = OddSession(seed, odd._replace(**kind))
        arrived, observations = session.delivered()
        yield session, arrived, observations


def charges(session: SessionCalls) -> list[tuple]:
    done: list[AssembledCall] = [call for call in session.calls if call.ended_by == "parties_hangup"]
    return [(call.amount, call.duration_s, call.billed_duration_s) for call in done]


@pytest.mark.parametrize(
    "kind",
    [{}, {"pauses_s": (1, 3, 6, 10)}, {"sent_again": 0.1, "pauses_s": (100,)}],
    ids=["as told", "seconds after each other", "sent again"],
)
def test_whole_sessions_are_the_truth(kind):
    for session, _, observations in play(**kind):
        found = assemble(observations)
        assert charges(found) == [call.charge for call in session.calls]
        assert [(call.answered, call.pin_failures) for call in found.calls] == [
            (call.answered, call.pins) for call in session.calls
        ]
        assert kind or all(call.complete for call in found.calls)


@pytest.mark.parametrize("stamps", ["unreadable", "mixed"])
def test_calls_are_charged_right_without_readable_timestamps(stamps):
    wrong = played = 0
    for session, _, observations in play(stamps=stamps, pauses_s=(20, 60)):
        played += 1
        wrong += charges(assemble(observations)) != [call.charge for call in session.calls]
    assert (
        wrong <= played * 0.02
    )  # a callback that is the same in two calls is a duplicate: the worker drops it


def test_what_arrived_is_charged_right_where_others_were_lost():
    for session, arrived, observations in play(losses=0.15):
        if observations:
            assert charges(assemble(observations)) == [
                call.charge for call in session.calls if call.done in arrived
            ]


def test_a_callback_that_is_sent_again_adds_no_call_whichever_came_first():
    for _, _, observations in itertools.islice(play(), 8):
        for one in observations:
            other = msgspec.structs.replace(
                one,
                idempotency_key=f"{one.idempotency_key}2",
                received_at_ms=one.received_at_ms + 40_000,
                order="late",
            )
            session = assemble(observations)
            assert charges(assemble([other, *observations])) == charges(session)
            assert len(assemble([*observations, other]).calls) == len(session.calls)
