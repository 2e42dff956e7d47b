"""Reads the heads of HTTP/1.x requests, strictly. Pure.

One head at a time, out of the bytes up to its blank line: nothing that stands behind a request can reach it. Of our own
and not aiohttp's, whose parser throws away what it has read when something broken follows, and refuses what another of
its versions takes. Held to both of aiohttp's parsers by tests/ingest/test_request_heads.py: what is read here, they
read so as well, or refuse.

| found | then |
| --- | --- |
| a line that is no header, a control character, a bare CR or LF, a folded line | refused (RFC 9112, 2.2 and 5) |
| Content-Length beside Transfer-Encoding; lengths that differ; a transfer encoding other than `chunked` | refused (6) |
| one length several times | one length (RFC 9110, 8.6) |
| no Host in HTTP/1.1, or several lines of it, also equal ones | refused, as it must be (RFC 9112, 3.2) |
| any other header several times | its first line counts, or all where it is a list (RFC 9110, 5.3) |
| blank lines before the request line | left out (RFC 9112, 2.2) |
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from ingest.intake import LENGTH_DIGITS_MAX, Refused

HEAD_LINE_MAX_BYTES: Final = 16_384
"""The request line and each header; a GET bears all parameters, percent-encoded, in its line."""
HEAD_MAX_BYTES: Final = 32_768
"""Of a whole head: the longest request line, and as much again."""
HEADERS_MAX: Final = 128
END: Final = b"\r\n\r\n"
"""Of a head."""
LENGTH_MAX: Final = 10**LENGTH_DIGITS_MAX
"""Stands for every length that is longer."""

METHODS: Final = tuple(
    b"GET POST HEAD PUT DELETE CONNECT OPTIONS TRACE PATCH PRI ACL BIND CHECKOUT COPY LINK LOCK M-SEARCH MERGE "
    b"MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY PROPFIND PROPPATCH PURGE QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE "
    b"UNBIND UNLINK UNLOCK UNSUBSCRIBE".split()
)
"""By which a request is known from rubbish at its first bytes. PRI begins HTTP/2."""


def _malformed(detail: str) -> Refused:
    return Refused(400, "malformed_http", f"malformed HTTP: {detail}")


NO_REQUEST_LINE: Final = _malformed("the first line is no request line of HTTP/1.1")
NO_HEADER: Final = _malformed("a header line is none: no name, no colon, or folded")
CONTROL_CHARACTER: Final = _malformed("the head has a control character, or a line that CR LF does not end")
NO_HOST: Final = _malformed("the request has no Host header")
TLS: Final = Refused(400, "tls_on_plain_port", "this port speaks plain HTTP: TLS has to end before it")
OTHER_VERSION: Final = Refused(400, "http_version", "only HTTP/1.0 and HTTP/1.1 are spoken here")
HEAD_TOO_LARGE: Final = Refused(
    400, "head_too_large",
    f"the head is longer than {HEAD_MAX_BYTES} bytes, a line of it than {HEAD_LINE_MAX_BYTES}, "
    f"or it has more than {HEADERS_MAX} headers",
)  # fmt: skip
SEVERAL_HOSTS: Final = Refused(400, "headers_contradict", "the request has several Host headers")
LENGTHS_DIFFER: Final = Refused(
    400, "headers_contradict", "Content-Length is no number, or several that differ"
)
LENGTH_AND_CHUNKS: Final = Refused(
    400, "headers_contradict", "the request has both Content-Length and Transfer-Encoding"
)
TRANSFER_ENCODING: Final = Refused(
    400, "transfer_encoding", "the only Transfer-Encoding that is read is chunked, once"
)

_REQUEST_LINE: Final = re.compile(rb"([A-Z-]+) ([!-~]+)(?: HTTP/([0-9])\.([0-9]))?").fullmatch
"""Without a version it is HTTP/0.9."""
_VERSION_BEGINNING: Final = re.compile(rb"(?:H(?:T(?:T(?:P(?:/(?:[0-9](?:\.[0-9]?)?)?)?)?)?)?)?").fullmatch
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)").fullmatch
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_VISIBLE: Final = re.compile(rb"[!-~]*").fullmatch
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_BLANK_LINES: Final = re.compile(rb"(?:\r\n)*").match
_DIGITS: Final = re.compile("[0-9]+", re.ASCII).fullmatch


class HeaderLines:
    """The headers of a request: names without regard to case, each with the values of its lines."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {}

    def add(self, name: str, value: str) -> None:
        name = name.lower()
        if name in self._values:
            self._values[name].append(value)
        else:
            self._values[name] = [value]

    def get(self, key: str, default: str, /) -> str:
        """The value of the first line."""
        values = self._values.get(key.lower())
        return default if values is None else values[0]

    def getall(self, key: str, default: Sequence[str] = (), /) -> Sequence[str]:
        return self._values.get(key.lower(), default)

    def listed(self, key: str) -> list[str]:
        """The members of a comma-separated list, over all lines, in lower case."""
        values = self._values.get(key.lower())
        if values is None:
            return []
        members = ",".join(values).split(",")
        return [member.strip(" \t").lower() for member in members if member.strip(" \t")]

    def __contains__(self, key: str) -> bool:
        return key.lower() in self._values

    def __len__(self) -> int:
        return sum(map(len, self._values.values()))


class RequestHead(NamedTuple):
    """A head that could be read."""

    method: str
    target: str
    version: tuple[int, int]
    headers: HeaderLines
    length: int
    """Of the body, where it is not chunked."""
    chunked: bool
    keeps: bool
    """Whether the connection can go on after this request."""
    raw: bytes
    """All of it, blank line included."""


def skip_blank_lines(data: bytes) -> bytes:
    blank = _BLANK_LINES(data)
    return data[blank.end() :] if blank is not None and blank.end() else data


def look_at_beginning(data: bytes, looked: int) -> Refused | int:
    """Whether a head that begins so, without its end, can become one: why not, or how far its whole lines go.

    `looked`: what that said of fewer bytes of the same head; 0 at first.
    """
    if len(data) > HEAD_MAX_BYTES:
        return HEAD_TOO_LARGE
    *lines, last = data[looked:].split(b"\r\n")
    if last.endswith(b"\r"):
        last = last[:-1]
    for line in lines:
        refused = _fault_of_line(line) if looked else _request_line(line)
        if isinstance(refused, Refused):
            return refused
        looked += len(line) + 2
    if len(last) > HEAD_LINE_MAX_BYTES:
        return HEAD_TOO_LARGE
    refused = _fault_of_unfinished_line(last) if looked else _fault_of_unfinished_request_line(last)
    return looked if refused is None else refused


def read_head(head: bytes) -> RequestHead | Refused:
    """Read a head, blank line included."""
    first, *lines = head[: -len(END)].split(b"\r\n")
    request_line = _request_line(first)
    if isinstance(request_line, Refused):
        return request_line
    headers = HEAD_TOO_LARGE if len(head) > HEAD_MAX_BYTES else _headers(lines)
    if isinstance(headers, Refused):
        return headers
    method, target, version = request_line
    framing = _framing(headers)
    if isinstance(framing, Refused):
        return framing
    length, chunked = framing
    hosts = len(headers.getall("Host"))
    if hosts > 1 or (not hosts and version == (1, 1)):
        return SEVERAL_HOSTS if hosts else NO_HOST
    keeps = version == (1, 1) and "close" not in headers.listed("Connection")
    return RequestHead(method, target, version, headers, length, chunked, keeps, head)


def _headers(lines: list[bytes]) -> HeaderLines | Refused:
    if len(lines) > HEADERS_MAX:
        return HEAD_TOO_LARGE
    headers = HeaderLines()
    for line in lines:
        match = _HEADER(line)
        if match is None or len(line) > HEAD_LINE_MAX_BYTES:
            return _fault_of_line(line) or NO_HEADER
        name, value = match.groups()
        headers.add(name.decode(), value.strip(b" \t").decode("utf-8", "surrogateescape"))
    return headers


def _request_line(line: bytes) -> tuple[str, str, tuple[int, int]] | Refused:
    if len(line) > HEAD_LINE_MAX_BYTES:
        return HEAD_TOO_LARGE
    match = _REQUEST_LINE(line)
    if match is None or match[1] not in METHODS:
        return TLS if _is_tls(line) else NO_REQUEST_LINE
    if match[3] is None:
        return (match[1].decode(), match[2].decode(), (0, 9)) if match[1] == b"GET" else NO_REQUEST_LINE
    version = int(match[3]), int(match[4])
    if version not in ((1, 0), (1, 1)):
        return OTHER_VERSION
    return match[1].decode(), match[2].decode(), version


def _framing(headers: HeaderLines) -> tuple[int, bool] | Refused:
    """The body's length, and whether it is chunked instead."""
    lengths = headers.getall("Content-Length")
    if "Transfer-Encoding" in headers:
        if lengths:
            return LENGTH_AND_CHUNKS
        return (0, True) if headers.listed("Transfer-Encoding") == ["chunked"] else TRANSFER_ENCODING
    if not lengths:
        return 0, False
    members = {member.strip(" \t") for value in lengths for member in value.split(",")}
    text = members.pop()
    if members or not _DIGITS(text):
        return LENGTHS_DIFFER
    text = text.lstrip("0") or "0"
    return (int(text) if len(text) <= LENGTH_DIGITS_MAX else LENGTH_MAX), False


def _fault_of_line(line: bytes) -> Refused | None:
    """Of a whole header line."""
    if len(line) > HEAD_LINE_MAX_BYTES:
        return HEAD_TOO_LARGE
    if _CONTROL(line):
        return CONTROL_CHARACTER
    name, colon, _ = line.partition(b":")
    return None if colon and _TOKEN(name) else NO_HEADER


def _fault_of_unfinished_line(line: bytes) -> Refused | None:
    """Of a header line whose end has not come."""
    if _CONTROL(line):
        return CONTROL_CHARACTER
    name, colon, _ = line.partition(b":")
    return None if _TOKEN(name) or not (name or colon) else NO_HEADER


def _fault_of_unfinished_request_line(line: bytes) -> Refused | None:
    method, *rest = line.split(b" ")
    if _is_tls(line):
        return TLS
    if not rest:
        known = any(name.startswith(method) for name in METHODS)
    else:
        known = method in METHODS and _VISIBLE(rest[0]) is not None and len(rest) <= 2
        if len(rest) == 2:
            known = known and bool(rest[0]) and _VERSION_BEGINNING(rest[1]) is not None
    return None if known else NO_REQUEST_LINE


def _is_tls(data: bytes) -> bool:
    """Whether it begins like a TLS handshake record (RFC 8446, 5.1)."""
    return data[:1] == b"\x16" and data[1:2] in (b"", b"\x03")
