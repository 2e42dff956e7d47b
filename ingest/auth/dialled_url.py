"""The URL that Plivo dialled, as far as the path, and where a request came from.

A signature covers the URL as dialled, not as it reaches us. MASKLINE_PUBLIC_URL says it once and for all;
where it is empty, the request does: a target in absolute form, else the scheme of the connection and `Host`.
What a proxy adds (`X-Forwarded-Proto`, `-Host`, `-For`) is believed only from MASKLINE_TRUSTED_PROXIES.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Final, Protocol

from maskline.schemas.hosts import read_address, read_peer

PEERS_REMEMBERED: Final = 4_096
"""Addresses whose trust is remembered; proxies are few, the bound is against everybody else."""

FORWARDED_HOPS_MAX: Final = 20
"""Entries of X-Forwarded-For looked at, from the end."""


_MAPPED: Final = 0xFFFF << 32
"""::ffff:0.0.0.0, where IPv4 lies in IPv6."""


class Headers(Protocol):
    """What is asked of request headers: names without regard to case, several lines each."""

    def get(self, key: str, default: str, /) -> str: ...

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]: ...


class DialledUrl:
    """Reads where requests were dialled to and where they came from, by the settings."""

    __slots__ = ("_public_url", "asks_peer", "trusts")

    def __init__(self, public_url: str, trusted_proxies: Sequence[IPv4Network | IPv6Network]) -> None:
        self._public_url = public_url
        networks = tuple(trusted_proxies)
        self.asks_peer: bool = bool(networks) and not public_url
        """Whether `base` looks at the peer at all: asking a connection for it is not free."""

        @lru_cache(PEERS_REMEMBERED)
        def trusted(peer: str) -> bool:
            try:
                address = read_address(peer)
            except ValueError:  # a Unix socket, or text in X-Forwarded-For
                return False
            if isinstance(address, IPv6Address):
                return any(address in network for network in networks)
            # Networks may be written in either form, as peers come in either.
            mapped = IPv6Address(_MAPPED + int(address))
            return any(address in network or mapped in network for network in networks)

        self.trusts = trusted
        """Whether a peer's word about where a request was dialled and came from is believed."""

    def base(self, authority: str, path: str, headers: Headers, *, secure: bool, peer: str) -> str:
        """`scheme://host[:port]/path` as dialled; `authority` is the target's own, empty in origin form."""
        if self._public_url:
            return self._public_url + path
        if authority:
            return authority + path
        scheme = "https" if secure else "http"
        host = headers.get("Host", "")
        if self.asks_peer and self.trusts(peer):
            proto = _first(headers.get("X-Forwarded-Proto", "")).lower()
            scheme = proto if proto in ("http", "https") else scheme
            host = _first(headers.get("X-Forwarded-Host", "")) or host
        return f"{scheme}://{host}{path}"

    def client(self, headers: Headers, peer: str) -> str:
        """The address of whoever is outside the trusted proxies: for the log."""
        if not self.trusts(peer):
            return _plain(peer)
        hops = [hop.strip() for hop in ",".join(headers.getall("X-Forwarded-For", ())).split(",")]
        for hop in reversed(hops[-FORWARDED_HOPS_MAX:]):
            try:
                address = str(read_peer(hop))
            except ValueError:
                break
            peer = address
            if not self.trusts(address):
                break
        return _plain(peer)


def split_absolute(target: str) -> tuple[str, str]:
    """`http://host/path?query` to (`http://host`, `/path?query`); what is no URL has no path of ours."""
    scheme, separator, rest = target.partition("://")
    if scheme.lower() not in ("http", "https") or not separator:
        return "", target
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host}", slash + path


def _plain(peer: str) -> str:
    """An address of IPv4 as such, also where the socket takes both families."""
    try:
        return str(read_address(peer))
    except ValueError:  # a Unix socket
        return peer


def _first(value: str) -> str:
    """The first of a list: what the outermost proxy was asked for."""
    return value.partition(",")[0].strip()
