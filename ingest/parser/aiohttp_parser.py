"""Reads the head of one request with aiohttp's parser.

`aiohttp.http.HttpRequestParser` stands in its package's `__all__` and in no documentation. It is tried when the process
starts, on what it must be able to do: with an aiohttp that has another parser, ingest does not start.

The parser gets one head at a time, and a new parser each: it throws away what it has read when something broken
follows, and nothing of one request can be left for the next.
"""

from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp import http
from multidict import CIMultiDict, CIMultiDictProxy

from maskline.schemas.errors import ConfigError

HEAD_LINE_MAX_BYTES: Final = 16_384
"""The request line and each header; a GET bears all parameters, percent-encoded, in its line."""
HEADERS_MAX: Final = 128

END: Final = b"\r\n\r\n"
"""Of a head."""

NO_HEADERS: Final = CIMultiDictProxy(CIMultiDict[str]())


class ParsedHead(NamedTuple):
    """What aiohttp's parser says of a head."""

    method: str
    target: str
    version: tuple[int, int]
    headers: CIMultiDictProxy[str]
    chunked: bool
    closes: bool
    """Whether the connection ends with this request."""


class _Nobody:
    """What the parser takes for its connection, and for its loop: nothing waits for the body here."""

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


_nobody: Final = _Nobody()
_make: Any = getattr(
    http, "HttpRequestParser", None
)  # untyped: it wants a connection and a loop, and needs none


def parse_head(lines: list[bytes]) -> ParsedHead | None:
    """Parse a head, given by its lines, the request line first; None where the parser refuses it.

    Also where it does not see the very lines that it was given: then it may end the head elsewhere.
    """
    try:
        parser = _make(
            _nobody, _nobody, HEAD_LINE_MAX_BYTES,
            max_line_size=HEAD_LINE_MAX_BYTES, max_field_size=HEAD_LINE_MAX_BYTES, max_headers=HEADERS_MAX,
            auto_decompress=False,  # the body is not its business, and of some encodings it would refuse the head
        )  # fmt: skip
        messages, _, _ = parser.feed_data(b"\r\n".join(lines) + END)
    except Exception:  # noqa: BLE001 - it has an error for each fault; what they have in common is Exception
        return None
    if len(messages) != 1:
        return None
    message = messages[0][0]
    target = message.path.encode("utf-8", "surrogateescape")
    version = message.version
    request_line = b"%b %b HTTP/%d.%d" % (message.method.encode(), target, version.major, version.minor)
    if lines[0] != request_line or not _are_lines(lines[1:], message.raw_headers):
        return None
    return ParsedHead(
        message.method, message.path, (version.major, version.minor), message.headers,
        bool(message.chunked), bool(message.should_close),
    )  # fmt: skip


def _are_lines(lines: list[bytes], headers: tuple[tuple[bytes, bytes], ...]) -> bool:
    return len(lines) == len(headers) and all(
        line.startswith(name + b":") and line[len(name) + 1 :].strip(b" \t") == value
        for line, (name, value) in zip(lines, headers, strict=True)
    )


def check_parser() -> None:
    """Raise ConfigError where the installed aiohttp's parser does not read what it must."""
    lines = [b"POST /a?b HTTP/1.1", b"Host: h", b"Content-Length: 7"]
    chunked = [*lines[:2], b"Transfer-Encoding: chunked", b"Connection: close"]
    expected = [
        ("POST", "/a?b", (1, 1), {"Host": "h", "Content-Length": "7"}, False, False),
        (
            "POST",
            "/a?b",
            (1, 1),
            {"Host": "h", "Transfer-Encoding": "chunked", "Connection": "close"},
            True,
            True,
        ),
        None,
    ]
    found = [parse_head(each) for each in (lines, chunked, [*lines, b"no header"])]
    if [head and (*head[:3], dict(head.headers), *head[4:]) for head in found] != expected:
        raise ConfigError(
            f"aiohttp {aiohttp.__version__} has another parser than maskline was made for: "
            "install the version that maskline's constraints.txt names"
        )
