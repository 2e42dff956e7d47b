"""Closes a connection in two steps, so that the client sees its answers and not a reset.

First our side is closed; then the rest, once the client has closed its side too or LINGER_S is over. If everything were
closed at once, with bytes unread or on their way, the client would get a reset in place of its answers.
"""

import asyncio
import fcntl
import struct
import termios

from maskline.ingest.http import limits


class ConnectionCloser:
    """Closes the transport of one connection."""

    __slots__ = ("_linger_timer", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._linger_timer: asyncio.TimerHandle | None = None

    def close_our_side(self, transport: asyncio.Transport, *, client_ended: bool) -> None:
        """Close our side after the written bytes. The rest is closed at once if the client has ended its side, else
        later.
        """
        if self._linger_timer is None:
            self._linger_timer = self._loop.call_later(limits.LINGER_S, self._close_rest, transport)
        if client_ended:
            transport.close()
            return
        try:
            transport.write_eof()
        except OSError:  # the client is gone
            transport.abort()

    def connection_lost(self) -> None:
        """Stop: the connection is lost, and nothing is left to close."""
        if self._linger_timer is not None:
            self._linger_timer.cancel()

    def _close_rest(self, transport: asyncio.Transport) -> None:
        """Close at once, unless there are answers that the client has still to read."""
        if transport.get_write_buffer_size():
            self._linger_timer = self._loop.call_later(limits.WRITE_TIMEOUT_S, transport.abort)
        else:
            transport.abort()


def unread_bytes(transport: asyncio.Transport) -> int:
    """How many bytes lie in the socket's buffer that the loop has not read yet."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))[0])
    except OSError:  # a socket without this request
        return 0
