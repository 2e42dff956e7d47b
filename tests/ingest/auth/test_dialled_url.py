"""Whose word about where a request came from is believed, in both families of addresses."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from maskline.ingest.auth.dialled_url import DialledUrl
from maskline.schemas.settings import load_settings

MAPPED = 0xFFFF << 32
IPV4 = st.ip_addresses(v=4)


def origin(proxies: str) -> DialledUrl:
    return DialledUrl("", load_settings({"MASKLINE_TRUSTED_PROXIES": proxies}).trusted_proxies)


@given(IPV4, IPV4, st.integers(0, 32))
def test_ipv4_and_its_mapped_form_are_the_same_in_peers_and_in_networks(peer, base, length):
    network = IPv4Network((base, length), strict=False)
    mapped = IPv6Network((MAPPED + int(network.network_address), 96 + length))
    for written in (network, mapped):
        believed = DialledUrl("", [written])
        for form in (str(peer), f"::ffff:{peer}", IPv6Address(MAPPED + int(peer)).exploded):
            assert believed.trusts(form) == (peer in network)


@pytest.mark.parametrize(
    ("proxies", "peer", "trusted"),
    [
        ("::/0", "10.0.0.1", True),
        ("::/0", "2001:db8::1", True),
        ("0.0.0.0/0", "::ffff:10.0.0.1", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("fe80::/10", "fe80::1", True),
        ("[fd00::]/8,[2001:db8::7]", "2001:db8::7", True),
        ("::ffff:10.0.0.0/104", "11.0.0.1", False),
        ("10.0.0.0/8", "", False),
    ],
)
def test_trust(proxies, peer, trusted):
    assert origin(proxies).trusts(peer) is trusted


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("::ffff:192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("::ffff:10.0.0.1", "198.51.100.7:55", "198.51.100.7"),
        ("10.0.0.1", "[2001:db8::1]:443, 10.0.0.2:1", "2001:db8::1"),
        ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1", "2001:db8::1, [::ffff:10.0.0.9]:80", "2001:db8::1"),
        ("10.0.0.1", "::ffff:198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7, [10.0.0.2, 10.0.0.3", "10.0.0.3"),
    ],
)
def test_the_client_in_both_families_with_brackets_and_ports(peer, forwarded, client):
    believed = DialledUrl("", [ip_network("10.0.0.0/8")])
    assert believed.client(CIMultiDict({"X-Forwarded-For": forwarded}), peer) == client


def test_an_ipv4_proxy_in_its_mapped_form_says_where_was_dialled():
    headers = CIMultiDict(
        {"Host": "h", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "[2001:db8::1]:8443"}
    )
    found = origin("10.0.0.0/8").base("", "/callbacks", headers, secure=False, peer="::ffff:10.0.0.1")
    assert found == "https://[2001:db8::1]:8443/callbacks"
