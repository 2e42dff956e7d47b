"""The request reader: the same requests however their bytes are cut, and what it holds of an incomplete one."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_kit import Request

from maskline.ingest.auth.verifier import UNKNOWN_ACCOUNT, CallbackHead
from maskline.ingest.http.request_reader import ReceivedRequest, RequestReader
from maskline.ingest.parser.request_body import BODY_BROKEN, BODY_TOO_LARGE
from maskline.ingest.parser.request_head import HEAD_TOO_LARGE, NO_HEADER, RequestHead
from maskline.ingest.refusal import Refusal

MAX_BODY_BYTES = 1_000
POST = Request().encode()
HEAD, _, BODY = POST.partition(b"\r\n\r\n")
GET = Request(method="GET", query=[("a", "b")]).encode()
CHUNKED = b"POST /callbacks HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na=b\r\n0\r\n\r\n"
REFUSED = POST.replace(b"/callbacks", b"/refused")
REFUSED_AND_READ = POST.replace(b"/callbacks", b"/read")
"""Refused by its head, and read to its end all the same."""


def check_head(head: RequestHead) -> CallbackHead | Refusal:
    if head.target in ("/refused", "/read"):
        return UNKNOWN_ACCOUNT
    return CallbackHead(head.method, "", b"", "", "", head.headers)


def new_reader() -> RequestReader:
    return RequestReader(check_head, MAX_BODY_BYTES, lambda _refusal, head: head.target == "/read")


def read_all(pieces: list[bytes]) -> list[ReceivedRequest]:
    """All requests in these pieces, each piece given with what was unread before it."""
    reader, requests, waiting = new_reader(), [], b""
    for piece in pieces:
        waiting += piece
        while (request := reader.read(waiting)) is not None:
            requests.append(request)
            waiting = request.rest or b""
            if not waiting:
                break
        else:
            waiting = reader.unread
    return requests


def facts(request: ReceivedRequest) -> tuple[object, ...]:
    head = request.head
    code = request.checked.code if isinstance(request.checked, Refusal) else ""
    return (head and head.raw, code, request.contents, request.rest is not None)


@given(
    st.lists(
        st.sampled_from([POST, GET, CHUNKED, REFUSED, REFUSED_AND_READ, b"\r\n" + POST]),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.integers(1, 1_500), max_size=8),
)
def test_requests_are_the_same_however_their_bytes_are_cut(requests, cuts):
    sent = b"".join(requests)
    places = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    # A refused request is complete with its head; its body comes on a connection that cannot go on.
    whole = [facts(request) for request in read_all([sent])]
    cut = [facts(request) for request in read_all([sent[begin:end] for begin, end in pairwise(places)])]
    if REFUSED in requests:
        assert [each[:2] for each in cut[:1]] == [each[:2] for each in whole[:1]]
    else:
        assert cut == whole
        assert len(whole) == len(requests)


def test_body_of_a_refused_request_is_read_where_it_is_wanted():
    reader = new_reader()
    assert reader.head_refusal is None
    end_of_head = len(HEAD) + 4 - len("callbacks") + len("read")
    assert reader.read(REFUSED_AND_READ[:end_of_head]) is None
    assert reader.head_refusal is UNKNOWN_ACCOUNT
    request = reader.read(BODY)
    assert request is not None
    assert (request.checked, request.contents, request.rest) == (UNKNOWN_ACCOUNT, [BODY], b"")
    assert reader.head_refusal is None


def test_broken_body_does_not_hide_why_the_head_was_refused():
    broken = CHUNKED.replace(b"/callbacks", b"/read").replace(b"\r\n3\r\n", b"\r\nx\r\n")
    request = new_reader().read(broken)
    assert request is not None
    assert (request.checked, request.contents, request.rest) == (UNKNOWN_ACCOUNT, [], None)


def test_incomplete_head_is_unread():
    reader = new_reader()
    assert reader.read(HEAD[:50]) is None
    assert (reader.unread, reader.awaited_head) == (HEAD[:50], None)
    assert reader.read(HEAD) is None
    assert reader.unread == HEAD


@pytest.mark.parametrize(("data", "unread"), [(b"", b""), (b"\r\n\r\n", b""), (b"\r\n\r", b"\r")])
def test_blank_lines_are_no_request(data, unread):
    reader = new_reader()
    assert reader.read(data) is None
    assert (reader.unread, reader.awaited_head) == (unread, None)


def test_awaited_body_names_its_head_until_it_has_come():
    reader = new_reader()
    assert reader.read(POST[:-5]) is None
    assert reader.unread == b""
    assert reader.awaited_head is not None
    assert reader.awaited_head.target == "/callbacks"
    request = reader.read(POST[-5:] + GET)
    assert request is not None
    assert (request.contents, request.rest, reader.awaited_head) == ([BODY], GET, None)


def test_refused_head_waits_for_no_body_and_ends_the_connection_without_it():
    request = new_reader().read(REFUSED[:-5])
    assert request is not None
    assert (request.checked, request.contents, request.rest) == (UNKNOWN_ACCOUNT, [], None)
    request = new_reader().read(REFUSED + GET)
    assert request is not None
    assert (request.checked, request.contents, request.rest) == (UNKNOWN_ACCOUNT, [], GET)


def test_request_that_closes_its_connection_leaves_no_rest():
    request = new_reader().read(Request(headers={"Connection": "close"}).encode() + GET)
    assert request is not None
    assert (request.contents, request.rest) == ([BODY], None)


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"POST / HTTP/1.1\r\nno header\r\n", NO_HEADER),
        (b"POST / HTTP/1.1\r\nno header\r\n\r\n", NO_HEADER),
        (b"POST / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", HEAD_TOO_LARGE),
        (CHUNKED.replace(b"3\r\n", b"x\r\n"), BODY_BROKEN),
        (CHUNKED.replace(b"3\r\n", b"ffff\r\n"), BODY_TOO_LARGE),
    ],
)
def test_what_cannot_be_read_is_refused_and_ends_the_connection(data, refusal):
    request = new_reader().read(data)
    assert request is not None
    assert (request.checked, request.rest) == (refusal, None)
