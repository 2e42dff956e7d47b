"""Tokens in place of phone numbers: none is left, and a replay decides the same."""

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.handlers.segments.tokens import spelled_token, with_tokens
from maskline.schemas.callback import RawCallback, encode_callback
from maskline.schemas.parameters import FORM_TYPE, JSON_TYPE
from maskline.schemas.privacy import number_token
from maskline.worker.entries.decode import entry_decoder

FIRST, SECOND = "+14155550123", "+447700900123"
PAIRS = {
    "EventName": "SessionFirstPartyRinging",
    "SessionUUID": "5e551011-0000-4000-8000-000000000001",
    "SequenceNumber": "3",
    "From": FIRST,
    "To": SECOND,
    "VirtualNumber": "+14155550199",
    "Note": "call 1 (415) 555-0123 or 0044 7700 900 123",
    "Amount": "0.0170",
}


def form(pairs):
    return RawCallback("POST", b"", FORM_TYPE, urlencode(pairs).encode(), 1, "MA")


def json(pairs):
    return RawCallback("POST", b"", JSON_TYPE, msgspec.json.encode(pairs), 1, "MA")


def query(pairs):
    return RawCallback("GET", urlencode(pairs).encode(), "", b"", 1, "MA")


def arrival(callback):
    return entry_decoder().arrival_of("1-0", (b"c", encode_callback(callback)), False)


@pytest.mark.parametrize("write", [form, json, query])
def test_numbers_are_gone_everywhere_and_the_event_is_the_same_otherwise(write):
    kept = with_tokens(write(PAIRS))
    everything = (kept.query + kept.body).decode()
    for digits in ("4155550123", "7700900123", "555-0123", "900%20123", "900+123"):
        assert digits not in everything
    assert quote(PAIRS["VirtualNumber"]) in everything or PAIRS["VirtualNumber"] in everything
    before, after = arrival(write(PAIRS)), arrival(kept)
    assert (after.number, after.timestamp_us) == (before.number, before.timestamp_us)
    event = after.payload.event
    assert (event.from_number, event.to_number) == (number_token(FIRST), number_token(SECOND))
    assert event.amount == before.payload.event.amount


def test_fields_without_a_number_keep_their_bytes():
    body = b"EventName=SessionTimeout&a=%7e&&b=1+2&From=%2B14155550123&SessionUUID=s&c"
    kept = with_tokens(RawCallback("POST", b"x=%41", FORM_TYPE, body, 1, ""))
    assert kept.query == b"x=%41"
    assert kept.body == body.replace(b"%2B14155550123", number_token(FIRST).encode())


def test_a_json_number_is_replaced_and_a_decimal_stays_a_number():
    body = (
        b'{"EventName":"SessionTimeout","SessionUUID":"s","From":14155550123,"Deep":{"a":[14155550123,0.5]}}'
    )
    kept = msgspec.json.decode(with_tokens(RawCallback("POST", b"", JSON_TYPE, body, 1, "")).body)
    assert kept["From"] == spelled_token("14155550123")
    assert kept["Deep"]["a"] == [number_token("14155550123"), 0.5]


@pytest.mark.parametrize("value", ["", "null", "None"])
def test_no_number_stays_none(value):
    assert with_tokens(form(PAIRS | {"From": value})) == with_tokens(form(PAIRS | {"From": value}))
    assert arrival(with_tokens(form(PAIRS | {"From": value}))).payload.event.from_number is None


def test_what_cannot_be_decoded_loses_whatever_looks_like_a_number():
    kept = with_tokens(RawCallback("POST", b"", JSON_TYPE, b'{"From": "+14155550123" \xff', 1, ""))
    assert b"4155550123" not in kept.body
    assert kept.body.endswith(b"\xff")


ESCAPED = "".join(f"%{ord(sign):02X}" for sign in FIRST)


@pytest.mark.parametrize(
    "body",
    [
        f"EventName=A&from={quote(FIRST)}",
        f"EventName=A;From={quote(FIRST)}",
        f"EventName=A&Caller={ESCAPED}",
        f"EventName=A&payload={quote(msgspec.json.encode({'From': FIRST}).decode())}",
        f"EventName=A&X=%ff&From={ESCAPED}",
        "EventName=A&X=%ff&From=0415%2F5550123",
        '{"EventName":"A","From":["+14155550123"]}',
        '{"EventName":"A","From":{"n":"+1 415/555/0123"}}',
        '{"EventName":"A","From":14155550123.0}',
        '{"EventName":"A","data":{"From":"415/555/0123","To":[14155550123],"+14155550123":0}}',
        '{"EventName":"A","From":"+1 415/555-0123","To":"+1\\u0034155550123"',
    ],
)
def test_odd_callbacks_leave_no_digits_of_a_number(body):
    content_type = JSON_TYPE if body.startswith("{") else FORM_TYPE
    kept = with_tokens(RawCallback("POST", b"", f"{content_type}; n={FIRST}", body.encode(), 1, ""))
    digits = re.sub(r"[^0-9]", "", unquote(unquote(kept.body.decode())) + kept.content_type)
    assert "5550123" not in digits


def test_numbers_in_utf_16_are_found():
    kept = with_tokens(RawCallback("POST", b"", FORM_TYPE, f"From={FIRST}".encode("utf-16"), 1, ""))
    assert b"4155550123" not in kept.body.replace(b"\0", b"")


spellings = st.sampled_from(
    [FIRST, "14155550123", "+1 415 555 0123", "0014155550123", "+14155550123 ", "anonymous", "12345"]
)
callbacks = st.fixed_dictionaries(
    {"EventName": st.just("SessionTimeout"), "SessionUUID": st.just("s")},
    optional={"From": spellings, "To": spellings, "SequenceNumber": st.sampled_from("12"), "X": spellings},
)


@settings(max_examples=40)
@given(callbacks, callbacks, st.sampled_from([form, json, query]))
def test_two_callbacks_are_equal_with_tokens_just_if_they_were(one, other, write):
    """By the fingerprint: that is what tells duplicates. X is no number's attribute, and need not be told apart."""
    if one.get("X") != other.get("X"):
        other = {name: value for name, value in other.items() if name != "X"} | (
            {"X": one["X"]} if "X" in one else {}
        )
    before = arrival(write(one)).fingerprint == arrival(write(other)).fingerprint
    after = arrival(with_tokens(write(one))).fingerprint == arrival(with_tokens(write(other))).fingerprint
    assert before == after
    if write is form:
        assert [name for name, _ in parse_qsl(with_tokens(form(one)).body.decode())] == [*one]
