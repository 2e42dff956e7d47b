"""The dialled URL and the client's address behind proxies, in both families of addresses."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from maskline.ingest.auth.dialled_url import DialledUrl
from maskline.schemas.settings import load_settings

MAPPED = 0xFFFF << 32
IPV4 = st.ip_addresses(v=4)


def behind(proxies: str) -> DialledUrl:
    return DialledUrl("", load_settings({"MASKLINE_TRUSTED_PROXIES": proxies}).trusted_proxies)


@given(IPV4, IPV4, st.integers(0, 32))
def test_ipv4_and_its_mapped_form_are_the_same_in_peers_and_networks(peer, base, length):
    network = IPv4Network((base, length), strict=False)
    mapped = IPv6Network((MAPPED + int(network.network_address), 96 + length))
    for written in (network, mapped):
        url = DialledUrl("", [written])
        for form in (str(peer), f"::ffff:{peer}", IPv6Address(MAPPED + int(peer)).exploded):
            assert url.is_trusted(form) == (peer in network)


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
def test_trusted_peers(proxies, peer, trusted):
    assert behind(proxies).is_trusted(peer) is trusted


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
        ("10.0.0.1", "fe80::1%eth0", "10.0.0.1"),
        ("10.0.0.1", "[fe80::1%zone]:80, 10.0.0.2", "10.0.0.2"),
    ],
)
def test_client_address_in_both_families_with_brackets_and_ports(peer, forwarded, client):
    url = DialledUrl("", [ip_network("10.0.0.0/8")])
    assert url.client_address(CIMultiDict({"X-Forwarded-For": forwarded}), peer) == client


def test_ipv4_proxy_in_its_mapped_form_names_the_dialled_url():
    headers = CIMultiDict(
        {"Host": "h", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "[2001:db8::1]:8443"}
    )
    found = behind("10.0.0.0/8").base_url("", "/callbacks", headers, "::ffff:10.0.0.1")
    assert found == "https://[2001:db8::1]:8443/callbacks"


DIALLED_TABLE = [
    # settings, peer, headers, base URL
    ({"public_url": "https://p.example/x"}, "10.0.0.1", {}, "https://p.example/x/callbacks"),
    ({"public_url": "https://p.example"}, "10.0.0.1", {"X_Forwarded_Proto": "http"}, "https://p.example/callbacks"),
    ({}, "10.0.0.1", {"Host": "h:8080"}, "http://h:8080/callbacks"),
    ({}, "10.0.0.1", {"Host": "h", "X_Forwarded_Proto": "https"}, "http://h/callbacks"),
    ({"trusted": "10.0.0.0/8"}, "10.0.0.1", {"Host": "h", "X_Forwarded_Proto": "https"}, "https://h/callbacks"),
    ({"trusted": "10.0.0.0/8"}, "::ffff:10.0.0.1", {"Host": "h", "X_Forwarded_Proto": "HTTPS"}, "https://h/callbacks"),
    ({"trusted": "10.0.0.0/8"}, "11.0.0.1", {"Host": "h", "X_Forwarded_Proto": "https"}, "http://h/callbacks"),
    ({"trusted": "10.0.0.0/8"}, "", {"Host": "h", "X_Forwarded_Proto": "https"}, "http://h/callbacks"),
    ({"trusted": "10.0.0.0/8"}, "10.0.0.1", {"Host": "h", "X_Forwarded_Proto": "gopher"}, "http://h/callbacks"),
    (
        {"trusted": "fd00::/8"},
        "fd00::1",
        {"Host": "h", "X_Forwarded_Proto": "https, http", "X_Forwarded_Host": "a.example:8443, b"},
        "https://a.example:8443/callbacks",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "peer", "given_headers", "base_url"), DIALLED_TABLE)
def test_dialled_url(options, peer, given_headers, base_url):
    trusted = [ip_network(options["trusted"])] if "trusted" in options else []
    url = DialledUrl(options.get("public_url", ""), trusted)
    given = CIMultiDict(
        {name.replace("_", "-"): value for name, value in ({"Host": "10.0.0.1"} | given_headers).items()}
    )
    assert url.base_url("", "/callbacks", given, peer) == base_url


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),  # no proxy of ours, so what it says does not count
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7, nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", ",".join(["10.0.0.3"] * 5_000), "10.0.0.3"),
    ],
)
def test_client_address_is_the_first_untrusted_from_the_end(peer, forwarded, client):
    url = DialledUrl("", [ip_network("10.0.0.0/8")])
    assert url.client_address(CIMultiDict({"X-Forwarded-For": forwarded}), peer) == client
