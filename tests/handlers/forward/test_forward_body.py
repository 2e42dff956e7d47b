"""Phone numbers stand in a webhook only where the endpoint's `numbers` is `plain`."""

import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.console.schema.json_schemas import forward_schema
from maskline.events import CallSummary, SessionRecordingCompleted, SessionSecondPartyHangup, UnknownEvent
from maskline.handlers.webhooks.message import body_of, message_of
from maskline.schemas.call_summary import SUMMARY_NUMBER_FIELDS, Leg, RecordingSummary
from maskline.schemas.privacy import number_token

CALLER, CALLEE = "+14155550123", "+447700900123"
VALIDATOR = jsonschema.Draft202012Validator(forward_schema())


class Facts(msgspec.Struct):
    """What of a context stands in a message."""

    session_uuid: str = "s"
    idempotency_key: str = "s:1:0a"
    order: str = "in_order"
    sequence_number: int | None = 1
    run: int = 0
    missing: tuple[int, ...] = ()
    skipped: tuple[int, ...] = (3,)
    replayed: bool = True
    received_at: datetime = datetime(2026, 3, 1, tzinfo=UTC)


def body(event: Any, numbers: str) -> str:
    made = body_of(message_of(event, Facts(), numbers))  # type: ignore[arg-type]
    VALIDATOR.validate(json.loads(made))
    return made


RECORDING = SessionRecordingCompleted(
    session_uuid="s",
    from_number=CALLER,
    second_party=CALLEE,
    virtual_number="+14155550199",
    plivo_hangup_cause="user 4155550123 busy",
    recording_uuid="14155550123",
    recording_url="https://media.example.com/of-4155550123-1772366400123.mp3",
    extra={"Note": ["call 0044 7700 900123 back", "x"], "To": "anonymous", "415-555-0123": "1", "Other": "4155550177"},
)  # fmt: skip


def test_with_tokens_no_number_is_left():
    made = body(RECORDING, "tokens")
    data = json.loads(made)["data"]
    assert data["from_number"] == number_token(CALLER)
    assert data["virtual_number"] == "+14155550199"
    assert data["recording_url"].endswith("/of-" + number_token(CALLER) + "-1772366400123.mp3")
    assert data["recording_uuid"] == "14155550123", "receivers look recordings up by it"
    assert "7700" not in made
    assert "0177" not in made
    assert made.count("555") == 2


def test_with_plain_everything_is_as_plivo_sent_it():
    data = json.loads(body(RECORDING, "plain"))["data"]
    assert data["from_number"] == CALLER
    assert data["extra"] == RECORDING.extra
    assert data["recording_url"] == RECORDING.recording_url


def test_an_unknown_event_has_its_own_name_and_the_time_of_its_receipt():
    made = json.loads(body(UnknownEvent(session_uuid="s", event_name="SessionMoved"), "tokens"))
    assert made["type"] == "SessionMoved"
    assert made["timestamp"] == "2026-03-01T00:00:00Z"
    assert made["data"] == {"session_uuid": "s"}
    assert made["delivery"]["skipped"] == [3]
    assert made["delivery"]["replayed"] is True


@pytest.mark.parametrize("numbers", ["tokens", "plain"])
def test_a_call_summary_is_a_message_of_its_own(numbers):
    summary = CallSummary(
        session_uuid="s",
        call=1,
        revision=2,
        ended_by="parties_hangup",
        complete=True,
        ended_at=datetime(2026, 3, 2, tzinfo=UTC),
        first_party_number=CALLER,
        amount=Decimal("0.0170"),
    )
    made = json.loads(body(summary, numbers))
    assert made["type"] == "CallSummary"
    assert made["timestamp"] == "2026-03-02T00:00:00Z"
    assert made["data"]["first_party_number"] == (CALLER if numbers == "plain" else number_token(CALLER))
    assert made["data"]["second_party_number"] is None
    assert made["data"]["amount"] == "0.0170"


def test_with_tokens_no_number_is_left_in_any_text_of_a_summary():
    said = f"of {CALLER} for 07700 900123"
    texts = {
        field.name: said
        for field in msgspec.structs.fields(CallSummary)
        if field.name not in (*SUMMARY_NUMBER_FIELDS, "session_uuid", "virtual_number")
        and str in get_args(field.type)
    }
    assert texts
    leg = Leg(hangup_cause=said)
    summary = CallSummary(
        session_uuid="s",
        call=1,
        revision=1,
        ended_by="silence",
        complete=True,
        first_party_number=CALLER,
        second_party_number=CALLEE,
        virtual_number="+14155550199",
        first_party=leg,
        second_party=leg,
        recordings=(
            RecordingSummary(recording_uuid="r", url=f"https://x.example/{CALLEE}.mp3", status="completed"),
        ),
        **texts,
    )
    made = body(summary, "tokens")
    assert not re.search("5550123|900123", made)
    assert made.count(number_token(CALLEE)) == len(texts) + 4
    assert "+14155550199" in made
    assert body(summary, "plain").count("900123") == len(texts) + 4


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=30)
@given(TEXTS, st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS)), st.sampled_from(["tokens", "plain"]))
def test_any_event_is_a_message_of_the_schema(text, extra, numbers):
    event = SessionSecondPartyHangup(
        session_uuid="s", plivo_hangup_cause=text, from_number=text, extra=extra, duration=3
    )
    body(event, numbers)
