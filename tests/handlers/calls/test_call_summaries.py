"""The module in a harness: the worker's own order and dispatch, and its store in memory."""

from decimal import Decimal

import pytest

import maskline.handlers.call_summary as module
from maskline import Context, on
from maskline.events import CallSummary
from maskline.testing import Harness, callback

FIRST, SECOND = "+14155550123", "+447700900456"

seen: list[CallSummary] = []


@on(CallSummary)
async def collect(summary: CallSummary, ctx: Context) -> None:
    assert (ctx.sequence_number, ctx.order) == (None, "unsequenced")
    seen.append(summary)


@on.every(name="every")
async def count(event, ctx: Context) -> None:
    assert not isinstance(event, CallSummary)


def event(name: str, number: int | None = None, at_s: int = 0, **attributes):
    return callback(
        name,
        sequence_number=number,
        event_timestamp=f"2026-01-05T09:{at_s // 60:02}:{at_s % 60:02}Z",
        first_party=FIRST,
        second_party=SECOND,
        **attributes,
    )


CALL = [
    event("SessionVirtualNumberAnswer", 1, 0),
    event("SessionPinAuthenticationStatus", None, 3, pin_authentication_status="failed", pin_retry_counter=1),
    event(
        "SessionPinAuthenticationStatus", None, 5, pin_authentication_status="success", pin_retry_counter=1
    ),
    event("SessionSecondPartyRing", 2, 10),
    event("SessionSecondPartyAnswer", 3, 15),
    event("SessionSecondPartyHangup", 4, 75, duration=60, plivo_hangup_cause="Normal Hangup"),
    event("SessionFirstPartyHangup", 5, 76, duration=75),
    event("SessionPartiesHangup", 6, 77, amount="0.0350", duration=60, billed_duration=60),
]


@pytest.fixture
async def harness():
    seen.clear()
    async with Harness(module, __name__) as it:
        yield it
        assert not it.dead_letters


async def test_a_finished_call_is_summed_up_once(harness):
    await harness.feed(*CALL)
    (summary,) = seen
    assert (summary.call_key, summary.revision, summary.ended_by) == (
        f"{summary.session_uuid}:call:1",
        1,
        "parties_hangup",
    )
    assert (summary.amount, summary.duration_s, summary.billed_duration_s) == (Decimal("0.0350"), 60, 60)
    assert (summary.answered, summary.complete) == (True, True)
    assert (summary.pin_failures, summary.pin_status) == (1, "success")
    assert (summary.first_party_number, summary.second_party_number) == (FIRST, SECOND)
    assert (summary.second_party.ring_s, summary.second_party.talk_s, summary.first_party.talk_s) == (
        5,
        60,
        76,
    )
    await harness.feed(*CALL, event("SessionTimeout", None, 3000))
    await harness.pass_time(200_000)
    assert len(seen) == 1


async def test_what_arrives_late_is_the_next_revision_and_nothing_else_is(harness):
    await harness.feed(*(one for one in CALL if one["EventName"] != "SessionSecondPartyAnswer"))
    await harness.pass_time(6)
    assert [(one.revision, one.complete, one.missing) for one in seen] == [(1, False, (3,))]
    await harness.feed(CALL[4])
    assert [(one.revision, one.complete, one.missing) for one in seen[1:]] == [(2, True, ())]
    await harness.feed(event("SessionParamUpdate", None, 100))
    assert len(seen) == 2


async def test_both_parties_left_and_nothing_follows(harness):
    await harness.feed(*CALL[:-1])
    await harness.pass_time(80)
    assert seen == []
    await harness.pass_time(20)
    assert [(one.ended_by, one.revision, one.amount) for one in seen] == [("both_legs", 1, None)]
    await harness.feed(CALL[-1])
    assert [(one.ended_by, one.revision, one.amount) for one in seen[1:]] == [
        ("parties_hangup", 2, Decimal("0.0350"))
    ]


async def test_a_call_whose_end_is_lost_is_over_by_silence(harness):
    await harness.feed(*CALL[:5])
    await harness.pass_time(14_300)
    assert seen == []
    await harness.pass_time(200)
    assert [(one.ended_by, one.duration_s) for one in seen] == [("silence", None)]
    await harness.feed(*CALL[5:7])
    assert [(one.ended_by, one.duration_s) for one in seen[1:]] == [("silence", 60), ("both_legs", 75)]


async def test_two_calls_and_a_late_end_of_the_first_after_the_second_began(harness):
    second = [
        event(one["EventName"], int(one["SequenceNumber"]) + 6, 200 + 10 * at)
        for at, one in enumerate(CALL[3:5])
    ]
    await harness.feed(*CALL[:-1], event("SessionVirtualNumberAnswer", 7, 190), *second)
    await harness.pass_time(6)
    assert [(one.call, one.ended_by, one.amount) for one in seen] == [(1, "both_legs", None)]
    await harness.feed(CALL[-1])
    assert [(one.call, one.ended_by, one.amount, one.revision) for one in seen[1:]] == [
        (1, "parties_hangup", Decimal("0.0350"), 2)
    ]


async def test_a_plivo_callback_of_that_name_is_an_unknown_event(harness):
    await harness.feed(event("CallSummary", 1))
    assert seen == []


async def test_a_failing_handler_of_summaries_has_dead_letters_and_replays():
    failing = {"on": True}

    @on(CallSummary, name="fails", retries=1)
    async def fails(summary: CallSummary, ctx: Context) -> None:
        if failing["on"]:
            raise ValueError(f"no {summary.first_party_number}")

    parts = type(module)("parts")
    parts.fails = fails
    async with Harness(module, parts) as harness:
        await harness.feed(*CALL)
        (letter,) = harness.dead_letters
        assert (letter.event_name, letter.sequence_number, letter.handler) == ("CallSummary", None, "fails")
        failing["on"] = False
        await harness.replay(letter)
        assert harness.calls[-1].error is None
        assert harness.calls[-1].replayed
