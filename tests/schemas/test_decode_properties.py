"""Any callback that can be built comes through, nothing lost; any bytes at all do no harm."""

import json
from collections import defaultdict
from urllib.parse import quote_plus, urlencode

from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.schemas.callback import RawCallback
from maskline.schemas.decode import (
    decode_event,
    fingerprint_of,
)
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.events import ATTRIBUTES, EVENT_TYPES, STATUS_ATTRIBUTES, RecordingEvent, UnknownEvent
from maskline.schemas.values import is_null, read_decimal, read_int, read_time

FORM = "application/x-www-form-urlencoded"
many = settings(max_examples=examples(200), deadline=None)


def form(pairs, query=b""):
    return RawCallback("POST", query, FORM, urlencode(pairs).encode(), 1, "MA")


def get(pairs):
    return RawCallback("GET", urlencode(pairs).encode(), "", b"", 1, "MA")


def as_json(members, query=b""):
    return RawCallback(
        "POST", query, "application/json; charset=utf-8", json.dumps(members).encode(), 1, "MA"
    )


NAMES = st.one_of(
    st.sampled_from(sorted(ATTRIBUTES.values())), st.sampled_from(["X", "extra"]), st.text(max_size=8)
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "null", "None", " nuLL ", "0", "7", " 60 ", "60.0", "0.0035", "NaN", "1e3", "\x00", "a&b=c+%41"]
    ),
    st.sampled_from(
        ["2024-02-01 06:28:15 +0000 UTC", "2024-02-01T06:28:15.5+05:30", "not a time", "+14155550123"]
    ),
)
PAIRS = st.lists(st.tuples(NAMES, TEXTS), max_size=25)
EVENT_NAMES = st.one_of(
    st.sampled_from([*EVENT_TYPES]), st.text(min_size=1).filter(lambda text: not is_null(text))
)


def readers_by_name():
    numbers = dict.fromkeys(
        ("PinRetryCounter", "BilledDuration", "Duration", "PlivoHangupCauseCode"), read_int
    )
    times = dict.fromkeys(("EventTimestamp", "RecordingStartTime", "RecordingEndTime"), read_time)
    return {
        **numbers,
        **times,
        "SequenceNumber": read_int,
        "RecordingDuration": read_int,
        "Amount": read_decimal,
    }


READERS = readers_by_name()
OUR_NAME = {plivo_name: attribute for attribute, plivo_name in ATTRIBUTES.items()} | {
    "EventName": "event_name"
}


def found_again(event, name, text):
    """Whether a parameter's text is in `extra`, or an attribute holds its value, or it was a null."""
    kept = event.extra.get(name)
    if kept is not None and text in ([kept] if isinstance(kept, str) else kept):
        return True
    attribute = OUR_NAME.get(name)
    if attribute is None or not hasattr(event, attribute):
        return False
    return is_null(text) or READERS.get(name, str)(text) == getattr(event, attribute)


def assert_nothing_lost(event, pairs):
    distinct = defaultdict(set)
    for name, text in pairs:
        distinct[name].add(text)
        assert found_again(event, name, text), (name, text)
    assert set(event.extra) <= set(distinct)
    assert set(event.problems) <= set(event.extra)
    attributes = ATTRIBUTES if isinstance(event, (RecordingEvent, UnknownEvent)) else STATUS_ATTRIBUTES
    assert set(event.problems) == {
        name for name in event.extra if name in {*attributes.values(), "EventName"}
    }
    for name in set(event.problems) - {"SessionUUID", "EventName"}:
        assert getattr(event, OUR_NAME[name]) is None


@many
@given(EVENT_NAMES, PAIRS, st.randoms(use_true_random=False))
def test_nothing_is_lost_and_order_and_transport_do_not_matter(event_name, pairs, random):
    pairs = [("SessionUUID", "s-1"), ("EventName", event_name), *pairs]
    by_form = decode_event(form(pairs))
    assert_nothing_lost(by_form.event, pairs)
    assert decode_event(get(pairs)) == by_form
    half = len(pairs) // 2
    assert decode_event(form(pairs[:half], urlencode(pairs[half:]).encode())) == by_form

    unique = dict(pairs)
    if not is_null(unique["SessionUUID"]) and not is_null(unique["EventName"]):
        by_json = decode_event(as_json(unique))
        assert by_json == decode_event(form(list(unique.items())))
        assert_nothing_lost(by_json.event, unique.items())

    shuffled = pairs.copy()
    random.shuffle(shuffled)
    assert decode_event(form(shuffled)).fingerprint == by_form.fingerprint


@many
@given(EVENT_NAMES, PAIRS, PAIRS, st.frozensets(st.sampled_from(["Attempt", "via", "Amount"]), min_size=1))
def test_callbacks_that_differ_in_what_is_ignored_are_one(event_name, pairs, more, ignored):
    """Changed, left away or added, in the body, the query, or a member of JSON."""
    counted = [("SessionUUID", "s-1"), ("EventName", event_name)]
    counted += [pair for pair in pairs if pair[0] not in ignored]
    added = [(name, text) for text, (_, name) in zip("abc", more, strict=False)]
    added = [(name if name in ignored else min(ignored), text) for name, text in added]
    expected = decode_event(form(counted)).fingerprint
    assert decode_event(form(counted), ignored).fingerprint == expected
    assert decode_event(form(added + counted), ignored).fingerprint == expected
    assert decode_event(form(counted, urlencode(added).encode()), ignored).fingerprint == expected
    assert decode_event(get(counted + added), ignored).fingerprint == expected
    if added:
        assert decode_event(form(counted + added)).fingerprint != expected
    unique = dict(counted)
    if not is_null(unique["SessionUUID"]) and not is_null(unique["EventName"]):
        by_json = decode_event(as_json(unique | dict(added)), ignored)
        assert by_json.fingerprint == decode_event(form([*unique.items()])).fingerprint


@many
@given(PAIRS.filter(bool), st.data())
def test_a_changed_value_has_another_fingerprint(pairs, data):
    place = data.draw(st.integers(0, len(pairs) - 1))
    name, text = pairs[place]
    for other in ((name, text + "x"), (name + "x", text), (name + text, "")):
        changed = [*pairs[:place], other, *pairs[place + 1 :]]
        assert (fingerprint_of(changed) == fingerprint_of(pairs)) == (sorted(changed) == sorted(pairs))
    assert fingerprint_of(pairs[:place] + pairs[place + 1 :]) != fingerprint_of(pairs)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@many
@given(st.dictionaries(NAMES.filter(lambda name: name != "SessionUUID"), JSON, max_size=10))
def test_native_json_values_are_not_lost(members):
    members = {**members, "SessionUUID": "s", "EventName": "New"}
    event = decode_event(as_json(members)).event
    for name, value in members.items():
        text = value if isinstance(value, str) else json.dumps(value)
        kept = event.extra.get(name)
        if isinstance(value, str) or value is None:
            assert found_again(event, name, text)
        elif kept is not None:
            assert json.loads(kept) == value
        else:
            assert getattr(event, OUR_NAME[name]) is not None


@many
@given(
    st.sampled_from(["POST", "GET", "PUT", ""]),
    st.binary(max_size=60),
    st.sampled_from([FORM, "application/json", "application/cloudevents+json", "", "text/plain", "\x00"]),
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=60).map(lambda raw: b"SessionUUID=s&EventName=SessionTimeout&" + raw),
        st.text(max_size=60).map(
            lambda text: f"SessionUUID=s&EventName=X&Amount={quote_plus(text)}".encode()
        ),
        st.binary(max_size=40).map(lambda raw: b'{"SessionUUID":"s","EventName":"X",' + raw + b"}"),
    ),
)
def test_any_bytes_decode_or_raise_undecodable(method, query, content_type, body):
    try:
        decoded = decode_event(RawCallback(method, query, content_type, body, 1, ""))
    except UndecodableEntryError as error:
        outcome = error.code
    else:
        outcome = "event" if decoded.event.session_uuid and len(decoded.fingerprint) == 8 else "half an event"
    assert outcome in {"event", "not_decodable", "no_session_uuid", "no_event_name", "session_uuid_too_long"}
