"""The raw callback as it is stored in the stream.

Ingest stores what it received, not a decoded event, so that a decoding bug can be fixed and the callbacks replayed. A
stream entry has one field, `c`, whose value is the msgpack of a RawCallback, an array. It is one field rather than six
because each field costs the server, the wire and both parsers once per callback.
"""

from typing import Any, Final

import msgspec

from maskline.schemas.errors import UndecodableEntryError

CALLBACK_FIELD: Final = b"c"
CALLBACK_VERSION: Final = 1

EMITTED_METHOD: Final = "EMIT"
"""The method of what a handler module has emitted (`schemas.emission`); HTTP has none of that name."""
EMISSION_VERSION: Final = 2
"""The version of such an entry."""


class RawCallback(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request of Plivo's, byte for byte, with the time it was received and the account that signed it."""

    method: str
    """`POST` or `GET`; `EMIT` for what a handler module has emitted."""
    query: bytes
    """The query string as sent, without `?`, still percent-encoded."""
    content_type: str
    """The Content-Type header, empty if absent."""
    body: bytes
    """The body, empty for a GET."""
    received_at_ms: int
    """When ingest had the whole request: milliseconds since the epoch, by its clock."""
    auth_id: str
    """The account whose token fits the signature; empty if verification is off and the path names none."""
    replayed: bool = False
    """Whether an operator replayed it into the stream."""
    version: int = CALLBACK_VERSION

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Names and values of the fields that `repr` and `rich` may show: never the parameters, which hold phone
        numbers.
        """
        return [
            ("method", self.method),
            ("query_bytes", len(self.query)),
            ("content_type", self.content_type),
            ("body_bytes", len(self.body)),
            ("received_at_ms", self.received_at_ms),
            ("auth_id", self.auth_id),
            ("replayed", self.replayed),
        ]

    def __repr__(self) -> str:
        return f"RawCallback({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RawCallback)

encode_callback = _encoder.encode
"""RawCallback to its msgpack, the value of the entry's field."""


def decode_callback(value: bytes) -> RawCallback:
    """The RawCallback in the value of an entry's field.

    Raises UndecodableEntryError (`foreign_entry`) for a value that maskline did not write.
    """
    try:
        callback = _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableEntryError("foreign_entry", f"not a maskline callback: {error}") from None
    emitted = callback.method == EMITTED_METHOD and callback.version == EMISSION_VERSION
    if callback.version > CALLBACK_VERSION and not emitted:
        raise UndecodableEntryError(
            "foreign_entry", f"written by a newer maskline (version {callback.version})"
        )
    return callback


def as_replayed(value: bytes) -> bytes:
    """The value of an entry's field, flagged as replayed. One that maskline did not write is returned as it is."""
    try:
        return encode_callback(msgspec.structs.replace(decode_callback(value), replayed=True))
    except UndecodableEntryError:
        return value
