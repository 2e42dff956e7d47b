"""Answers as bytes: made whole, written with one call."""

from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import Final

import msgspec

from maskline.ingest.refusal import Refusal

WRITE_TIMEOUT_S: Final = 30.0
"""A client that sends requests and does not read their answers is cut off after this."""

RETRY_AFTER_S: Final = 1
"""Redis is back within seconds or not for long; a sender that waits longer loses its own deadline."""


class Answer:
    """A whole response. It keeps nothing of the request, so one may serve any number of them."""

    __slots__ = ("_bytes", "_content", "_head", "_second", "_tail")

    def __init__(self, status: int, *, headers: str = "", body: bytes = b"", close: bool = False) -> None:
        connection = "Connection: close\r\n" if close else ""
        self._head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{headers}{connection}".encode()
        self._tail = b"Content-Length: %d\r\n\r\n" % len(body)
        self._content = body
        self._bytes = b""
        self._second = 0

    def whole(self) -> bytes:
        """Head and body, as they are this second."""
        now = int(time())
        if now != self._second:
            self._second = now
            date = f"Date: {formatdate(now, usegmt=True)}\r\n".encode()
            self._bytes = self._head + date + self._tail + self._content
        return self._bytes

    def head(self) -> bytes:
        """What answers HEAD: the same without the body."""
        return self.whole().removesuffix(self._content)


TAKEN: Final = Answer(200)
TAKEN_AND_CLOSE: Final = Answer(200, close=True)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_HEADERS: Final = {405: "Allow: GET, POST\r\n", 503: f"Retry-After: {RETRY_AFTER_S}\r\n"}


def refusal(refused: Refusal, *, close: bool) -> Answer:
    """`{"error": code, "detail": …}` with the headers that belong to the status."""
    body = msgspec.json.encode({"error": refused.code, "detail": refused.detail})
    headers = f"Content-Type: application/json\r\n{_HEADERS.get(refused.status, '')}"
    return Answer(refused.status, headers=headers, body=body, close=close)
