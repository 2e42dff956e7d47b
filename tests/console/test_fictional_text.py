"""What is known of people and accounts is not left in an exported callback, wherever and however it is written."""

import base64
import json
from itertools import product
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.console.session.fictional_callback import add_numbers, rewrite, rewrite_session, texts_of
from maskline.console.session.fictional_text import FictionalTexts, layers
from maskline.schemas.callback import RawCallback
from maskline.schemas.parameters import parse_parameters

FORM = "application/x-www-form-urlencoded"
NATIONAL = "4155550123"
NUMBER = f"+1{NATIONAL}"
ACCOUNT = "MANWVLYTK4ZWU1YTY4ZA"
TOKEN = "YzdhNTgzMGZjNTE4OWRj"
EMAIL = "jane.doe@corp-mail.io"
RECORDING = f"https://media.plivo.com/v1/Account/{ACCOUNT}/Recording/3f2b.mp3"
SECRETS = (NATIONAL, ACCOUNT, TOKEN, "jane.doe", "corp-mail", "media.plivo.com", "3f2b")


def parameters_of(callback):
    return parse_parameters(callback.method, callback.query, callback.content_type, callback.body)


def rewritten(*callbacks):
    texts = FictionalTexts({ACCOUNT, TOKEN})
    for callback in callbacks:
        add_numbers(texts, callback)
    changed = [rewrite(callback, texts) for callback in callbacks]
    assert not any(texts.is_left_in(text) for it in changed for _, text in texts_of(it))
    return texts, changed


def form(**values):
    fields = {"SessionUUID": "s1", "EventName": "SessionTimeout", "From": NUMBER} | values
    body = "&".join(f"{quote(name)}={quote(value, safe='')}" for name, value in fields.items())
    return RawCallback("POST", b"", FORM, body.encode(), 1, ACCOUNT)


def left_of(callback):
    """Which of the secrets a reader finds in a callback, if he decodes whatever is encoded."""
    seen = [layer.lower() for _, text in texts_of(callback) for layer in layers(text)]
    return {secret for secret in SECRETS if any(secret.lower() in it for it in seen)}


def base64url(text):
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


ENCODINGS = {
    "plain": str,
    "percent": lambda text: quote(text, safe=""),
    "every sign": lambda text: "".join(f"%{sign:02X}" for sign in text.encode()),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64url": base64url,
    "hex": lambda text: text.encode().hex(),
    "JSON": lambda text: json.dumps({"a": [{"b": text}]}),
    "JSON with escapes": lambda text: '{"a":"' + "".join(f"\\u{ord(sign):04x}" for sign in text) + '"}',
}


@pytest.mark.parametrize("secret", [NUMBER, ACCOUNT, ACCOUNT.lower(), TOKEN, EMAIL, RECORDING])
def test_nothing_known_is_left_in_an_unknown_parameter(secret):
    for outer, inner in product(ENCODINGS, ENCODINGS):
        written = ENCODINGS[outer](ENCODINGS[inner](f"call {secret} ok"))
        assert left_of(form(Note=written))
        for changed in rewritten(form(Note=written), form(**{written: "1"}))[1]:
            assert left_of(changed) == set(), (outer, inner)


@pytest.mark.parametrize(
    "name", ["SessionUUID", "EventName", "RecordingUUID", "Content-Type", "PinAuthenticationStatus"]
)
def test_nothing_known_is_left_in_what_otherwise_stays(name):
    if name == "Content-Type":
        body = form().body
        callback = RawCallback("POST", b"", f"{FORM}; a={NUMBER}; b={ACCOUNT}", body, 1, ACCOUNT)
    else:
        callback = form(**{name: f"ride-{NATIONAL}-{ACCOUNT}"})
    texts, (changed,) = rewritten(callback)
    assert left_of(changed) == set()
    assert NATIONAL not in changed.content_type
    assert ACCOUNT not in changed.content_type
    (session,) = (value for key, value in parameters_of(changed).body if key == "SessionUUID")
    assert session == rewrite_session("s1" if name != "SessionUUID" else f"ride-{NATIONAL}-{ACCOUNT}", texts)


def test_a_session_and_a_recording_that_have_only_uuids_keep_them():
    uuids = {
        "SessionUUID": "41555501-2300-4000-8000-0242ac120002",
        "RecordingUUID": "3f2b1c4d-0000-4000-8000-123456789012",
    }
    found = dict(parameters_of(rewritten(form(**uuids))[1][0]).body)
    assert uuids.items() <= found.items()


@pytest.mark.parametrize(
    "name", ["auth_token", "Authorization", "apiKey", "X-Signature", "password", "auth_id"]
)
def test_what_authenticates_by_its_name_is_made_up(name):
    first, second, third = rewritten(*(form(**{name: it}) for it in ("hunter2", "hunter2", "hunter3")))[1]
    assert b"hunter" not in first.body + third.body
    assert first.body == second.body != third.body


def test_words_beside_a_party_s_number_are_made_up():
    callback = form(
        From="Jane Doe +14155550177",
        To="sip:14155550177@corp-mail.io",
        SecondParty="jane",
        Note="by jane, mary",
    )
    found = dict(parameters_of(rewritten(callback)[1][0]).body)
    assert not any(word in value for value in found.values() for word in ("Jane", "Doe", "jane", "corp-mail"))
    digits = found["From"].rpartition("+")[2]
    assert found["To"].startswith(f"sip:{digits}@")
    assert found["Note"] == f"by {found['SecondParty']}, mary"


def test_parties_are_found_by_name_in_any_spelling_and_in_json():
    body = {
        "SessionUUID": "s1",
        "EventName": "E",
        "From": "jane",
        "call": {"from": "jane", "first_party": ["mary"]},
    }
    callback = RawCallback("POST", b"", "application/json", json.dumps(body).encode(), 1, "")
    found = json.loads(rewritten(callback)[1][0].body)
    assert found["call"]["from"] == found["From"]
    assert "mary" not in str(found)


def test_addresses_of_recordings_are_found_under_any_name():
    address = "https://store.corp-mail.io/a/b?sig=x.4155"
    callback = form(RecordingURL=address, note=f"see {address}", record_file=address + "2")
    found = dict(parameters_of(rewritten(callback)[1][0]).body)
    assert found["note"] == f"see {found['RecordingURL']}"
    assert "corp-mail" not in found["record_file"]
    assert "4155" not in found["RecordingURL"]


@given(st.text(max_size=40))
def test_a_text_without_anything_known_stays(text):
    text = "".join(sign for sign in text if not sign.isdigit() and sign != "@")
    assert FictionalTexts({ACCOUNT}).in_text(text) == text


def test_what_is_not_encoded_is_not_decoded():
    stays = "100%+ok&a=%zz;deadbeefdeadbeef SGVsbG8sIHdvcmxkIQ== 3f2b1c4d-0000-4000-8000-123456789012"
    assert FictionalTexts().in_text(stays) == stays
