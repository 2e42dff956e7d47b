"""The raw callback as it lies in the stream.

Ingest stores what came, not what it made of it: a decoding bug can be mended and the callbacks replayed. One
stream entry has one field, `c`, whose value is the msgpack array below. One field rather than six because
every field costs the server, the wire and both parsers once per callback.
"""

from typing import Any, Final

import msgspec

from maskline.schemas.errors import UndecodableEntryError

CALLBACK_FIELD: Final = b"c"
CALLBACK_VERSION: Final = 1


class RawCallback(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request of Plivo's, byte for byte, with when it came and whose signature it bore."""

    method: str
    """`POST` or `GET`."""
    query: bytes
    """The query string as dialled, without `?`, still percent-encoded."""
    content_type: str
    """The Content-Type header, empty where absent."""
    body: bytes
    """The body, empty for a GET."""
    received_at_ms: int
    """When ingest had the whole request, milliseconds since the epoch by its clock."""
    auth_id: str
    """The account whose token fits the signature; empty where verification is off and the path names none."""
    replayed: bool = False
    """Put back into the stream by an operator."""
    version: int = CALLBACK_VERSION

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What `repr` and `rich` may show: never the parameters, which hold phone numbers."""
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
"""RawCallback to the value of the entry's field."""


def decode_callback(value: bytes) -> RawCallback:
    """Read the value of an entry's field.

    Raises UndecodableEntryError (`foreign_entry`) where it is not one of ours.
    """
    try:
        callback = _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableEntryError("foreign_entry", f"not a maskline callback: {error}") from None
    if callback.version > CALLBACK_VERSION:
        raise UndecodableEntryError(
            "foreign_entry", f"written by a newer maskline (version {callback.version})"
        )
    return callback
