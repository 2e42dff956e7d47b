from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.handlers.webhooks.addresses import AddressPolicy, read_allowed

POLICY = AddressPolicy()
EMBEDDING = [(0xFFFF << 32), (0x64FF9B << 96)]
"""IPv6 addresses to which an IPv4 address is added: mapped, and NAT64."""


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104  refused, which is the point
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.19.0.1",
        "198.51.100.7",
        "203.0.113.7",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::808:808",
        "100::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "2002:a00:1::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fe80::1%25eth0",
        "fec0::1",
        "ff02::1",
        "localhost",
        "2130706433",
        "",
    ],
)
def test_what_is_not_public_is_refused(address):
    assert POLICY.refusal(address) is not None


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.1",
        "172.32.0.1",
        "169.253.0.1",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00:1450:4001::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_what_is_public_is_allowed(address):
    assert POLICY.refusal(address) is None
    assert "http://" in str(AddressPolicy(public=False).refusal(address))


@given(st.ip_addresses())
def test_nothing_is_allowed_that_python_calls_not_global(address):
    if POLICY.refusal(str(address)) is None:
        reached = address
        if isinstance(address, IPv6Address):
            reached = address.ipv4_mapped or address
        assert reached.is_global
        assert not reached.is_multicast


@given(st.ip_addresses(v=4), st.sampled_from(EMBEDDING))
def test_an_ipv4_address_within_ipv6_counts_as_that(address, around):
    within = IPv6Address(around + int(address))
    assert POLICY.refusal(str(within)) == POLICY.refusal(str(address))


ALLOWED = ["10.1.0.0/16", "169.254.169.254/32", "127.0.0.0/8", "fd00::/8", "::1/128"]


@given(st.ip_addresses(), st.sampled_from(ALLOWED), st.data())
def test_a_listed_network_is_allowed_and_nothing_else_is(address, text, data):
    network = read_allowed(text)
    policy = AddressPolicy((network,))
    inside = ip_address(
        int(network.network_address) + data.draw(st.integers(0, network.num_addresses - 1))
        if network.version == 4
        else network.network_address + data.draw(st.integers(0, min(network.num_addresses, 1 << 64) - 1))
    )
    assert policy.refusal(str(inside)) is None
    assert AddressPolicy((network,), public=False).refusal(str(inside)) is None
    effective = address
    if isinstance(address, IPv6Address):
        effective = address.ipv4_mapped or (
            IPv4Address(int(address) & 0xFFFF_FFFF) if address in ip_network("64:ff9b::/96") else address
        )
    if effective not in network:
        assert policy.refusal(str(address)) == POLICY.refusal(str(address))


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0/0",
        "10.0.0.0/7",
        "8.8.8.8",
        "::/0",
        "224.0.0.1",
        "255.255.255.255",
        "::ffff:10.0.0.0/104",
        "10.0.0.1/8",
        "local",
        "",
        "fe80::1%eth0/10",
    ],
)
def test_a_network_that_is_not_private_cannot_be_listed(text):
    with pytest.raises(ValueError, match=r"it (must be|is not)"):
        read_allowed(text)
