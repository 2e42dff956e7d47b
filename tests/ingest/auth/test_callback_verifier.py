"""What is taken, from whom, and into which partition: no sockets."""

from ipaddress import ip_network
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_kit import FORM, MAIN, MAIN_TOKEN, NONCE, PAIRS, SUB, SUB_TOKEN, node_settings
from multidict import CIMultiDict, CIMultiDictProxy

from maskline.ingest.auth import signatures
from maskline.ingest.auth.accounts import Accounts
from maskline.ingest.auth.dialled_url import DialledUrl
from maskline.ingest.auth.signatures import LISTED_MAX, sign_v2, sign_v3
from maskline.ingest.auth.verifier import AcceptedCallback, CallbackVerifier
from maskline.ingest.refusal import Refusal
from maskline.schemas.callback import decode_callback
from maskline.schemas.decode import decode_event
from maskline.schemas.errors import UndecodableEntryError
from maskline.schemas.keys import partition_of
from maskline.schemas.parameters import Parameters

URL = "https://hooks.example.com/callbacks"
SETTINGS = node_settings("redis://unused", "n", public_url="https://hooks.example.com", partitions=16)
BODY = urlencode(PAIRS).encode()
FORM_PARAMETERS = Parameters([], PAIRS, None)


def headers(**more: str) -> CIMultiDictProxy[str]:
    """Header names with `_` for `-`."""
    values = {"Host": "10.0.0.1", "Content-Type": FORM} | {
        name.replace("_", "-"): value for name, value in more.items()
    }
    return CIMultiDictProxy(CIMultiDict(values))


def v3(
    token: str,
    *,
    url: str = URL,
    name: str = "X_Plivo_Signature_V3",
    parameters: Parameters = FORM_PARAMETERS,
) -> CIMultiDictProxy[str]:
    signature = sign_v3(token, "POST", url, parameters, NONCE)
    return headers(**{name: signature, "X_Plivo_Signature_V3_Nonce": NONCE})


def take(
    given_headers: CIMultiDictProxy[str], *, target: str = "/callbacks", body: bytes = BODY, **changes: Any
) -> AcceptedCallback | Refusal:
    intake = CallbackVerifier(msgspec.structs.replace(SETTINGS, **changes))
    head = intake.read_head("POST", target, given_headers)
    return head if isinstance(head, Refusal) else intake.decide(head, body, 1_700_000_000_000)


def account_of(decision: AcceptedCallback | Refusal) -> str:
    assert isinstance(decision, AcceptedCallback), decision
    return decode_callback(decision.value).auth_id


def code_of(decision: AcceptedCallback | Refusal) -> str:
    assert isinstance(decision, Refusal), decision
    return decision.code


def test_the_callback_is_stored_as_it_came():
    decision = take(v3(MAIN_TOKEN))
    assert isinstance(decision, AcceptedCallback)
    callback = decode_callback(decision.value)
    assert (callback.method, callback.query, callback.content_type) == ("POST", b"", FORM)
    assert (callback.body, callback.received_at_ms, callback.auth_id) == (BODY, 1_700_000_000_000, MAIN)
    assert not callback.replayed
    assert decision.partition_hash % 16 == partition_of(dict(PAIRS)["SessionUUID"], 16)


ACCOUNT_TABLE = [
    # path account, signed by, header, outcome
    ("", MAIN_TOKEN, "X_Plivo_Signature_V3", MAIN),
    ("", SUB_TOKEN, "X_Plivo_Signature_V3", SUB),
    ("", "stranger", "X_Plivo_Signature_V3", "signature_wrong"),
    (MAIN, MAIN_TOKEN, "X_Plivo_Signature_V3", MAIN),
    (SUB, SUB_TOKEN, "X_Plivo_Signature_V3", SUB),
    (SUB, MAIN_TOKEN, "X_Plivo_Signature_V3", "signature_wrong"),
    (MAIN, SUB_TOKEN, "X_Plivo_Signature_V3", "signature_wrong"),
    # The main account signs for its subaccounts in the Ma header, and nobody else does there.
    ("", MAIN_TOKEN, "X_Plivo_Signature_Ma_V3", MAIN),
    (SUB, MAIN_TOKEN, "X_Plivo_Signature_Ma_V3", MAIN),
    (SUB, SUB_TOKEN, "X_Plivo_Signature_Ma_V3", "signature_wrong"),
    ("MAYYYYYYYYYYYYYYYYYY", MAIN_TOKEN, "X_Plivo_Signature_V3", "unknown_account"),
    ("MAYYYYYYYYYYYYYYYYYY", MAIN_TOKEN, "X_Plivo_Signature_Ma_V3", "unknown_account"),
]


@pytest.mark.parametrize(("account", "token", "header", "outcome"), ACCOUNT_TABLE)
def test_whose_signature_counts_where(account, token, header, outcome):
    path = f"/callbacks/{account}" if account else "/callbacks"
    decision = take(v3(token, url=f"https://hooks.example.com{path}", name=header), target=path)
    if isinstance(decision, Refusal):
        assert decision.code == outcome
    else:
        assert account_of(decision) == outcome


def test_an_account_may_have_two_tokens():
    tokens = ((MAIN, "old"), (MAIN, "new"))
    assert account_of(take(v3("old"), auth_tokens=tokens)) == MAIN
    assert account_of(take(v3("new"), auth_tokens=tokens)) == MAIN
    assert code_of(take(v3("older"), auth_tokens=tokens)) == "signature_wrong"
    assert len(Accounts(tokens).holders(MAIN)) == 2


def test_the_signature_may_stand_anywhere_in_the_list_within_the_bound():
    good = sign_v3(MAIN_TOKEN, "POST", URL, FORM_PARAMETERS, NONCE)
    for place, taken in ((0, True), (LISTED_MAX - 1, True), (LISTED_MAX, False)):
        listed = ", ".join([*["bm9uZQ=="] * place, good])
        decision = take(headers(X_Plivo_Signature_V3=listed, X_Plivo_Signature_V3_Nonce=NONCE))
        assert isinstance(decision, AcceptedCallback) is taken


def test_v2_only_where_it_is_switched_on():
    signature = sign_v2(MAIN_TOKEN, URL, NONCE)
    for name in ("X_Plivo_Signature_V2", "X_Plivo_Signature_Ma_V2"):
        request = headers(**{name: signature}, X_Plivo_Signature_V2_Nonce=NONCE)
        assert code_of(take(request)) == "signature_missing"
        assert account_of(take(request, accept_v2=True)) == MAIN
        wrong = headers(**{name: signature}, X_Plivo_Signature_V2_Nonce=NONCE + "1")
        assert code_of(take(wrong, accept_v2=True)) == "signature_wrong"
        assert code_of(take(headers(**{name: signature}), accept_v2=True)) == "nonce_missing"
    of_sub = headers(X_Plivo_Signature_Ma_V2=sign_v2(SUB_TOKEN, URL, NONCE), X_Plivo_Signature_V2_Nonce=NONCE)
    assert code_of(take(of_sub, accept_v2=True)) == "signature_wrong"


def test_without_verification_everybody_is_taken():
    assert account_of(take(headers(), verify="off")) == ""
    assert account_of(take(headers(), target=f"/callbacks/{SUB}", verify="off")) == SUB
    assert code_of(take(headers(), target="/callbacks/other", verify="off")) == "unknown_account"
    assert account_of(take(headers(), target="/callbacks/other", verify="off", auth_tokens=())) == "other"
    odd = take(headers(), target="/callbacks/a\udcffb", verify="off", auth_tokens=())
    assert code_of(odd) == "unknown_account"


def test_headers_that_are_no_ascii_can_be_stored():
    decision = take(headers(Content_Type=f"{FORM}; charset=\udcff"), verify="off")
    assert isinstance(decision, AcceptedCallback)
    assert decode_callback(decision.value).content_type == f"{FORM}; charset=?"


BASE_TABLE = [
    # settings, peer, headers, base
    ({"public_url": "https://p.example/x"}, "10.0.0.1", {}, "https://p.example/x/callbacks"),
    ({"public_url": "https://p.example"}, "10.0.0.1", {"X_Forwarded_Proto": "http"}, "https://p.example/callbacks"),
    ({}, "10.0.0.1", {"Host": "h:8080"}, "http://h:8080/callbacks"),
    ({}, "10.0.0.1", {"Host": "h", "X_Forwarded_Proto": "https"}, "http://h/callbacks"),
    ({"trusted": "10.0.0.0/8"}, "10.0.0.1", {"Host": "h", "X_Forwarded_Proto": "https"}, "https://h/callbacks"),
    ({"trusted": "10.0.0.0/8"}, "::ffff:10.0.0.1", {"Host": "h", "X_Forwarded_Proto": "HTTPS"}, "https://h/callbacks"),
    ({"trusted": "10.0.0.0/8"}, "11.0.0.1", {"Host": "h", "X_Forwarded_Proto": "https"}, "http://h/callbacks"),
    ({"trusted": "10.0.0.0/8"}, "", {"Host": "h", "X_Forwarded_Proto": "https"}, "http://h/callbacks"),
    ({"trusted": "10.0.0.0/8"}, "10.0.0.1", {"Host": "h", "X_Forwarded_Proto": "gopher"}, "http://h/callbacks"),
    (
        {"trusted": "fd00::/8"},
        "fd00::1",
        {"Host": "h", "X_Forwarded_Proto": "https, http", "X_Forwarded_Host": "a.example:8443, b"},
        "https://a.example:8443/callbacks",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "peer", "given_headers", "base"), BASE_TABLE)
def test_the_url_that_was_dialled(options, peer, given_headers, base):
    trusted = [ip_network(options["trusted"])] if "trusted" in options else []
    origin = DialledUrl(options.get("public_url", ""), trusted)
    assert origin.base("", "/callbacks", headers(**given_headers), secure=False, peer=peer) == base


def test_an_absolute_target_names_the_url_itself():
    request = v3(MAIN_TOKEN, url="http://dialled.example:81/callbacks")
    target = "HTTP://dialled.example:81/callbacks"
    assert account_of(take(request, target=target, public_url="")) == MAIN
    assert code_of(take(request, target="ftp://dialled.example/callbacks")) == "unknown_path"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),  # not a proxy of ours: it may say what it likes
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7, nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", ",".join(["10.0.0.3"] * 5_000), "10.0.0.3"),
    ],
)
def test_the_client_behind_the_proxies(peer, forwarded, client):
    origin = DialledUrl("", [ip_network("10.0.0.0/8")])
    assert origin.client(headers(X_Forwarded_For=forwarded), peer) == client


values = st.sampled_from(["", "null", "None", " ", "a", "b", "é", "0"])
pairs = st.lists(st.tuples(st.sampled_from(["SessionUUID", "EventName", "x"]), values), max_size=5)
members = st.dictionaries(
    st.sampled_from(["SessionUUID", "EventName"]),
    values | st.none() | st.booleans() | st.integers() | st.just([1]),
)


@given(pairs, pairs | members)
def test_a_session_lands_where_its_worker_looks_for_it(query, body):
    """The route is by the SessionUUID that the worker will read, wherever it stands."""
    json_body = isinstance(body, dict)
    encoded = msgspec.json.encode(body) if json_body else urlencode(body).encode()
    target = f"/callbacks?{urlencode(query)}"
    content_type = "application/json" if json_body else FORM
    decision = take(headers(Content_Type=content_type), target=target, body=encoded, verify="off")
    assert isinstance(decision, AcceptedCallback)
    try:
        event = decode_event(decode_callback(decision.value)).event
    except UndecodableEntryError:
        assert decision == take(headers(Content_Type=content_type), target=target, body=encoded, verify="off")
        return
    assert decision.partition_hash % 16 == partition_of(event.session_uuid, 16)


@given(
    st.binary(max_size=200),
    st.sampled_from([FORM, "application/json", "", "text/plain"]),
    st.text(max_size=30),
)
def test_whatever_comes_is_decided(body, content_type, target):
    request = headers(
        Content_Type=content_type,
        X_Plivo_Signature_V3="x",
        X_Plivo_Signature_V3_Nonce="y",
        X_Plivo_Signature_Ma_V3="é",
    )
    for path in (target, f"/callbacks?{target}", "/callbacks"):
        decision = take(request, target=path, body=body)
        assert isinstance(decision, Refusal)
        assert decision.code in {"unknown_path", "not_decodable", "signature_wrong"}


def test_a_body_is_written_out_once_however_many_nonces_are_tried(monkeypatch):
    """Writing out 64 KB of JSON takes milliseconds, and anybody may send that with four nonces."""
    written: list[Any] = []
    write = signatures._members_text
    monkeypatch.setattr(
        signatures, "_members_text", lambda members: written.append(members) or write(members)
    )
    forged = headers(
        X_Plivo_Signature_V3="x", X_Plivo_Signature_Ma_V3="y", X_Plivo_Signature_V3_Nonce="1,2,3",
        Content_Type="application/json",
    )  # fmt: skip
    assert isinstance(take(forged, body=b'{"a":[1,2]}'), Refusal)
    assert written == [{"a": [1, 2]}]
