"""`maskline.handlers.forward` as a whole: in the harness, against a receiver on a real socket."""

import asyncio
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from aiohttp import web
from forward_kit import NEXT_SECRET, SECRET, Received, endpoint, receiving

from maskline import Retry
from maskline.console.schema.json_schemas import forward_schema
from maskline.schemas.privacy import number_token
from maskline.testing import SESSION_UUID, Harness, callback

CALLER = "+14155550123"
VALIDATOR = jsonschema.Draft202012Validator(forward_schema())


async def test_events_arrive_signed_and_in_order(configured):
    async with receiving() as receiver, Harness(configured(endpoint(receiver.url))) as harness:
        await harness.feed(
            callback("SessionSecondPartyAnswer", sequence_number=2, from_number=CALLER),
            callback(
                "SessionSecondPartyRing", sequence_number=1, event_timestamp="2026-01-01 10:00:00", Beep="x"
            ),
            callback("SessionPinAuthenticationStatus", pin_authentication_status="failed"),
        )
        await harness.feed(callback("SessionSecondPartyHangup", sequence_number=5, amount="0.0170"))
        await harness.pass_time(5)
    assert [it.message["type"].removeprefix("Session") for it in receiver.received] == [
        "SecondPartyRing",
        "SecondPartyAnswer",
        "PinAuthenticationStatus",
        "SecondPartyHangup",
    ]
    ring, answer, _, hangup = receiver.received
    assert ring.message["timestamp"] == "2026-01-01T10:00:00Z"
    assert ring.message["data"] == {
        "session_uuid": SESSION_UUID,
        "event_timestamp": "2026-01-01T10:00:00Z",
        "sequence_number": 1,
        "extra": {"Beep": "x"},
    }
    assert answer.message["data"]["from_number"] == number_token(CALLER)
    assert hangup.message["data"]["amount"] == "0.0170"
    assert hangup.message["delivery"]["order"] == "after_gap"
    assert hangup.message["delivery"]["missing"] == [3, 4]
    assert hangup.headers["maskline-missing"] == "3,4"
    assert {it.headers["webhook-id"] for it in receiver.received} == {
        it.idempotency_key for it in harness.calls
    }
    assert len({it.peer_port for it in receiver.received}) == 1, "one connection serves them all"


async def test_each_endpoint_gets_what_it_asks_for_as_it_asks_for_it(configured):
    async with receiving() as audit, receiving() as recordings, receiving() as calls:
        module = configured(
            endpoint(audit.url, name="audit", numbers="plain", headers={"X-Shop": "one"}),
            endpoint(recordings.url, name="recordings", events=["RecordingEvent"]),
            endpoint(calls.url, name="calls", events=["SessionSecondPartyAnswer", "UnknownEvent"]),
        )
        async with Harness(module) as harness:
            await harness.feed(
                callback("SessionSecondPartyAnswer", sequence_number=1, to_number=CALLER),
                callback("SessionRecordingInitiated", sequence_number=1),
                callback("SessionMoved", sequence_number=2),
            )
    assert [len(it.received) for it in (audit, recordings, calls)] == [3, 1, 2]
    assert audit.received[0].message["data"]["to_number"] == CALLER
    assert audit.received[0].headers["x-shop"] == "one"
    assert calls.received[0].message["data"]["to_number"] == number_token(CALLER)
    assert {it.handler for it in harness.calls} == {"forward audit", "forward recordings", "forward calls"}


async def test_a_call_that_is_over_is_forwarded_as_its_summary(configured):
    async with receiving() as receiver:
        module = configured(endpoint(receiver.url, events=["CallSummary"]))
        async with Harness("maskline.handlers.call_summary", module) as harness:
            await harness.feed(
                callback("SessionSecondPartyAnswer", sequence_number=1, from_number=CALLER),
                callback("SessionPartiesHangup", sequence_number=2, amount="0.0170", duration=31),
            )
            await harness.pass_time(60)
    (summary,) = [it.message for it in receiver.received]
    VALIDATOR.validate(summary)
    assert summary["type"] == "CallSummary"
    assert summary["data"]["amount"] == "0.0170"
    assert summary["delivery"]["session_uuid"] == SESSION_UUID
    assert summary["delivery"]["order"] == "unsequenced"
    assert CALLER[1:] not in str(summary)


@pytest.mark.parametrize("receivers_secret", [SECRET, NEXT_SECRET])
async def test_while_secrets_are_exchanged_each_of_both_is_good(receivers_secret, configured):
    async with receiving(receivers_secret) as receiver:
        async with Harness(configured(endpoint(receiver.url, secrets=[SECRET, NEXT_SECRET]))) as harness:
            await harness.feed(callback("SessionTimeout"))
        assert len(receiver.received) == 1
        async with Harness(configured(endpoint(receiver.url, secrets=[SECRET]))) as harness:
            await harness.feed(callback("SessionTimeout"))
        assert len(receiver.received) == (2 if receivers_secret == SECRET else 1)


async def test_a_request_that_is_wrong_is_a_dead_letter_at_once_and_parks_the_session(configured):
    async with receiving() as receiver, Harness(configured(endpoint(receiver.url))) as harness:
        receiver.answer = lambda it: web.Response(
            status=422 if it.headers["maskline-sequence"] == "2" else 200,
            text=f"cannot take POST /hooks/masking?key=of-the-url of {CALLER}",
        )
        for number in (1, 2, 3):
            await harness.feed(callback("SessionSecondPartyRing", sequence_number=number))
    assert [it.headers["maskline-sequence"] for it in receiver.received] == ["1", "2"]
    (letter,) = harness.dead_letters
    assert letter.handler == "forward shop"
    assert letter.reason.startswith('rejected: shop answered 422: "cannot take POST *** of num_')
    assert harness.parked == 1


async def test_what_cannot_be_taken_now_comes_again_with_the_same_id(configured):
    async with receiving() as receiver, Harness(configured(endpoint(receiver.url))) as harness:
        answers = iter([503, 429, 500, 405])
        receiver.answer = lambda _: web.Response(status=next(answers, 200), headers={"Retry-After": "7"})
        await harness.feed(callback("SessionSecondPartyRing", sequence_number=1))
    assert len(receiver.received) == 5
    assert len({it.headers["webhook-id"] for it in receiver.received}) == 1
    assert [it.headers["maskline-attempt"] for it in receiver.received] == ["1", "2", "3", "4", "5"]
    assert {call.error.after_ms for call in harness.calls if isinstance(call.error, Retry)} == {7_000}
    assert not harness.dead_letters


async def test_two_hundred_requests_are_under_way_at_once(configured):
    count = 200
    async with receiving() as receiver, Harness(configured(endpoint(receiver.url))) as harness:
        all_there = asyncio.Event()

        async def answer(_: Received) -> web.Response:
            if receiver.under_way == count:
                all_there.set()
            async with asyncio.timeout(60):
                await all_there.wait()
            return web.Response()

        receiver.answer = answer
        sessions = [callback("SessionTimeout", session_uuid=f"s{number}") for number in range(count)]
        await harness.feed(*sessions)
    assert receiver.under_way_max == count
    assert len(harness.calls) == count, "none was tried again"


async def test_the_receiver_of_the_page_handles_each_event_once(configured, capsys):
    page = (Path(__file__).parents[3] / "docs" / "modules" / "forward.md").read_text()
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert SECRET in code
    module: dict[str, Any] = {}
    exec(compile(code, "forward.md", "exec"), module)  # noqa: S102  the project's own text
    runner = web.AppRunner(module["app"])
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks/masking"
    for secret, reason in ((SECRET, None), (SECRET, None), (NEXT_SECRET, "rejected: shop answered 401")):
        async with Harness(configured(endpoint(url, secrets=[secret]))) as harness:
            await harness.feed(callback("SessionSecondPartyRing", sequence_number=1))
            assert [it.reason for it in harness.dead_letters] == ([] if reason is None else [reason])
    await runner.cleanup()
    assert capsys.readouterr().out.splitlines().count("SessionSecondPartyRing 1") == 1
