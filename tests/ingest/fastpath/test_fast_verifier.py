"""The quick decision beside the intake's: whatever it accepts, the intake accepts to the same bytes."""

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ingest_kit import FORM, MAIN, MAIN_TOKEN, NONCE, PAIRS, SUB, SUB_TOKEN, Request, node_settings

from maskline.ingest.auth.signatures import sign_v2, sign_v3
from maskline.ingest.auth.verifier import AcceptedCallback, CallbackVerifier
from maskline.ingest.fastpath import head_templates, verifier
from maskline.ingest.fastpath.form_templates import FormTemplates
from maskline.ingest.fastpath.head_templates import is_ordinary
from maskline.ingest.fastpath.verifier import FastVerifier
from maskline.ingest.parser.aiohttp_parser import HEAD_END
from maskline.ingest.parser.request_head import RequestHead, read_head
from maskline.ingest.refusal import Refusal
from maskline.schemas.parameters import Parameters

NOW = 1_700_000_000_000
INTAKE = CallbackVerifier(
    node_settings("redis://unused", "n", auth_tokens=((MAIN, MAIN_TOKEN), (SUB, "old"), (SUB, SUB_TOKEN)))
)


def by_intake(
    request: bytes, intake: CallbackVerifier = INTAKE, way: FastVerifier | None = None
) -> AcceptedCallback | Refusal:
    """The intake's decision; `way` learns from it as a connection has it learn."""
    head, _, body = request.partition(HEAD_END)
    ordinary = read_head(head + HEAD_END)
    assert isinstance(ordinary, RequestHead)
    assert is_ordinary(ordinary)
    read = intake.read_head("POST", ordinary.target, ordinary.headers)
    if isinstance(read, Refusal):
        return read
    decision = intake.decide(read, body, NOW)
    if way is not None and isinstance(decision, AcceptedCallback):
        way.learn(ordinary, read, body)
    return decision


def by_quick(request: bytes, way: FastVerifier) -> AcceptedCallback | None:
    layout = way.heads.find(request)
    if layout is None:
        return None
    match = layout.match(request)
    target, _, *signed = match.group(*layout.groups)
    return way.decide(layout, target, *signed, request[match.end() :], NOW)


def taught(*requests: bytes, intake: CallbackVerifier = INTAKE) -> FastVerifier:
    way = FastVerifier(intake, FormTemplates())
    for request in requests:
        for _ in range(head_templates.LEARN_AFTER + 1):
            by_intake(request, intake, way)
    return way


MA: dict[str, str | None] = {"X-Plivo-Signature-Ma-V3": "x"}
WAY = taught(
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
    """Like what was learned, and signed by somebody for something, perhaps for what was sent."""
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
def test_what_is_accepted_quickly_is_what_the_intake_accepts(request):
    decision = by_quick(request, WAY)
    assert decision is None or decision == by_intake(request)


@pytest.mark.parametrize(
    "request_",
    [Request(), Request(target=f"/callbacks/{SUB}", token=SUB_TOKEN), Request(query=[("tenant", "7"), ("b", "x&")]),
     Request(token=SUB_TOKEN), Request(token="old"), Request(pairs=[(name, text + "!") for name, text in PAIRS])],
)  # fmt: skip
def test_what_plivo_sends_is_accepted_quickly(request_):
    request = request_.encode()
    decision = by_quick(request, WAY)
    assert decision is not None
    assert decision == by_intake(request)


def test_the_main_account_signs_for_its_subaccounts():
    good = sign_v3(
        MAIN_TOKEN, "POST", f"http://hooks.example.com/callbacks/{SUB}", Parameters([], PAIRS, None), NONCE
    )
    request = Request(
        target=f"/callbacks/{SUB}", token="unknown", headers={"X-Plivo-Signature-Ma-V3": f"x,{good}"}
    ).encode()
    decision = by_quick(request, taught(request))
    assert decision is not None
    assert decision == by_intake(request)


REPLAYED = Request(pairs=[("SessionUUID", "s"), ("a", "b"), ("c", "d")])


@pytest.mark.parametrize("body", [b"SessionUUID=s&a=b=c&d", b"SessionUUID=s&a&b=c=d", b"SessionUUID=s&a=bc&d=",
                                  b"SessionUUID=s&a=b%3Dc&d", b"SessionUUID=s&a=b&c=e"])  # fmt: skip
def test_a_signature_is_not_good_for_another_form(body):
    """Forms that would be signed alike, or nearly, if their separators were not looked at."""
    request = REPLAYED.encode()
    way = taught(request)
    assert by_quick(request, way) is not None
    head, _, was = request.partition(HEAD_END)
    other = (
        head.replace(b"Content-Length: %d" % len(was), b"Content-Length: %d" % len(body)) + HEAD_END + body
    )
    decision = by_quick(other, way)
    assert decision is None or decision == by_intake(other)


@pytest.mark.parametrize(
    "changes", [{"token": "x"}, {"headers": {"Host": "other"}}, {"headers": MA, "token": "x"}]
)
def test_nothing_is_learned_of_a_refused_request(changes):
    way = taught(Request(**changes).encode())
    assert not way.heads.known
    assert not len(way._forms)


@pytest.mark.parametrize(
    "request_",
    [Request(members={"SessionUUID": "s"}), Request(query=PAIRS, pairs=[], body=b""),
     Request(headers={"Content-Type": "Application/JSON"}, members={"SessionUUID": "s"})],
)  # fmt: skip
def test_nothing_is_learned_of_what_is_no_form(request_):
    assert not taught(request_.encode()).heads.known


def test_without_verification_nothing_is_learned():
    intake = CallbackVerifier(node_settings("redis://unused", "n", verify="off", auth_tokens=()))
    assert isinstance(by_intake(Request().encode(), intake), AcceptedCallback)
    assert not taught(Request().encode(), intake=intake).heads.known


def test_targets_are_bounded(monkeypatch):
    monkeypatch.setattr(verifier, "TARGETS_MAX", 5)
    way = taught(Request().encode())
    for number in range(20):
        request = Request(query=[("order", str(number))]).encode()
        by_intake(request, way=way)
        assert by_quick(request, way) == by_intake(request)
        (targets,) = way._dialled.values()
        assert 0 < len(targets) <= 5
    long = Request(query=[("order", "1" * verifier.TARGET_MAX_BYTES)]).encode()
    by_intake(long, way=way)
    assert by_quick(long, way) is None


def test_targets_go_with_the_layout_they_belong_to(monkeypatch):
    monkeypatch.setattr(head_templates, "LEARN_AFTER", 1)
    way = FastVerifier(INTAKE, FormTemplates())
    for number in range(2 * head_templates.KNOWN_MAX):
        more: Any = {f"X-{number}": "1"}
        for _ in range(2):
            by_intake(Request(headers=more).encode(), way=way)
        assert way._dialled.keys() == {*way.heads.known}
    assert by_quick(Request(headers=more).encode(), way) is not None


def test_the_content_type_is_stored_as_it_came():
    other = Request(headers={"Content-Type": FORM.upper() + "; charset=UTF-8"}).encode()
    way = taught(Request().encode(), other)
    for request in (Request().encode(), other):
        assert by_quick(request, way) == by_intake(request) != None  # noqa: E711 - all three


def test_a_v3_signature_without_a_nonce_teaches_nothing():
    """The intake went by the V2 signature; here a V3 signature over no nonce would be taken."""
    settings = node_settings("redis://unused", "n", auth_tokens=((MAIN, MAIN_TOKEN),), accept_v2=True)
    v2 = sign_v2(MAIN_TOKEN, "http://hooks.example.com/callbacks", NONCE)
    changes = {
        "X-Plivo-Signature-V3-Nonce": None, "X-Plivo-Signature-V2": v2, "X-Plivo-Signature-V2-Nonce": NONCE,
    }  # fmt: skip
    request, intake = Request(headers=changes).encode(), CallbackVerifier(settings)
    assert isinstance(by_intake(request, intake), AcceptedCallback)
    assert not taught(request, intake=intake).heads.known


def test_requests_under_a_joined_type_take_the_fast_path():
    for content_type in (f"{FORM}, {FORM}", "text/plain", "*/*"):
        request = Request(headers={"Content-Type": content_type}).encode()
        way = taught(request)
        assert by_quick(request, way) == by_intake(request) != None  # noqa: E711 - all three
