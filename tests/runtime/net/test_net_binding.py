"""What a list of hosts comes to mean in sockets. Which families this machine has decides what is dialled, not what is
tested: what would be different without IPv6 is tested by taking it away."""

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from servers import free_port

from maskline.runtime.net import binding
from maskline.runtime.net.binding import ListenError, SocketAddress, bind, distinct, is_free
from maskline.runtime.net.listener import Listener


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


FAMILIES = ["127.0.0.1", "::1"] if has_ipv6() else ["127.0.0.1"]


@contextlib.contextmanager
def bound(hosts: str, port: int = 0, **options: Any) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(sock) for sock in bind(hosts, port, **options)]


def reached(sockets: list[socket.socket]) -> list[str]:
    """The loopback addresses at which they are reached."""
    for sock in sockets:
        sock.listen()
    found = []
    for address in ("127.0.0.1", "::1"):
        with contextlib.suppress(OSError):
            socket.create_connection((address, sockets[0].getsockname()[1]), timeout=5).close()
            found.append(address)
    return found


@pytest.mark.parametrize(
    ("hosts", "addresses"),
    [
        ("::", FAMILIES),
        ("[::]", FAMILIES),
        ("0::0,0.0.0.0,127.0.0.1,localhost", FAMILIES),
        ("0.0.0.0", ["127.0.0.1"]),  # noqa: S104 - what is tested
        ("0.0.0.0,127.0.0.1,127.0.0.2", ["127.0.0.1"]),
        (",".join(FAMILIES), FAMILIES),
        (FAMILIES[-1], FAMILIES[-1:]),
        ("::ffff:127.0.0.1", ["127.0.0.1"]),
    ],
)
def test_every_address_of_every_host_on_one_port(hosts, addresses):
    with bound(hosts) as sockets:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert reached(sockets) == addresses


def test_name_means_all_its_addresses_that_are_here(monkeypatch):
    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "node.example.com"
        found = ("203.0.113.1", "127.0.0.2", "127.0.0.1", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(binding.socket, "getaddrinfo", resolve)
    with bound("node.example.com") as sockets:
        assert [sock.getsockname()[0] for sock in sockets] == ["127.0.0.2", "127.0.0.1"]


def test_name_counts_as_bound_if_another_host_covers_it(no_ipv6, monkeypatch):
    """As localhost in a container, whose /etc/hosts has ::1 for it although there is no IPv6."""
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *more: Any, **options: Any) -> list[Any]:
        if host != "localhost":
            return real(host, port, *more, **options)
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(binding.socket, "getaddrinfo", resolve)
    for hosts in ("localhost,0.0.0.0", "::,localhost", "127.0.0.1,localhost", "localhost"):
        with bound(hosts) as sockets:
            assert reached(sockets) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("hosts", "where"),
    [
        ("127.0.0.1,203.0.113.1", "203.0.113.1:"),
        ("2001:db8::7", "[2001:db8::7]:"),
        ("host.invalid", "host.invalid:"),
        ("a..b", "a..b:"),
        (f"{'x' * 70}.example", "x" * 70),
    ],
)
def test_foreign_host_raises_with_its_name_and_no_socket_stays_open(hosts, where):
    port = free_port()
    with pytest.raises(ListenError) as caught:
        bind(hosts, port)
    assert caught.value.where.startswith(where)
    assert caught.value.reason
    assert is_free("127.0.0.1", port)


@pytest.mark.parametrize("taken", FAMILIES)
def test_port_that_is_taken_at_one_address_is_taken(taken):
    with bound(taken) as sockets:
        sockets[0].listen()
        port = sockets[0].getsockname()[1]
        assert not is_free("::", port)
        with pytest.raises(ListenError) as caught:
            bind("::", port)
        assert caught.value.errno == errno.EADDRINUSE
        with bound("::", 0) as others:
            assert others[0].getsockname()[1] != port


def test_port_0_is_tried_again_where_one_address_has_it_taken(monkeypatch):
    """The kernel's choice is free at the first address; at the others somebody may have it."""
    real, refused = binding._bound, []

    def one_is_taken(family: int, address: Any, **options: Any) -> socket.socket:
        if address[0] == "127.0.0.2" and len(refused) < 3:
            refused.append(address[1])
            raise OSError(errno.EADDRINUSE, "taken")
        return real(family, address, **options)

    monkeypatch.setattr(binding, "_bound", one_is_taken)
    with bound("127.0.0.1,127.0.0.2") as sockets:
        assert len(refused) == 3
        assert len({sock.getsockname()[1] for sock in sockets}) == 1


def test_processes_share_the_port_of_a_list():
    with bound("::", reuse_port=True) as first:
        port = first[0].getsockname()[1]
        with bound("::", port, reuse_port=True) as second:
            assert reached(second) == FAMILIES


@pytest.fixture
def no_ipv6(monkeypatch):
    """Sockets of this family cannot be had, as with ipv6.disable=1."""
    real = binding._bound

    def ipv4_alone(family: int, address: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, address, **options)

    monkeypatch.setattr(binding, "_bound", ipv4_alone)


async def test_without_ipv6_all_addresses_are_those_of_ipv4(no_ipv6):
    listener = Listener("callbacks", lambda: None)
    listener.open("::", 0, backlog=1)
    assert [address[0] for address in listener.addresses] == ["0.0.0.0"]  # noqa: S104 - compared
    assert listener.authority == f"127.0.0.1:{listener.port}"
    await listener.close()


async def test_url_of_all_addresses_where_ipv6_has_none(monkeypatch):
    """As in a container of Docker's: the family is there, and not even ::1."""
    real = binding._bound

    def none_but_any(family: int, address: Any, **options: Any) -> socket.socket:
        if address[0] == "::1":
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return real(family, address, **options)

    monkeypatch.setattr(binding, "_bound", none_but_any)
    listener = Listener("callbacks", lambda: None)
    listener.open("::", 0, backlog=1)
    assert listener.authority == f"127.0.0.1:{listener.port}"
    await listener.close()


def test_without_ipv6_one_of_its_addresses_is_refused(no_ipv6):
    with pytest.raises(ListenError) as caught:
        bind("127.0.0.1,::1", 0)
    assert caught.value.where == "[::1]:0"


V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("addresses", "kept"),
    [
        ("127.0.0.1 127.0.0.1 ::1", "127.0.0.1 ::1"),
        ("127.0.0.1 0.0.0.0 10.0.0.7 ::1", "0.0.0.0 ::1"),
        ("::1 :: 127.0.0.1", ":: 127.0.0.1"),
        (":: 0.0.0.0 :: 0.0.0.0 ::1 10.0.0.7", ":: 0.0.0.0"),
    ],
)
def test_covered_addresses_are_left_out(addresses, kept):
    def wanted(text: str) -> list[SocketAddress]:
        return [
            SocketAddress("h", V6, (one, 80, 0, 0)) if ":" in one else SocketAddress("h", V4, (one, 80))
            for one in text.split()
        ]

    assert distinct(wanted(addresses)) == wanted(kept)
