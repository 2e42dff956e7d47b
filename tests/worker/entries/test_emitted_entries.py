"""Call summaries in the stream: decoded by the C and the Python way alike, and told from callbacks of Plivo's."""

import json

import pytest

from maskline.events import CallSummary, UnknownEvent
from maskline.schemas.callback import (
    CALLBACK_FIELD,
    RawCallback,
    as_replayed,
    decode_callback,
    encode_callback,
)
from maskline.schemas.emission import OtherGroupsSummary, emitted_callback
from maskline.schemas.errors import UndecodableEntryError
from maskline.worker.entries.decode import EntryDecoder

SUMMARY = CallSummary(
    session_uuid="s-1",
    call=1,
    revision=1,
    ended_by="silence",
    complete=True,
    first_party_number="+14155550123",
    hangup_cause="é" * 300,
)


@pytest.fixture(params=["decode", "decode_in_python"])
def decode(request):
    decoder = EntryDecoder(frozenset(), "calls")

    def decoded(callback: RawCallback):
        entries = [(b"1767225600000-0", [CALLBACK_FIELD, encode_callback(callback)])] * 2
        ids, arrivals, unknown, refused = getattr(decoder, request.param)(entries, False, {})
        assert len(ids) == 2
        return arrivals, unknown, refused

    return decoded


def test_summary_of_the_own_group_is_an_unsequenced_arrival(decode):
    arrivals, unknown, refused = decode(emitted_callback(SUMMARY, "calls", 7))
    assert (unknown, refused) == (["s-1"], [])
    for arrival in arrivals:
        assert arrival.payload.event == SUMMARY
        assert type(arrival.payload.event) is CallSummary
        assert (arrival.number, arrival.timestamp_us, arrival.recording) == (None, None, False)
        assert (arrival.ends_session, arrival.may_open, arrival.arrived_ms) == (False, False, 1767225600000)
        assert arrival.payload.received_at_ms == 7


def test_fingerprint_is_that_of_the_summary_whenever_it_was_emitted(decode):
    one, other = (decode(emitted_callback(SUMMARY, "calls", ms))[0][0] for ms in (7, 8))
    assert one.fingerprint == other.fingerprint
    changed = CallSummary(session_uuid="s-1", call=1, revision=2, ended_by="silence", complete=True)
    assert decode(emitted_callback(changed, "calls", 7))[0][0].fingerprint != one.fingerprint
    # Another group's is no duplicate that takes the place of one's own.
    assert decode(emitted_callback(SUMMARY, "others", 7))[0][0].fingerprint != one.fingerprint


def test_summary_of_another_group_has_a_type_that_no_handler_gets(decode):
    arrivals, unknown, _ = decode(emitted_callback(SUMMARY, "others", 7))
    assert type(arrivals[0].payload.event) is OtherGroupsSummary
    assert unknown == ["s-1"]


def test_a_callback_that_calls_itself_call_summary_is_an_unknown_event(decode):
    body = json.dumps({"EventName": "CallSummary", "SessionUUID": "s-1", "call": 1}).encode()
    (arrival, _), _, _ = decode(RawCallback("POST", b"", "application/json", body, 7, "calls"))
    assert type(arrival.payload.event) is UnknownEvent
    assert arrival.payload.event.event_name == "CallSummary"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"EventName":"SessionTimeout","SessionUUID":"s"}', b"\xff"])
def test_what_holds_no_summary_is_refused_with_its_reason(decode, body):
    arrivals, _, refused = decode(RawCallback("EMIT", b"", "application/json", body, 7, "calls", version=2))
    assert not arrivals
    assert {error.code for _, _, error in refused} == {"not_decodable"}


def test_a_session_uuid_that_can_be_none_is_refused(decode):
    for uuid in ("", "x" * 200):
        summary = CallSummary(session_uuid=uuid, call=1, revision=1, ended_by="silence", complete=True)
        assert decode(emitted_callback(summary, "calls", 7))[2]


def test_the_version_says_what_it_is_and_only_an_emission_may_have_it():
    encoded = encode_callback(emitted_callback(SUMMARY, "calls", 7))
    assert decode_callback(as_replayed(encoded)).replayed
    with pytest.raises(UndecodableEntryError, match="newer maskline"):
        decode_callback(encode_callback(RawCallback("POST", b"", "", b"", 7, "", version=2)))
