"""Which paths name which account, and how those that nearly do are explained."""

from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_kit import MAIN, MAIN_TOKEN, NONCE, PAIRS, SUB, node_settings
from multidict import CIMultiDict, CIMultiDictProxy

from maskline.ingest.auth.callback_paths import account_of_path, explain_unknown_path
from maskline.ingest.auth.signatures import sign_v2, sign_v3
from maskline.ingest.auth.verifier import AcceptedCallback, CallbackVerifier
from maskline.ingest.refusal import Refusal
from maskline.schemas.callback import decode_callback
from maskline.schemas.parameters import Parameters

VERIFIER = CallbackVerifier(node_settings("redis://unused", "n", accept_v2=True))


def verify(target: str, dialled: str = "", **more: str) -> AcceptedCallback | Refusal:
    """A request to `target`, signed for the URL with the path `dialled`, by default as it came."""
    signature = sign_v3(
        MAIN_TOKEN, "POST", f"http://h{dialled or target}", Parameters([], PAIRS, None), NONCE
    )
    headers = more or {"X-Plivo-Signature-V3": signature, "X-Plivo-Signature-V3-Nonce": NONCE}
    head = VERIFIER.check_head("POST", target, CIMultiDictProxy(CIMultiDict({"Host": "h"} | headers)))
    return head if isinstance(head, Refusal) else VERIFIER.verify(head, urlencode(PAIRS).encode(), 7)


@pytest.mark.parametrize(
    ("path", "account"),
    [
        ("/callbacks", ""), ("/callbacks/", ""), ("/callbacks//", ""), ("/callback%73", ""), ("/%63allbacks%2F", ""),
        ("/callbacks/MA1", "MA1"), ("/callbacks/MA1/", "MA1"), ("/callbacks/%4DA1", "MA1"),
        ("/callbacks/%4dA1%2f", "MA1"),
        ("/callbacks%2FMA1", "MA1"), ("/callbacks/MA1/x", "MA1/x"), ("/callbacks/%254DA1", "%4DA1"),
        ("/callbacks/\udcff%41", "\udcffA"),
        ("/", None), ("", None), ("*", None), ("/callbacksx", None), ("/Callbacks", None), ("//callbacks", None),
        ("/x/callbacks", None), ("/callbacks;v=1", None), ("/callbacks%3Fa", None),
    ],
)  # fmt: skip
def test_account_of_path(path, account):
    assert account_of_path(path) == account


@given(st.sampled_from([f"/callbacks/{MAIN}", "/callbacks"]), st.data())
def test_path_is_read_decoded_and_signed_as_dialled(path, data):
    escaped = data.draw(st.sets(st.integers(1, len(path) - 1)))
    target = "".join(f"%{ord(char):02X}" if at in escaped else char for at, char in enumerate(path))
    target += data.draw(st.sampled_from(["", "/"]))
    decision = verify(target)
    assert isinstance(decision, AcceptedCallback), decision
    assert decode_callback(decision.value).auth_id == MAIN


@pytest.mark.parametrize("path", ["/callbacks", f"/callbacks/{MAIN}"])
def test_proxy_may_add_or_remove_a_slash(path):
    for target, dialled in ((path, path + "/"), (path + "/", path)):
        assert isinstance(verify(target, dialled), AcceptedCallback)
        v2 = sign_v2(MAIN_TOKEN, f"http://h{dialled}", NONCE)
        more = {"X-Plivo-Signature-V2": v2, "X-Plivo-Signature-V2-Nonce": NONCE}
        assert isinstance(verify(target, **more), AcceptedCallback)
    wrong = verify(path, f"/callbacks/{SUB}")
    assert isinstance(wrong, Refusal)
    assert wrong.code == "signature_wrong"


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("/hooks/plivo/callbacks", "/hooks/plivo"), ("/hooks/plivo/callbacks/", "/hooks/plivo"),
        (f"/v1/callbacks/{MAIN}", "/v1"), (f"/v1//callbacks/%4D{MAIN[1:]}?a=b", "/v1"), ("/callbacks/callbacks/x", ""),
        ("/hooks%2Fplivo/callbacks", "/hooks/plivo"),
    ],
)  # fmt: skip
def test_prefix_that_no_proxy_stripped_is_named(target, named):
    refusal = verify(target)
    if not named:  # an account of a strange name
        assert refusal == VERIFIER.check_head("POST", "/callbacks/unknown", CIMultiDictProxy(CIMultiDict()))
        return
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (404, "unknown_path")
    assert f"strip what stands before, {named}" in refusal.detail
    assert f"strip {named} " in refusal.hint
    assert (
        f"MASKLINE_PUBLIC_URL to what Plivo dials up to and without /callbacks, as https://hooks.example.com{named}"
        in (refusal.hint)
    )


@given(
    st.lists(
        st.text(min_size=1, max_size=40) | st.sampled_from(["+14155550123", "14155550123", "a" * 33]),
        max_size=6,
    )
)
def test_explanation_of_a_path_is_short_and_repeats_no_phone_number(segments):
    path = "/".join(["", *(quote(segment, safe="") for segment in segments), "callbacks"])
    if account_of_path(path) is not None:
        return
    for text in explain_unknown_path(path):
        assert len(text) < 400
        assert text.isascii()
        assert text.isprintable()
        assert "4155550123" not in text
