"""Bodies: in chunks and pieces of any size, compressed in any way, and never beyond their bounds."""

import gzip
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.ingest.parser import request_body
from maskline.ingest.parser.request_body import BodyReader, ChunkedFraming, Decompressor, LengthFraming
from maskline.ingest.parser.request_head import HEAD_END, RequestHead, read_head
from maskline.ingest.refusal import Refusal

MAX_BYTES = 1_000
NEXT_REQUEST = b"GET / HTTP/1.1\r\n"


def head_of(*lines: str) -> RequestHead:
    head = read_head("\r\n".join(["POST / HTTP/1.1", "Host: h", *lines]).encode() + HEAD_END)
    assert isinstance(head, RequestHead)
    return head


def fed(body: Any, data: bytes, cuts: list[int]) -> bytes | Refusal | None:
    """What `feed` returns in the end, when the data comes in pieces; all after the body comes with the last."""
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
def test_chunks_are_joined(chunks, extension, trailers, cuts):
    body = ChunkedFraming(MAX_BYTES)
    sent = chunked(chunks, extension, trailers)
    assert fed(body, sent + NEXT_REQUEST, cuts) == NEXT_REQUEST
    assert b"".join(body.parts) == b"".join(chunks)
    for cut in cuts:
        assert ChunkedFraming(MAX_BYTES).feed(sent[: min(cut, len(sent) - 1)]) is None


@given(st.binary(min_size=1, max_size=100), cuts)
def test_body_of_announced_length_ends_there(content, cuts):
    body = LengthFraming(len(content), MAX_BYTES)
    assert fed(body, content + NEXT_REQUEST, cuts) == NEXT_REQUEST
    assert b"".join(body.parts) == content


@pytest.mark.parametrize(
    "sent",
    [b"x", b"\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r\n", b"1\n", b"f" * 17, b"2\r\nabc",
     b"2\r\nab\n", b"1\r\na1", b"1;\0\r\n", b"1;" + b"x" * 1_100, b"0\r\nno trailer\r\n", b"0\r\n: x\r\n",
     b"0\r\n x: y\r\n", b"0\r\n" + b"A: b\r\n" * 40,
     b"1\r\na\r\n" * (request_body.CHUNKS_MAX + 1)],
)  # fmt: skip
def test_broken_chunks_are_refused_as_soon_as_they_come(sent):
    assert ChunkedFraming(1 << 20).feed(sent) is request_body.BODY_BROKEN


@pytest.mark.parametrize(
    "sent", [b"3e9\r\n", b"ffffffffffffffff\r\n", b"3e8\r\n" + bytes(1_000) + b"\r\n1\r\n"]
)
def test_too_large_chunks_are_refused_at_their_size_line(sent):
    assert ChunkedFraming(MAX_BYTES).feed(sent) is request_body.BODY_TOO_LARGE


def test_too_large_length_is_refused_before_the_body_comes():
    assert LengthFraming(MAX_BYTES + 1, MAX_BYTES).feed(b"") is request_body.BODY_TOO_LARGE


def raw_deflate(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(content) + compressor.flush()


COMPRESSIONS = {
    "gzip": gzip.compress, "x-gzip": gzip.compress, "GZip, identity": gzip.compress, "deflate": zlib.compress,
    "deflate\r\nContent-Encoding: deflate": raw_deflate, "gzip, gzip": gzip.compress,
    "gzip ": lambda content: gzip.compress(content[:5]) + gzip.compress(content[5:]), "identity": bytes, "": bytes,
}  # fmt: skip


@pytest.mark.parametrize("encoding", COMPRESSIONS)
@given(content=st.binary(min_size=1, max_size=MAX_BYTES), cuts=cuts)
def test_bodies_are_decompressed(encoding, content, cuts):
    compressed = COMPRESSIONS[encoding](content)
    for framing, sent in (
        (f"Content-Length: {len(compressed)}", compressed),
        ("Transfer-Encoding: chunked", chunked([compressed])),
    ):
        reader = BodyReader(head_of(f"Content-Encoding: {encoding}", framing), 2 * MAX_BYTES)
        assert fed(reader, sent + NEXT_REQUEST, cuts) == NEXT_REQUEST
        assert reader.contents()[0] == content
        assert reader.contents()[-1] == compressed


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, deflate", "é", "gzip;q=1"])
def test_unknown_encodings_are_refused_and_the_body_is_offered_as_it_came(encoding):
    reader = BodyReader(head_of(f"Content-Encoding: {encoding}", "Content-Length: 3"), MAX_BYTES)
    assert reader.feed(b"a=b") == b""
    assert reader.contents() == [request_body.ENCODING_UNKNOWN, b"a=b"]


COMPRESSED = gzip.compress(b"a=b", mtime=0)
BROKEN = {
    "not compressed": b"a=b", "sum": COMPRESSED[:-8] + b"12345678", "trailing bytes": COMPRESSED + b"xy",
    "members": gzip.compress(b"", mtime=0) * 17,
}  # fmt: skip


@pytest.mark.parametrize("compressed", BROKEN.values(), ids=BROKEN)
def test_broken_gzip_is_refused_and_the_body_is_offered_as_it_came(compressed):
    reader = BodyReader(head_of("Content-Encoding: gzip", f"Content-Length: {len(compressed)}"), MAX_BYTES)
    assert reader.feed(compressed) == b""
    assert reader.contents() == [request_body.BODY_BROKEN, compressed]


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, raw_deflate])
@pytest.mark.parametrize("size", [MAX_BYTES + 1, 20 << 20])
def test_no_more_is_decompressed_than_max_bytes(compress, size):
    compressed = compress(bytes(size))
    encoding = "gzip" if compress is gzip.compress else "deflate"
    decompressor = Decompressor([encoding], 1 << 20)
    for part in (compressed[:100], compressed[100:200], compressed[200:]):
        decompressor.feed(part)
    assert sum(map(len, decompressor.parts)) == min(size, (1 << 20) + 1)
    assert decompressor.refusal is (request_body.BODY_TOO_LARGE if size > 1 << 20 else None)
    reader = BodyReader(
        head_of(f"Content-Encoding: {encoding}", f"Content-Length: {len(compressed)}"), MAX_BYTES
    )
    assert reader.feed(compressed) is request_body.BODY_TOO_LARGE
