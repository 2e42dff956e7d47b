"""The content type never decides alone: the reading that was signed is stored, and becomes the worker's event."""

from json import dumps
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

import pytest
from example_counts import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ingest_kit import FORM, MAIN, MAIN_TOKEN, NONCE, node_settings
from multidict import CIMultiDict, CIMultiDictProxy

from maskline.ingest.auth.signatures import sign_v2, sign_v3
from maskline.ingest.auth.verifier import AcceptedCallback, CallbackVerifier
from maskline.ingest.refusal import Refusal
from maskline.schemas.callback import decode_callback
from maskline.schemas.decode import decode_event, event_from_pairs, parameter_pairs
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.fastdecode.templates import LEARN_AFTER, TemplateDecoder
from maskline.schemas.keys import partition_of
from maskline.schemas.parameters import Parameters

URL = "http://h/callbacks"
VERIFIERS = {
    verify: CallbackVerifier(
        node_settings("redis://unused", "n", auth_tokens=((MAIN, MAIN_TOKEN),), **changes)
    )
    for verify, changes in {"v3": {}, "v2": {"accept_v2": True}, "off": {"verify": "off"}}.items()
}

FORM_TYPES = [
    FORM,
    "",
    FORM.upper() + "; charset=UTF-8",
    f"{FORM}; charset=utf-16",
    f"{FORM};charset=latin-1",
]
JSON_TYPES = [
    "application/json",
    "text/json",
    "Application/JSON; charset=utf-16",
    "application/vnd.plivo+json",
]
OTHER_TYPES = [
    "text/plain", "*/*", "multipart/form-data; boundary=x", "application/xml", "application/octet-stream", ",", ";",
    "nonsense", '"', "\\", f"{FORM}, application/json", 'text/plain; a="\udcff"', "x" * 3_000,
]  # fmt: skip
JOINED = [
    f"{FORM}, {FORM}",
    f"{FORM},",
    f",{FORM}",
    f"text/plain, {FORM}; charset=utf-8",
    "application/json,text/json",
]
TYPES = FORM_TYPES + JSON_TYPES + OTHER_TYPES + JOINED

PAIRS = [("EventName", "SessionTimeout"), ("SessionUUID", "s-1"), ("a b", "é&="), ("From", "+14155550123")]
MEMBERS = {
    "EventName": "SessionTimeout",
    "SessionUUID": "s-1",
    "Amount": 0.5,
    "n": None,
    "u": "https://x/?a=b&c=d é",
}


class Sent(NamedTuple):
    body: bytes
    parameters: Parameters
    """What was signed."""


def form(pairs: list[tuple[str, str]], write: Any = quote_plus) -> Sent:
    return Sent("&".join(f"{write(n)}={write(v)}" for n, v in pairs).encode(), Parameters([], pairs, None))


def json(members: dict[str, Any], encoding: str = "utf-8", indent: int | None = None) -> Sent:
    body = dumps(members, ensure_ascii=False, indent=indent).encode(encoding)
    return Sent(body, Parameters([], [], members))


def send(
    sent: Sent, content_type: str | None, verify: str = "v3", token: str = MAIN_TOKEN
) -> AcceptedCallback | Refusal:
    headers = {"Host": "h"} if content_type is None else {"Host": "h", "Content-Type": content_type}
    if verify == "v3":
        headers["X-Plivo-Signature-V3"] = sign_v3(token, "POST", URL, sent.parameters, NONCE)
        headers["X-Plivo-Signature-V3-Nonce"] = NONCE
    elif verify == "v2":
        headers["X-Plivo-Signature-V2"] = sign_v2(token, URL, NONCE)
        headers["X-Plivo-Signature-V2-Nonce"] = NONCE
    verifier = VERIFIERS[verify]
    head = verifier.check_head("POST", "/callbacks", CIMultiDictProxy(CIMultiDict(headers)))
    return head if isinstance(head, Refusal) else verifier.verify(head, sent.body, 7)


def event_of(decode: Any) -> Any:
    try:
        return decode()
    except UndecodableEntryError as error:
        return error.code


def assert_read_as_signed(decision: AcceptedCallback | Refusal, parameters: Parameters) -> None:
    """By the reference, and by templates, before and after one is learned."""
    assert isinstance(decision, AcceptedCallback), decision
    callback = decode_callback(decision.value)
    expected = event_of(lambda: event_from_pairs(parameter_pairs(parameters)))
    assert event_of(lambda: decode_event(callback).event) == expected
    decoder = TemplateDecoder()
    for _ in range(LEARN_AFTER + 1):
        assert event_of(lambda: decoder.decode(decision.value)[0]) == expected
    if not isinstance(expected, str):
        assert decision.partition_hash % 16 == partition_of(expected.session_uuid, 16)


@pytest.mark.parametrize("verify", ["v3", "v2", "off"])
@pytest.mark.parametrize(
    "sent",
    [
        form(PAIRS),
        json(MEMBERS),
        json(MEMBERS, "utf-8-sig", 2),
        json(MEMBERS, "utf-16"),
        json(MEMBERS, "utf-32-be"),
    ],
    ids=["form", "json", "json_bom", "json_utf16", "json_utf32"],
)
def test_signed_body_is_read_as_signed_under_any_type(sent, verify):
    for content_type in [None, *TYPES]:
        assert_read_as_signed(send(sent, content_type, verify), sent.parameters)


@pytest.mark.parametrize("sent", [form(PAIRS), json(MEMBERS), json(MEMBERS, "utf-8-sig")])
def test_wrong_signature_is_403_under_any_type(sent):
    for content_type in [None, *TYPES]:
        wrong = send(sent, content_type, token="another")
        assert isinstance(wrong, Refusal)
        assert (wrong.status, wrong.code) == (403, "signature_wrong"), content_type


names = st.sampled_from(["EventName", "SessionUUID", "Amount", '{"a', "{", "a=b", "é", "&", ""]) | st.text(
    max_size=4
)
texts = st.sampled_from(["", "null", "s-1", "SessionTimeout", '":1}', "a&SessionUUID=x", "\ufeff"]) | st.text(
    max_size=6
)
members = st.dictionaries(
    names,
    texts | st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.lists(texts, max_size=2),
    max_size=4,
)
sent_forms = st.builds(
    form, st.lists(st.tuples(names, texts), min_size=1, max_size=5), st.sampled_from([quote_plus, quote])
)
sent_jsons = st.builds(
    json, members, st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le"]), st.sampled_from([None, 1])
)


@given(
    sent_forms | sent_jsons, st.sampled_from(TYPES) | st.text(st.characters(max_codepoint=127), max_size=30)
)
@example(
    Sent(b'{"SessionUUID":"a"}', Parameters([], [('{"SessionUUID":"a"}', "")], None)), "application/json"
)
@example(Sent(b'{"SessionUUID":"a"}', Parameters([], [('{"SessionUUID":"a"}', "")], None)), "text/plain")
@example(Sent(b'{"SessionUUID":"a"}', Parameters([], [], {"SessionUUID": "a"})), FORM)
@example(Sent(b"=", Parameters([], [("", "")], None)), ";")
@example(Sent(b"hello", Parameters([], [("hello", "")], None)), "text/plain")
@settings(max_examples=examples(200), deadline=None)
def test_event_is_made_of_the_signed_parameters(sent, content_type):
    if sent.body:
        assert_read_as_signed(send(sent, content_type), sent.parameters)


@pytest.mark.parametrize("verify", ["v2", "off"])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"SessionUUID"'), ("application/json", b"[1]"), ("application/json", b"hello"),
        ("text/plain", b"hello"), ("text/plain", b'{"a"'), ("multipart/form-data; boundary=x", b'--x\r\na: b="c"\r\n'),
        ("application/xml", b'<a b="c"/>'), (FORM, b"a=%E9"), ("text/plain", b"a=%E9"),
    ],
)  # fmt: skip
def test_unsigned_body_that_is_neither_form_nor_json_is_not_decodable(content_type, body, verify):
    decision = send(Sent(body, Parameters([], [], None)), content_type, verify)
    assert isinstance(decision, Refusal)
    assert (decision.status, decision.code) == (400, "not_decodable")


@pytest.mark.parametrize("content_type", [*OTHER_TYPES, *FORM_TYPES])
@pytest.mark.parametrize("body", [b"<a/>", b'{"a":', b"a=b", b"--x\r\n", b"[1]"])
def test_wrong_signature_of_an_unreadable_body_is_403_under_other_types(content_type, body):
    decision = send(Sent(body, Parameters([], [("b", "a")], None)), content_type)
    assert isinstance(decision, Refusal)
    assert (decision.status, decision.code) == (403, "signature_wrong")


def test_stored_content_type_says_how_the_body_is_read_and_how_it_was_sent():
    """So a maskline that knows forms and JSON only by their plain types reads it too."""
    stored = {
        (sent_as, body[:1]): decode_callback(decision.value).content_type
        for sent_as in (
            FORM,
            "",
            "application/json",
            "text/plain",
            "application/vnd.x+json",
            f"{FORM}, {FORM}",
            'a"\\b',
        )
        for body, parameters in (form(PAIRS), json(MEMBERS))
        if isinstance(decision := send(Sent(body, parameters), sent_as), AcceptedCallback)
    }
    assert stored == {
        (FORM, b"E"): FORM,
        (FORM, b"{"): f'application/json; sent-as="{FORM}"',
        ("", b"E"): "",
        ("", b"{"): 'application/json; sent-as=""',
        ("application/json", b"E"): f'{FORM}; sent-as="application/json"',
        ("application/json", b"{"): "application/json",
        ("text/plain", b"E"): f'{FORM}; sent-as="text/plain"',
        ("text/plain", b"{"): 'application/json; sent-as="text/plain"',
        ("application/vnd.x+json", b"E"): f'{FORM}; sent-as="application/vnd.x+json"',
        ("application/vnd.x+json", b"{"): "application/vnd.x+json",
        (f"{FORM}, {FORM}", b"E"): f'{FORM}; sent-as="{FORM}, {FORM}"',
        (f"{FORM}, {FORM}", b"{"): f'application/json; sent-as="{FORM}, {FORM}"',
        ('a"\\b', b"E"): f'{FORM}; sent-as="a\'b"',
        ('a"\\b', b"{"): 'application/json; sent-as="a\'b"',
    }


def test_get_keeps_its_type_and_has_no_body():
    headers = CIMultiDictProxy(CIMultiDict({"Host": "h", "Content-Type": "application/json"}))
    for method, body in (("GET", b"{"), ("GET", b"a=b"), ("POST", b"")):
        head = VERIFIERS["off"].check_head(method, "/callbacks?SessionUUID=s", headers)
        assert not isinstance(head, Refusal)
        decision = VERIFIERS["off"].verify(head, body, 7)
        assert isinstance(decision, AcceptedCallback)
        callback = decode_callback(decision.value)
        assert (callback.content_type, callback.body) == ("application/json", b"")
