"""Decides which refused requests are kept for a release: those that could be Plivo's. Pure.

A request could be Plivo's if it bears one of Plivo's headers (a signature, a nonce), right or wrong, or names a
SessionUUID. What scanners send has neither, and costs no more than its answer.

| refused as | kept, if it could be Plivo's | since it is good once |
| --- | --- | --- |
| 403 `signature_wrong` | yes | MASKLINE_AUTH_TOKENS, MASKLINE_PUBLIC_URL or MASKLINE_TRUSTED_PROXIES is mended |
| 403 `signature_missing`, `nonce_missing` | yes | MASKLINE_ACCEPT_V2 is on; or MASKLINE_VERIFY off, at the release |
| 404 `unknown_account` | yes | the account is configured |
| 404 `unknown_path` | yes | the URL at Plivo, or the proxy, is mended: the signature shows what was dialled |
| 400 `not_decodable`, `content_encoding`, `body_broken` | yes | a later maskline reads it |
| 405, 408, 413, malformed HTTP, 503 | no: not Plivo's, or not complete | |

A head alone can show the refusal. Then the body is awaited all the same, if it is needed: for a request that bears a
header of Plivo's or a SessionUUID in its head, and for an unsigned POST to a path of ours, whose body may have one. A
client that sends no body before it is told to (`Expect`) is refused at once: Plivo does not wait to be told.
"""

from typing import Final

from maskline.ingest import plivo_headers
from maskline.ingest.parser.request_head import RequestHead
from maskline.ingest.refusal import Refusal

HEAD_CODES: Final = frozenset({"signature_missing", "nonce_missing", "unknown_account", "unknown_path"})
"""Refusals that the head alone decides."""
KEPT_CODES: Final = HEAD_CODES | {"signature_wrong", "not_decodable", "content_encoding", "body_broken"}

_HEADER_BEGINNING: Final = plivo_headers.BEGINNING.lower().encode()
_METHODS: Final = ("POST", "GET")
_SESSION: Final = "SessionUUID"
_SESSION_BYTES: Final = b"SessionUUID"


def awaits_body(refusal: Refusal, head: RequestHead) -> bool:
    """Whether a request that is refused by its head is to be read to its end, as it may be kept."""
    if refusal.code not in HEAD_CODES or head.method not in _METHODS or "Expect" in head.headers:
        return False
    return (refusal.code == "signature_missing" and head.method == "POST") or _head_could_be_plivos(head)


def could_be_plivos(refusal: Refusal, head: RequestHead, body: bytes) -> bool:
    """Whether a request that was read to its end is to be kept. `body`: as it came, perhaps compressed."""
    if refusal.code not in KEPT_CODES or head.method not in _METHODS:
        return False
    return _head_could_be_plivos(head) or _SESSION_BYTES in body


def names_session(head: RequestHead, body: bytes) -> bool:
    """Whether a request names a SessionUUID, in its query or in its body."""
    return _SESSION in head.target or _SESSION_BYTES in body


def _head_could_be_plivos(head: RequestHead) -> bool:
    # A search of the bytes costs a tenth of six look-ups; a text of a header that has the name in it is no harm.
    return _HEADER_BEGINNING in head.raw.lower() or _SESSION in head.target
