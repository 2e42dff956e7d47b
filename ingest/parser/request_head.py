"""Reads the heads of HTTP/1.x requests, strictly, one at a time. Pure.

A head is cut out of the bytes at its blank line, so nothing that follows the request can change how it is read; then
aiohttp's parser reads it. Some things aiohttp's parser refuses in one version and accepts in another: those are decided
here before it is asked, and each refusal gets its own reason.

| found | then |
| --- | --- |
| a line that is no header, a control character, a bare CR or LF, a folded line | refused (RFC 9112, 2.2 and 5) |
| Content-Length beside Transfer-Encoding; lengths that differ; a transfer encoding other than `chunked` | refused (6) |
| one length several times | one length (RFC 9110, 8.6) |
| no Host in HTTP/1.1, or several lines of it, also equal ones | refused, as it must be (RFC 9112, 3.2) |
| any other header several times | its first line counts, or all where it is a list (RFC 9110, 5.3) |
| blank lines before the request line | skipped (RFC 9112, 2.2) |
| anything else that aiohttp's parser does not accept | refused |
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from multidict import CIMultiDictProxy

from maskline.ingest import plivo_headers
from maskline.ingest.parser.aiohttp_parser import HEAD_END, HEAD_LINE_MAX_BYTES, HEADERS_MAX, parse_head
from maskline.ingest.refusal import Refusal

HEAD_MAX_BYTES: Final = 32_768
"""Of a whole head: the longest request line, and as much again."""
LENGTH_DIGITS_MAX: Final = 18
"""Of a Content-Length without leading zeros. No body is that long, and Python reads no number of 5,000 digits."""
CONTENT_LENGTH_MAX: Final = 10**LENGTH_DIGITS_MAX
"""Stands for every length that has more digits."""
LIST_HEADERS: Final = frozenset(name.lower().encode() for name in plivo_headers.ALL) | frozenset(
    {b"x-forwarded-for", b"connection", b"expect", b"content-encoding"}
)
"""Headers whose several lines are read as one list. Of every other header the first line counts."""

HTTP_METHODS: Final = tuple(
    b"GET POST HEAD PUT DELETE CONNECT OPTIONS TRACE PATCH PRI ACL BIND CHECKOUT COPY LINK LOCK M-SEARCH MERGE "
    b"MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY PROPFIND PROPPATCH PURGE QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE "
    b"UNBIND UNLINK UNLOCK UNSUBSCRIBE".split()
)
"""A request begins with one of these; anything else is rubbish. PRI begins HTTP/2."""


def _malformed(detail: str) -> Refusal:
    return Refusal(400, "malformed_http", f"malformed HTTP: {detail}")


NO_REQUEST_LINE: Final = _malformed("the first line is no request line of HTTP/1.1")
NO_HEADER: Final = _malformed("a header line is none: no name, no colon, or folded")
CONTROL_CHARACTER: Final = _malformed("the head has a control character, or a line that CR LF does not end")
PARSER_REFUSED: Final = _malformed("the HTTP parser does not take it")
NO_HOST: Final = _malformed("the request has no Host header")
TLS: Final = Refusal(400, "tls_on_plain_port", "this port speaks plain HTTP: TLS has to end before it")
OTHER_VERSION: Final = Refusal(400, "http_version", "only HTTP/1.0 and HTTP/1.1 are spoken here")
HEAD_TOO_LARGE: Final = Refusal(
    400,
    "head_too_large",
    f"the head is longer than {HEAD_MAX_BYTES} bytes, a line of it than {HEAD_LINE_MAX_BYTES}, "
    f"or it has more than {HEADERS_MAX} headers",
)
SEVERAL_HOSTS: Final = Refusal(400, "headers_contradict", "the request has several Host headers")
LENGTHS_DIFFER: Final = Refusal(
    400, "headers_contradict", "Content-Length is no number, or several that differ"
)
LENGTH_AND_CHUNKS: Final = Refusal(
    400, "headers_contradict", "the request has both Content-Length and Transfer-Encoding"
)
TRANSFER_ENCODING: Final = Refusal(
    400, "transfer_encoding", "the only Transfer-Encoding that is read is chunked, once"
)

_REQUEST_LINE: Final = re.compile(rb"([A-Z-]+) [!-~]+(?: HTTP/([0-9]\.[0-9]))?").fullmatch
_VERSION_BEGINNING: Final = re.compile(rb"(?:H(?:T(?:T(?:P(?:/(?:[0-9](?:\.[0-9]?)?)?)?)?)?)?)?").fullmatch
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)").fullmatch
_VISIBLE: Final = re.compile(rb"[!-~]*").fullmatch
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_BLANK_LINES: Final = re.compile(rb"(?:\r\n)*").match
_DIGITS: Final = re.compile(rb"[0-9]+").fullmatch


class RequestHead(NamedTuple):
    """A head that could be read."""

    method: str
    target: str
    version: tuple[int, int]
    headers: CIMultiDictProxy[str]
    """A header of several lines has one of them, or all where it is one of LIST_HEADERS."""
    content_length: int
    """Of the body in bytes, 0 where none is announced or the body is chunked."""
    chunked: bool
    keep_alive: bool
    """Whether the connection may go on after this request."""
    unchanged: bool
    """Whether `headers` are as they came: no line was left out, no length rewritten."""
    raw: bytes
    """The head as it came, blank line included."""


def skip_blank_lines(data: bytes) -> bytes:
    """The bytes without the blank lines that may come before a request line."""
    blank = _BLANK_LINES(data)
    return data[blank.end() :] if blank is not None and blank.end() else data


def check_incomplete_head(data: bytes, checked_bytes: int) -> Refusal | int:
    """Whether a head that begins so, without its end, can still become a valid one.

    `checked_bytes`: what this function returned for fewer bytes of the same head; 0 at first. Returns why the head
    cannot become valid, or how many bytes of it are whole lines and need not be checked again.
    """
    if len(data) > HEAD_MAX_BYTES:
        return HEAD_TOO_LARGE
    *lines, last = data[checked_bytes:].split(b"\r\n")
    if last.endswith(b"\r"):
        last = last[:-1]
    for line in lines:
        if refusal := _check_header_line(line) if checked_bytes else _check_request_line(line):
            return refusal
        checked_bytes += len(line) + 2
    if len(last) > HEAD_LINE_MAX_BYTES:
        return HEAD_TOO_LARGE
    refusal = _check_incomplete_header(last) if checked_bytes else _check_incomplete_request_line(last)
    return checked_bytes if refusal is None else refusal


def read_head(raw: bytes) -> RequestHead | Refusal:
    """Read a whole head, its blank line included."""
    lines = raw[: -len(HEAD_END)].split(b"\r\n")
    if len(raw) > HEAD_MAX_BYTES or len(lines) - 1 > HEADERS_MAX:
        return HEAD_TOO_LARGE
    if refusal := _check_request_line(lines[0]):
        return refusal
    values: dict[bytes, list[bytes]] = {}
    for line in lines[1:]:
        header = _HEADER(line)
        if header is None or len(line) > HEAD_LINE_MAX_BYTES:
            return _check_header_line(line) or NO_HEADER
        name, value = header.groups()
        values.setdefault(name.lower(), []).append(value.rstrip(b" \t"))
    content_length = _body_length(values, lines[0])
    if isinstance(content_length, Refusal):
        return content_length
    unique_lines = _without_repetitions(lines, values, content_length)
    parsed = parse_head(unique_lines)
    if parsed is None:
        return PARSER_REFUSED
    return RequestHead(
        method=parsed.method,
        target=parsed.target,
        version=parsed.version,
        headers=parsed.headers,
        content_length=content_length,
        chunked=parsed.chunked,
        keep_alive=parsed.version == (1, 1) and not parsed.closes,
        unchanged=unique_lines == lines,
        raw=raw,
    )


def list_members(headers: CIMultiDictProxy[str], name: str) -> list[str]:
    """The members of a comma-separated list, over all lines of the header, in lower case."""
    members = ",".join(headers.getall(name, ())).split(",")
    return [member.strip(" \t").lower() for member in members if member.strip(" \t")]


def _body_length(values: Mapping[bytes, list[bytes]], request_line: bytes) -> int | Refusal:
    """The body's length as far as a Content-Length says it, or how the headers contradict each other."""
    hosts = len(values.get(b"host", ()))
    if hosts > 1 or (not hosts and request_line.endswith(b"1.1")):
        return SEVERAL_HOSTS if hosts else NO_HOST
    encodings, lengths = values.get(b"transfer-encoding"), values.get(b"content-length")
    if encodings is not None:
        if lengths is not None:
            return LENGTH_AND_CHUNKS
        return 0 if [encoding.lower() for encoding in encodings] == [b"chunked"] else TRANSFER_ENCODING
    if lengths is None:
        return 0
    members = {member.strip(b" \t") for value in lengths for member in value.split(b",")}
    text = members.pop()
    if members or not _DIGITS(text):
        return LENGTHS_DIFFER
    text = text.lstrip(b"0") or b"0"
    return int(text) if len(text) <= LENGTH_DIGITS_MAX else CONTENT_LENGTH_MAX


def _without_repetitions(
    lines: list[bytes], values: Mapping[bytes, list[bytes]], content_length: int
) -> list[bytes]:
    """The head's lines, without the further lines of a header that is no list; its length in plain digits."""
    lengths = values.get(b"content-length")
    if len(values) == len(lines) - 1 and (lengths is None or lengths[0] == b"%d" % content_length):
        return lines
    seen: set[bytes] = set()
    kept = lines[:1]
    for line in lines[1:]:
        name = line.partition(b":")[0].lower()
        if name not in seen or name in LIST_HEADERS:
            kept.append(b"Content-Length: %d" % content_length if name == b"content-length" else line)
        seen.add(name)
    return kept


def _check_request_line(line: bytes) -> Refusal | None:
    if len(line) > HEAD_LINE_MAX_BYTES:
        return HEAD_TOO_LARGE
    match = _REQUEST_LINE(line)
    if match is None or match[1] not in HTTP_METHODS:
        return TLS if _begins_tls(line) else NO_REQUEST_LINE
    return None if match[2] in (b"1.0", b"1.1") else OTHER_VERSION


def _check_header_line(line: bytes) -> Refusal | None:
    """Check a whole header line, without its CR LF."""
    if len(line) > HEAD_LINE_MAX_BYTES:
        return HEAD_TOO_LARGE
    if _CONTROL(line):
        return CONTROL_CHARACTER
    name, colon, _ = line.partition(b":")
    return None if colon and _TOKEN(name) else NO_HEADER


def _check_incomplete_header(line: bytes) -> Refusal | None:
    """Check the beginning of a header line whose end has not come."""
    if _CONTROL(line):
        return CONTROL_CHARACTER
    name, colon, _ = line.partition(b":")
    return None if _TOKEN(name) or not (name or colon) else NO_HEADER


def _check_incomplete_request_line(line: bytes) -> Refusal | None:
    method, *rest = line.split(b" ")
    if _begins_tls(line):
        return TLS
    if not rest:
        is_possible = any(name.startswith(method) for name in HTTP_METHODS)
    else:
        is_possible = method in HTTP_METHODS and _VISIBLE(rest[0]) is not None and len(rest) <= 2
        if len(rest) == 2:
            is_possible = is_possible and bool(rest[0]) and _VERSION_BEGINNING(rest[1]) is not None
    return None if is_possible else NO_REQUEST_LINE


def _begins_tls(data: bytes) -> bool:
    """Whether the bytes begin like a TLS handshake record (RFC 8446, 5.1)."""
    return data[:1] == b"\x16" and data[1:2] in (b"", b"\x03")
