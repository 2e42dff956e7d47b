"""A TCP proxy in front of one server, with faults to switch on and off.

| mode | what happens |
| --- | --- |
| pass | everything goes through |
| delay | every byte comes later by a fixed time, in order, both ways |
| thin | bytes go through one after the other, so many a second, each way for all connections together |
| cut | open connections are reset, new ones refused |
| half_open | connections stay open and are taken, and nothing goes through either way |
| reset | each connection is reset in the middle of one of its replies |

Whatever half_open has swallowed is gone: a connection that lost bytes stays mute after the mode has ended, until its
peer gives it up, as a connection through a dead router does. `until_heard` waits for that.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from pathlib import Path
from typing import Any, cast

QUEUED_MAX_BYTES = 4 << 20
"""Delayed bytes of one direction; then the sender is no longer read."""

THIN_QUEUED_MAX_BYTES = 64 << 10
"""The same of a thin pipe: what waits in it delays everything else."""

THIN_PIECES_S = 20
"""A thin pipe passes what comes at once in pieces of a twentieth of a second."""

RECEIVE_BYTES = 64 << 10
"""The socket's buffer where bytes come in: what waits there must not look delivered."""

PORT_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def fixed_port() -> int:
    """A free port that the kernel gives to no outgoing connection: its owner may go and come back to it."""
    low = 32_768
    with contextlib.suppress(OSError):
        low = int(PORT_RANGE_FILE.read_text().split()[0])
    chance = random.SystemRandom()
    for _ in range(200):
        port = chance.randrange(min(15_000, low - 5_000), low)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port below those of outgoing connections")


class _Side(asyncio.Protocol):
    """One end of a pair. What it receives belongs to the other end."""

    def __init__(self, pair: "_Pair", *, client: bool) -> None:
        self.pair = pair
        self.client = client
        self.transport: asyncio.Transport | None = None
        self.queue: deque[tuple[float, bytes]] = deque()
        self.queued_bytes = 0
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.client:
            self.pair.accepted()

    def data_received(self, data: bytes) -> None:
        self.pair.received(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pair.lost(self)

    def pause_writing(self) -> None:
        self.other.read(wanted=False)

    def resume_writing(self) -> None:
        self.other.read(wanted=True)

    @property
    def other(self) -> "_Side":
        return self.pair.server if self.client else self.pair.client

    def read(self, *, wanted: bool) -> None:
        if self.transport is not None and not self.transport.is_closing():
            (self.transport.resume_reading if wanted else self.transport.pause_reading)()

    def send(self, data: bytes, delay_s: float) -> None:
        """Write what the other end received, after the delay and after everything before it."""
        if not self.queue and not delay_s and self.transport is not None:
            self.transport.write(data)
            return
        loop = asyncio.get_running_loop()
        due = max(loop.time() + delay_s, self.queue[-1][0] if self.queue else 0.0)
        self.queue.append((due, data))
        self.queued_bytes += len(data)
        if self.queued_bytes > self.pair.proxy.queued_max_bytes:
            self.other.read(wanted=False)
        if self.timer is None and self.transport is not None:
            self.timer = loop.call_at(due, self.flush)

    def flush(self) -> None:
        self.timer = None
        loop, queued_max_bytes = asyncio.get_running_loop(), self.pair.proxy.queued_max_bytes
        full = self.queued_bytes > queued_max_bytes
        if self.transport is None:
            return
        while self.queue and self.queue[0][0] <= loop.time():
            data = self.queue.popleft()[1]
            self.queued_bytes -= len(data)
            self.transport.write(data)
        if full and self.queued_bytes <= queued_max_bytes:
            self.other.read(wanted=True)
        if self.queue:
            self.timer = loop.call_at(self.queue[0][0], self.flush)

    def reset(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.transport is not None and not self.transport.is_closing():
            # Lingering for no time at all: the peer gets a RST instead of a FIN.
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()


class _Pair:
    """A client's connection and the one to the server that stands for it."""

    def __init__(self, proxy: "Proxy") -> None:
        self.proxy = proxy
        self.client = _Side(self, client=True)
        self.server = _Side(self, client=False)
        self.mute = False
        """Bytes were swallowed: nothing may follow them."""
        self.replies_left: int | None = None
        """Replies until this connection is reset, in the mode `reset`."""
        self._connecting: asyncio.Task[None] | None = None
        self._ended = False

    def accepted(self) -> None:
        self.proxy.pairs.add(self)
        if self.proxy.mode == "half_open":
            self.mute = True
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self.server, "127.0.0.1", self.proxy.server_port)
        except OSError:
            self.reset()
            return
        if self._ended:
            self.server.reset()
        self.server.flush()

    def received(self, side: _Side, data: bytes) -> None:
        proxy = self.proxy
        if self.mute or proxy.mode == "half_open":
            self.mute = True
            proxy.swallowed_bytes += len(data)
            return
        if proxy.mode == "reset" and side is self.server and self._reset_now(data):
            return
        if proxy.mode == "thin":
            piece = max(1, proxy.thin_bytes_s // THIN_PIECES_S)
            for start in range(0, len(data), piece):
                part = data[start : start + piece]
                side.other.send(part, proxy.turn_s(len(part), from_client=side.client))
            return
        side.other.send(data, proxy.delay_s if proxy.mode == "delay" else 0.0)

    def _reset_now(self, reply: bytes) -> bool:
        if self.replies_left is None:
            self.replies_left = self.proxy.replies
        if self.replies_left > 0:
            self.replies_left -= 1
            return False
        self.client.send(reply[: len(reply) // 2], 0.0)
        self.proxy.resets += 1
        self.reset()
        return True

    def lost(self, side: _Side) -> None:
        if side is self.server and self.mute and not self._ended:
            return  # the client is not to hear of anything
        if not self._ended:
            self._ended = True
            self.proxy.gone(self)
            other = side.other
            if other.transport is not None and not other.transport.is_closing():
                other.flush()
                other.transport.close()

    def reset(self) -> None:
        self._ended = True
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
        self.client.reset()
        self.server.reset()
        self.proxy.gone(self)


class Proxy:
    """Listens on `port` of 127.0.0.1 from `start` to `stop`, in front of `server_port`."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.port = fixed_port()
        self.mode = "pass"
        self.delay_s = 0.0
        self.thin_bytes_s = 0
        self._free_at = {True: 0.0, False: 0.0}
        """When a thin pipe has passed all that came so far: from the clients, from the server."""
        self.replies = 0
        self.pairs: set[_Pair] = set()
        self.swallowed_bytes = 0
        self.resets = 0
        self._listener: asyncio.Server | None = None
        self._gone = asyncio.Event()

    async def start(self) -> None:
        sock = socket.create_server(("127.0.0.1", self.port), backlog=100)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self._listener = await asyncio.get_running_loop().create_server(lambda: _Pair(self).client, sock=sock)

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for pair in list(self.pairs):
            pair.reset()
        await asyncio.sleep(0)  # the transports' last callbacks

    # Faults

    async def heal(self) -> None:
        """Back to passing everything; connections that have lost bytes stay mute."""
        self.mode = "pass"
        for pair in self.pairs:
            pair.replies_left = None
        if self._listener is None:
            await self.start()

    def delay(self, delay_s: float) -> None:
        self.mode, self.delay_s = "delay", delay_s

    def thin(self, bytes_s: int) -> None:
        self.mode, self.thin_bytes_s = "thin", bytes_s

    @property
    def queued_max_bytes(self) -> int:
        return THIN_QUEUED_MAX_BYTES if self.mode == "thin" else QUEUED_MAX_BYTES

    def turn_s(self, size_bytes: int, *, from_client: bool) -> float:
        """In how long a thin pipe has passed so many bytes, after those before them."""
        now = asyncio.get_running_loop().time()
        self._free_at[from_client] = max(now, self._free_at[from_client]) + size_bytes / self.thin_bytes_s
        return self._free_at[from_client] - now

    async def cut(self) -> None:
        self.mode = "cut"
        await self.stop()

    def half_open(self) -> None:
        self.mode = "half_open"

    def reset(self, replies: int = 0) -> None:
        """Reset each connection in the middle of the reply that follows so many more of them."""
        self.mode, self.replies = "reset", replies

    async def until_heard(self, within_s: float) -> bool:
        """Wait until no connection is mute any more; False where one still is, which is then reset."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while any(pair.mute for pair in self.pairs):
                    self._gone.clear()
                    await self._gone.wait()
        mute: list[Any] = [pair for pair in self.pairs if pair.mute]
        for pair in mute:
            pair.reset()
        return not mute

    def gone(self, pair: _Pair) -> None:
        self.pairs.discard(pair)
        self._gone.set()
