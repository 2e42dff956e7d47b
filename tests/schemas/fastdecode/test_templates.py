"""Templates decode everything as the reference does, and ordinary callbacks need no reference."""

from string import ascii_letters, digits
from urllib.parse import quote, quote_plus

import pytest
from example_counts import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs
from native_kit import BUILT

from maskline.schemas.callback import RawCallback, decode_callback, encode_callback
from maskline.schemas.decode import decode_event
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.events import ATTRIBUTES, EVENT_TYPES
from maskline.schemas.fastdecode import templates
from maskline.schemas.fastdecode.forms import NAMES_MAX
from maskline.schemas.fastdecode.plan import CACHED_VALUE_CHARS_MAX, CACHED_VALUES_MAX, FormLayout, plan_of
from maskline.schemas.fastdecode.templates import (
    COUNTED_LAYOUTS_MAX,
    EVENT_NAME_CHARS_MAX,
    LEARN_AFTER,
    TemplateDecoder,
)
from maskline.schemas.parameters import FORM_TYPE

ORDINARY = {
    "EventName": "SessionRecordingCompleted",
    "EventTimestamp": "2024-02-01 06:28:15 +0000 UTC",
    "SessionUUID": "3f5c0e5a-0000-4000-8000-000000000001",
    "SequenceNumber": "7",
    "From": "+14155550123",
    "To": "14155550124",
    "VirtualNumber": "+14155550100",
    "PinAuthenticationStatus": "null",
    "PinRetryCounter": "",
    "Amount": "0.00350",
    "Duration": "42",
    "PlivoHangupCause": "Normal Hangup",
    "PlivoHangupCauseCode": "4000",
    "RecordingFormat": ".mp3",
    "CallerName": "somebody",
}

LAYOUT = FormLayout(ORDINARY["EventName"], tuple(ORDINARY))


WITH_TEMPLATES = pytest.param("templates", marks=pytest.mark.skipif(not BUILT, reason="templates are in C"))
needs_templates = pytest.mark.parametrize("way", [WITH_TEMPLATES], indirect=True)


@pytest.fixture(params=[WITH_TEMPLATES, "reference"], autouse=True)
def way(request, monkeypatch):
    """Where maskline was installed with a compiler, and where without."""
    monkeypatch.setattr(templates, "HAS_TEMPLATES", request.param == "templates")


def outcome(decode, callback):
    """What `decode` returns or raises: `decode_event`, or the `decode` of a TemplateDecoder."""
    try:
        if decode is decode_event:
            event, fingerprint = decode(callback)
        else:
            event, fingerprint, received_at_ms, replayed = decode(encode_callback(callback))
            assert (received_at_ms, replayed) == (callback.received_at_ms, callback.replayed)
    except UndecodableEntryError as error:
        return error.code
    return type(event), event, fingerprint


def post(body, query=b""):
    return RawCallback("POST", query, FORM_TYPE, body, 1, "MA")


def form(parameters):
    return "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in parameters.items()).encode()


def refuse(*_):
    raise AssertionError("decoded by the reference")


def learned(*callbacks):
    decoder = TemplateDecoder()
    for callback in callbacks:
        for _ in range(LEARN_AFTER):
            outcome(decoder.decode, callback)
    return decoder


@needs_templates
@pytest.mark.parametrize("method", ["body", "query", "both"])
def test_ordinary_callback_needs_no_reference(monkeypatch, method):
    encoded = form(ORDINARY)
    head, _, tail = encoded.rpartition(b"&")
    callback = {
        "body": post(encoded),
        "query": RawCallback("GET", encoded, "", b"", 1, "MA"),
        "both": post(head, tail),
    }[method]
    expected = outcome(decode_event, callback)
    decoder = learned(callback)
    monkeypatch.setattr(templates, "decode_event", refuse)
    assert outcome(decoder.decode, callback) == expected


@needs_templates
@settings(max_examples=examples(100))
@given(
    st.frozensets(st.sampled_from([*ORDINARY, "Absent"])), st.lists(st.sampled_from([*ORDINARY]), max_size=3)
)
def test_ignored_parameters_are_no_part_of_the_fingerprint(ignored, changed):
    ignored -= {"EventName", "SessionUUID"}
    decoder = TemplateDecoder(ignored)
    others = ORDINARY | {name: "other" for name in changed if name != "EventName"}
    fingerprints = []
    for parameters in (ORDINARY, others):
        callback = post(form(parameters))
        event, fingerprint = decode_event(callback, ignored)
        expected = (type(event), event, fingerprint)
        for _ in range(LEARN_AFTER + 1):
            assert outcome(decoder.decode, callback) == expected
        assert event == decode_event(callback).event, "it is only not compared"
        fingerprints.append(fingerprint)
    assert (fingerprints[0] == fingerprints[1]) == ignored.issuperset(set(changed) - {"EventName"})
    assert len(decoder.templates) == 1


@needs_templates
def test_other_values_of_the_same_kinds_need_no_reference(monkeypatch):
    others = ORDINARY | {
        "EventTimestamp": "2024-12-31T23:59:59.999Z",
        "SessionUUID": "another",
        "SequenceNumber": "123456789012345",
        "From": "+447700900123",
        "To": "+somebody"[1:],
        "PinAuthenticationStatus": "None",
        "PinRetryCounter": "NULL",
        "Amount": "12",
        "PlivoHangupCause": "a b c",
        "RecordingFormat": "null",
        "CallerName": "none-at-all",
    }
    expected = outcome(decode_event, post(form(others)))
    decoder = learned(post(form(ORDINARY)))
    monkeypatch.setattr(templates, "decode_event", refuse)
    assert outcome(decoder.decode, post(form(others))) == expected


ODD = """
null|None| null|null |  |\t|\xa0|\u3000null|nu|NULLs|\x85|\x00|\x1f|é|%|%2B|a%zz|=|a=b|a&b|a  b| a|0|-1|+5|60.0| 60 |1e3
|9007199254740992|999999999999999999|999999999999999999999999999999|0.00450|.5|1_000|٣٤|+14155550123|+1 415 555 0123
|2024-02-01 06:28:15 +0000 UTC|2024-02-01T06:28:15Z|2024-02-31 06:28:15 +0000 UTC|2024-02-01|0000-00-00|12345:6789
|2024-02-01 06:28:15.123456|2024-02-01 06:28:15  0000 UTC|2024-02-01 06:28:15 +0000 UTC m=+0.1|1706768895|Normal Hangup|
Thu, 01 Feb 2024 06:28:15 GMT|Thu, 01 Feb 2024 06:28:15 +0530|Fri, 01 Feb 2024 06:28:15 GMT|1706768895.5|
https://example.com/r.mp3?a=1&b=2
""".replace("\n", "").split("|")
TEXTS = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=8),
    st.text(ascii_letters + digits + "+ -.:%&=", max_size=40),
)
NAMES = st.sampled_from([*ATTRIBUTES.values(), "EventName", "CallerName", "a", "A-b", "é", "", "x" * 65])
EVENT_NAMES = st.sampled_from(
    [*list(EVENT_TYPES)[:3], "SessionRecordingCompleted", "SomethingNew", "null", "", "odd name"]
)


def raw(text):
    """As a careless client writes it: not everything that must be escaped is."""
    return text.replace("%", "%25").replace("&", "%26").replace(" ", "+")


WRITERS = [
    quote_plus,
    quote,
    lambda text: quote(text, safe="/:=+"),
    lambda text: quote_plus(text).replace("%2B", "%2b"),
    lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    raw,
    lambda text: text,
]
ESCAPES = st.sampled_from(WRITERS)


@pytest.mark.parametrize("name", ORDINARY)
def test_one_odd_value_is_decoded_as_by_the_reference(name):
    """Each of them, however it is written."""
    for odd in (*ODD, "s" * 129):
        for write in WRITERS:
            encoded = form(ORDINARY).replace(
                f"{name}={quote_plus(ORDINARY[name])}".encode(), f"{name}={write(odd)}".encode()
            )
            decoder = learned(post(form(ORDINARY)))
            for _ in range(LEARN_AFTER + 1):
                assert outcome(decoder.decode, post(encoded)) == outcome(decode_event, post(encoded))


@st.composite
def nearly_ordinary(draw):
    """An ordinary callback, and what differs from it by little."""
    order = draw(st.permutations(list(ORDINARY)))
    order = [*order[: draw(st.integers(1, len(order)))], "EventName", "SessionUUID"]
    if not draw(st.integers(0, 4)):
        order.append(draw(st.sampled_from(order)))
    else:
        order = list(dict.fromkeys(order))
    made = []
    for changes in range(draw(st.integers(2, 5))):
        values = dict(ORDINARY)
        for name in draw(st.lists(st.sampled_from(order), min_size=min(changes, 1), max_size=2)):
            values[name] = draw(TEXTS)
        escaping = draw(ESCAPES) if changes and not draw(st.integers(0, 3)) else quote_plus
        fields = [f"{name}={escaping(values[name])}" for name in order]
        made.append(post("&".join(fields).encode("utf-8", "replace")))
    return made


@given(nearly_ordinary())
@settings(max_examples=examples(100), deadline=None)
def test_nearly_ordinary_callbacks_are_decoded_as_by_the_reference(made):
    decoder = learned(*made)
    for callback in made:
        assert outcome(decoder.decode, callback) == outcome(decode_event, callback)
    decoder = learned(made[0])
    for callback in made:
        assert outcome(decoder.decode, callback) == outcome(decode_event, callback)


@st.composite
def callbacks(draw):
    """Several of one layout, each with some values changed: most fit its template, or nearly do."""
    names = draw(st.lists(NAMES, min_size=1, max_size=12))
    template = {name: draw(TEXTS) for name in names}
    template |= {
        "EventName": draw(EVENT_NAMES),
        "SessionUUID": draw(st.sampled_from(["s-1", "session-1", "null", "x" * 129])),
    }
    order = draw(st.permutations([*template, *draw(st.lists(NAMES, max_size=1))]))
    escape = draw(ESCAPES)
    made = []
    for _ in range(draw(st.integers(1, 4))):
        values = template | draw(st.dictionaries(st.sampled_from(order), TEXTS, max_size=2))
        escaping = draw(ESCAPES) if draw(st.booleans()) else escape
        fields = [f"{escaping(name)}={escaping(values.get(name, ''))}" for name in order]
        encoded = "&".join(fields).encode("utf-8", "replace")
        cut = draw(st.integers(0, len(encoded)))
        made.append(
            draw(
                st.sampled_from(
                    [
                        post(encoded),
                        post(encoded),
                        RawCallback("GET", encoded, "text/plain", b"", 1, "MA"),
                        post(encoded[:cut], encoded[cut:]),
                        RawCallback("POST", b"", "", encoded, 1, "MA"),
                        RawCallback("POST", encoded, "application/json", b'{"Duration": 7}', 1, "MA"),
                    ]
                )
            )
        )
    return made


USUAL = RawCallback(
    "POST", b"", FORM_TYPE, b"EventName=SessionTimeout&SessionUUID=s", 1_767_225_600_000, "MA1"
)
TAIL = len(encode_callback(USUAL)) - 2


@pytest.mark.parametrize(
    "encoded",
    [
        encode_callback(structs.replace(USUAL, version=0)),
        encode_callback(structs.replace(USUAL, version=2)),
        encode_callback(structs.replace(USUAL, replayed=True)),
        encode_callback(structs.replace(USUAL, auth_id="é")),
        encode_callback(structs.replace(USUAL, received_at_ms=7)),
        encode_callback(structs.replace(USUAL, received_at_ms=2**64 - 1)),
        encode_callback(USUAL).replace(b"MA1", b"M\xff1"),
        encode_callback(USUAL)[:TAIL] + b"\xc1\x01",
        encode_callback(USUAL)[:TAIL] + b"\xc0\x01",
        encode_callback(USUAL)[:-1],
        encode_callback(USUAL) + b"\x00",
        b"\x97" + encode_callback(USUAL)[1:-1],
    ],
)
def test_nearly_usual_stream_values_are_decoded_as_by_the_reference(encoded):
    def by_reference(encoded):
        callback = decode_callback(encoded)
        return *decode_event(callback), callback.received_at_ms, callback.replayed

    def result(decode):
        try:
            return decode(encoded)
        except UndecodableEntryError as error:
            return error.code, str(error)

    assert result(learned(USUAL).decode) == result(by_reference)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 32, 255, 256, 257, 7_500, 9_000])
def test_values_of_every_length_are_decoded_as_by_the_reference(size):
    decoder = learned(post(form(ORDINARY)))
    for name in ("CallerName", "From"):
        callback = post(form(ORDINARY | {name: "x" * size}))
        assert outcome(decoder.decode, callback) == outcome(decode_event, callback)


@needs_templates
@pytest.mark.parametrize("count", range(12, 20))
def test_ordinary_callbacks_of_any_size_need_no_reference(monkeypatch, count):
    more = {f"A{number}": str(number) for number in range(count - 3)}
    callback = post(form({"EventName": "SessionTimeout", "SessionUUID": "s", "SequenceNumber": "1"} | more))
    expected = outcome(decode_event, callback)
    decoder = learned(callback)
    monkeypatch.setattr(templates, "decode_event", refuse)
    assert outcome(decoder.decode, callback) == expected


def test_body_counts_for_every_method_but_get():
    callback = RawCallback(
        "PUT", b"EventName=SessionTimeout&SessionUUID=q", FORM_TYPE, form(ORDINARY), 1, "MA"
    )
    decoder = learned(callback, RawCallback("GET", callback.query, "", b"", 1, "MA"))
    assert outcome(decoder.decode, callback) == outcome(decode_event, callback)


@given(callbacks(), callbacks())
@example([post(form(ORDINARY))], [post(form(ORDINARY | {"EventTimestamp": "2024-02-31 06:28:15 +0000 UTC"}))])
@example([post(form(ORDINARY))], [post(form(ORDINARY).replace(b"2024-02-01", b"2024%FF02"))])
@example([post(form(ORDINARY))], [post(form(ORDINARY).replace(b"=42", b"=42&&"))])
@example([post(form(ORDINARY))], [post(form(ORDINARY).replace(b"=42", b""))])
@example([post(form(ORDINARY))], [post(form(ORDINARY) + "é".encode())])
@example([post(form(ORDINARY))], [post(form(ORDINARY).replace(b"=somebody", b"=\xc3%A9"))])
@example([post(form(ORDINARY))], [post(form(ORDINARY).replace(b"EventName", b"XEventName"))])
@settings(max_examples=examples(150), deadline=None)
def test_decoding_agrees_with_the_reference_whatever_was_learned(first, second):
    decoder = learned(*first)
    for callback in (*second, *first, *second):
        assert outcome(decoder.decode, callback) == outcome(decode_event, callback)


@needs_templates
def test_templates_and_counted_layouts_are_bounded(monkeypatch):
    monkeypatch.setattr(templates, "TEMPLATES_MAX", 20)
    decoder = TemplateDecoder()
    for number in range(COUNTED_LAYOUTS_MAX + 50):
        for _ in range(LEARN_AFTER if number < 50 else 1):
            callback = post(f"EventName=Event{number % 7}&SessionUUID=session&A{number}=1".encode())
            assert outcome(decoder.decode, callback) == outcome(decode_event, callback)
        assert len(decoder.templates) <= 20
    assert len(decoder.templates) > 0
    assert len(decoder._seen) <= COUNTED_LAYOUTS_MAX


@needs_templates
def test_layouts_that_come_and_go_are_learned_ever_more_rarely(monkeypatch):
    monkeypatch.setattr(templates, "TEMPLATES_MAX", 8)
    planned = []
    plan_of = templates.plan_of
    monkeypatch.setattr(templates, "plan_of", lambda *layout: planned.append(layout) or plan_of(*layout))
    decoder = TemplateDecoder()
    for _ in range(256):
        for number in range(9):
            outcome(
                decoder.decode, post(f"EventName=SessionTimeout&SessionUUID=session&A{number}=1".encode())
            )
    assert len(planned) <= 9 * 8


@needs_templates
@pytest.mark.parametrize(
    "more",
    [{f"A{number}": "1" for number in range(NAMES_MAX)}, {"EventName": "E" * (EVENT_NAME_CHARS_MAX + 1)}],
    ids=["names", "event_name"],
)
def test_too_large_layouts_get_no_template(more):
    decoder = learned(callback := post(form(ORDINARY | more)))
    assert not len(decoder.templates)
    assert outcome(decoder.decode, callback) == outcome(decode_event, callback)


@needs_templates
def test_long_values_are_not_cached():
    decoder = learned(post(form(ORDINARY)))
    outcome(decoder.decode, post(form(ORDINARY)))
    for name in ("Duration", "Amount", "EventTimestamp", "SequenceNumber"):
        for text in (" 7", " " * CACHED_VALUE_CHARS_MAX + "7", "null" + " " * CACHED_VALUE_CHARS_MAX):
            callback = post(form(ORDINARY | {name: text}))
            assert outcome(decoder.decode, callback) == outcome(decode_event, callback)
    attributes = {"duration", "amount", "event_timestamp", "sequence_number"}
    caches = [planned.cache for planned in plan_of(LAYOUT).attributes if planned.attribute in attributes]
    assert len(caches) == 4
    assert all(0 < len(cache) <= CACHED_VALUES_MAX for cache in caches)
    assert all(len(text) <= CACHED_VALUE_CHARS_MAX for cache in caches for text in cache)


def test_decoder_without_templates_decodes_by_the_reference_and_counts_unreadable(monkeypatch):
    monkeypatch.setattr(templates, "HAS_TEMPLATES", False)
    decoder = learned(post(form(ORDINARY)))
    callback = post(form(ORDINARY | {"Duration": "long"}))
    assert outcome(decoder.decode, callback) == outcome(decode_event, callback)
    assert decoder.templates is None
    assert decoder.unreadable == {"Duration": 1}
