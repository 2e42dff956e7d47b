"""Parses one request head with aiohttp's HTTP parser.

`aiohttp.http.HttpRequestParser` is in its package's `__all__`, but in no documentation. So `check_parser` tries it when
the process starts, on what it must be able to do: with an aiohttp whose parser differs, ingest does not start.

The parser is given one head at a time, and a new parser is made for each: it throws away what it has read when
something broken follows, and nothing of one request may be left for the next.
"""

from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp import http
from multidict import CIMultiDict, CIMultiDictProxy

from maskline.schemas.errors import ConfigError

HEAD_LINE_MAX_BYTES: Final = 16_384
"""Of the request line and of each header; a GET has all parameters, percent-encoded, in its request line."""
HEADERS_MAX: Final = 128

HEAD_END: Final = b"\r\n\r\n"
"""Ends a head: the end of its last line, and the blank line."""

NO_HEADERS: Final = CIMultiDictProxy(CIMultiDict[str]())


class ParsedHead(NamedTuple):
    """A head as aiohttp's parser reads it."""

    method: str
    target: str
    version: tuple[int, int]
    headers: CIMultiDictProxy[str]
    chunked: bool
    closes: bool
    """Whether the connection ends with this request."""


class _Unused:
    """Stands for the parser's connection and for its loop: nothing here waits for a body."""

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


_unused: Final = _Unused()


def parse_head(lines: list[bytes]) -> ParsedHead | None:
    """Parse a head, given as its lines without their ends, the request line first.

    None where the parser refuses it, and where the parser does not see exactly these lines: it might end the head
    elsewhere than we do.
    """
    try:
        # It is declared to want a connection and a loop, and needs neither.
        parser_class: Any = http.HttpRequestParser
        parser = parser_class(
            _unused,
            _unused,
            HEAD_LINE_MAX_BYTES,
            max_line_size=HEAD_LINE_MAX_BYTES,
            max_field_size=HEAD_LINE_MAX_BYTES,
            max_headers=HEADERS_MAX,
            auto_decompress=False,  # the body is not its business; it would refuse the head of some encodings
        )
        messages, _, _ = parser.feed_data(b"\r\n".join(lines) + HEAD_END)
    except Exception:  # noqa: BLE001 - it has an error for each fault, and Exception is their only common base
        return None
    if len(messages) != 1:
        return None
    message = messages[0][0]
    target = message.path.encode("utf-8", "surrogateescape")
    version = message.version
    request_line = b"%b %b HTTP/%d.%d" % (message.method.encode(), target, version.major, version.minor)
    if lines[0] != request_line or not _are_same_headers(lines[1:], message.raw_headers):
        return None
    return ParsedHead(
        method=message.method,
        target=message.path,
        version=(version.major, version.minor),
        headers=message.headers,
        chunked=bool(message.chunked),
        closes=bool(message.should_close),
    )


def _are_same_headers(lines: list[bytes], headers: tuple[tuple[bytes, bytes], ...]) -> bool:
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
    parsed = [parse_head(each) for each in (lines, chunked, [*lines, b"no header"])]
    if [head and (*head[:3], dict(head.headers), *head[4:]) for head in parsed] != expected:
        raise ConfigError(
            f"aiohttp {aiohttp.__version__} has another parser than maskline was made for: "
            "install the version that maskline's constraints.txt names"
        )
