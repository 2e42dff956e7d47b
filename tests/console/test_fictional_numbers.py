"""Fictional numbers: found in any spelling, the same for the same number, and two for two."""

import re
from urllib.parse import quote, quote_plus, urlencode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.console.session.fictional_callback import add_numbers, rewrite
from maskline.console.session.fictional_numbers import NUMBERS_MAX, FictionalNumbers, TooManyNumbersError
from maskline.console.session.fictional_text import FictionalTexts
from maskline.schemas.callback import RawCallback
from maskline.schemas.decode import decode_event
from maskline.schemas.parameters import parse_parameters
from maskline.schemas.phone_numbers import digits_of
from maskline.schemas.privacy import set_token_key, token_key

FORM = "application/x-www-form-urlencoded"
ACCOUNT = "MA" + "X" * 18
TOKEN = "tOkEn-of-the-account"
FIRST, SECOND, VIRTUAL = "14155550123", "447700900456", "14155550199"
FICTIONAL = re.compile(r"1[2-9][0-8]\d55501\d\d|447700900\d{3}")


def form(*fields, query=b""):
    body = b"&".join([b"SessionUUID=s1", b"EventName=SessionRing", *fields])
    return RawCallback("POST", query, FORM, body, 1, ACCOUNT)


def rewritten(*callbacks):
    texts = FictionalTexts({TOKEN})
    for callback in callbacks:
        add_numbers(texts, callback)
    return texts.numbers, [rewrite(callback, texts) for callback in callbacks]


def one(*fields):
    """The parameters of a form after it was rewritten."""
    (callback,) = rewritten(form(*fields))[1]
    return dict(parse_parameters("POST", callback.query, FORM, callback.body).body)


KNOWN = (f"From=%2B{FIRST}".encode(), f"To={SECOND}".encode(), f"VirtualNumber={VIRTUAL}".encode())


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ("+1 (415) 555-0123", "+1 (234) 567-8901"),
        ("++14155550123", "++12345678901"),
        ("0014155550123", "0012345678901"),
        ("415.555.0123", "234.567.8901"),
        ("0 415/555 0123", "0 234/567 8901"),
        ("call me at 415 555 0123 or so", "call me at 234 567 8901 or so"),
        ("%2B14155550123", "%2B12345678901"),
        ("%252b1 415 555 0123", "%252b1 234 567 8901"),
        ("%31415555%30123", "12345678901"),
        ('{"a": [14155550123]}', '{"a": [12345678901]}'),
        ("14155550123.0", "12345678901.0"),
        ("1.4155550123e+10", "12345678901"),
        (r"\u0031\u0034155550123", "12345678901"),
        ("sip:14155550123@10.0.0.1", "sip:12345678901@10.0.0.1"),
    ],
)
def test_a_number_is_replaced_in_any_spelling_and_its_spelling_stays(spelled, expected, monkeypatch):
    monkeypatch.setattr(
        FictionalNumbers, "_choose", lambda it, _: it._fictional_ends.add("345678901") or "12345678901"
    )
    assert one(*KNOWN[:1], b"Note=" + quote_plus(spelled).encode())["Note"] == expected


def test_parties_are_replaced_by_name_even_if_they_are_no_number():
    found = one(b"From=alice", b"To=alice", b"FirstParty=anonymous", b"SecondParty=12345", b"VirtualNumber=")
    assert FICTIONAL.fullmatch(found["From"])
    assert found["From"] == found["To"] != found["SecondParty"]
    assert (found["FirstParty"], found["VirtualNumber"]) == ("anonymous", "")


def test_a_number_of_an_unknown_parameter_is_replaced_and_what_reads_as_documented_stays():
    stays = {
        "EventTimestamp": "1767225600000", "SequenceNumber": "2155550123", "Amount": "12345678.90",
        "RecordingUUID": "3f2b1c4d-0000-4000-8000-123456789012", "Duration": "60",
    }  # fmt: skip
    found = one(
        *KNOWN, *(f"{name}={value}".encode() for name, value in stays.items()), b"Agent=%2B4930901820"
    )
    assert stays.items() <= found.items()
    assert FICTIONAL.fullmatch(digits_of(found["Agent"]))


def test_accounts_and_addresses_of_recordings_are_replaced():
    address = f"https://media.plivo.com/v1/Account/{ACCOUNT}/Recording/x.mp3"
    (first, second) = rewritten(
        form(b"RecordingURL=" + quote(address).encode(), b"AccountID=" + ACCOUNT.encode()),
        form(
            b"RecordingURL=" + quote(address).encode(),
            b"RecordingResourceURL=" + quote(address + "/").encode(),
        ),
    )[1]
    for callback in (first, second):
        assert ACCOUNT.encode() not in callback.query + callback.body
        assert callback.auth_id == ""
    urls = [dict(parse_parameters("POST", b"", FORM, it.body).body) for it in (first, second)]
    assert urls[0]["RecordingURL"] == urls[1]["RecordingURL"] != urls[1]["RecordingResourceURL"]
    assert urls[0]["RecordingURL"].startswith("https://media.example.com/recording/")
    assert urls[0]["RecordingURL"].endswith(".mp3")


def test_fields_that_need_not_change_keep_their_bytes():
    odd = b"x=%7e%7E+%zz&&y&=z"
    callback = RawCallback("POST", odd, FORM, b"SessionUUID=s1&EventName=%53x&From=" + FIRST.encode(), 1, "")
    (changed,) = rewritten(callback)[1]
    assert changed.query == odd
    assert changed.body.startswith(b"SessionUUID=s1&EventName=%53x&From=1")


def test_json_keeps_its_types_and_digits():
    body = b'{"SessionUUID":"s1","EventName":"E","From":14155550123,"Amount":0.0100,"x":{"y":["4155550123",null,true]}}'
    callback = RawCallback("POST", b"", "application/json", body, 1, "")
    (changed,) = rewritten(callback)[1]
    read = msgspec.json.decode(changed.body)
    assert isinstance(read["From"], int)
    assert FICTIONAL.fullmatch(str(read["From"]))
    assert b"0.0100" in changed.body
    assert read["x"]["y"] == [str(read["From"])[1:], None, True]
    twice = RawCallback("POST", b"", "application/json", b'{"To":"+14155550123","To":"anonymous"}', 1, "")
    assert rewritten(twice)[1][0].body == b'{"To":"anonymous"}'


def test_fictional_numbers_follow_from_the_key():
    key = token_key()
    try:
        set_token_key(b"k" * 32)
        before = one(*KNOWN)
        assert one(*KNOWN) == before
        set_token_key(b"l" * 32)
        assert one(*KNOWN)["From"] != before["From"]
    finally:
        set_token_key(key)


def test_no_fictional_number_is_a_real_one_of_a_later_callback():
    """Whatever is drawn: of a thousand British numbers, one of these keys draws the third for the second."""
    key = token_key()
    later = form(f"From=%2B{FIRST}".encode(), b"Note=%2B447700900502")
    try:
        for drawn in range(300):
            set_token_key(drawn.to_bytes(32, "big"))
            numbers, changed = rewritten(form(b"From=%2B447700900444"), later)
            assert not any(numbers.known.find(it.body.decode()) for it in changed)
    finally:
        set_token_key(key)


def test_too_many_numbers_are_an_error():
    numbers = FictionalNumbers()
    for at in range(NUMBERS_MAX):
        numbers.of(f"odd {at}")
    assert numbers.of("odd 0")
    with pytest.raises(TooManyNumbersError):
        numbers.of("one more")


REAL = st.one_of(
    st.integers(0, 99).map(lambda n: f"+14155550{100 + n}"),
    st.integers(0, 999).map(lambda n: f"+447700900{n:03}"),
)
SPELL = st.sampled_from(
    [str, lambda n: n.lstrip("+"), lambda n: f"{n[:3]} {n[3:6]}-{n[6:]}", lambda n: "+" + n, quote]
)
TEXT = st.builds(lambda number, spell: (number, spell(number)), REAL, SPELL)


@settings(max_examples=40)
@given(
    st.lists(
        st.fixed_dictionaries({"From": TEXT, "To": TEXT, "Note": TEXT}),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["query", "form", "json"]),
)
def test_equal_stays_equal_and_different_different(drawn, where):
    callbacks = [
        make(where, {"SessionUUID": "s1", "EventName": "E", **{name: text for name, (_, text) in it.items()}})
        for it in drawn
    ]
    numbers, changed = rewritten(*callbacks)
    before, after = ([decode_event(it).fingerprint for it in those] for those in (callbacks, changed))
    assert [before.index(it) for it in before] == [after.index(it) for it in after]
    for callback in changed:
        event = decode_event(callback).event
        for text in (event.from_number, event.to_number, event.extra["Note"]):
            assert not numbers.known.find(text)
    reals = {digits_of(number) for it in drawn for number, _ in it.values()}
    assert len({numbers.of(it) for it in reals}) == len(reals)


def make(where, parameters):
    if where == "query":
        return RawCallback("GET", urlencode(parameters).encode(), "", b"", 1, "")
    if where == "form":
        return RawCallback("POST", b"", FORM, urlencode(parameters).encode(), 1, "")
    return RawCallback("POST", b"", "application/json", msgspec.json.encode(parameters), 1, "")
