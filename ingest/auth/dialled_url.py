"""The URL that Plivo dialled, without its query, and the address that a request came from. Pure.

A signature covers the URL as dialled, not as it reaches us. MASKLINE_PUBLIC_URL says it for all requests. If that is
empty, it follows from the request: its target in absolute form, else `http` and `Host`. What a proxy adds
(`X-Forwarded-Proto`, `-Host`, `-For`) is believed only from MASKLINE_TRUSTED_PROXIES.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Final, Protocol

from maskline.schemas.hosts import read_address, read_peer

PEERS_CACHED_MAX: Final = 4_096
"""Addresses whose trust is remembered. Proxies are few; the bound is against everybody else."""

FORWARDED_HOPS_MAX: Final = 20
"""Entries of X-Forwarded-For that are read, from the end."""


_IPV4_MAPPED: Final = 0xFFFF << 32
"""::ffff:0.0.0.0, where IPv4 lies in IPv6 (RFC 4291, 2.5.5.2)."""


class Headers(Protocol):
    """Request headers: names regardless of case, each with any number of lines."""

    def get(self, key: str, default: str, /) -> str:
        """The first line's value, or `default`."""
        ...

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """The values of all lines, or `default`."""
        ...


class DialledUrl:
    """Finds the dialled URL and the client's address of a request.

    `public_url`: MASKLINE_PUBLIC_URL, `scheme://host[:port][/prefix]` or empty. `trusted_proxies`: the networks whose
    X-Forwarded headers are believed.
    """

    __slots__ = ("_public_url", "depends_on_peer", "is_trusted")

    def __init__(self, public_url: str, trusted_proxies: Sequence[IPv4Network | IPv6Network]) -> None:
        self._public_url = public_url
        networks = tuple(trusted_proxies)
        self.depends_on_peer: bool = bool(networks) and not public_url
        """Whether the same head can mean another URL when it comes from another peer."""

        @lru_cache(PEERS_CACHED_MAX)
        def is_trusted(peer: str) -> bool:
            try:
                address = read_address(peer)
            except ValueError:  # a Unix socket, or text in X-Forwarded-For
                return False
            if isinstance(address, IPv6Address):
                return any(address in network for network in networks)
            # Networks may be written in either form, as peers come in either.
            mapped = IPv6Address(_IPV4_MAPPED + int(address))
            return any(address in network or mapped in network for network in networks)

        self.is_trusted = is_trusted
        """Whether the X-Forwarded headers that come from this address are believed."""

    def base_url(self, authority: str, path: str, headers: Headers, peer: str) -> str:
        """`scheme://host[:port]/path` as dialled.

        `authority`: `scheme://host[:port]` of a target in absolute form, else empty. `peer`: the address of the
        connection's other end.
        """
        if self._public_url:
            return self._public_url + path
        if authority:
            return authority + path
        scheme = "http"
        host = headers.get("Host", "")
        if self.depends_on_peer and self.is_trusted(peer):
            proto = _first_member(headers.get("X-Forwarded-Proto", "")).lower()
            scheme = proto if proto in ("http", "https") else scheme
            host = _first_member(headers.get("X-Forwarded-Host", "")) or host
        return f"{scheme}://{host}{path}"

    def client_address(self, headers: Headers, peer: str) -> str:
        """The address of the client outside the trusted proxies, for the log."""
        if not self.is_trusted(peer):
            return _without_mapping(peer)
        hops = [hop.strip() for hop in ",".join(headers.getall("X-Forwarded-For", ())).split(",")]
        for hop in reversed(hops[-FORWARDED_HOPS_MAX:]):
            try:
                address = str(read_peer(hop))
            except ValueError:
                break
            peer = address
            if not self.is_trusted(address):
                break
        return _without_mapping(peer)


def split_absolute(target: str) -> tuple[str, str]:
    """`http://host/path?query` to (`http://host`, `/path?query`); any other target to (empty, the target)."""
    scheme, separator, rest = target.partition("://")
    if scheme.lower() not in ("http", "https") or not separator:
        return "", target
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host}", slash + path


def _without_mapping(peer: str) -> str:
    """An IPv4 address in its own form, also where the socket takes both families."""
    try:
        return str(read_address(peer))
    except ValueError:  # a Unix socket
        return peer


def _first_member(value: str) -> str:
    """The first member of a list: what the outermost proxy was asked for."""
    return value.partition(",")[0].strip()
