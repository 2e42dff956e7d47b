"""Reads the bodies of requests, as their bytes come in, and unpacks them. Pure.

| bound | on |
| --- | --- |
| `max_bytes` (MASKLINE_MAX_BODY_BYTES) | what a body holds, as sent and unpacked; no more than that is ever unpacked |
| CHUNKS_MAX | chunks of one body: each costs as much as some hundred bytes |
| CHUNK_LINE_MAX_BYTES, TRAILERS_MAX | what stands around chunks |
| MEMBERS_MAX | parts of a gzip body |
"""

import re
import zlib
from typing import Any, Final, Protocol

from multidict import CIMultiDictProxy

from maskline.ingest.parser.request_head import RequestHead, listed
from maskline.ingest.refusal import Refusal

CHUNKS_MAX: Final = 8_192
CHUNK_LINE_MAX_BYTES: Final = 1_024
TRAILERS_MAX: Final = 32
MEMBERS_MAX: Final = 16
"""Of a gzip body; one is usual."""

BODY_TOO_LARGE: Final = Refusal(413, "body_too_large", "the body is larger than MASKLINE_MAX_BODY_BYTES")
BODY_BROKEN: Final = Refusal(400, "body_broken", "the body's transfer or content encoding is broken")
ENCODING_UNKNOWN: Final = Refusal(
    400, "content_encoding", "of content encodings, gzip and deflate are read, each alone"
)

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t -~\x80-\xff]*)?").fullmatch
_SIZE_BEGINNING: Final = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:;[\t -~\x80-\xff]*)?)?\r?").fullmatch
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*").fullmatch


class Body(Protocol):
    """A body of which more may come."""

    parts: list[bytes]
    """What it holds, as far as it has come."""

    def feed(self, data: bytes) -> bytes | Refusal | None:
        """Take more bytes in: None while the body is not complete, then what stands behind it."""
        ...


class Reading:
    """A body as a head announces it: read, and unpacked beside."""

    __slots__ = ("_body", "_unpacking")

    def __init__(self, head: RequestHead, max_bytes: int) -> None:
        self._body: Body = ChunkedBody(max_bytes) if head.chunked else LengthBody(head.length, max_bytes)
        encodings = _content_encodings(head.headers)
        self._unpacking = Unpacking(encodings, max_bytes) if encodings else None

    def feed(self, data: bytes) -> bytes | Refusal | None:
        """As Body.feed; a body that unpacks into too much is refused before its end."""
        if self._unpacking is None:
            return self._body.feed(data)
        before = len(self._body.parts)
        rest = self._body.feed(data)
        for part in self._body.parts[before:]:
            self._unpacking.feed(part)
        return BODY_TOO_LARGE if self._unpacking.refused is BODY_TOO_LARGE else rest

    def contents(self) -> list[bytes | Refusal]:
        """What the body holds, unpacked. Then as it came: a proxy may have unpacked it and left the header."""
        content = b"".join(self._body.parts)
        if self._unpacking is None:
            return [content]
        return [self._unpacking.refused or b"".join(self._unpacking.parts), content]


class LengthBody:
    """A body whose length is known."""

    __slots__ = ("_left", "_too_large", "parts")

    def __init__(self, length: int, max_bytes: int) -> None:
        self._left = length
        self._too_large = length > max_bytes
        self.parts: list[bytes] = []

    def feed(self, data: bytes) -> bytes | Refusal | None:
        if self._too_large:
            return BODY_TOO_LARGE
        self.parts.append(data[: self._left])
        rest = data[self._left :]
        self._left -= len(self.parts[-1])
        return None if self._left else rest


class ChunkedBody:
    """A body in chunks (RFC 9112, 7.1). Extensions and trailers count for nothing."""

    __slots__ = ("_chunks", "_left", "_max_bytes", "_rest", "_size", "_state", "_trailers", "parts")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.parts: list[bytes] = []
        self._size = 0
        self._left = 0
        """Of the present chunk."""
        self._chunks = 0
        self._trailers = 0
        self._rest = b""
        self._state = "size"
        """What the next line is: `size`, `end` of a chunk, `trailer`."""

    def feed(self, data: bytes) -> bytes | Refusal | None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        at = 0
        while True:
            if self._left:
                part = data[at : at + self._left]
                self.parts.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    return None
            end = data.find(b"\r\n", at, at + CHUNK_LINE_MAX_BYTES + 2)
            if end < 0:
                self._rest = data[at:]
                return None if self._can_go_on() else BODY_BROKEN
            line = data[at:end]
            at = end + 2
            if self._state == "trailer" and not line:
                return data[at:]
            if refused := self._take(line):
                return refused

    def _take(self, line: bytes) -> Refusal | None:
        if self._state == "end":
            self._state = "size"
            return BODY_BROKEN if line else None
        if self._state == "trailer":
            self._trailers += 1
            return None if _TRAILER(line) and self._trailers <= TRAILERS_MAX else BODY_BROKEN
        size = _SIZE(line)
        self._chunks += 1
        if size is None or self._chunks > CHUNKS_MAX:
            return BODY_BROKEN
        self._left = int(size[1], 16)
        self._size += self._left
        self._state = "end" if self._left else "trailer"
        return BODY_TOO_LARGE if self._size > self._max_bytes else None

    def _can_go_on(self) -> bool:
        """Whether the line that has begun can become what is due."""
        rest = self._rest
        if len(rest) > CHUNK_LINE_MAX_BYTES + 1 or b"\n" in rest:
            return False
        if self._state == "size":
            return _SIZE_BEGINNING(rest) is not None
        return self._state == "trailer" or b"\r\n".startswith(rest)


class Unpacking:
    """Unpacks a body part by part, into no more than `max_bytes`. What it is cut short of is left away."""

    __slots__ = ("_encoding", "_left", "_members", "_unpack", "parts", "refused")

    def __init__(self, encodings: list[str], max_bytes: int) -> None:
        self.parts: list[bytes] = []
        self.refused: Refusal | None = None
        self._left = max_bytes
        self._members = 0
        self._encoding = encodings[0]
        self._unpack: Any = None  # zlib tells no name of its type
        if len(encodings) != 1 or self._encoding not in ("gzip", "x-gzip", "deflate"):
            self.refused = ENCODING_UNKNOWN

    def feed(self, data: bytes) -> None:
        try:
            while data and self.refused is None:
                if self._unpack is None or self._unpack.eof:
                    self._begin(data)
                part = self._unpack.decompress(data, self._left + 1)
                self._left -= len(part)
                self.parts.append(part)
                data = self._unpack.unused_data  # gzip: another member may follow
                if self._left < 0:
                    self.refused = BODY_TOO_LARGE
                elif self._members > MEMBERS_MAX:
                    self.refused = BODY_BROKEN
        except zlib.error:
            self.refused = BODY_BROKEN

    def _begin(self, data: bytes) -> None:
        window_bits = zlib.MAX_WBITS | 16
        if self._encoding == "deflate":  # the zlib format, but some send the bare one (RFC 9110, 8.4.1.2)
            window_bits = zlib.MAX_WBITS if data[0] & 0xF == 8 else -zlib.MAX_WBITS
        self._unpack = zlib.decompressobj(window_bits)
        self._members += 1


def _content_encodings(headers: CIMultiDictProxy[str]) -> list[str]:
    """What the body is said to be packed in; a header that a proxy doubled says it once."""
    return [name for name in dict.fromkeys(listed(headers, "Content-Encoding")) if name != "identity"]
