"""What is kept of a refused request: the headers that verification reads, byte for byte, and no others."""

import pytest
from ingest_kit import FORM, NONCE, Request

from maskline.ingest.auth.verifier import SIGNATURE_WRONG
from maskline.ingest.parser.request_head import RequestHead, read_head
from maskline.ingest.refused.request import (
    RefusedRequest,
    decode_refused,
    encode_refused,
    kept_head,
    refused_request,
    share_of,
)

SECRETS = {"Cookie": "session=secret", "Authorization": "Bearer secret", "User-Agent": "agent-of-a-secret"}
PROXY = {
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "hooks.example.com",
    "X-Forwarded-For": "192.0.2.7",
}


def head_of(request: Request) -> RequestHead:
    raw = request.encode()
    head = read_head(raw[: raw.index(b"\r\n\r\n") + 4])
    assert isinstance(head, RequestHead)
    return head


def refused(request: Request, body: bytes = b"") -> RefusedRequest:
    return refused_request(
        SIGNATURE_WRONG,
        head_of(request),
        body,
        key="k-1",
        received_at_ms=7,
        peer="10.0.0.1",
        client="192.0.2.7",
    )


def test_head_is_kept_as_far_as_it_is_verified():
    request = Request(target="/callbacks?a=%C3%A4", headers=SECRETS | PROXY)
    kept = read_head(refused(request).head)
    assert isinstance(kept, RequestHead)
    whole = head_of(request)
    assert (kept.method, kept.target) == (whole.method, whole.target)
    assert kept.headers["X-Plivo-Signature-V3"] == whole.headers["X-Plivo-Signature-V3"]
    assert (kept.headers["X-Plivo-Signature-V3-Nonce"], kept.headers["Content-Type"]) == (NONCE, FORM)
    assert PROXY.items() <= dict(kept.headers).items()
    assert not any(secret.encode() in kept.raw for secret in SECRETS.values())
    assert kept.content_length == 0
    assert not kept.chunked


def test_doubled_headers_are_kept_doubled():
    raw = b"POST / HTTP/1.1\r\nHost: h\r\nx-plivo-signature-v3:  a\r\nX: y\r\nX-Plivo-Signature-V3: b\r\n\r\n"
    assert kept_head(raw) == raw.replace(b"X: y\r\n", b"")


def test_request_is_read_back():
    request = refused(Request(), b"\xff\x00")
    assert decode_refused(encode_refused(request)) == request


def test_foreign_values_are_not_read():
    newer = encode_refused(refused(Request())).replace(b"\x01", b"\x02")
    assert decode_refused(b"") is decode_refused(b"\x93") is decode_refused(newer) is None


def test_repr_hides_the_parameters():
    text = repr(refused(Request(target="/callbacks?From=%2B14155550123"), b"From=%2B14155550123"))
    assert "5550123" not in text
    assert "signature_wrong" in text


@pytest.mark.parametrize(
    ("address", "share"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("/run/a socket", "/run/a-socket"),
        ("x" * 200, "x" * 64),
        ("", "unknown"),
    ],
)
def test_share_is_an_address_or_a_network_without_blanks(address, share):
    assert share_of(address) == share
