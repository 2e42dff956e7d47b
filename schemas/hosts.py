"""Hosts to listen on, as MASKLINE_HOST and MASKLINE_ADMIN_HOST name them, and hosts in URLs. Pure.

A host is an IPv4 address, an IPv6 address with or without brackets and a zone, or a name. `::` means all addresses of
this machine, of both families; `0.0.0.0` those of IPv4 alone.
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

HOSTS_MAX: Final = 64
"""In one list: each is a socket at least, and nobody has as many addresses on one machine."""

ANY_IPV4: Final = "0.0.0.0"  # noqa: S104 - compared, and what `::` means besides
ANY_IPV6: Final = "::"
LOOPBACKS: Final = {ANY_IPV4: "127.0.0.1", ANY_IPV6: "::1"}
"""Where to dial what listens on all addresses."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}\Z")


def read_hosts(text: str) -> tuple[str, ...]:
    """The hosts of a list, by commas or one a line, each in its plain form, once.

    Raises ValueError, whose text says what is wrong where that is not plain to see.
    """
    hosts = tuple(
        dict.fromkeys(_read_host(item) for part in re.split(r"[,\n]", text) if (item := part.strip()))
    )
    if not hosts:
        raise ValueError
    if len(hosts) > HOSTS_MAX:
        raise ValueError(f"more than {HOSTS_MAX}")
    return hosts


def read_address(text: str) -> IPv4Address | IPv6Address:
    """An address, with or without brackets; one of IPv4 that is mapped into IPv6 is one of IPv4. Raises ValueError."""
    if text.startswith("[") and text.endswith("]"):
        address: IPv4Address | IPv6Address = IPv6Address(text[1:-1])
    else:
        address = ip_address(text)
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def read_peer(text: str) -> IPv4Address | IPv6Address:
    """The same with a port behind it or not, as proxies write the addresses of clients. Raises ValueError."""
    try:
        return read_address(text)
    except ValueError:
        host, colon, port = text.rpartition(":")
        # Without brackets an IPv6 address with a port cannot be told from a longer address.
        if not colon or not re.match(r"[0-9]{1,5}\Z", port) or (":" in host and not host.startswith("[")):
            raise
        return read_address(host)


def in_url(host: str) -> str:
    """A host as URLs have it: an IPv6 address in brackets, `%` before its zone as %25 (RFC 6874)."""
    return f"[{host.replace('%', '%25')}]" if ":" in host else host


def with_port(host: str, port: int) -> str:
    """`10.0.0.7:80`, `[::1]:80`: for logs and error texts."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def authority(hosts: str, port: int, bound: str = "") -> str:
    """`host:port` of a URL that leads to whoever listens on these hosts, from this machine.

    `bound`: the first address that is listened on, where it is known: `::` may have come to mean IPv4 alone.
    """
    first = read_hosts(hosts)[0]
    if first in LOOPBACKS:
        first = LOOPBACKS.get(bound, LOOPBACKS[first])
    return f"{in_url(first)}:{port}"


def _read_host(text: str) -> str:
    try:
        return str(read_address(text))
    except ValueError:
        if _NAME.match(text):
            return text
    if re.match(r"(\[.*\]|[^:]+):[0-9]+\Z", text):
        raise ValueError("a port is a setting of its own")
    raise ValueError
