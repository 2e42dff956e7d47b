"""From raw callback to event: nothing that was sent is lost, whatever it is and however it came."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import urlencode

import pytest
from example_counts import examples
from hypothesis import settings

from maskline.schemas.callback import RawCallback
from maskline.schemas.decode import (
    SEQUENCE_NUMBER_MAX,
    SESSION_UUID_CHARS_MAX,
    decode_event,
    event_from_pairs,
    fingerprint_of,
)
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.events import ATTRIBUTES, EVENT_TYPES, SessionTimeout, UnknownEvent

FORM = "application/x-www-form-urlencoded"
many = settings(max_examples=examples(200), deadline=None)
IDENTITY = [("SessionUUID", "s-1"), ("EventName", "SessionTimeout")]


def form(pairs, query=b""):
    return RawCallback("POST", query, FORM, urlencode(pairs).encode(), 1, "MA")


def get(pairs):
    return RawCallback("GET", urlencode(pairs).encode(), "", b"", 1, "MA")


def as_json(members, query=b""):
    return RawCallback(
        "POST", query, "application/json; charset=utf-8", json.dumps(members).encode(), 1, "MA"
    )


def read(*pairs, name="SessionTimeout"):
    return decode_event(form([("SessionUUID", "s-1"), ("EventName", name), *pairs])).event


def test_every_attribute_in_its_type():
    event = read(
        ("EventTimestamp", "2024-02-01 06:28:15 +0000 UTC"),
        ("SequenceNumber", "7"),
        ("From", "+14155550123"),
        ("To", "+447700900123"),
        ("FirstParty", "14155550123"),
        ("SecondParty", "447700900123"),
        ("VirtualNumber", "14155550100"),
        ("PinAuthenticationStatus", "AuthorizedCaller"),
        ("PinRetryCounter", "2"),
        ("Amount", "0.00350"),
        ("BilledDuration", "60"),
        ("Duration", "42"),
        ("PlivoHangupCause", "Normal Hangup"),
        ("PlivoHangupCauseCode", "4000"),
        ("RecordingUUID", "r"),
        ("RecordingURL", "https://example.com/r.mp3"),
        ("RecordingResourceURL", "/v1/r"),
        ("RecordingDuration", "41"),
        ("RecordingStartTime", "2024-02-01T06:28:15Z"),
        ("RecordingEndTime", "2024-02-01 06:28:56.5"),
        ("RecordingFormat", ".mp3"),
        name="SessionRecordingCompleted",
    )
    start = datetime(2024, 2, 1, 6, 28, 15, tzinfo=UTC)
    assert event == EVENT_TYPES["SessionRecordingCompleted"](
        session_uuid="s-1",
        event_timestamp=start,
        sequence_number=7,
        from_number="+14155550123",
        to_number="+447700900123",
        first_party="14155550123",
        second_party="447700900123",
        virtual_number="14155550100",
        pin_authentication_status="AuthorizedCaller",
        pin_retry_counter=2,
        amount=Decimal("0.00350"),
        billed_duration=60,
        duration=42,
        plivo_hangup_cause="Normal Hangup",
        plivo_hangup_cause_code=4000,
        recording_uuid="r",
        recording_url="https://example.com/r.mp3",
        recording_resource_url="/v1/r",
        recording_duration=41,
        recording_start_time=start,
        recording_end_time=start.replace(second=56, microsecond=500000),
        recording_format=".mp3",
    )


def test_json_with_native_values():
    body = (
        b'{"SessionUUID": 12, "EventName": "SessionPartiesHangup", "SequenceNumber": 3,'
        b' "Amount": 0.12345678901234567890,'
        b' "Duration": 60.0, "From": null, "BilledDuration": "61", "Flag": true, "Nothing": null,'
        b' "Cost": 1.50,'
        b' "Nested": {"a": [1, null, 0.10]}, "PinRetryCounter": [1]}'
    )
    event = decode_event(RawCallback("POST", b"", "application/json", body, 1, "")).event
    assert (event.session_uuid, event.sequence_number, event.duration, event.billed_duration) == (
        "12",
        3,
        60,
        61,
    )
    assert event.from_number is None
    assert event.amount == Decimal("0.12345678901234567890")
    assert event.extra == {
        "Flag": "true",
        "Nothing": "null",
        "Cost": "1.50",
        "Nested": '{"a":[1,null,0.10]}',
        "PinRetryCounter": "[1]",
    }
    assert event.problems == ("PinRetryCounter",)


@pytest.mark.parametrize("null", ["", " ", "null", "NULL", "None", "none"])
@pytest.mark.parametrize("name", sorted(set(ATTRIBUTES.values()) - {"SessionUUID"}))
def test_null_becomes_none_without_a_problem(name, null):
    event = read((name, null), name="SessionRecordingFailed")
    assert all(getattr(event, attribute) is None for attribute in ATTRIBUTES if attribute != "session_uuid")
    assert (event.extra, event.problems) == ({}, ())


@pytest.mark.parametrize(
    ("name", "text"),
    [("EventTimestamp", "yesterday"), ("Amount", "NaN"), ("Duration", "1m"), ("PinRetryCounter", "many")]
    + [("SequenceNumber", text) for text in ("-1", "1.5", "x", str(SEQUENCE_NUMBER_MAX + 1), "9" * 100)],
)
def test_unreadable_value_is_kept_and_named(name, text):
    event = read((name, text))
    assert event == SessionTimeout(session_uuid="s-1", extra={name: text}, problems=(name,))


@pytest.mark.parametrize("number", [0, 1, SEQUENCE_NUMBER_MAX])
def test_sequence_number_range(number):
    assert read(("SequenceNumber", str(number))).sequence_number == number


def test_recording_attribute_of_a_status_event_is_extra():
    assert read(("RecordingURL", "u"), ("RecordingDuration", "")).extra == {
        "RecordingURL": "u",
        "RecordingDuration": "",
    }


@pytest.mark.parametrize(
    "name", ["SessionTeleported", "sessiontimeout", " SessionTimeout", "UnknownEvent", "Event", "é"]
)
def test_unknown_event(name):
    event = read(
        ("RecordingDuration", "5"), ("sessionuuid", "x"), ("event_name", "y"), ("extra", "z"), name=name
    )
    assert isinstance(event, UnknownEvent)
    assert (event.event_name, event.recording_duration) == (name, 5)
    assert event.extra == {"sessionuuid": "x", "event_name": "y", "extra": "z"}


@pytest.mark.parametrize(
    ("pairs", "attribute", "value", "extra", "problems"),
    [
        ([("From", "1"), ("From", "1")], "from_number", "1", {}, ()),
        ([("From", ""), ("From", "1"), ("From", "null")], "from_number", "1", {}, ()),
        ([("From", "1"), ("From", "2"), ("From", "1")], "from_number", None, {"From": ["1", "2"]}, ("From",)),
        (
            [("From", ""), ("From", "1"), ("From", "2")],
            "from_number",
            None,
            {"From": ["", "1", "2"]},
            ("From",),
        ),
        ([("From", ""), ("From", "null")], "from_number", None, {}, ()),
        ([("Duration", "x"), ("Duration", "x")], "duration", None, {"Duration": "x"}, ("Duration",)),
        ([("Amount", "1"), ("Amount", "1.0")], "amount", None, {"Amount": ["1", "1.0"]}, ("Amount",)),
        ([("X", "1"), ("X", "1")], "duration", None, {"X": "1"}, ()),
        ([("X", "1"), ("X", ""), ("X", "1")], "duration", None, {"X": ["1", ""]}, ()),
        ([("SessionUUID", "s-1")], "session_uuid", "s-1", {}, ()),
        ([("SessionUUID", "s-2")], "session_uuid", "s-1", {"SessionUUID": ["s-1", "s-2"]}, ("SessionUUID",)),
        (
            [("EventName", "E")],
            "event_name",
            "SessionTimeout",
            {"EventName": ["SessionTimeout", "E"]},
            ("EventName",),
        ),
    ],
)
def test_repeated_parameters_become_attribute_extra_or_problem(pairs, attribute, value, extra, problems):
    event = read(*pairs)
    assert (getattr(event, attribute), event.extra, event.problems) == (value, extra, problems)


def test_body_counts_before_query():
    query = urlencode([("SessionUUID", "of-query"), ("EventName", "Q"), ("Where", "query")]).encode()
    for callback in (form(IDENTITY, query), as_json(dict(IDENTITY), query)):
        event = decode_event(callback).event
        assert isinstance(event, SessionTimeout)
        assert event.session_uuid == "s-1"
        assert event.extra["Where"] == "query"
        assert event.problems == ("SessionUUID", "EventName")
    nulls = as_json({"SessionUUID": None, "EventName": None}, query)
    event = decode_event(nulls).event
    assert (event.session_uuid, event.event_name, event.problems) == ("of-query", "Q", ())


@pytest.mark.parametrize(
    ("callback", "code"),
    [
        (form([("EventName", "X")]), "no_session_uuid"),
        (form([("EventName", "X"), ("SessionUUID", " None ")]), "no_session_uuid"),
        (form([("EventName", "X"), ("SessionUUID", ""), ("SessionUUID", "null")]), "no_session_uuid"),
        (form([("SessionUUID", "s")]), "no_event_name"),
        (as_json({"SessionUUID": "s", "EventName": None}), "no_event_name"),
        (form([]), "no_session_uuid"),
        (
            form([("EventName", "X"), ("SessionUUID", "s" * (SESSION_UUID_CHARS_MAX + 1))]),
            "session_uuid_too_long",
        ),
        (RawCallback("POST", b"", FORM, b"a=%ff", 1, ""), "not_decodable"),
        (RawCallback("POST", b"%ff", FORM, b"", 1, ""), "not_decodable"),
        (RawCallback("POST", b"", "application/json", b"[]", 1, ""), "not_decodable"),
        (RawCallback("POST", b"", "application/json", b'{"a":', 1, ""), "not_decodable"),
        (RawCallback("POST", b"", "application/json", b'{"a":' + b"[" * 9000, 1, ""), "not_decodable"),
        (
            RawCallback("POST", b"", "application/json", b'{"a":1e99999999999999999999}', 1, ""),
            "not_decodable",
        ),
        (RawCallback("POST", b"", "application/json", b'{"a":"\\ud800 x"}', 1, ""), "not_decodable"),
        (RawCallback("POST", b"", "multipart/form-data", b"x", 1, ""), "not_decodable"),
    ],
)
def test_refused_callbacks_have_a_code(callback, code):
    with pytest.raises(UndecodableEntryError) as caught:
        decode_event(callback)
    assert caught.value.code == code


def test_longest_session_uuid():
    assert decode_event(
        form([("EventName", "X"), ("SessionUUID", "s" * SESSION_UUID_CHARS_MAX)])
    ).event.session_uuid


def test_fingerprint_stands_for_all_releases():
    # Kept in Redis with the ordering state: a change makes duplicates of the last release look new.
    assert fingerprint_of([("b", "2"), ("a", "é")]).hex() == "6286ed2bb5ef0d16"


def test_event_from_pairs_leaves_its_argument_alone():
    pairs = [*IDENTITY, ("X", "1"), ("X", "2")]
    before = pairs.copy()
    event_from_pairs(pairs)
    assert pairs == before
