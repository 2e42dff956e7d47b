"""HTTP responses as bytes: each is made whole, and written with one call."""

from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Final

import msgspec

from maskline.ingest.refusal import Refusal

RETRY_AFTER_S: Final = 1
"""Redis is back within seconds, or not for long; a sender that waits longer misses its own deadline."""
REFUSALS_CACHED_MAX: Final = 128
"""Responses to refusals that are kept ready: there are some two dozen, and few details that vary."""


class Response:
    """A whole response. It has nothing of the request in it, so one serves any number of them."""

    __slots__ = ("_body", "_bytes", "_dated_second", "_head", "_tail")

    def __init__(self, status: int, *, headers: str = "", body: bytes = b"", close: bool = False) -> None:
        connection = "Connection: close\r\n" if close else ""
        self._head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{headers}{connection}".encode()
        self._tail = b"Content-Length: %d\r\n\r\n" % len(body)
        self._body = body
        self._bytes = b""
        self._dated_second = 0
        """The second of the Date header in `_bytes`, in Unix time."""

    def encode(self) -> bytes:
        """Head and body, with this second's Date."""
        now = int(time())
        if now != self._dated_second:
            self._dated_second = now
            date = f"Date: {formatdate(now, usegmt=True)}\r\n".encode()
            self._bytes = self._head + date + self._tail + self._body
        return self._bytes

    def encode_head(self) -> bytes:
        """The response to HEAD: the same without the body."""
        return self.encode().removesuffix(self._body)


OK: Final = Response(200)
OK_AND_CLOSE: Final = Response(200, close=True)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_STATUS_HEADERS: Final = {405: "Allow: GET, POST\r\n", 503: f"Retry-After: {RETRY_AFTER_S}\r\n"}


@lru_cache(REFUSALS_CACHED_MAX)
def refusal_response(refusal: Refusal, *, close: bool) -> Response:
    """The response `{"error": code, "detail": …}` with the headers that belong to the status.

    `close`: whether it tells the client that the connection ends with it.
    """
    body = msgspec.json.encode({"error": refusal.code, "detail": refusal.detail})
    headers = f"Content-Type: application/json\r\n{_STATUS_HEADERS.get(refusal.status, '')}"
    return Response(refusal.status, headers=headers, body=body, close=close)
