"""Answers as bytes: made whole, written with one call, in place of aiohttp's own response objects.

aiohttp asks a response for `prepare`, `write_eof` and `keep_alive`. These here write head and body in
`prepare`; the general way of doing the same is a good part of what a request costs.
"""

import asyncio
from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import Final

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from ingest.intake import Refused

WRITE_TIMEOUT_S: Final = 30.0
"""A client that sends requests and does not read their answers is cut off after this."""

RETRY_AFTER_S: Final = 1
"""Redis is back within seconds or not for long; a sender that waits longer loses its own deadline."""


class Answer(web.StreamResponse):
    """A whole response. It keeps nothing of the request, so one may serve any number of them."""

    def __init__(self, status: int, *, headers: str = "", body: bytes = b"", close: bool = False) -> None:
        super().__init__(status=status)
        self._closes = close
        connection = "Connection: close\r\n" if close else ""
        self._head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{headers}{connection}".encode()
        self._tail = b"Content-Length: %d\r\n\r\n" % len(body)
        self._content = body
        self._bytes = b""
        self._second = 0

    @property
    def keep_alive(self) -> bool:
        return not self._closes

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write the response. Raises ConnectionResetError where the client is gone, which aiohttp expects."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        whole = self.whole()
        transport.write(whole if request.method != "HEAD" else whole.removesuffix(self._content))
        if request.protocol.writing_paused:
            await _drained(request, transport)
        return None

    def whole(self) -> bytes:
        """Head and body, as they are this second."""
        now = int(time())
        if now != self._second:
            self._second = now
            date = f"Date: {formatdate(now, usegmt=True)}\r\n".encode()
            self._bytes = self._head + date + self._tail + self._content
        return self._bytes

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


async def _drained(request: web.BaseRequest, transport: asyncio.Transport) -> None:
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await request.writer.drain()
    except TimeoutError:
        transport.abort()
        raise ConnectionResetError("the client does not read") from None


TAKEN: Final = Answer(200)
TAKEN_AND_CLOSE: Final = Answer(200, close=True)

_HEADERS: Final = {405: "Allow: GET, POST\r\n", 503: f"Retry-After: {RETRY_AFTER_S}\r\n"}


def closes(request: web.BaseRequest) -> bool:
    """Whether the connection ends with this request. HTTP/1.0 clients are not kept: they must expect it."""
    return not request.keep_alive or request.version != HttpVersion11


def refusal(refused: Refused, *, close: bool) -> Answer:
    """`{"error": code, "detail": …}` with the headers that belong to the status."""
    body = msgspec.json.encode({"error": refused.code, "detail": refused.detail})
    headers = f"Content-Type: application/json\r\n{_HEADERS.get(refused.status, '')}"
    return Answer(refused.status, headers=headers, body=body, close=close)
