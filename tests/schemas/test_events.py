"""The events as types: complete, tagged, frozen, and silent about phone numbers however they are shown."""

import io
import traceback
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from rich.console import Console

from maskline import events
from maskline.schemas.events import (
    ATTRIBUTES,
    EVENT_TYPES,
    RECORDING_ATTRIBUTES,
    STATUS_ATTRIBUTES,
    AnyEvent,
    RecordingEvent,
    SessionSecondPartyHangup,
    StatusEvent,
    UnknownEvent,
)
from maskline.schemas.privacy import number_token

DOCUMENTED = [
    "SessionFirstPartyInitiated",
    "SessionFirstPartyRinging",
    "SessionFirstPartyAnswer",
    "SessionFirstPartyHangup",
    "SessionFirstPartyComplete",
    "SessionFirstPartyFailed",
    "SessionSecondPartyInitiated",
    "SessionSecondPartyRing",
    "SessionSecondPartyAnswer",
    "SessionSecondPartyHangup",
    "SessionSecondPartyComplete",
    "SessionSecondPartyFailed",
    "SessionVirtualNumberAnswer",
    "SessionPartiesHangup",
    "SessionVirtualNumberReplaced",
    "SessionPinAuthenticationStatus",
    "SessionParamUpdate",
    "SessionTimeout",
    "SessionRecordingInitiated",
    "SessionRecordingCompleted",
    "SessionRecordingFailed",
]

NUMBERS = {
    "from_number": "+14155550123",
    "to_number": "+447700900123",
    "first_party": "+1 415-555-0124",
    "second_party": "447700900124",
}


def test_all_documented_events_and_no_other():
    assert list(EVENT_TYPES) == DOCUMENTED
    assert {name for name in DOCUMENTED if name.startswith("SessionRecording")} == {
        name for name, event_type in EVENT_TYPES.items() if issubclass(event_type, RecordingEvent)
    }


@pytest.mark.parametrize("name", DOCUMENTED)
def test_each_event_bears_its_name_and_attributes(name):
    event_type = EVENT_TYPES[name]
    event = event_type(session_uuid="s")
    assert event.event_name == name == event_type.__name__
    assert getattr(events, name) is event_type
    recording = issubclass(event_type, RecordingEvent)
    assert recording != issubclass(event_type, StatusEvent)
    expected = set(ATTRIBUTES) if recording else set(STATUS_ATTRIBUTES)
    assert set(event_type.__struct_fields__) == expected | {"extra", "problems"}
    assert all(getattr(event, attribute) is None for attribute in expected - {"session_uuid"})
    assert (event.extra, event.problems) == ({}, ())


def test_unknown_event_has_everything_and_is_of_neither_kind():
    event = UnknownEvent(
        session_uuid="s", event_name="SessionTeleported", recording_url="u", amount=Decimal(1)
    )
    assert event.event_name == "SessionTeleported"
    assert not isinstance(event, (StatusEvent, RecordingEvent))
    assert set(RECORDING_ATTRIBUTES) < set(UnknownEvent.__struct_fields__)


@pytest.mark.parametrize("name", [*DOCUMENTED, "SessionTeleported"])
def test_one_tagged_union_round_trips(name):
    values = {
        "session_uuid": "s",
        "amount": Decimal("0.00350"),
        "event_timestamp": datetime(2024, 2, 1, tzinfo=UTC),
    }
    known = EVENT_TYPES.get(name)
    event = known(**values) if known else UnknownEvent(event_name=name, **values)
    for codec in (msgspec.json, msgspec.msgpack):
        again = codec.decode(codec.encode(event), type=AnyEvent)
        assert again == event
        assert type(again) is type(event)
    assert msgspec.json.decode(msgspec.json.encode(event))["SessionUUID"] == "s"


def test_frozen_and_extra_not_shared():
    one, two = SessionSecondPartyHangup(session_uuid="a"), SessionSecondPartyHangup(session_uuid="b")
    assert one.extra is not two.extra
    with pytest.raises(AttributeError):
        one.session_uuid = "c"


def shown_in_every_way(event):
    yield repr(event)
    yield str(event)
    yield f"{event} {event!r}"
    yield "%s" % event  # noqa: UP031 - one of the ways users do it
    yield repr([event])
    screen = io.StringIO()
    Console(file=screen, width=10_000).print(event)
    yield screen.getvalue()
    with pytest.raises(RuntimeError) as caught:
        fail_over(event)
    yield "".join(traceback.format_exception(caught.value))
    yield "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())


def fail_over(event):
    raise RuntimeError(event)


@pytest.mark.parametrize(
    "event_type", [SessionSecondPartyHangup, events.SessionRecordingCompleted, UnknownEvent]
)
def test_repr_of_an_event_shows_no_phone_number(event_type):
    extra = {
        "From": ["+14155550125", "+14155550126"],
        "To": "weird 12 user@sip",
        "Caller": "+1 (415) 555-0127",
        "+14155550128": "x",
        "CallIds": ["a", "+14155550129"],
    }
    named = {"event_name": "Odd14155550130"} if event_type is UnknownEvent else {}
    event = event_type(
        session_uuid="s1", extra=extra, plivo_hangup_cause="no answer from 447700900125", **NUMBERS, **named
    )
    texts = list(shown_in_every_way(event))
    assert len(texts) == 8
    for text in texts:
        digits = "".join(char for char in text if char.isdigit())
        for number in ("555012", "55501", "7700900", "7009001", "weird"):
            assert number not in text.replace(" ", "").replace("-", "")
        assert "4155550" not in digits
        assert number_token("14155550123") in text
        assert number_token("4155550127") not in text
        assert "s1" in text
    assert event.from_number == "+14155550123"


def test_repr_shows_what_is_set_and_the_mask():
    event = SessionSecondPartyHangup(
        session_uuid="s", virtual_number="+14155550100", duration=60, problems=("Amount",)
    )
    assert repr(event) == (
        "SessionSecondPartyHangup(session_uuid='s', virtual_number='+14155550100', duration=60, "
        "problems=('Amount',))"
    )


def test_every_name_in_all_exists():
    assert all(hasattr(events, name) for name in events.__all__)
