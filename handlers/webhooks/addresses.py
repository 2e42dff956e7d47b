"""Which addresses an endpoint may be connected to. Pure.

A URL that an operator writes, and the DNS behind it that somebody else writes, must not lead a request to what only
this machine or its network can reach: a database, a cloud's metadata service, an admin port. So an address is refused
if it is not one of the public Internet, unless the endpoint's `allow_private` lists its network.

- The table _NOT_PUBLIC is IANA's registries of special-purpose addresses (RFC 6890), and Azure's platform address. Of
  IPv6, everything outside of 2000::/3 is refused besides.
- An IPv4 address within an IPv6 address counts as the IPv4 address where the network would deliver it to that: mapped
  (`::ffff:10.0.0.1`), and by NAT64 (`64:ff9b::10.0.0.1`).
- `http://` reaches only what `allow_private` lists: nothing crosses the Internet unencrypted.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NOT_PUBLIC: Final[dict[str, tuple[str, bool]]] = {
    # The network: what it is, and whether `allow_private` may list it or a part of it.
    "0.0.0.0/8": ("this host", False),
    "10.0.0.0/8": ("private", True),
    "100.64.0.0/10": ("shared by a provider's customers", True),
    "127.0.0.0/8": ("loopback", True),
    "168.63.129.16/32": ("Azure's platform", True),
    "169.254.0.0/16": ("link-local, where clouds keep their metadata", True),
    "172.16.0.0/12": ("private", True),
    "192.0.0.0/24": ("reserved for protocols", True),
    "192.0.2.0/24": ("for documentation", False),
    "192.88.99.0/24": ("6to4 relays", False),
    "192.168.0.0/16": ("private", True),
    "198.18.0.0/15": ("for benchmarks", True),
    "198.51.100.0/24": ("for documentation", False),
    "203.0.113.0/24": ("for documentation", False),
    "224.0.0.0/4": ("multicast", False),
    "240.0.0.0/4": ("reserved", False),
    "::/128": ("this host", False),
    "::1/128": ("loopback", True),
    "64:ff9b:1::/48": ("NAT64 of a local network", True),
    "2001::/23": ("reserved for protocols", False),
    "2001:db8::/32": ("for documentation", False),
    "2002::/16": ("6to4, which hides an IPv4 address", False),
    "3fff::/20": ("for documentation", False),
    "fc00::/7": ("private", True),
    "fe80::/10": ("link-local", True),
    "fec0::/10": ("site-local", True),
    "ff00::/8": ("multicast", False),
}
_RULES: Final = tuple((ip_network(text), *rule) for text, rule in _NOT_PUBLIC.items())
_ALLOWABLE: Final = tuple(network for network, _, allowable in _RULES if allowable)
_PUBLIC_IPV6: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")


class AddressPolicy(NamedTuple):
    """Which addresses one endpoint may be connected to."""

    allow_private: tuple[Network, ...] = ()
    """Networks that are not public, and allowed all the same. Each has passed `read_allowed`."""
    public: bool = True
    """Whether public addresses are allowed: not for `http://`."""

    def refusal(self, host: str) -> str | None:
        """Why a connection to an address is refused, in a few words that name it; None if it is allowed.

        `host`: an address as `getaddrinfo` or a socket gives it, with or without a zone.
        """
        try:
            address = _effective(ip_address(host.partition("%")[0]))
        except ValueError:
            return "it is no address"
        if any(address in network for network in self.allow_private):
            return None
        if (kind := _kind(address)) is not None:
            return f"{address} is not public ({kind}), and allow_private does not list its network"
        if not self.public:
            return f"{address} is public, and http:// reaches only the networks that allow_private lists"
        return None


def read_allowed(text: str) -> Network:
    """A network that `allow_private` lists.

    Raises ValueError, with what is wrong, for a text that is no network, and for a network that is not within one of
    those that are refused and may be allowed.
    """
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError("it must be a network such as 10.0.0.0/8 or an address") from None
    if not any(_within(network, wider) for wider in _ALLOWABLE):
        raise ValueError("it is not within a private network, such as 10.0.0.0/8, 127.0.0.0/8 or fc00::/7")
    return network


def _effective(address: Address) -> Address:
    """The address that the network delivers to."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _kind(address: Address) -> str | None:
    """What an address that is not public is; None for a public one."""
    for network, kind, _ in _RULES:
        if address in network:
            return kind
    if isinstance(address, IPv6Address) and address not in _PUBLIC_IPV6:
        return "reserved"
    return None


def _within(network: Network, wider: Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(wider, IPv4Network) and network.subnet_of(wider)
    return isinstance(wider, IPv6Network) and network.subnet_of(wider)
