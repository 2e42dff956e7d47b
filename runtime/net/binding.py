"""Binds a socket to every address that a list of hosts means, all on one port.

| a host | means |
| --- | --- |
| `::` | all addresses of both families, by a socket each; a machine that has one family only listens on that |
| a name | all its addresses that are this machine's, one at least |
| an address | itself |

An address that another of the list covers (127.0.0.1 beside 0.0.0.0) is left out. IPv6 sockets never take IPv4, even if
that is the system's default, so that IPv4 peers appear as such.
"""

import contextlib
import errno
import socket
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from maskline.schemas.hosts import ANY_IPV4, ANY_IPV6, LOOPBACKS, read_hosts, with_port

PORT_MAX: Final = 65_535
PORT_TRIES: Final = 16
"""Tries for a port of the kernel's choice that is free at every address: nearly always the first one is."""

_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


class ListenError(OSError):
    """An address cannot be listened on."""

    def __init__(self, number: int | None, reason: str, where: str) -> None:
        super().__init__(number, reason)
        self.reason = reason
        self.where = where
        """The address, as `host:port`."""


class SocketAddress(NamedTuple):
    """An address to bind a socket to."""

    host: str
    """As it is named."""
    family: int
    address: Any
    """As the resolver gives it, port included."""


def bind(hosts: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """A socket for each address of `hosts`, bound and not listening yet; port 0 takes one that all of them have free.

    Raises ListenError, and then holds nothing.
    """
    if not 0 <= port <= PORT_MAX:
        raise ListenError(errno.EINVAL, f"port must be 0-{PORT_MAX}", with_port(hosts, port))
    found = [one for host in read_hosts(hosts or ANY_IPV6) for one in _resolve(host, port)]
    wanted = distinct(found)
    covered = {one.host for one in found if one not in wanted}
    for _ in range(PORT_TRIES - 1 if port == 0 else 0):
        try:
            return _bind_all(wanted, covered, port, reuse_port=reuse_port)
        except ListenError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _bind_all(wanted, covered, port, reuse_port=reuse_port)


def dial_address(address: str) -> str:
    """The address to put into a URL for this machine. `address`: the first that is listened on.

    Containers often have the IPv6 family but no address of it: there `::` is reached by IPv4 alone.
    """
    if address == ANY_IPV6:
        try:
            _bound(socket.AF_INET6, (LOOPBACKS[ANY_IPV6], 0), reuse_port=False).close()
        except OSError:
            return ANY_IPV4
    return address


def is_free(hosts: str, port: int) -> bool:
    """Whether no process listens on this port at any of the hosts. Other errors are left to `bind`."""
    try:
        sockets = bind(hosts, port)
    except ListenError as error:
        return error.errno != errno.EADDRINUSE
    for sock in sockets:
        sock.close()
    return True


def distinct(wanted: Iterable[SocketAddress]) -> list[SocketAddress]:
    """Each address once, and none that is covered by all addresses of its family. Pure."""
    firsts: dict[tuple[int, Any], SocketAddress] = {}
    for one in wanted:
        firsts.setdefault((one.family, one.address), one)
    every = {one.family for one in firsts.values() if _is_any(one)}
    return [one for one in firsts.values() if _is_any(one) or one.family not in every]


def _is_any(wanted: SocketAddress) -> bool:
    return wanted.address[0] in (ANY_IPV4, ANY_IPV6)


def _resolve(host: str, port: int) -> list[SocketAddress]:
    found = []
    for name in (ANY_IPV6, ANY_IPV4) if host == ANY_IPV6 else (host,):
        try:
            infos = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ListenError(error.errno, error.strerror or str(error), with_port(host, port)) from None
        except UnicodeError:  # a part of the name is empty, or too long
            raise ListenError(errno.EINVAL, "it is no host name", with_port(host, port)) from None
        found += [SocketAddress(host, info[0], info[4]) for info in infos]
    return found


def _bind_all(
    wanted: list[SocketAddress], covered: set[str], port: int, *, reuse_port: bool
) -> list[socket.socket]:
    """`covered`: hosts that have an address among those of others."""
    with contextlib.ExitStack() as undo:
        sockets: list[socket.socket] = []
        here = set(covered)
        missing: dict[str, OSError] = {}
        number = port
        for host, family, address in wanted:
            try:
                sock = _bound(family, (address[0], number, *address[2:]), reuse_port=reuse_port)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise _listen_error(host, port, error) from None
                missing[host] = error  # as ::1 of localhost, on a machine without IPv6
                continue
            sockets.append(undo.enter_context(sock))
            here.add(host)
            number = number or int(sock.getsockname()[1])
        for host in missing.keys() - here:
            raise _listen_error(host, port, missing[host])
        undo.pop_all()
        return sockets


def _listen_error(host: str, port: int, error: OSError) -> ListenError:
    return ListenError(error.errno, error.strerror or str(error), with_port(host, port))


def _bound(family: int, address: Any, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it, connections of the last process that are in TIME_WAIT would keep the port for a minute.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
