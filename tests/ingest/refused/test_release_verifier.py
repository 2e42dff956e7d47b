"""Refused requests verified again: by mended settings the callback that ingest would have taken, else refused."""

import gzip
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlencode

import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_kit import MAIN, MAIN_TOKEN, NONCE, PAIRS, Request
from multidict import CIMultiDict

from maskline.ingest import plivo_headers
from maskline.ingest.auth.signatures import sign_v2
from maskline.ingest.auth.verifier import AcceptedCallback, CallbackVerifier
from maskline.ingest.fastpath.fast_verifier import FastVerifier
from maskline.ingest.fastpath.form_templates import FormTemplates
from maskline.ingest.http.request_decider import RequestDecider
from maskline.ingest.http.request_reader import ReceivedRequest, RequestReader
from maskline.ingest.refusal import Refusal
from maskline.ingest.refused.could_be_plivos import awaits_body, could_be_plivos
from maskline.ingest.refused.release import ReleaseVerifier
from maskline.ingest.refused.request import RefusedRequest, decode_refused, encode_refused, refused_request
from maskline.schemas.callback import decode_callback
from maskline.schemas.settings import Settings

PEER = "10.0.0.9"
RECEIVED_AT_MS = 1_700_000_000_123
GOOD = Settings(auth_tokens=((MAIN, MAIN_TOKEN),))
UNSIGNED = {"X-Plivo-Signature-V3": None, "X-Plivo-Signature-V3-Nonce": None}
FORM_BODY = urlencode(PAIRS).encode()
COMPRESSED = gzip.compress(FORM_BODY)
CHUNKED = {"Content-Length": None, "Transfer-Encoding": "chunked"}
PROXIED = {
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "hooks.example.com",
    "X-Forwarded-For": "192.0.2.7",
}


def decide(raw: bytes, settings: Settings) -> tuple[AcceptedCallback | Refusal, ReceivedRequest]:
    """What ingest decides about a request with these settings."""
    verifier = CallbackVerifier(settings)
    decider = RequestDecider(verifier, FastVerifier(verifier, FormTemplates(), learns=False), PEER)
    request = RequestReader(decider.check_head, settings.max_body_bytes, awaits_body).read(raw)
    assert request is not None
    return decider.decide(request, RECEIVED_AT_MS), request


def refuse(raw: bytes, settings: Settings) -> RefusedRequest:
    """The request as it is kept, read back."""
    refusal, request = decide(raw, settings)
    assert isinstance(refusal, Refusal)
    assert request.head is not None
    body = request.contents[-1]
    assert isinstance(body, bytes)
    assert could_be_plivos(refusal, request.head, body)
    kept = refused_request(
        refusal, request.head, body, key="k", received_at_ms=RECEIVED_AT_MS, peer=PEER, client="192.0.2.7"
    )
    back = decode_refused(encode_refused(kept))
    assert back is not None
    return back


def with_settings(**changes: Any) -> Settings:
    return Settings(**({"auth_tokens": GOOD.auth_tokens} | changes))


def chunked(request: Request) -> bytes:
    head, _, body = request.encode().partition(b"\r\n\r\n")
    return head + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


WRONG_TOKEN = with_settings(auth_tokens=((MAIN, "another"),))
MENDED: dict[str, tuple[Request | bytes, Settings, Settings]] = {
    "token": (Request(), WRONG_TOKEN, GOOD),
    "token, JSON": (Request(members=dict(PAIRS)), WRONG_TOKEN, GOOD),
    "token, GET": (Request(method="GET", query=PAIRS), WRONG_TOKEN, GOOD),
    "token, query and body": (Request(query=[("tenant", "ä")]), WRONG_TOKEN, GOOD),
    "token, odd type": (Request(headers={"Content-Type": "text/plain"}), WRONG_TOKEN, GOOD),
    "token, compressed": (
        Request(body=COMPRESSED, pairs=PAIRS, headers={"Content-Encoding": "gzip"}), WRONG_TOKEN, GOOD,
    ),
    "token, unpacked by a proxy": (Request(headers={"Content-Encoding": "gzip"}), WRONG_TOKEN, GOOD),
    "token, chunked": (chunked(Request(headers=CHUNKED)), WRONG_TOKEN, GOOD),
    "token, account's path": (Request(target=f"/callbacks/{MAIN}"), WRONG_TOKEN, GOOD),
    "account": (Request(target=f"/callbacks/{MAIN}"), with_settings(auth_tokens=(("MAOTHER", "x"),)), GOOD),
    "public URL": (
        Request(host="ingest:8080", base="https://hooks.example.com/x/callbacks"),
        with_settings(public_url="https://hooks.example.com"),
        with_settings(public_url="https://hooks.example.com/x"),
    ),
    "trusted proxy": (
        Request(host="ingest:8080", base="https://hooks.example.com/callbacks", headers=PROXIED),
        GOOD,
        with_settings(trusted_proxies=(ip_network("10.0.0.0/8"),)),
    ),
    "V2 accepted": (
        Request(
            headers=UNSIGNED
            | {
                "X-Plivo-Signature-V2": sign_v2(MAIN_TOKEN, "http://hooks.example.com/callbacks", NONCE),
                "X-Plivo-Signature-V2-Nonce": NONCE,
            }
        ),
        GOOD,
        with_settings(accept_v2=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "wrong", "mended"), MENDED.values(), ids=MENDED)
def test_mended_settings_make_the_callback_that_ingest_would_have_taken(request_, wrong, mended):
    raw = request_ if isinstance(request_, bytes) else request_.encode()
    kept = refuse(raw, wrong)
    assert isinstance(ReleaseVerifier(wrong).verify(kept), Refusal)
    taken, _ = decide(raw, mended)
    assert isinstance(taken, AcceptedCallback)
    assert ReleaseVerifier(mended).verify(kept) == taken
    assert decode_callback(taken.value).received_at_ms == RECEIVED_AT_MS


@pytest.mark.parametrize("request_", [each for each, _, _ in MENDED.values()], ids=MENDED)
def test_forged_parameters_stay_refused(request_):
    """The right signature of another request."""
    raw = request_ if isinstance(request_, bytes) else request_.encode()
    if b"SessionSecondPartyHangup" not in raw:
        return  # compressed
    kept = refuse(raw.replace(b"SessionSecondPartyHangup", b"SessionFirstPartyyHangup"), WRONG_TOKEN)
    for _, _, mended in MENDED.values():
        if not mended.accept_v2:  # which covers no parameters
            assert isinstance(ReleaseVerifier(mended).verify(kept), Refusal)


@pytest.mark.parametrize(
    ("dialled", "target", "public_url"),
    [
        ("https://h.example.com/hooks/callbacks", "/hooks/callbacks", "https://h.example.com/hooks"),
        (
            f"https://h.example.com/a/b/callbacks/{MAIN}",
            f"/a/b/callbacks/{MAIN}",
            "https://h.example.com/a/b",
        ),
        ("https://h.example.com/hooks/callbacks", "/hooks/callbacks", "https://h.example.com"),
        ("https://h.example.com/callback", "/callback", "https://h.example.com"),
        ("https://h.example.com/", "/", "https://h.example.com"),
    ],
)
def test_path_that_is_none_of_ours_is_read_by_the_url_that_was_dialled(dialled, target, public_url):
    settings = with_settings(public_url=public_url)
    kept = refuse(Request(target=target, base=dialled).encode(), settings)
    assert (kept.status, kept.code) == (404, "unknown_path")
    accepted = ReleaseVerifier(settings).verify(kept)
    assert isinstance(accepted, AcceptedCallback)
    assert decode_callback(accepted.value).body == FORM_BODY
    elsewhere = with_settings(public_url="https://other.example.com")
    assert ReleaseVerifier(elsewhere).verify(kept) == Refusal(404, "unknown_path", *kept_detail(kept))


def kept_detail(kept: RefusedRequest) -> tuple[str, str]:
    decision = ReleaseVerifier(GOOD).verify(kept)
    assert isinstance(decision, Refusal)
    return decision.detail, decision.hint


def test_other_products_of_plivos_under_other_paths_stay_refused():
    """They are signed with the same token, and name no masking session."""
    request = Request(target="/answer", pairs=[("CallUUID", "c")])
    decision = ReleaseVerifier(GOOD).verify(refuse(request.encode(), GOOD))
    assert isinstance(decision, Refusal)
    assert decision.code == "unknown_path"


def test_without_verification_unsigned_callbacks_are_good_under_our_paths_alone():
    off = Settings(verify="off")
    unsigned = refuse(Request(headers=UNSIGNED).encode(), GOOD)
    assert isinstance(ReleaseVerifier(GOOD).verify(unsigned), Refusal)
    assert isinstance(ReleaseVerifier(off).verify(unsigned), AcceptedCallback)
    elsewhere = refuse(Request(target="/answer").encode(), GOOD)
    assert isinstance(ReleaseVerifier(off).verify(elsewhere), Refusal)


ODD = st.binary(max_size=8) | st.sampled_from(
    [
        b"/callbacks",
        b"SessionUUID=x",
        b"?",
        b"http://",
        b"%ff",
        b"\xed\xa0\x80",
        b"10.0.0.3, ",
        b"gzip",
        b"/json",
        b"{",
    ]
)
ODDS = st.lists(ODD, max_size=4).map(b"".join)


@given(
    st.sampled_from([b"POST", b"GET"]),
    ODDS,
    st.dictionaries(st.sampled_from(plivo_headers.ALL), ODDS),
    ODDS,
    ODDS,
)
@settings(max_examples=examples(200))
def test_anything_refused_can_be_kept_and_is_refused_for_the_same_reason_again(
    method, target, signatures, text, body
):
    others = [b"Host", b"Content-Type", b"Content-Encoding", b"X-Forwarded-Host"]
    headers = {name.encode(): value for name, value in signatures.items()} | dict.fromkeys(others, text)
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers.items())
    raw = b"%b /%b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (method, target, lines, len(body), body)
    trusting = with_settings(trusted_proxies=(ip_network("10.0.0.0/8"),))
    refusal, request = decide(raw, trusting)
    assert isinstance(refusal, Refusal)
    if request.head is None or not request.contents or not isinstance(request.contents[-1], bytes):
        return
    if could_be_plivos(refusal, request.head, request.contents[-1]):
        again = ReleaseVerifier(trusting).verify(refuse(raw, trusting))
        assert isinstance(again, Refusal)
        assert again.code == refusal.code


def test_head_that_cannot_be_read_stays_refused():
    kept = refuse(Request().encode(), WRONG_TOKEN)
    broken = RefusedRequest("k", 1, 403, "signature_wrong", "", PEER, PEER, b"rubbish\r\n\r\n", b"")
    assert isinstance(ReleaseVerifier(GOOD).verify(broken), Refusal)
    assert ReleaseVerifier(GOOD).checked_url(broken) == ""
    assert ReleaseVerifier(GOOD).checked_url(kept) == "http://hooks.example.com/callbacks"


def test_body_beyond_a_lowered_bound_stays_refused():
    decision = ReleaseVerifier(with_settings(max_body_bytes=1024)).verify(
        refuse(Request(body=b"SessionUUID=s&a=" + b"x" * 2_000).encode(), WRONG_TOKEN)
    )
    assert isinstance(decision, Refusal)
    assert decision.code == "body_too_large"


def test_kept_headers_are_all_that_verification_reads():
    """The whole head, and what is kept of it, are decided alike."""
    headers = CIMultiDict(PROXIED | {"Cookie": "a=b", "X-Plivo-Signature-Ma-V3": "c2ln", "User-Agent": "x"})
    raw = Request(headers=dict(headers)).encode()
    assert ReleaseVerifier(GOOD).verify(refuse(raw, WRONG_TOKEN)) == decide(raw, GOOD)[0]
