"""Which refused requests are kept: what bears a header of Plivo's or names a session, and nothing of scanners."""

import pytest
from ingest_kit import MAIN, Request

from maskline.ingest.auth.verifier import (
    METHOD_NOT_ALLOWED,
    SIGNATURE_MISSING,
    SIGNATURE_WRONG,
    UNKNOWN_ACCOUNT,
)
from maskline.ingest.http.limits import CLIENT_GONE
from maskline.ingest.parser.request_body import BODY_TOO_LARGE
from maskline.ingest.parser.request_head import RequestHead, read_head
from maskline.ingest.refusal import Refusal
from maskline.ingest.refused.could_be_plivos import awaits_body, could_be_plivos

UNKNOWN_PATH = Refusal(404, "unknown_path", "")
UNSIGNED = {"X-Plivo-Signature-V3": None, "X-Plivo-Signature-V3-Nonce": None}
V2 = UNSIGNED | {"X-Plivo-Signature-V2": "c2ln", "X-Plivo-Signature-V2-Nonce": "1"}
SESSION = b"EventName=SessionTimeout&SessionUUID=s"


def head_of(**parts: object) -> RequestHead:
    raw = Request(**parts).encode()  # type: ignore[arg-type]
    head = read_head(raw[: raw.index(b"\r\n\r\n") + 4])
    assert isinstance(head, RequestHead)
    return head


@pytest.mark.parametrize(
    ("refusal", "head", "body", "kept"),
    [
        (SIGNATURE_WRONG, head_of(), b"", True),
        (UNKNOWN_ACCOUNT, head_of(target=f"/callbacks/{MAIN}x"), b"a=b", True),
        (UNKNOWN_PATH, head_of(target="/hook"), b"a=b", True),
        (SIGNATURE_MISSING, head_of(headers=V2), b"a=b", True),
        (SIGNATURE_MISSING, head_of(headers=UNSIGNED | {"X-Plivo-Signature-V3-Nonce": "1"}), b"", True),
        (SIGNATURE_MISSING, head_of(headers=UNSIGNED), SESSION, True),
        (SIGNATURE_MISSING, head_of(method="GET", query=[("SessionUUID", "s")], headers=UNSIGNED), b"", True),
        (SIGNATURE_MISSING, head_of(headers=UNSIGNED), b"user=admin&password=admin", False),
        (UNKNOWN_PATH, head_of(method="GET", target="/wp-login.php", headers=UNSIGNED), b"", False),
        (METHOD_NOT_ALLOWED, head_of(method="PUT"), SESSION, False),
        (BODY_TOO_LARGE, head_of(), SESSION, False),
        (CLIENT_GONE, head_of(), SESSION, False),
    ],
)
def test_kept_is_what_could_be_plivos(refusal, head, body, kept):
    assert could_be_plivos(refusal, head, body) is kept


@pytest.mark.parametrize(
    ("refusal", "head", "awaited"),
    [
        (UNKNOWN_ACCOUNT, head_of(), True),
        (UNKNOWN_PATH, head_of(target="/hook"), True),
        (UNKNOWN_PATH, head_of(target="/hook", headers=UNSIGNED), False),
        (SIGNATURE_MISSING, head_of(headers=V2), True),
        (SIGNATURE_MISSING, head_of(headers=UNSIGNED), True),
        (SIGNATURE_MISSING, head_of(headers=UNSIGNED | {"Expect": "100-continue"}), False),
        (SIGNATURE_MISSING, head_of(method="GET", headers=UNSIGNED), False),
        (METHOD_NOT_ALLOWED, head_of(method="PUT"), False),
        (BODY_TOO_LARGE, head_of(), False),
    ],
)
def test_body_is_awaited_only_where_it_may_be_kept(refusal, head, awaited):
    assert awaits_body(refusal, head) is awaited
