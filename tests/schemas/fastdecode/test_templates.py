"""Both kinds of readers say what the reference says, of everything; and they are what ordinary callbacks meet."""

from string import ascii_letters, digits
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from in_c_kit import BUILT
from msgspec import structs

from maskline.schemas.callback import RawCallback, decode_callback, encode_callback
from maskline.schemas.decode import decode_event
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.events import ATTRIBUTES, EVENT_TYPES
from maskline.schemas.fastdecode import forms, python_readers, templates
from maskline.schemas.fastdecode.forms import NAMES_MAX
from maskline.schemas.fastdecode.plan import REMEMBERED, REMEMBERED_CHARS_MAX, Template, plan_of
from maskline.schemas.fastdecode.templates import EVENT_NAME_CHARS_MAX, LEARN_AFTER, SEEN_MAX, Templates
from maskline.schemas.parameters import FORM_TYPE, unquote_plus

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

SHAPE = Template(ORDINARY["EventName"], tuple(ORDINARY))


@pytest.fixture(
    params=[
        "python_yarl",
        "python_ours",
        *(["c"] if BUILT else []),
    ],  # without a compiler, there is no C part
    autouse=True,
)
def _readers(request, monkeypatch):
    if request.param != "c":
        monkeypatch.setattr(templates, "new_readers", python_readers.Readers)
        monkeypatch.setattr(
            forms, "unquote", forms.unquote if request.param == "python_yarl" else unquote_plus
        )


def outcome(decode, callback):
    """Of the reference, or of the `decode` of shapes."""
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
    raise AssertionError("the reference was asked")


def learned(*callbacks):
    known = Templates()
    for callback in callbacks:
        for _ in range(LEARN_AFTER):
            outcome(known.decode, callback)
    return known


@pytest.mark.parametrize("method", ["body", "query", "both"])
def test_an_ordinary_callback_is_read_without_the_reference(monkeypatch, method):
    encoded = form(ORDINARY)
    head, _, tail = encoded.rpartition(b"&")
    callback = {
        "body": post(encoded),
        "query": RawCallback("GET", encoded, "", b"", 1, "MA"),
        "both": post(head, tail),
    }[method]
    expected = outcome(decode_event, callback)
    known = learned(callback)
    monkeypatch.setattr(templates, "decode_event", refuse)
    assert outcome(known.decode, callback) == expected


@settings(max_examples=100)
@given(
    st.frozensets(st.sampled_from([*ORDINARY, "Absent"])), st.lists(st.sampled_from([*ORDINARY]), max_size=3)
)
def test_what_is_ignored_is_no_part_of_the_fingerprint(ignored, changed):
    ignored -= {"EventName", "SessionUUID"}
    known = Templates(ignored)
    others = ORDINARY | {name: "other" for name in changed if name != "EventName"}
    fingerprints = []
    for parameters in (ORDINARY, others):
        callback = post(form(parameters))
        event, fingerprint = decode_event(callback, ignored)
        expected = (type(event), event, fingerprint)
        for _ in range(LEARN_AFTER + 1):
            assert outcome(known.decode, callback) == expected
        assert event == decode_event(callback).event, "it is only not compared"
        fingerprints.append(fingerprint)
    assert (fingerprints[0] == fingerprints[1]) == ignored.issuperset(set(changed) - {"EventName"})
    assert len(known.readers) == 1


def test_other_values_of_the_same_kinds_fit_the_shape(monkeypatch):
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
    known = learned(post(form(ORDINARY)))
    monkeypatch.setattr(templates, "decode_event", refuse)
    assert outcome(known.decode, post(form(others))) == expected


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
def test_one_odd_value_in_an_ordinary_callback(name):
    """Each of them, however it is written."""
    for odd in (*ODD, "s" * 129):
        for write in WRITERS:
            encoded = form(ORDINARY).replace(
                f"{name}={quote_plus(ORDINARY[name])}".encode(), f"{name}={write(odd)}".encode()
            )
            known = learned(post(form(ORDINARY)))
            for _ in range(LEARN_AFTER + 1):
                assert outcome(known.decode, post(encoded)) == outcome(decode_event, post(encoded))


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
@settings(max_examples=300, deadline=None)
def test_what_nearly_fits_is_read_as_the_reference_does(made):
    known = learned(*made)
    for callback in made:
        assert outcome(known.decode, callback) == outcome(decode_event, callback)
    known = learned(made[0])
    for callback in made:
        assert outcome(known.decode, callback) == outcome(decode_event, callback)


@st.composite
def callbacks(draw):
    """Several of one template, each with some values changed: most fit its shape, or nearly do."""
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
def test_a_callback_that_is_nearly_as_usual_in_the_stream(encoded):
    def by_the_reference(encoded):
        callback = decode_callback(encoded)
        return *decode_event(callback), callback.received_at_ms, callback.replayed

    def told(decode):
        try:
            return decode(encoded)
        except UndecodableEntryError as error:
            return error.code, str(error)

    assert told(learned(USUAL).decode) == told(by_the_reference)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 32, 255, 256, 257, 7_500, 9_000])
def test_values_of_every_length(size):
    known = learned(post(form(ORDINARY)))
    for name in ("CallerName", "From"):
        callback = post(form(ORDINARY | {name: "x" * size}))
        assert outcome(known.decode, callback) == outcome(decode_event, callback)


@pytest.mark.parametrize("count", range(12, 20))
def test_any_number_of_parameters(monkeypatch, count):
    more = {f"A{number}": str(number) for number in range(count - 3)}
    callback = post(form({"EventName": "SessionTimeout", "SessionUUID": "s", "SequenceNumber": "1"} | more))
    expected = outcome(decode_event, callback)
    known = learned(callback)
    monkeypatch.setattr(templates, "decode_event", refuse)
    assert outcome(known.decode, callback) == expected


def test_the_body_of_whatever_is_no_get_counts():
    callback = RawCallback(
        "PUT", b"EventName=SessionTimeout&SessionUUID=q", FORM_TYPE, form(ORDINARY), 1, "MA"
    )
    known = learned(callback, RawCallback("GET", callback.query, "", b"", 1, "MA"))
    assert outcome(known.decode, callback) == outcome(decode_event, callback)


@given(callbacks(), callbacks())
@example([post(form(ORDINARY))], [post(form(ORDINARY | {"EventTimestamp": "2024-02-31 06:28:15 +0000 UTC"}))])
@example([post(form(ORDINARY))], [post(form(ORDINARY).replace(b"2024-02-01", b"2024%FF02"))])
@example([post(form(ORDINARY))], [post(form(ORDINARY).replace(b"=42", b"=42&&"))])
@example([post(form(ORDINARY))], [post(form(ORDINARY).replace(b"=42", b""))])
@example([post(form(ORDINARY))], [post(form(ORDINARY) + "é".encode())])
@example([post(form(ORDINARY))], [post(form(ORDINARY).replace(b"=somebody", b"=\xc3%A9"))])
@example([post(form(ORDINARY))], [post(form(ORDINARY).replace(b"EventName", b"XEventName"))])
@settings(max_examples=150, deadline=None)
def test_whatever_was_learned_the_reference_is_agreed_with(first, second):
    known = learned(*first)
    for callback in (*second, *first, *second):
        assert outcome(known.decode, callback) == outcome(decode_event, callback)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(templates, "SHAPES_MAX", 20)
    known = Templates()
    for number in range(SEEN_MAX + 50):
        for _ in range(LEARN_AFTER if number < 50 else 1):
            callback = post(f"EventName=Event{number % 7}&SessionUUID=session&A{number}=1".encode())
            assert outcome(known.decode, callback) == outcome(decode_event, callback)
        assert len(known.readers) <= 20
    assert len(known.readers) > 0
    assert len(known._seen) <= SEEN_MAX


def test_shapes_that_come_and_go_are_learned_ever_more_rarely(monkeypatch):
    monkeypatch.setattr(templates, "SHAPES_MAX", 8)
    planned = []
    plan_of = templates.plan_of
    monkeypatch.setattr(templates, "plan_of", lambda *shape: planned.append(shape) or plan_of(*shape))
    known = Templates()
    for _ in range(256):
        for number in range(9):
            outcome(known.decode, post(f"EventName=SessionTimeout&SessionUUID=session&A{number}=1".encode()))
    assert len(planned) <= 9 * 8


@pytest.mark.parametrize(
    "more",
    [{f"A{number}": "1" for number in range(NAMES_MAX)}, {"EventName": "E" * (EVENT_NAME_CHARS_MAX + 1)}],
    ids=["names", "event_name"],
)
def test_what_is_too_large_for_a_shape_is_the_references(more):
    known = learned(callback := post(form(ORDINARY | more)))
    assert not len(known.readers)
    assert outcome(known.decode, callback) == outcome(decode_event, callback)


def test_long_values_are_not_remembered():
    known = learned(post(form(ORDINARY)))
    for name in ("Duration", "Amount", "EventTimestamp", "SequenceNumber"):
        for text in (" " * REMEMBERED_CHARS_MAX + "7", "null" + " " * REMEMBERED_CHARS_MAX):
            callback = post(form(ORDINARY | {name: text}))
            assert outcome(known.decode, callback) == outcome(decode_event, callback)
    attributes = {"duration", "amount", "event_timestamp", "sequence_number"}
    remembered = [taken.remembered for taken in plan_of(SHAPE).taken if taken.attribute in attributes]
    assert len(remembered) == 4
    assert all(0 < len(memo) <= REMEMBERED for memo in remembered)
    assert all(len(text) <= REMEMBERED_CHARS_MAX for memo in remembered for text in memo)
