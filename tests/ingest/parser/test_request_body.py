"""Bodies: in chunks and pieces of any size, packed in any way, and never more of them than may be."""

import gzip
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.ingest.parser import request_body
from maskline.ingest.parser.request_body import ChunkedBody, LengthBody, Reading
from maskline.ingest.parser.request_head import END, RequestHead, read_head
from maskline.ingest.refusal import Refusal

MAX_BYTES = 1_000
BEHIND = b"GET / HTTP/1.1\r\n"


def head_of(*lines: str) -> RequestHead:
    head = read_head("\r\n".join(["POST / HTTP/1.1", "Host: h", *lines]).encode() + END)
    assert isinstance(head, RequestHead)
    return head


def fed(body: Any, data: bytes, cuts: list[int]) -> bytes | Refusal | None:
    """What comes of feeding it in pieces; what is behind comes with the last."""
    places = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    for place, begin in enumerate(places[:-1]):
        rest = body.feed(data[begin : places[place + 1]])
        if isinstance(rest, bytes):
            return rest + data[places[place + 1] :]
        if rest is not None:
            return rest
    return None


def chunked(chunks: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    sizes = [b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks if chunk]
    return b"".join([*sizes, b"000\r\n", trailers, b"\r\n"])


cuts = st.lists(st.integers(1, 300), max_size=5)


@given(st.lists(st.binary(max_size=60), max_size=6), st.sampled_from([b"", b";a=b", b"; \xe9"]),
       st.sampled_from([b"", b"X: y\r\n", b"A:\r\nB: \xe9\r\n"]), cuts)  # fmt: skip
def test_chunks_are_put_together(chunks, extension, trailers, cuts):
    body = ChunkedBody(MAX_BYTES)
    sent = chunked(chunks, extension, trailers)
    assert fed(body, sent + BEHIND, cuts) == BEHIND
    assert b"".join(body.parts) == b"".join(chunks)
    for cut in cuts:
        assert ChunkedBody(MAX_BYTES).feed(sent[: min(cut, len(sent) - 1)]) is None


@given(st.binary(min_size=1, max_size=100), cuts)
def test_a_length_is_counted(content, cuts):
    body = LengthBody(len(content), MAX_BYTES)
    assert fed(body, content + BEHIND, cuts) == BEHIND
    assert b"".join(body.parts) == content


@pytest.mark.parametrize(
    "sent",
    [b"x", b"\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r\n", b"1\n", b"f" * 17, b"2\r\nabc",
     b"2\r\nab\n", b"1\r\na1", b"1;\0\r\n", b"1;" + b"x" * 1_100, b"0\r\nno trailer\r\n", b"0\r\n: x\r\n",
     b"0\r\n x: y\r\n", b"0\r\n" + b"A: b\r\n" * 40,
     b"1\r\na\r\n" * (request_body.CHUNKS_MAX + 1)],
)  # fmt: skip
def test_broken_chunks_are_refused_as_soon_as_they_are_seen(sent):
    assert ChunkedBody(1 << 20).feed(sent) is request_body.BODY_BROKEN


@pytest.mark.parametrize(
    "sent", [b"3e9\r\n", b"ffffffffffffffff\r\n", b"3e8\r\n" + bytes(1_000) + b"\r\n1\r\n"]
)
def test_chunks_that_are_too_much_are_refused_before_they_come(sent):
    assert ChunkedBody(MAX_BYTES).feed(sent) is request_body.BODY_TOO_LARGE


def test_a_length_that_is_too_much_is_refused_at_once():
    assert LengthBody(MAX_BYTES + 1, MAX_BYTES).feed(b"") is request_body.BODY_TOO_LARGE


def raw_deflate(content: bytes) -> bytes:
    packing = zlib.compressobj(wbits=-15)
    return packing.compress(content) + packing.flush()


PACKINGS = {
    "gzip": gzip.compress, "x-gzip": gzip.compress, "GZip, identity": gzip.compress, "deflate": zlib.compress,
    "deflate\r\nContent-Encoding: deflate": raw_deflate, "gzip, gzip": gzip.compress,
    "gzip ": lambda content: gzip.compress(content[:5]) + gzip.compress(content[5:]), "identity": bytes, "": bytes,
}  # fmt: skip


@pytest.mark.parametrize("encoding", PACKINGS)
@given(content=st.binary(min_size=1, max_size=MAX_BYTES), cuts=cuts)
def test_bodies_are_unpacked(encoding, content, cuts):
    packed = PACKINGS[encoding](content)
    for framing, sent in (
        (f"Content-Length: {len(packed)}", packed),
        ("Transfer-Encoding: chunked", chunked([packed])),
    ):
        reading = Reading(head_of(f"Content-Encoding: {encoding}", framing), 2 * MAX_BYTES)
        assert fed(reading, sent + BEHIND, cuts) == BEHIND
        assert reading.contents()[0] == content
        assert reading.contents()[-1] == packed


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, deflate", "é", "gzip;q=1"])
def test_other_encodings_are_told_and_the_body_stands_beside(encoding):
    reading = Reading(head_of(f"Content-Encoding: {encoding}", "Content-Length: 3"), MAX_BYTES)
    assert reading.feed(b"a=b") == b""
    assert reading.contents() == [request_body.ENCODING_UNKNOWN, b"a=b"]


PACKED = gzip.compress(b"a=b", mtime=0)
BROKEN = {
    "not packed": b"a=b", "sum": PACKED[:-8] + b"12345678", "behind": PACKED + b"xy",
    "members": gzip.compress(b"", mtime=0) * 17,
}  # fmt: skip


@pytest.mark.parametrize("packed", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_told(packed):
    reading = Reading(head_of("Content-Encoding: gzip", f"Content-Length: {len(packed)}"), MAX_BYTES)
    assert reading.feed(packed) == b""
    assert reading.contents() == [request_body.BODY_BROKEN, packed]


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw_deflate])
@pytest.mark.parametrize("size", [MAX_BYTES + 1, 20 << 20])
def test_no_more_is_unpacked_than_may_be(pack, size):
    packed = pack(bytes(size))
    encoding = "gzip" if pack is gzip.compress else "deflate"
    reading = Reading(head_of(f"Content-Encoding: {encoding}", f"Content-Length: {len(packed)}"), 1 << 20)
    rest = fed(reading, packed, [100, 200])
    unpacked = sum(map(len, reading._unpacking.parts))
    assert (rest is request_body.BODY_TOO_LARGE, unpacked <= (1 << 20) + 1) == (size > 1 << 20, True)
    reading = Reading(head_of(f"Content-Encoding: {encoding}", f"Content-Length: {len(packed)}"), MAX_BYTES)
    assert reading.feed(packed) is request_body.BODY_TOO_LARGE
