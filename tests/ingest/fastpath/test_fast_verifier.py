"""The fast path beside CallbackVerifier: what it accepts, CallbackVerifier accepts with the same bytes."""

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ingest_kit import FORM, MAIN, MAIN_TOKEN, NONCE, PAIRS, SUB, SUB_TOKEN, Request, node_settings

from maskline.ingest.auth.signatures import sign_v2, sign_v3
from maskline.ingest.auth.verifier import AcceptedCallback, CallbackVerifier
from maskline.ingest.fastpath import fast_verifier, head_templates
from maskline.ingest.fastpath.fast_verifier import FastVerifier
from maskline.ingest.fastpath.form_templates import FormTemplates
from maskline.ingest.fastpath.head_templates import fits_fast_path
from maskline.ingest.parser.aiohttp_parser import HEAD_END
from maskline.ingest.parser.request_head import RequestHead, read_head
from maskline.ingest.refusal import Refusal
from maskline.schemas.parameters import Parameters

NOW = 1_700_000_000_000
VERIFIER = CallbackVerifier(
    node_settings("redis://unused", "n", auth_tokens=((MAIN, MAIN_TOKEN), (SUB, "old"), (SUB, SUB_TOKEN)))
)


def verify(
    request: bytes, verifier: CallbackVerifier = VERIFIER, fast: FastVerifier | None = None
) -> AcceptedCallback | Refusal:
    """CallbackVerifier's decision; `fast` learns from it as on a connection."""
    head, _, body = request.partition(HEAD_END)
    request_head = read_head(head + HEAD_END)
    assert isinstance(request_head, RequestHead)
    assert fits_fast_path(request_head)
    read = verifier.check_head("POST", request_head.target, request_head.headers)
    if isinstance(read, Refusal):
        return read
    decision = verifier.verify(read, body, NOW)
    if fast is not None and isinstance(decision, AcceptedCallback):
        fast.learn(request_head, read, body)
    return decision


def verify_fast(request: bytes, fast: FastVerifier) -> AcceptedCallback | None:
    template = fast.head_templates.find(request)
    if template is None:
        return None
    match = template.match(request)
    return fast.verify(template, match.group(*template.groups), request[match.end() :], NOW)


def taught(*requests: bytes, verifier: CallbackVerifier = VERIFIER) -> FastVerifier:
    fast = FastVerifier(verifier, FormTemplates())
    for request in requests:
        for _ in range(head_templates.LEARN_AFTER + 1):
            verify(request, verifier, fast)
    return fast


MA: dict[str, str | None] = {"X-Plivo-Signature-Ma-V3": "x"}
FAST = taught(
    Request().encode(),
    Request(target=f"/callbacks/{SUB}", token=SUB_TOKEN).encode(),
    Request(query=[("tenant", "7"), ("b", "x&")]).encode(),
    Request(headers=MA).encode(),
    Request(pairs=[*reversed(PAIRS)]).encode(),
)

orders = st.permutations(PAIRS)
texts = st.text(max_size=5) | st.sampled_from(["", "null", "a&b", "%", "+14155550123", "é"])


@st.composite
def requests(draw):
    """Like what was learned, and signed with some token for some parameters, perhaps for those that were sent."""
    pairs = [
        (name, draw(st.just(text) | texts))
        for name, text in draw(st.sampled_from([PAIRS, PAIRS[::-1]]) | orders)
    ]
    signed = draw(st.just(pairs) | st.just(pairs) | st.permutations(pairs) | st.just(PAIRS))
    body = draw(
        st.none() | st.none() | st.just(urlencode(pairs, safe="+/:").encode()) | st.binary(max_size=8)
    )
    target = draw(
        st.sampled_from(["/callbacks", f"/callbacks/{SUB}", f"/callbacks/{MAIN}", "/callbacks/x", "/other"])
    )
    query = draw(st.sampled_from([[], [("tenant", "7"), ("b", "x&")], [("tenant", "8")], [("b", "é")]]))
    token = draw(st.sampled_from([MAIN_TOKEN, SUB_TOKEN, "old", "another"]))
    good = sign_v3(
        draw(st.sampled_from([MAIN_TOKEN, SUB_TOKEN])), "POST", f"http://hooks.example.com{target}",
        Parameters(query, pairs, None), NONCE,
    )  # fmt: skip
    listed = st.sampled_from(
        [good, f"x,{good}", f"{good},", ",", "x", good[:-1], good.lower(), "," * 50 + good]
    )
    more = draw(st.sampled_from([{}, {}, MA]) | listed.map(lambda v: {"X-Plivo-Signature-Ma-V3": v})
                | listed.map(lambda v: {"X-Plivo-Signature-V3": v})
                | st.just({"X-Plivo-Signature-V3-Nonce": "1"}))  # fmt: skip
    if body is not None:
        signed = pairs
    whole = Request(target=target, pairs=signed, query=query, body=body, headers=more, token=token).encode()
    if signed is not pairs and body is None and draw(st.booleans()):
        # Signed for other pairs than those that are sent.
        sent = urlencode(pairs).encode()
        head, _, was = whole.partition(HEAD_END)
        whole = (
            head.replace(b"Content-Length: %d" % len(was), b"Content-Length: %d" % len(sent))
            + HEAD_END
            + sent
        )
    return whole


@given(requests())
@example(Request().encode())
def test_fast_path_accepts_only_what_callback_verifier_accepts(request):
    decision = verify_fast(request, FAST)
    assert decision is None or decision == verify(request)


@pytest.mark.parametrize(
    "request_",
    [Request(), Request(target=f"/callbacks/{SUB}", token=SUB_TOKEN), Request(query=[("tenant", "7"), ("b", "x&")]),
     Request(token=SUB_TOKEN), Request(token="old"), Request(pairs=[(name, text + "!") for name, text in PAIRS])],
)  # fmt: skip
def test_ordinary_callbacks_take_the_fast_path(request_):
    request = request_.encode()
    decision = verify_fast(request, FAST)
    assert decision is not None
    assert decision == verify(request)


def test_main_account_signs_for_its_subaccounts():
    good = sign_v3(
        MAIN_TOKEN, "POST", f"http://hooks.example.com/callbacks/{SUB}", Parameters([], PAIRS, None), NONCE
    )
    request = Request(
        target=f"/callbacks/{SUB}", token="unknown", headers={"X-Plivo-Signature-Ma-V3": f"x,{good}"}
    ).encode()
    decision = verify_fast(request, taught(request))
    assert decision is not None
    assert decision == verify(request)


REPLAYED = Request(pairs=[("SessionUUID", "s"), ("a", "b"), ("c", "d")])


@pytest.mark.parametrize("body", [b"SessionUUID=s&a=b=c&d", b"SessionUUID=s&a&b=c=d", b"SessionUUID=s&a=bc&d=",
                                  b"SessionUUID=s&a=b%3Dc&d", b"SessionUUID=s&a=b&c=e"])  # fmt: skip
def test_signature_does_not_fit_another_form(body):
    """Forms whose signed texts would be equal, or nearly, if their separators were not compared."""
    request = REPLAYED.encode()
    fast = taught(request)
    assert verify_fast(request, fast) is not None
    head, _, was = request.partition(HEAD_END)
    other = (
        head.replace(b"Content-Length: %d" % len(was), b"Content-Length: %d" % len(body)) + HEAD_END + body
    )
    decision = verify_fast(other, fast)
    assert decision is None or decision == verify(other)


@pytest.mark.parametrize(
    "changes", [{"token": "x"}, {"headers": {"Host": "other"}}, {"headers": MA, "token": "x"}]
)
def test_refused_request_teaches_nothing(changes):
    fast = taught(Request(**changes).encode())
    assert not fast.head_templates.templates
    assert not len(fast._forms)


@pytest.mark.parametrize(
    "request_",
    [Request(members={"SessionUUID": "s"}), Request(query=PAIRS, pairs=[], body=b""),
     Request(headers={"Content-Type": "Application/JSON"}, members={"SessionUUID": "s"})],
)  # fmt: skip
def test_request_without_a_form_teaches_nothing(request_):
    assert not taught(request_.encode()).head_templates.templates


def test_without_verification_nothing_is_learned():
    verifier = CallbackVerifier(node_settings("redis://unused", "n", verify="off", auth_tokens=()))
    assert isinstance(verify(Request().encode(), verifier), AcceptedCallback)
    assert not taught(Request().encode(), verifier=verifier).head_templates.templates


def test_targets_are_bounded(monkeypatch):
    monkeypatch.setattr(fast_verifier, "TARGETS_MAX", 5)
    fast = taught(Request().encode())
    for number in range(20):
        request = Request(query=[("order", str(number))]).encode()
        verify(request, fast=fast)
        assert verify_fast(request, fast) == verify(request)
        (targets,) = fast._targets.values()
        assert 0 < len(targets) <= 5
    long = Request(query=[("order", "1" * fast_verifier.TARGET_MAX_BYTES)]).encode()
    verify(long, fast=fast)
    assert verify_fast(long, fast) is None


def test_targets_are_forgotten_with_their_template(monkeypatch):
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 1)
    fast = FastVerifier(VERIFIER, FormTemplates())
    for number in range(2 * head_templates.HEAD_TEMPLATES_MAX):
        more: Any = {f"X-{number}": "1"}
        for _ in range(2):
            verify(Request(headers=more).encode(), fast=fast)
        assert fast._targets.keys() == {*fast.head_templates.templates}
    assert verify_fast(Request(headers=more).encode(), fast) is not None


def test_content_type_is_stored_as_it_came():
    other = Request(headers={"Content-Type": FORM.upper() + "; charset=UTF-8"}).encode()
    fast = taught(Request().encode(), other)
    for request in (Request().encode(), other):
        assert verify_fast(request, fast) == verify(request) != None  # noqa: E711 - all three


def test_v3_signature_without_a_nonce_teaches_nothing():
    """CallbackVerifier accepted the V2 signature; the fast path would accept a V3 signature over no nonce."""
    settings = node_settings("redis://unused", "n", auth_tokens=((MAIN, MAIN_TOKEN),), accept_v2=True)
    v2 = sign_v2(MAIN_TOKEN, "http://hooks.example.com/callbacks", NONCE)
    changes = {
        "X-Plivo-Signature-V3-Nonce": None, "X-Plivo-Signature-V2": v2, "X-Plivo-Signature-V2-Nonce": NONCE,
    }  # fmt: skip
    request, verifier = Request(headers=changes).encode(), CallbackVerifier(settings)
    assert isinstance(verify(request, verifier), AcceptedCallback)
    assert not taught(request, verifier=verifier).head_templates.templates


def test_requests_under_a_joined_type_take_the_fast_path():
    for content_type in (f"{FORM}, {FORM}", "text/plain", "*/*"):
        request = Request(headers={"Content-Type": content_type}).encode()
        fast = taught(request)
        assert verify_fast(request, fast) == verify(request) != None  # noqa: E711 - all three
