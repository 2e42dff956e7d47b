"""Reads and writes hosts: those to listen on (MASKLINE_HOST, MASKLINE_ADMIN_HOST), and those in URLs. Pure.

A host is an IPv4 address, an IPv6 address with or without brackets and a zone, or a name. `::` means all addresses of
this machine, of both families; `0.0.0.0` those of IPv4 alone.
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

HOSTS_MAX: Final = 64
"""Hosts in one list. Each takes at least one socket, and no machine has as many addresses."""

ANY_IPV4: Final = "0.0.0.0"  # noqa: S104 - only compared; `::` includes it
ANY_IPV6: Final = "::"
LOOPBACKS: Final = {ANY_IPV4: "127.0.0.1", ANY_IPV6: "::1"}
"""By the host that means all addresses of a family: the address to dial on the same machine."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}\Z")


def read_hosts(text: str) -> tuple[str, ...]:
    """The hosts of a list that has them separated by commas or line breaks: each in its canonical form, once, in order.

    Raises ValueError. Its text says what is wrong, unless that is obvious.
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
    """Read an address, with or without brackets. An IPv4 address mapped into IPv6 is read as IPv4. Raises
    ValueError.
    """
    if text.startswith("[") and text.endswith("]"):
        address: IPv4Address | IPv6Address = IPv6Address(text[1:-1])
    else:
        address = ip_address(text)
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def read_peer(text: str) -> IPv4Address | IPv6Address:
    """Read an address with or without a port, as proxies write the addresses of clients. Raises ValueError.

    Also where an IPv6 address has a zone: any text may stand there, and it means nothing on another host.
    """
    if "%" in text:
        raise ValueError
    try:
        return read_address(text)
    except ValueError:
        host, colon, port = text.rpartition(":")
        # Without brackets an IPv6 address with a port looks like a longer address.
        if not colon or not re.match(r"[0-9]{1,5}\Z", port) or (":" in host and not host.startswith("[")):
            raise
        return read_address(host)


def in_url(host: str) -> str:
    """A host as it is written in URLs: an IPv6 address in brackets, `%` before its zone as %25 (RFC 6874)."""
    return f"[{host.replace('%', '%25')}]" if ":" in host else host


def with_port(host: str, port: int) -> str:
    """Host and port for logs and error texts: `10.0.0.7:80`, `[::1]:80`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def authority(hosts: str, port: int, bound: str = "") -> str:
    """`host:port` of a URL that reaches a listener on `hosts`, a list as `read_hosts` takes it, from this machine.

    `bound`: the first address that it listens on, if known: `::` may have come to mean IPv4 alone.
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
