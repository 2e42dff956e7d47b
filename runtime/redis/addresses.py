"""Resolves a server's name at every connect; addresses that failed last are tried last.

- A dead address costs ADDRESS_DELAY_S once: the next one is tried in parallel (happy eyeballs, RFC 8305), and the dead
  one comes last from then on.
- So does an address that takes connections and sends nothing, refuses the log-in, or has lost a connection.
"""

import asyncio
import itertools
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from aiohappyeyeballs import AddrInfoType, start_connection

from maskline.runtime.redis.url import Server

ADDRESS_DELAY_S: Final = 0.25
"""RFC 8305's value: longer than most round trips, and too short to matter."""
ADDRESSES_MAX: Final = 16
"""Of one name in one connect, as each takes a socket; the others follow when these have failed."""
FAILED_MAX: Final = 1024
"""Addresses remembered as failed: more than any installation has, but names may lead to ever new ones."""


class ServerAddress(NamedTuple):
    """One address that a server's name leads to."""

    server: Server
    info: AddrInfoType | None
    """The resolver's result; None for a unix socket."""

    @property
    def text(self) -> str:
        """As `10.0.0.7:6379`, or the path of a unix socket."""
        return str(self.server) if self.info is None else str(Server(*self.info[4][:2]))

    def __str__(self) -> str:
        """For logs: the name as configured, with the address in brackets if it differs."""
        named, address = str(self.server), self.text
        return named if named == address else f"{named} ({address})"


class Addresses:
    """Resolves names and remembers which addresses failed, for one process."""

    def __init__(self) -> None:
        self._failed: dict[Any, int] = {}
        """By socket address: the number of its last failure, counted over all addresses."""
        self._count = itertools.count(1)

    async def of(self, server: Server) -> list[ServerAddress]:
        """The routes to a server, best first; at least one. Raises OSError or UnicodeError for a name without any."""
        if not server.port:
            return [ServerAddress(server, None)]
        infos = _numeric(server) or await asyncio.get_running_loop().getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM
        )
        infos = sorted(dict.fromkeys(infos), key=lambda info: self._failed.get(info[4], 0))
        return [ServerAddress(server, info) for info in infos[:ADDRESSES_MAX]]

    async def open(self, addresses: Sequence[ServerAddress]) -> tuple[socket.socket | None, ServerAddress]:
        """Connect to the first that answers; the socket (None for a unix socket) and its address. Raises OSError."""
        infos = [server_address.info for server_address in addresses if server_address.info is not None]
        if not infos:
            return None, addresses[0]
        try:
            sock = await start_connection(infos, happy_eyeballs_delay=ADDRESS_DELAY_S, interleave=0)
        except RuntimeError as error:  # as uvloop has it
            raise OSError(str(error)) from None
        try:
            peer = sock.getpeername()[:2]
        except OSError:
            sock.close()
            raise
        place = next((place for place, info in enumerate(infos) if info[4][:2] == peer), 0)
        for passed in addresses[:place]:
            self.failed(passed)
        return sock, addresses[place]

    def failed(self, server_address: ServerAddress) -> None:
        """Remember that the address failed: from now on the others come first."""
        if server_address.info is None:
            return
        if len(self._failed) >= FAILED_MAX:
            self._failed.clear()
        self._failed[server_address.info[4]] = next(self._count)


def _numeric(server: Server) -> Sequence[AddrInfoType]:
    """The result for a host that is an address already, which needs no resolver, nor a thread for it."""
    try:
        return socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError):
        return []
