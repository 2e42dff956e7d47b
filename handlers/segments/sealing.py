"""Encrypts the chunks of a segment: AES-256-GCM, with a key of its own for each segment. Pure, but for the salt.

The segment's key comes from the operator's key and 32 random bytes in the segment's head (HKDF-SHA256), so no key
encrypts more than one segment, and a chunk's place in it makes a nonce that never comes twice. What is authenticated
besides each chunk: the whole head, and the chunk's kind and place. So no chunk can be changed, moved, left out or taken
from another segment without being noticed, the last one counting the others.
"""

import os
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from maskline.handlers.segments.errors import ArchiveKeyError, DamagedSegmentError

CIPHER: Final = "AES-256-GCM HKDF-SHA256"
SALT_BYTES: Final = 32
NONCE_BYTES: Final = 12
KEY_ID_BYTES: Final = 8
_INFO: Final = b"maskline archive segment 1"


def key_id(key: bytes) -> str:
    """Names a key without telling it: 16 hexadecimal digits."""
    return blake2b(key, digest_size=KEY_ID_BYTES, person=b"maskline archive").hexdigest()


class SealedHead(NamedTuple):
    """What the head of a segment says of its encryption."""

    key_id: str
    salt: bytes

    @classmethod
    def new(cls, key: bytes) -> Self:
        """That of a new segment."""
        return cls(key_id(key), os.urandom(SALT_BYTES))

    def cipher(self, keys: Sequence[bytes], head: bytes) -> "ChunkCipher":
        """The cipher of the segment. `head`: its encoded head. Raises ArchiveKeyError if none of the keys is its."""
        for key in keys:
            if key_id(key) == self.key_id:
                derived = HKDF(SHA256(), length=32, salt=self.salt, info=_INFO).derive(key)
                return ChunkCipher(AESGCM(derived), head)
        have = ", ".join(map(key_id, keys)) or "none"
        raise ArchiveKeyError(
            f"MASKLINE_ARCHIVE_KEY: the archive needs the key {self.key_id}, and there is {have}"
        )


class ChunkCipher:
    """Seals and opens the chunks of one segment."""

    def __init__(self, cipher: AESGCM, head: bytes) -> None:
        self._cipher = cipher
        self._head = head

    def seal(self, place: int, kind: int, plain: bytes) -> bytes:
        """The chunk at this place, encrypted. `kind`: a byte, as its number."""
        return self._cipher.encrypt(_nonce(place), plain, self._bound(kind))

    def open(self, place: int, kind: int, sealed: bytes) -> bytes:
        """The chunk, decrypted. Raises DamagedSegmentError if it is not what was sealed here."""
        try:
            return self._cipher.decrypt(_nonce(place), sealed, self._bound(kind))
        except InvalidTag:
            raise DamagedSegmentError("a chunk was changed after it was encrypted") from None

    def _bound(self, kind: int) -> bytes:
        return self._head + bytes([kind])


def _nonce(place: int) -> bytes:
    return place.to_bytes(NONCE_BYTES, "big")
