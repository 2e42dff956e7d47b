from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.schemas.hosts import (
    HOSTS_MAX,
    authority,
    in_url,
    read_address,
    read_hosts,
    read_peer,
    with_port,
)

IPV4 = st.ip_addresses(v=4)
ADDRESSES = st.ip_addresses()
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9-]{0,20}){0,3}", fullmatch=True)


@st.composite
def spelled(draw):
    """An address, and one of the ways to write it."""
    address = draw(ADDRESSES)
    if isinstance(address, IPv4Address):
        mapped = IPv6Address(0xFFFF << 32 | int(address))
        text = draw(st.sampled_from([str(address), f"::ffff:{address}", str(mapped), f"[{mapped.exploded}]"]))
        return address, text
    text = draw(st.sampled_from([address.compressed, address.exploded, address.compressed.upper()]))
    return address.ipv4_mapped or address, f"[{text}]" if draw(st.booleans()) else text


@given(spelled())
def test_address_is_the_same_in_every_spelling(pair):
    address, text = pair
    assert read_address(text) == address
    assert read_hosts(text) == (str(address),)
    assert read_peer(text) == address


@given(spelled(), st.integers(0, 99_999))
def test_peer_may_have_a_port(pair, port):
    address, text = pair
    if ":" in text and not text.startswith("["):
        text = f"[{text}]"
    assert read_peer(f"{text}:{port}") == address


@pytest.mark.parametrize(
    "text",
    ["", "unknown", "_hidden", "1.2.3.4:", "1.2.3.4:http", "[::1", "::1]:80", "[1.2.3.4]:1", "a:80", ":80"],
)
def test_texts_without_an_address_are_no_peer(text):
    with pytest.raises(ValueError):  # noqa: PT011 - its text is the setting's
        read_peer(text)


def test_zone_of_an_address_is_kept():
    assert read_hosts("FE80::1%eth0,[fe80::1%2]") == ("fe80::1%eth0", "fe80::1%2")
    assert in_url("fe80::1%eth0") == "[fe80::1%25eth0]"
    assert with_port("fe80::1%eth0", 80) == "[fe80::1%eth0]:80"


@given(st.lists(st.one_of(ADDRESSES.map(str), NAMES), min_size=1, max_size=8))
def test_list_of_hosts_reads_back_as_itself(hosts):
    found = read_hosts(" , ".join(hosts))
    assert len(found) == len(set(found))
    assert read_hosts(",".join(found)) == found


@pytest.mark.parametrize(
    "text", ["", ", ,", "a b", "1.2.3.4:80", "[::1]:80", "[a]", "a%b", "::1::", "x" * 256]
)
def test_wrong_list_of_hosts_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - its text is the setting's
        read_hosts(text)


def test_list_of_hosts_is_bounded():
    hosts = [f"10.0.0.{number}" for number in range(HOSTS_MAX + 1)]
    assert len(read_hosts(",".join(hosts[:-1]))) == HOSTS_MAX
    with pytest.raises(ValueError, match="more than"):
        read_hosts(",".join(hosts))


@pytest.mark.parametrize(
    ("hosts", "bound", "shown"),
    [
        ("0.0.0.0", "", "127.0.0.1:80"),  # noqa: S104 - nobody listens
        ("::", "", "[::1]:80"),
        ("[::]", "::", "[::1]:80"),
        ("::", "0.0.0.0", "127.0.0.1:80"),  # noqa: S104 - the machine has no IPv6
        ("0:0::0,10.0.0.7", "::", "[::1]:80"),
        ("::1,10.0.0.7", "::1", "[::1]:80"),
        ("::ffff:10.0.0.7", "10.0.0.7", "10.0.0.7:80"),
        ("localhost,::", "127.0.0.1", "localhost:80"),
        ("fe80::1%eth0", "fe80::1", "[fe80::1%25eth0]:80"),
    ],
)
def test_authority_is_the_first_host_that_can_be_dialled(hosts, bound, shown):
    assert authority(hosts, 80, bound) == shown
