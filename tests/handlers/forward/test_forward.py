"""`maskline.handlers.forward` as a whole: in the harness, against a receiver on a real socket."""

from forward_kit import endpoint, receiving

from maskline.schemas.privacy import number_token
from maskline.testing import SESSION_UUID, Harness, callback

CALLER = "+14155550123"


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
