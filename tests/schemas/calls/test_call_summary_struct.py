from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.events import CallSummary, Event, Leg, RecordingSummary
from maskline.schemas.call_summary import decode_summary, encode_summary
from maskline.schemas.privacy import number_token

FIRST, SECOND = "+14155550123", "+447700900456"


def summary(**fields) -> CallSummary:
    given = {"session_uuid": "s-1", "call": 2, "revision": 3, "ended_by": "silence", "complete": False}
    return CallSummary(**(given | fields))


@settings(max_examples=30)
@given(st.from_type(CallSummary))
def test_json_of_a_summary_reads_back_equal_and_is_the_same_bytes_each_time(given_summary):
    try:
        written = encode_summary(given_summary)
    except UnicodeEncodeError:  # a lone surrogate
        return
    again = decode_summary(written)
    assert encode_summary(again) == written


def test_amount_keeps_its_digits_through_json():
    written = encode_summary(summary(amount=Decimal("0.01700")))
    assert str(decode_summary(written).amount) == "0.01700"
    assert b'"EventName":"CallSummary"' in written


def test_summary_is_no_event_and_names_its_call():
    assert not issubclass(CallSummary, Event)
    assert (summary().event_name, summary().call_key) == ("CallSummary", "s-1:call:2")


def test_repr_shows_tokens_in_place_of_numbers():
    shown = repr(
        summary(
            first_party_number=FIRST,
            second_party_number=SECOND,
            hangup_cause=f"busy {FIRST}",
            first_party=Leg(outcome="answered", answered_at=datetime(2026, 1, 5, tzinfo=UTC)),
            recordings=(RecordingSummary(recording_uuid="r", status="completed"),),
        )
    )
    assert number_token(FIRST) in shown
    assert number_token(SECOND) in shown
    assert "5550123" not in shown
    assert "900456" not in shown
    assert "outcome='answered'" in shown


def test_another_event_name_is_no_summary():
    written = encode_summary(summary()).replace(b'"CallSummary"', b'"SessionTimeout"', 1)
    with pytest.raises(msgspec.ValidationError):
        decode_summary(written)
