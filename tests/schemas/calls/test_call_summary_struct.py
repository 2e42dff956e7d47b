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


MOMENTS = st.none() | st.datetimes(timezones=st.just(UTC))
SECONDS = st.none() | st.integers(0, 10**6)
TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LEGS = st.builds(
    Leg,
    initiated_at=MOMENTS,
    answered_at=MOMENTS,
    ring_s=SECONDS,
    hangup_cause=TEXTS,
    hangup_cause_code=SECONDS,
)
SUMMARIES = st.builds(
    summary,
    missing=st.lists(st.integers(0, 2**53 - 1), max_size=3).map(tuple),
    started_at=MOMENTS,
    first_party_number=TEXTS,
    first_party=LEGS,
    second_party=LEGS,
    amount=st.none() | st.decimals(allow_nan=False, allow_infinity=False),
    duration_s=SECONDS,
    recordings=st.lists(st.builds(RecordingSummary, url=TEXTS, status=st.just("completed")), max_size=2).map(
        tuple
    ),
)


@settings(max_examples=30)
@given(SUMMARIES)
def test_json_of_a_summary_reads_back_equal_and_is_the_same_bytes_each_time(given_summary):
    written = encode_summary(given_summary)
    again = decode_summary(written)
    assert again == given_summary
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
