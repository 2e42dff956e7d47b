"""Which requests are accepted, by whose signature, and into which partition: no sockets."""

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
from maskline.ingest.auth.signatures import SIGNATURES_MAX, sign_v2, sign_v3
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


def verify(
    given_headers: CIMultiDictProxy[str], *, target: str = "/callbacks", body: bytes = BODY, **changes: Any
) -> AcceptedCallback | Refusal:
    verifier = CallbackVerifier(msgspec.structs.replace(SETTINGS, **changes))
    head = verifier.check_head("POST", target, given_headers)
    return head if isinstance(head, Refusal) else verifier.verify(head, body, 1_700_000_000_000)


def account_of(decision: AcceptedCallback | Refusal) -> str:
    assert isinstance(decision, AcceptedCallback), decision
    return decode_callback(decision.value).auth_id


def code_of(decision: AcceptedCallback | Refusal) -> str:
    assert isinstance(decision, Refusal), decision
    return decision.code


def test_callback_is_stored_as_it_came():
    decision = verify(v3(MAIN_TOKEN))
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
def test_path_and_header_decide_whose_signature_counts(account, token, header, outcome):
    path = f"/callbacks/{account}" if account else "/callbacks"
    decision = verify(v3(token, url=f"https://hooks.example.com{path}", name=header), target=path)
    if isinstance(decision, Refusal):
        assert decision.code == outcome
    else:
        assert account_of(decision) == outcome


def test_account_may_have_two_tokens():
    tokens = ((MAIN, "old"), (MAIN, "new"))
    assert account_of(verify(v3("old"), auth_tokens=tokens)) == MAIN
    assert account_of(verify(v3("new"), auth_tokens=tokens)) == MAIN
    assert code_of(verify(v3("older"), auth_tokens=tokens)) == "signature_wrong"
    assert len(Accounts(tokens).credentials(MAIN)) == 2


def test_signature_may_be_anywhere_in_the_list_within_the_bound():
    good = sign_v3(MAIN_TOKEN, "POST", URL, FORM_PARAMETERS, NONCE)
    for place, is_accepted in ((0, True), (SIGNATURES_MAX - 1, True), (SIGNATURES_MAX, False)):
        listed = ", ".join([*["bm9uZQ=="] * place, good])
        decision = verify(headers(X_Plivo_Signature_V3=listed, X_Plivo_Signature_V3_Nonce=NONCE))
        assert isinstance(decision, AcceptedCallback) is is_accepted


def test_v2_counts_only_where_it_is_switched_on():
    signature = sign_v2(MAIN_TOKEN, URL, NONCE)
    for name in ("X_Plivo_Signature_V2", "X_Plivo_Signature_Ma_V2"):
        request = headers(**{name: signature}, X_Plivo_Signature_V2_Nonce=NONCE)
        assert code_of(verify(request)) == "signature_missing"
        assert account_of(verify(request, accept_v2=True)) == MAIN
        wrong = headers(**{name: signature}, X_Plivo_Signature_V2_Nonce=NONCE + "1")
        assert code_of(verify(wrong, accept_v2=True)) == "signature_wrong"
        assert code_of(verify(headers(**{name: signature}), accept_v2=True)) == "nonce_missing"
    of_sub = headers(X_Plivo_Signature_Ma_V2=sign_v2(SUB_TOKEN, URL, NONCE), X_Plivo_Signature_V2_Nonce=NONCE)
    assert code_of(verify(of_sub, accept_v2=True)) == "signature_wrong"


def test_without_verification_every_callback_is_accepted():
    assert account_of(verify(headers(), verify="off")) == ""
    assert account_of(verify(headers(), target=f"/callbacks/{SUB}", verify="off")) == SUB
    assert code_of(verify(headers(), target="/callbacks/other", verify="off")) == "unknown_account"
    assert account_of(verify(headers(), target="/callbacks/other", verify="off", auth_tokens=())) == "other"
    odd = verify(headers(), target="/callbacks/a\udcffb", verify="off", auth_tokens=())
    assert code_of(odd) == "unknown_account"


def test_non_ascii_content_type_can_be_stored():
    decision = verify(headers(Content_Type=f"{FORM}; charset=\udcff"), verify="off")
    assert isinstance(decision, AcceptedCallback)
    assert decode_callback(decision.value).content_type == f"{FORM}; charset=?"


def test_absolute_target_is_the_dialled_url():
    request = v3(MAIN_TOKEN, url="http://dialled.example:81/callbacks")
    target = "HTTP://dialled.example:81/callbacks"
    assert account_of(verify(request, target=target, public_url="")) == MAIN
    assert code_of(verify(request, target="ftp://dialled.example/callbacks")) == "unknown_path"


values = st.sampled_from(["", "null", "None", " ", "a", "b", "é", "0"])
pairs = st.lists(st.tuples(st.sampled_from(["SessionUUID", "EventName", "x"]), values), max_size=5)
members = st.dictionaries(
    st.sampled_from(["SessionUUID", "EventName"]),
    values | st.none() | st.booleans() | st.integers() | st.just([1]),
)


@given(pairs, pairs | members)
def test_partition_is_that_of_the_session_which_the_worker_reads(query, body):
    """Wherever the SessionUUID is, and however often."""
    json_body = isinstance(body, dict)
    encoded = msgspec.json.encode(body) if json_body else urlencode(body).encode()
    target = f"/callbacks?{urlencode(query)}"
    content_type = "application/json" if json_body else FORM
    decision = verify(headers(Content_Type=content_type), target=target, body=encoded, verify="off")
    assert isinstance(decision, AcceptedCallback)
    try:
        event = decode_event(decode_callback(decision.value)).event
    except UndecodableEntryError:
        assert decision == verify(
            headers(Content_Type=content_type), target=target, body=encoded, verify="off"
        )
        return
    assert decision.partition_hash % 16 == partition_of(event.session_uuid, 16)


@given(
    st.binary(max_size=200),
    st.sampled_from([FORM, "application/json", "", "text/plain"]),
    st.text(max_size=30),
)
def test_rubbish_is_refused_and_raises_nothing(body, content_type, target):
    request = headers(
        Content_Type=content_type,
        X_Plivo_Signature_V3="x",
        X_Plivo_Signature_V3_Nonce="y",
        X_Plivo_Signature_Ma_V3="é",
    )
    for path in (target, f"/callbacks?{target}", "/callbacks"):
        decision = verify(request, target=path, body=body)
        assert isinstance(decision, Refusal)
        assert decision.code in {"unknown_path", "not_decodable", "signature_wrong"}


def test_json_body_is_written_out_once_for_all_nonces(monkeypatch):
    """Writing out 64 KB of JSON takes milliseconds, and anybody may send it with four nonces."""
    written: list[Any] = []
    write = signatures._members_text
    monkeypatch.setattr(
        signatures, "_members_text", lambda members: written.append(members) or write(members)
    )
    forged = headers(
        X_Plivo_Signature_V3="x", X_Plivo_Signature_Ma_V3="y", X_Plivo_Signature_V3_Nonce="1,2,3",
        Content_Type="application/json",
    )  # fmt: skip
    assert isinstance(verify(forged, body=b'{"a":[1,2]}'), Refusal)
    assert written == [{"a": [1, 2]}]
