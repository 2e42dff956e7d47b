"""A refused request as it is kept in Redis: all that verifying it again takes. Pure.

The head is kept as its request line and the headers that verification reads, byte for byte, so that it is read again by
the same parser. No other header is kept: a proxy may add credentials of its own. The body is kept as it came, without
chunks, and compressed if it was.
"""

from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any, Final

import msgspec

from maskline.ingest import plivo_headers
from maskline.ingest.parser.aiohttp_parser import HEAD_END
from maskline.ingest.parser.request_head import RequestHead
from maskline.ingest.refusal import Refusal
from maskline.schemas.hosts import read_address

VERSION: Final = 1

KEPT_HEADERS: Final = frozenset(name.lower().encode() for name in plivo_headers.ALL) | frozenset(
    {b"host", b"content-type", b"content-encoding"}
    | {b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-for"}
)
"""What the verifier and the body's reader look at. The body's length is known without a header."""

NETWORK_BITS: Final = 64
"""Of an IPv6 address: one host has them all, and may change the rest at will."""
SHARE_MAX_CHARS: Final = 64
SHARES_CACHED_MAX: Final = 4_096


class RefusedRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One refused request, why it was refused, and when it was received."""

    key: str
    """Unique: a request that is kept twice, or released twice, goes in once."""
    received_at_ms: int
    """When ingest had the whole request: milliseconds since the epoch, by its clock."""
    status: int
    code: str
    detail: str
    peer: str
    """The address of the connection's other end, perhaps a proxy's."""
    client: str
    """The address of the client outside the trusted proxies, as they were then."""
    head: bytes
    """The request line and KEPT_HEADERS, each line and the whole ended by CR LF."""
    body: bytes
    version: int = VERSION

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Names and values of the fields that `repr` and `rich` may show: never the parameters, which hold phone
        numbers.
        """
        return [
            ("key", self.key),
            ("received_at_ms", self.received_at_ms),
            ("status", self.status),
            ("code", self.code),
            ("client", self.client),
            ("body_bytes", len(self.body)),
        ]

    def __repr__(self) -> str:
        return f"RefusedRequest({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


_decoder = msgspec.msgpack.Decoder(RefusedRequest)

encode_refused = msgspec.msgpack.Encoder().encode
"""RefusedRequest to its msgpack."""


def decode_refused(value: bytes) -> RefusedRequest | None:
    """The RefusedRequest of its msgpack; None for a value that this maskline cannot read."""
    try:
        request = _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return request if request.version <= VERSION else None


def refused_request(
    refusal: Refusal,
    head: RequestHead,
    body: bytes,
    *,
    key: str,
    received_at_ms: int,
    peer: str,
    client: str,
) -> RefusedRequest:
    """What is kept of a request. `body`: as it came; `client`: its address outside the trusted proxies."""
    return RefusedRequest(
        key,
        received_at_ms,
        refusal.status,
        refusal.code,
        refusal.detail,
        peer,
        client,
        kept_head(head.raw),
        body,
    )


def kept_head(raw: bytes) -> bytes:
    """A head as it came, without the headers that verification does not read."""
    request_line, *lines = raw[: -len(HEAD_END)].split(b"\r\n")
    kept = [line for line in lines if line.partition(b":")[0].lower() in KEPT_HEADERS]
    return b"\r\n".join((request_line, *kept)) + HEAD_END


@lru_cache(SHARES_CACHED_MAX)
def share_of(address: str) -> str:
    """What counts as one client when room is shared: an address, of an IPv6 address its network, else the text."""
    try:
        read = read_address(address)
    except ValueError:  # a Unix socket
        return "-".join(address.split())[:SHARE_MAX_CHARS] or "unknown"
    if isinstance(read, IPv6Address):
        host_bits = read.max_prefixlen - NETWORK_BITS
        return f"{IPv6Address(int(read) >> host_bits << host_bits)}/{NETWORK_BITS}"
    return str(read)
