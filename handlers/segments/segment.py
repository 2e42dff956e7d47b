"""The format of a segment: encodes one from records, and reads one back. Pure, but for the salt of an encrypted one.

```
 magic "MASKLSEG"                       8 bytes
 length of the head                     4 bytes, big-endian, as all lengths
 head                                   msgpack map (`Head`)
 chunks: kind 1 byte, length 4 bytes, body
   kind 1  records: a zstd frame of a msgpack array of `ArchivedCallback`; encrypted as a whole
   kind 2  footer, the last chunk: msgpack map (`Footer`); encrypted in the same way
 SHA-256 of all bytes before            32 bytes
 magic "MASKLEND"                       8 bytes
```

A segment is whole or it is none: a reader checks the SHA-256 before it looks at anything else, so of a torn file no
record is ever taken.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec
import zstandard

from maskline.handlers.segments.errors import DamagedSegmentError
from maskline.handlers.segments.record import ArchivedCallback
from maskline.handlers.segments.sealing import CIPHER, ChunkCipher, SealedHead

MAGIC: Final = b"MASKLSEG"
END: Final = b"MASKLEND"
VERSION: Final = 1
RECORDS: Final = 1
FOOTER: Final = 2
DIGEST_BYTES: Final = 32

CHUNK_RAW_BYTES: Final = 1 << 20
"""Records gather in a chunk until they are so large: a reader has as much in memory, and zstd enough to learn from."""

CHUNK_RAW_MAX_BYTES: Final = 64 << 20
"""What a reader unpacks at most of one chunk: MASKLINE_MAX_BODY_BYTES is bounded far below."""

HEAD_MAX_BYTES: Final = 4_096
LEVEL: Final = 3
"""zstd's default: a third faster than 6, and 3 % larger."""

Numbers = Literal["plain", "tokens"]


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """The head of a segment, which is not encrypted."""

    version: int
    created_ms: int
    """When the segment was closed: milliseconds since the epoch, by the writer's clock."""
    writer: str
    number: int
    group: str
    """The consumer group that archived."""
    numbers: Numbers
    """Whether phone numbers are as they came."""
    cipher: str | None = None
    key_id: str | None = None
    salt: bytes | None = None


class Footer(msgspec.Struct, frozen=True):
    """The last chunk of a segment."""

    chunks: int
    """Chunks of records."""
    records: int
    record_bytes: int
    """Of their msgpack, before it was compressed."""
    first_received_ms: int
    last_received_ms: int


_encode: Final = msgspec.msgpack.Encoder().encode
_head_decoder: Final = msgspec.msgpack.Decoder(Head)
_footer_decoder: Final = msgspec.msgpack.Decoder(Footer)
_records_decoder: Final = msgspec.msgpack.Decoder(list[ArchivedCallback])
_ARRAY_32: Final = b"\xdd"
"""Begins a msgpack array whose length has four bytes."""


def encode_segment(
    head: Head, records: Sequence[bytes], received: tuple[int, int], key: bytes | None = None
) -> bytes:
    """The bytes of a segment. `records`: as `encode_record` makes them. `received`: the least and the greatest
    `received_at_ms`. `key`: encrypts it.
    """
    sealed = None if key is None else SealedHead.new(key)
    if sealed is not None:
        head = msgspec.structs.replace(head, cipher=CIPHER, key_id=sealed.key_id, salt=sealed.salt)
    encoded_head = _encode(head)
    cipher = None if sealed is None or key is None else sealed.cipher([key], encoded_head)
    parts = [MAGIC, len(encoded_head).to_bytes(4, "big"), encoded_head]
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    place = 0
    for raw in _gathered(records):
        parts += _chunk(place, RECORDS, compressor.compress(raw), cipher)
        place += 1
    footer = Footer(place, len(records), sum(map(len, records)), *received)
    parts += _chunk(place, FOOTER, _encode(footer), cipher)
    whole = b"".join(parts)
    return b"".join((whole, sha256(whole).digest(), END))


def _gathered(records: Sequence[bytes]) -> Iterator[bytes]:
    """Msgpack arrays of the records, of about CHUNK_RAW_BYTES each."""
    some: list[bytes] = []
    size = 0
    for record in records:
        some.append(record)
        size += len(record)
        if size >= CHUNK_RAW_BYTES:
            yield _array(some)
            some, size = [], 0
    if some:
        yield _array(some)


def _array(items: Sequence[bytes]) -> bytes:
    return b"".join((_ARRAY_32, len(items).to_bytes(4, "big"), *items))


def _chunk(place: int, kind: int, body: bytes, cipher: ChunkCipher | None) -> list[bytes]:
    if cipher is not None:
        body = cipher.seal(place, kind, body)
    return [bytes([kind]), len(body).to_bytes(4, "big"), body]


class Segment:
    """A whole segment that was read.

    Raises DamagedSegmentError where it is none, and ArchiveKeyError if it is
    encrypted with none of `keys`.
    """

    def __init__(self, data: bytes, keys: Sequence[bytes] = ()) -> None:
        self._data = _checked(data)
        start = len(MAGIC) + 4
        length = int.from_bytes(data[len(MAGIC) : start], "big")
        encoded = data[start : start + length]
        if length > HEAD_MAX_BYTES or len(encoded) < length:
            raise DamagedSegmentError("its head has no end")
        self.head = _decoded(_head_decoder, encoded, "head")
        if self.head.version > VERSION:
            raise DamagedSegmentError(f"written by a newer maskline (version {self.head.version})")
        self._chunks_at = start + length
        self._cipher: ChunkCipher | None = None
        if self.head.cipher is not None:
            if self.head.cipher != CIPHER or self.head.key_id is None or self.head.salt is None:
                raise DamagedSegmentError(
                    f"encrypted in a way this release does not know: {self.head.cipher}"
                )
            self._cipher = SealedHead(self.head.key_id, self.head.salt).cipher(keys, encoded)

    def records(self) -> Iterator[ArchivedCallback]:
        """The archived callbacks. Raises DamagedSegmentError, at the latest after the last one."""
        count = 0
        for place, (kind, body) in enumerate(self._chunks()):
            plain = body if self._cipher is None else self._cipher.open(place, kind, body)
            if kind == FOOTER:
                footer: Footer = _decoded(_footer_decoder, plain, "footer")
                if (footer.chunks, footer.records) != (place, count):
                    raise DamagedSegmentError("its footer counts other records than there are")
                return
            records: list[ArchivedCallback] = _decoded(_records_decoder, _unpacked(plain), "records")
            count += len(records)
            yield from records
        raise DamagedSegmentError("it has no footer")

    def _chunks(self) -> Iterator[tuple[int, bytes]]:
        at, end, data = self._chunks_at, len(self._data) - DIGEST_BYTES - len(END), self._data
        while at < end:
            kind, length = data[at], int.from_bytes(data[at + 1 : at + 5], "big")
            at += 5 + length
            if kind not in (RECORDS, FOOTER) or at > end:
                raise DamagedSegmentError("a chunk of it has no end")
            yield kind, data[at - length : at]


def _checked(data: bytes) -> bytes:
    if not data.startswith(MAGIC):
        raise DamagedSegmentError("it is no segment")
    whole = memoryview(data)[: -DIGEST_BYTES - len(END)]
    if not data.endswith(END) or sha256(whole).digest() != data[-DIGEST_BYTES - len(END) : -len(END)]:
        raise DamagedSegmentError("it is torn, or was changed")
    return data


def _unpacked(body: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(body)
        if not 0 <= size <= CHUNK_RAW_MAX_BYTES:
            raise DamagedSegmentError("a chunk of it is larger than any that is written")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size or 1)
    except zstandard.ZstdError as error:
        raise DamagedSegmentError(f"a chunk of it cannot be unpacked: {error}") from None


def _decoded(decoder: msgspec.msgpack.Decoder[Any], encoded: bytes, what: str) -> Any:
    try:
        return decoder.decode(encoded)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedSegmentError(f"its {what} cannot be read: {error}") from None
