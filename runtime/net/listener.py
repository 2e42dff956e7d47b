"""Accepts connections, and counts those that it must refuse for want of descriptors.

The event loops' own servers close such connections unseen, so this accepts by itself.

| when a client connects and | then |
| --- | --- |
| `admit` returns a reason against it | it is closed at once and counted by that reason |
| no descriptor is left | a spare is given up for it: it is closed at once and counted; a *vital* listener serves it |
| there is no spare either | it waits in the kernel's queue, and is accepted later, every PAUSE_S |

Spares (runtime.net.descriptors) are opened again as soon as possible. A vital listener, for health must answer even
then, ends such connections after VITAL_MAX_S, and its owner should keep none beyond its answer.
"""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from maskline.runtime.logs import get_logger
from maskline.runtime.net.binding import ListenError, bind, dial_address
from maskline.runtime.net.descriptors import give_up_spare, open_spares
from maskline.schemas.hosts import ANY_IPV6, authority, read_hosts, with_port

ACCEPTS_MAX: Final = 64
"""Connections accepted in one turn of the loop; then the requests under way have their turn."""
PAUSE_S: Final = 0.1
VITAL_MAX_S: Final = 5.0
"""What a probe takes, and more."""
LOG_INTERVAL_S: Final = 10.0
"""Between two log lines about refused connections; each has the count."""
OUT_OF_DESCRIPTORS: Final = "no_descriptors"
"""The reason to refuse a connection that took a spare."""
ACCEPT_FAILED: Final = "accept_failed"
"""Counted each time accept() finds no descriptor, or no memory, even if a spare then takes the connection."""

_SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_log = get_logger("maskline.listener")


def admit_all(_descriptor: int, _opening: int) -> str:
    """Refuse no connection: the default of `Listener`."""
    return ""


class Listener:
    """Accepts connections, each served by a protocol that `serve()` makes.

    `name`: for the log. `admit(descriptor, opening)`: returns the reason to refuse a connection, or an empty text, from
    the number of its descriptor (the kernel gives the lowest free one, so it tells how many are in use) and how many
    connections are being opened. `count(reason)`: called for each refused one, and with ACCEPT_FAILED.
    """

    def __init__(
        self,
        name: str,
        serve: Callable[[], asyncio.Protocol],
        *,
        vital: bool = False,
        admit: Callable[[int, int], str] = admit_all,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._name = name
        self._serve = serve
        self._vital = vital
        self._admit = admit
        self._count = count
        self._loop = asyncio.get_running_loop()
        self.authority = ""
        """`host:port` for a URL that leads here from this machine; empty before `open`."""
        self._sockets: list[socket.socket] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._unlogged = 0
        self._log_at = 0.0

    @property
    def port(self) -> int:
        """The port it listens on, at each address."""
        return int(self._sockets[0].getsockname()[1])

    @property
    def addresses(self) -> list[tuple[Any, ...]]:
        """The addresses it listens on, as `getsockname` gives them."""
        return [sock.getsockname() for sock in self._sockets]

    def open(self, hosts: str, port: int, *, backlog: int, reuse_port: bool = False) -> None:
        """Listen on all addresses of `hosts` (runtime.net.binding). Raises ListenError if that is not possible."""
        self._sockets = bind(hosts, port, reuse_port=reuse_port)
        try:
            for sock in self._sockets:
                sock.listen(backlog)
        except OSError as error:
            self._close_sockets()
            raise ListenError(error.errno, error.strerror or str(error), with_port(hosts, port)) from None
        self.authority = authority(hosts, self.port, dial_address(self._sockets[0].getsockname()[0]))
        if ANY_IPV6 in read_hosts(hosts) and all(sock.family != socket.AF_INET6 for sock in self._sockets):
            _log.warning("ipv6 not available", listener=self._name)
        self._refill()
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    async def close(self) -> None:
        """Accept what has connected so far, and listen no more."""
        for sock in self._sockets:
            self._accept(sock)
            self._loop.remove_reader(sock.fileno())
        for timer in self._timers.values():
            timer.cancel()
        self._close_sockets()
        if self._opening:
            await asyncio.wait(self._opening)

    # Accepting

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                self._count(ACCEPT_FAILED)
                if error.errno not in _SHORT or not self._accept_by_spare(listening):
                    self._pause(listening, error)
                    return
                continue
            if reason := self._admit(sock.fileno(), len(self._opening)):
                sock.close()
                self._refused(reason)
            else:
                self._open_connection(sock)

    def _accept_by_spare(self, listening: socket.socket) -> bool:
        """Give up a spare for the next connection. Returns whether one was accepted."""
        if not give_up_spare():
            return False
        try:
            sock, _ = listening.accept()
        except OSError:
            self._refill()
            return False
        if self._vital:
            self._open_connection(sock)
            self._loop.call_later(VITAL_MAX_S, _end, sock)
        else:
            sock.close()
            self._refused(OUT_OF_DESCRIPTORS)
        self._refill()
        return True

    def _open_connection(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        task = self._loop.create_task(self._connect(sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._serve, sock)
        except OSError:  # the client is gone already
            sock.close()
        except Exception as error:  # noqa: BLE001 - a fault of ours: it ends this connection and nothing else
            _log.error("connection not served", listener=self._name, exc_info=error)
            sock.close()

    # Out of descriptors

    def _refill(self) -> None:
        """Open the spares again, or try that again in PAUSE_S."""
        if not open_spares():
            self._later("refill", self._refill)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Accept nothing for PAUSE_S: a waiting connection keeps the socket readable, and would be tried in a loop."""
        self._loop.remove_reader(listening.fileno())
        self._later(f"accept {listening.fileno()}", self._resume, listening)
        if self._may_log():
            _log.warning("accepting connections paused", listener=self._name, error=str(error))

    def _resume(self, listening: socket.socket) -> None:
        self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _later(self, what: str, call: Callable[..., None], *arguments: Any) -> None:
        if what in self._timers:
            self._timers[what].cancel()
        self._timers[what] = self._loop.call_later(PAUSE_S, call, *arguments)

    def _refused(self, reason: str) -> None:
        self._unlogged += 1
        self._count(reason)
        refused = self._unlogged
        if self._may_log():
            _log.warning("connections refused", listener=self._name, reason=reason, since_last_line=refused)

    def _may_log(self) -> bool:
        """Whether a line is due: one in LOG_INTERVAL_S, which starts the count of refusals anew."""
        if monotonic() < self._log_at:
            return False
        self._log_at = monotonic() + LOG_INTERVAL_S
        self._unlogged = 0
        return True

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets = []


def _end(sock: socket.socket) -> None:
    """End a connection for both sides; what serves it then closes it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
