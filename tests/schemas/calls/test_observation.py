from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from maskline.schemas.calls.observation import decode_observation, encode_observation, observe
from maskline.schemas.decode import event_from_pairs
from maskline.schemas.privacy import number_token

FIRST, SECOND = "+14155550123", "+447700900456"


def context(**given) -> SimpleNamespace:
    base = {
        "sequence_number": 4,
        "order": "after_gap",
        "missing": (2, 3),
        "skipped": (1,),
        "run": 1,
        "replayed": False,
        "idempotency_key": "s:4:ab",
        "entry_id": "17-0",
        "received_at": datetime(2026, 1, 5, 9, 0, 0, 250_000, tzinfo=UTC),
    }
    return SimpleNamespace(**(base | given))


def event(name: str, **parameters: str):
    return event_from_pairs([("EventName", name), ("SessionUUID", "s"), *parameters.items()])


def test_observation_has_what_the_event_and_its_context_say_and_reads_back_equal():
    seen = observe(
        event(
            "SessionPartiesHangup",
            From=FIRST,
            SecondParty=SECOND,
            Amount="0.01700",
            Duration="61",
            BilledDuration="x",
            PlivoHangupCauseCode="4000",
            EventTimestamp="2026-01-05 09:00:00.125",
        ),
        context(),
    )
    assert (seen.first_party, seen.second_party) == (FIRST, SECOND)
    assert (seen.amount, seen.duration, seen.billed_duration, seen.code) == ("0.01700", 61, None, 4000)
    assert (seen.number, seen.run, seen.order, seen.missing, seen.skipped) == (
        4,
        1,
        "after_gap",
        (2, 3),
        (1,),
    )
    assert (seen.received_at_ms - seen.event_timestamp_ms, seen.problems) == (125, ("BilledDuration",))
    assert decode_observation(encode_observation(seen)) == seen


def test_numbers_are_what_the_keeper_makes_of_them_and_repr_shows_none():
    seen = observe(event("SessionTimeout", FirstParty=FIRST), context(), number_as=number_token)
    assert seen.first_party == number_token(FIRST)
    assert seen.second_party is None
    assert "5550123" not in repr(observe(event("SessionTimeout", FirstParty=FIRST), context()))


def test_recording_events_count_in_their_own_lane_unless_numbering_is_shared():
    recorded = event("SessionRecordingCompleted", RecordingUUID="r-1", RecordingDuration="7")
    seen = observe(recorded, context())
    assert (seen.recording, seen.own_lane, seen.recording_uuid, seen.recording_duration) == (
        True,
        True,
        "r-1",
        7,
    )
    assert not observe(recorded, context(), recording_shared=True).own_lane


def test_odd_texts_can_be_stored():
    seen = observe(event("New\udc80", VirtualNumber="9" * 5_000, PinRetryCounter="9" * 30), context())
    assert decode_observation(encode_observation(seen)).event_name == "New?"
    assert len(seen.virtual_number or "") < 1_000
    assert seen.pin_counter is None


@pytest.mark.parametrize("value", [b"", b"\xc0", b"\x91\x02", encode_observation([2, "k", "e", "n"])])
def test_anything_else_is_refused(value):
    with pytest.raises(ValueError, match="not an observation"):
        decode_observation(value)
