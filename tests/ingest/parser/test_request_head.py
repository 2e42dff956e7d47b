"""Heads: what is read and refused, compared with both of aiohttp's parsers; incomplete heads, with whole ones."""

import re
from typing import Any

import pytest
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from hypothesis import example, given
from hypothesis import strategies as st
from ingest_kit import PAIRS, Request

from maskline.ingest.parser import request_head
from maskline.ingest.parser.aiohttp_parser import HEAD_END, HEAD_LINE_MAX_BYTES, HEADERS_MAX
from maskline.ingest.parser.request_head import (
    HEAD_MAX_BYTES,
    NO_HOST,
    RequestHead,
    check_incomplete_head,
    list_members,
    read_head,
    skip_blank_lines,
)
from maskline.ingest.refusal import Refusal

PARSERS = [HttpRequestParser, HttpRequestParserPy]
HEAD = Request(body=b"a=b", pairs=[("a", "b")]).encode().removesuffix(b"a=b")
GET = Request(method="GET", query=PAIRS).encode()


def head_of(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + HEAD_END


def more(*lines: bytes, to: bytes = HEAD) -> bytes:
    return head_of(to.removesuffix(HEAD_END), *lines)


class UnusedConnection:
    """What aiohttp's parsers are given as their connection."""

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


def by_aiohttp(parser: Any, head: bytes) -> Any:
    """The message that one of aiohttp's parsers reads; None where it refuses the head."""
    limits = {
        "max_line_size": HEAD_MAX_BYTES,
        "max_field_size": HEAD_MAX_BYTES,
        "max_headers": 2 * HEADERS_MAX,
    }
    made = parser(UnusedConnection(), UnusedConnection(), HEAD_MAX_BYTES, **limits)
    try:
        messages, _, _ = made.feed_data(head)
    except Exception:  # noqa: BLE001 - a refusal
        return None
    return messages[0][0] if len(messages) == 1 else None


def without_repetitions(head: bytes) -> bytes:
    """The head with the first line of each header only: aiohttp refuses some repeated headers."""
    first, *lines = head.removesuffix(HEAD_END).split(b"\r\n")
    seen: dict[bytes, bytes] = {}
    for line in lines:
        seen.setdefault(line.partition(b":")[0].lower(), line)
    return head_of(first, *seen.values())


pieces = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b"\0", b"\x7f", b"\x80", b"\xc3\xa9", b"a", b"0", b"12",
     b"?a=b", b"#", b"Host: x\r\n", b"Connection: close\r\n", b"Transfer-Encoding: chunked\r\n",
     b"Content-Length: 5\r\n", b"+", b"-1",
     b"Content-Length: 3\r\n", b"Content-Length: 3, 3\r\n", b"Expect: 100-continue\r\n", b"User-Agent: x\r\n",
     b"HTTP/1.0", b"HTTP/2.0", b"GET ", b"POST ", b"chunked", b" folded\r\n", b"Upgrade: websocket\r\n", b"::"]
)  # fmt: skip


@st.composite
def heads(draw: Any) -> bytes:
    head = draw(st.sampled_from([HEAD, GET, more(b"Connection: keep-alive", b"User-Agent: Plivo")]))
    for _ in range(draw(st.integers(0, 4))):
        places = [match.end() for match in re.finditer(rb"\r\n|: ", head)]
        at = draw(st.sampled_from(places) | st.integers(0, len(head)))
        cut = draw(st.sampled_from([0, 0, 0, 1, 2, 5, 20]))
        head = head[:at] + draw(pieces) + head[at + cut :]
    return head[: head.find(HEAD_END) + len(HEAD_END)] if HEAD_END in head else head + HEAD_END


@pytest.mark.parametrize("parser", PARSERS, ids=["c", "python"])
@given(heads())
@example(more(b"User-Agent: a", b"User-Agent: b"))
@example(more(b"Content-Length: 3"))
def test_accepted_heads_are_read_as_aiohttp_reads_them(parser, head):
    ours = read_head(head)
    if isinstance(ours, Refusal) or ours.version == (0, 9):
        return
    theirs = by_aiohttp(parser, without_repetitions(head))
    if theirs is None:
        # It refuses more: one length written as a list, a target or a method that it does not like.
        assert b"," in head or b"http" in head[:20].lower() or ours.method == "CONNECT" or "#" in ours.target or (
            not ours.target.startswith("/")
        ), head  # fmt: skip
        return
    assert (ours.method, ours.target) == (theirs.method, theirs.path)
    assert ours.version == (theirs.version.major, theirs.version.minor)
    assert ours.chunked == bool(theirs.chunked)
    assert ours.content_length == int(theirs.headers.get("Content-Length", "0"))
    assert not (ours.keep_alive and theirs.should_close)
    for name in theirs.headers:
        assert ours.headers.get(name, "") == theirs.headers[name]
    assert len(theirs.headers) == len({line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:-2]})


def error(read: RequestHead | Refusal) -> str:
    return read.code if isinstance(read, Refusal) else ""


REPEATABLE = [
    b"User-Agent: Plivo", b"Content-Type: application/x-www-form-urlencoded", b"Content-Length: 3", b"Server: x",
           b"Content-Length: 3, 3", b"Content-Location: /", b"Content-Range: x", b"ETag: x", b"Max-Forwards: 1",
           b"X-Plivo-Signature-V3-Nonce: 1", b"X-Forwarded-Host: h", b"Connection: keep-alive"]  # fmt: skip


@pytest.mark.parametrize("line", REPEATABLE)
def test_header_may_be_repeated_where_http_allows_it(line):
    read = read_head(more(line, line))
    assert isinstance(read, RequestHead)
    assert (read.content_length, read.keep_alive) == (3, True)
    once = read_head(more(line))
    assert isinstance(once, RequestHead)
    assert dict(read.headers) == dict(once.headers)  # the first of each


@pytest.mark.parametrize(
    ("lines", "code"),
    [([b"Host: hooks.example.com"], "headers_contradict"), ([b"Host: other"], "headers_contradict"),
     ([b"Content-Length: 4"], "headers_contradict"), ([b"Content-Length: 3, 4"], "headers_contradict"),
     ([b"Content-Length:"], "headers_contradict"), ([b"Content-Length: 3,"], "headers_contradict"),
     ([b"Content-Length: \xd9\xa3"], "headers_contradict"), ([b"Content-Length: 03"], "headers_contradict"),
     ([b"Transfer-Encoding: chunked"], "headers_contradict"),
     ([b"X-Folded: a", b" b"], "malformed_http"), ([b"X: a\0"], "malformed_http"), ([b": x"], "malformed_http")],
)  # fmt: skip
def test_ambiguous_heads_are_refused(lines, code):
    assert error(read_head(more(*lines))) == code


@pytest.mark.parametrize(
    "encoding",
    [b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"xchunked", b"",
     b"chunked\r\nTransfer-Encoding: chunked"],
)  # fmt: skip
def test_transfer_encoding_other_than_chunked_is_refused(encoding):
    head = HEAD.replace(b"Content-Length: 3", b"Transfer-Encoding: " + encoding)
    assert error(read_head(head)) == "transfer_encoding"


def test_heads_beyond_the_bounds_are_refused():
    line = b"X: " + b"x" * HEAD_LINE_MAX_BYTES
    assert error(read_head(more(line))) == "head_too_large"
    assert error(read_head(more(line[:-5], line[:-5], line[:-5]))) == "head_too_large"
    assert error(read_head(more(*[b"X: x"] * HEADERS_MAX))) == "head_too_large"
    assert error(read_head(HEAD.replace(b": 3", b": " + b"0" * 5_000 + b"3"))) == ""
    long = read_head(HEAD.replace(b": 3", b": " + b"9" * 5_000))
    assert isinstance(long, RequestHead)
    assert long.content_length == request_head.CONTENT_LENGTH_MAX


@given(heads() | st.binary(max_size=40).map(lambda data: data.replace(HEAD_END, b"") + HEAD_END), st.data())
def test_incomplete_head_is_refused_only_if_the_whole_head_is(head, data):
    """However the head is cut into pieces; and at its last byte but one, all faults of its lines are known."""
    head = skip_blank_lines(head)
    end = head.find(HEAD_END)
    if end < 0:
        return
    head = head[: end + len(HEAD_END)]
    checked_bytes = 0
    for cut in sorted({data.draw(st.integers(1, len(head) - 1)) for _ in range(3)}):
        if HEAD_END in head[:cut]:
            break
        result = check_incomplete_head(head[:cut], checked_bytes)
        if isinstance(result, Refusal):
            assert isinstance(read_head(head), Refusal)
            return
        checked_bytes = result
    whole, last = read_head(head), check_incomplete_head(head[:-1], checked_bytes)
    if isinstance(last, Refusal):
        assert isinstance(whole, Refusal)
    elif isinstance(whole, Refusal):
        assert whole == NO_HOST or whole.code in ("headers_contradict", "transfer_encoding")


@pytest.mark.parametrize(
    ("beginning", "code"),
    [(b"POST /", ""), (HEAD[:-2], ""), (HEAD[:-1], ""), (HEAD[:-3], ""), (HEAD[:40], ""), (b"P", ""), (b"GET /cal", ""),
     (b"GET", ""), (b"GET ", ""), (b"GET /a HTTP/1", ""), (b"\r", ""), (b"", ""), (b"x", "malformed_http"),
     (b" ", "malformed_http"), (b"\0", "malformed_http"), (b"\n", "malformed_http"), (b"\rX", "malformed_http"),
     (b"POST /a b c\r\n", "malformed_http"), (b"POST  ", "malformed_http"), (b"POST /\0", "malformed_http"),
     (b"POST / HTTP/1.1\n", "malformed_http"), (b"POST / HTTQ", "malformed_http"),
     (HEAD[:-2] + b"no\r\n", "malformed_http"), (HEAD[:-2] + b" folded", "malformed_http"),
     (b"POST / HTTP/3.0\r\n", "http_version"), (b"PRI * HTTP/2.0\r\n", "http_version"),
     (b"\x16", "tls_on_plain_port"), (b"\x16\x03\x01\x00\xa5", "tls_on_plain_port"),
     (b"POST /x HTTP/1.1\r\nX: " + b"x" * 16_400, "head_too_large"), (b"GET /" + b"x" * 16_400, "head_too_large")],
)  # fmt: skip
def test_incomplete_head_is_refused_for_what_can_never_become_valid(beginning, code):
    result = check_incomplete_head(beginning, 0)
    assert (result.code if isinstance(result, Refusal) else "") == code


def test_blank_lines_before_a_request_are_skipped():
    assert skip_blank_lines(b"\r\n\r\n" + HEAD) == HEAD
    assert skip_blank_lines(HEAD) is HEAD
    assert skip_blank_lines(b"\r\n\r") == b"\r"


def test_list_headers_keep_all_lines_and_others_their_first():
    read = read_head(
        more(b"X-Forwarded-For: 1, X", b"x-forwarded-for: 2,, y", b"Accept: a", b"accept: b", b"B:")
    )
    assert isinstance(read, RequestHead)
    assert list_members(read.headers, "X-Forwarded-For") == ["1", "x", "2", "y"]
    assert read.headers.getall("Accept") == ["a"]
    assert list_members(read.headers, "B") == []
    assert list_members(read.headers, "C") == []
    assert not read.unchanged
