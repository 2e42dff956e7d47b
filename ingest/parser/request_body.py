"""Reads the bodies of requests as their bytes come in, and decompresses them. Pure.

| bound | on |
| --- | --- |
| `max_bytes` (MASKLINE_MAX_BODY_BYTES) | a body, as sent and decompressed; no more than that is ever decompressed |
| CHUNKS_MAX | chunks of one body: each costs as much as some hundred bytes |
| CHUNK_LINE_MAX_BYTES, TRAILERS_MAX | the lines around chunks |
| GZIP_MEMBERS_MAX | members of a gzip body |
"""

import re
import zlib
from typing import Any, Final, Protocol

from multidict import CIMultiDictProxy

from maskline.ingest.parser.request_head import RequestHead, list_members
from maskline.ingest.refusal import Refusal

CHUNKS_MAX: Final = 8_192
CHUNK_LINE_MAX_BYTES: Final = 1_024
TRAILERS_MAX: Final = 32
GZIP_MEMBERS_MAX: Final = 16
"""One is usual."""

BODY_TOO_LARGE: Final = Refusal(413, "body_too_large", "the body is larger than MASKLINE_MAX_BODY_BYTES")
BODY_BROKEN: Final = Refusal(400, "body_broken", "the body's transfer or content encoding is broken")
ENCODING_UNKNOWN: Final = Refusal(
    400, "content_encoding", "of content encodings, gzip and deflate are read, each alone"
)

_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t -~\x80-\xff]*)?").fullmatch
_CHUNK_SIZE_BEGINNING: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:;[\t -~\x80-\xff]*)?)?\r?").fullmatch
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*").fullmatch


class BodyFraming(Protocol):
    """Finds a body's end in the bytes, in one of HTTP/1.1's two ways."""

    parts: list[bytes]
    """The body as far as it has come, without what frames it."""

    def feed(self, data: bytes) -> bytes | Refusal | None:
        """Take more bytes: None while the body is incomplete, then the bytes after it; or why it cannot be read."""
        ...


class BodyReader:
    """Reads one request's body as its head announces it, and decompresses it meanwhile."""

    __slots__ = ("_decompressor", "_framing")

    def __init__(self, head: RequestHead, max_bytes: int) -> None:
        self._framing: BodyFraming = (
            ChunkedFraming(max_bytes) if head.chunked else LengthFraming(head.content_length, max_bytes)
        )
        encodings = _content_encodings(head.headers)
        self._decompressor = Decompressor(encodings, max_bytes) if encodings else None

    def feed(self, data: bytes) -> bytes | Refusal | None:
        """As BodyFraming.feed; a body that decompresses into too much is refused before its end."""
        if self._decompressor is None:
            return self._framing.feed(data)
        before = len(self._framing.parts)
        rest = self._framing.feed(data)
        for part in self._framing.parts[before:]:
            self._decompressor.feed(part)
        return BODY_TOO_LARGE if self._decompressor.refusal is BODY_TOO_LARGE else rest

    def contents(self) -> list[bytes | Refusal]:
        """The possible contents of a complete body, the likeliest first: decompressed, or why it cannot be.

        Then as it came: a proxy may have decompressed the body and left the header.
        """
        content = b"".join(self._framing.parts)
        if self._decompressor is None:
            return [content]
        return [self._decompressor.refusal or b"".join(self._decompressor.parts), content]


class LengthFraming:
    """A body whose length is announced (RFC 9112, 6.2)."""

    __slots__ = ("_bytes_left", "_too_large", "parts")

    def __init__(self, content_length: int, max_bytes: int) -> None:
        self._bytes_left = content_length
        self._too_large = content_length > max_bytes
        self.parts: list[bytes] = []

    def feed(self, data: bytes) -> bytes | Refusal | None:
        """See BodyFraming."""
        if self._too_large:
            return BODY_TOO_LARGE
        self.parts.append(data[: self._bytes_left])
        rest = data[self._bytes_left :]
        self._bytes_left -= len(self.parts[-1])
        return None if self._bytes_left else rest


class ChunkedFraming:
    """A body in chunks (RFC 9112, 7.1). Extensions and trailers are checked and ignored."""

    __slots__ = (
        "_bytes_left",
        "_chunks",
        "_incomplete_line",
        "_max_bytes",
        "_next_line",
        "_size_bytes",
        "_trailers",
        "parts",
    )

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.parts: list[bytes] = []
        self._size_bytes = 0
        """Of all chunks so far."""
        self._bytes_left = 0
        """Of the present chunk."""
        self._chunks = 0
        self._trailers = 0
        self._incomplete_line = b""
        self._next_line = "size"
        """What the next line must be: the `size` of a chunk, the `end` of one, a `trailer`."""

    def feed(self, data: bytes) -> bytes | Refusal | None:
        """See BodyFraming."""
        if self._incomplete_line:
            data, self._incomplete_line = self._incomplete_line + data, b""
        at = 0
        while True:
            if self._bytes_left:
                part = data[at : at + self._bytes_left]
                self.parts.append(part)
                at += len(part)
                self._bytes_left -= len(part)
                if self._bytes_left:
                    return None
            end = data.find(b"\r\n", at, at + CHUNK_LINE_MAX_BYTES + 2)
            if end < 0:
                self._incomplete_line = data[at:]
                return None if self._may_become_valid() else BODY_BROKEN
            line = data[at:end]
            at = end + 2
            if self._next_line == "trailer" and not line:
                return data[at:]
            if refusal := self._take_line(line):
                return refusal

    def _take_line(self, line: bytes) -> Refusal | None:
        if self._next_line == "end":
            self._next_line = "size"
            return BODY_BROKEN if line else None
        if self._next_line == "trailer":
            self._trailers += 1
            return None if _TRAILER(line) and self._trailers <= TRAILERS_MAX else BODY_BROKEN
        size = _CHUNK_SIZE(line)
        self._chunks += 1
        if size is None or self._chunks > CHUNKS_MAX:
            return BODY_BROKEN
        self._bytes_left = int(size[1], 16)
        self._size_bytes += self._bytes_left
        self._next_line = "end" if self._bytes_left else "trailer"
        return BODY_TOO_LARGE if self._size_bytes > self._max_bytes else None

    def _may_become_valid(self) -> bool:
        """Whether the line that has begun can still become the one that is due."""
        line = self._incomplete_line
        if len(line) > CHUNK_LINE_MAX_BYTES + 1 or b"\n" in line:
            return False
        if self._next_line == "size":
            return _CHUNK_SIZE_BEGINNING(line) is not None
        return self._next_line == "trailer" or b"\r\n".startswith(line)


class Decompressor:
    """Decompresses a body part by part, into no more than `max_bytes`. A body that breaks off yields what came."""

    __slots__ = ("_bytes_left", "_decompress", "_encoding", "_members", "parts", "refusal")

    def __init__(self, encodings: list[str], max_bytes: int) -> None:
        self.parts: list[bytes] = []
        self.refusal: Refusal | None = None
        """Why the body cannot be decompressed, once that is known."""
        self._bytes_left = max_bytes
        self._members = 0
        self._encoding = encodings[0]
        self._decompress: Any = None  # zlib does not name its type
        if len(encodings) != 1 or self._encoding not in ("gzip", "x-gzip", "deflate"):
            self.refusal = ENCODING_UNKNOWN

    def feed(self, data: bytes) -> None:
        """Decompress more bytes into `parts`, or set `refusal`."""
        try:
            while data and self.refusal is None:
                if self._decompress is None or self._decompress.eof:
                    self._begin_member(data)
                part = self._decompress.decompress(data, self._bytes_left + 1)
                self._bytes_left -= len(part)
                self.parts.append(part)
                data = self._decompress.unused_data  # gzip: another member may follow
                if self._bytes_left < 0:
                    self.refusal = BODY_TOO_LARGE
                elif self._members > GZIP_MEMBERS_MAX:
                    self.refusal = BODY_BROKEN
        except zlib.error:
            self.refusal = BODY_BROKEN

    def _begin_member(self, data: bytes) -> None:
        window_bits = zlib.MAX_WBITS | 16
        if self._encoding == "deflate":  # the zlib format, but some send the bare one (RFC 9110, 8.4.1.2)
            window_bits = zlib.MAX_WBITS if data[0] & 0xF == 8 else -zlib.MAX_WBITS
        self._decompress = zlib.decompressobj(window_bits)
        self._members += 1


def _content_encodings(headers: CIMultiDictProxy[str]) -> list[str]:
    """The encodings that the body is said to have; a header that a proxy doubled says it once."""
    return [name for name in dict.fromkeys(list_members(headers, "Content-Encoding")) if name != "identity"]
