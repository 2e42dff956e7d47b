"""The callback server: who may connect, who serves a connection, and how all of them come to their end.

| bound | against |
| --- | --- |
| CONNECTIONS_MAX, the limit on descriptors less a reserve | more sockets than a process can serve; closed at once |
| SHED_ABOVE of these | idle connections that take the place of new ones: those idle for longest are ended |

What bounds a connection stands in ingest.http.connection.
"""

import asyncio
import heapq
from typing import Final

from maskline.ingest.auth.verifier import CallbackVerifier
from maskline.ingest.delivery.router import DeliveryRouter
from maskline.ingest.http.connection import HttpConnection
from maskline.ingest.http.context import ServerContext
from maskline.ingest.metrics import Metrics
from maskline.ingest.parser.aiohttp_parser import check_parser
from maskline.runtime.net.descriptors import descriptors_max, for_clients
from maskline.schemas.settings import Settings

CONNECTIONS_MAX: Final = 8_192
"""Each costs some 10 kB even when idle. Plivo holds dozens, load balancers hundreds."""
SHED_ABOVE: Final = 7 / 8
"""From this part of the most on, room is made."""
SHED_IDLE_S: Final = 10.0
"""Who sent something within these seconds is likely to send more, on the same connection."""
SHED_AT_ONCE: Final = 64
SHED_INTERVAL_S: Final = 0.01
"""Looking for them takes a millisecond."""
STOP_LINGER_S: Final = 0.2
"""For what was written to an idle connection before the client knew of the stop: a round trip, and some waiting."""
STOP_LOOK_S: Final = 0.01

QUICK: Final = True
"""Off, every request is parsed: the same answers, at half the speed. The tests run over both."""


class CallbackServer:
    """The HTTP side of a node."""

    def __init__(
        self, settings: Settings, intake: CallbackVerifier, router: DeliveryRouter, metrics: Metrics
    ) -> None:
        check_parser()
        self._connections: set[HttpConnection] = set()
        self._shed_at = 0.0
        self._desk = ServerContext(
            intake, router, metrics,
            max_body_bytes=settings.max_body_bytes, idle_timeout_s=settings.keepalive_s, learns=QUICK,
        )  # fmt: skip

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def under_way(self) -> int:
        """Requests that have not got their answer yet."""
        return self._desk.under_way

    def admit(self, descriptor: int, opening: int) -> str:
        """The reason against one more connection, where there is one. See runtime.net.listener."""
        count = self.connections + opening
        descriptors = for_clients(descriptors_max())
        surplus = max(count - CONNECTIONS_MAX * SHED_ABOVE, descriptor - descriptors * SHED_ABOVE)
        if surplus >= 0:
            self._shed(int(surplus) + 1)
        if count >= CONNECTIONS_MAX:
            return "too_many"
        return "descriptors_reserved" if descriptor >= descriptors else ""

    def _shed(self, surplus: int) -> None:
        """End as many as that, those on their way to it included: the ones that have been idle for longest."""
        now = self._desk.loop.time()
        if now < self._shed_at + SHED_INTERVAL_S:
            return
        self._shed_at = now
        living = [each for each in self._connections if not each.is_ending()]
        count = min(SHED_AT_ONCE, surplus - (self.connections - len(living)))
        idle = (each for each in living if each.idle_since <= now - SHED_IDLE_S)
        for connection in heapq.nsmallest(count, idle, key=lambda each: each.idle_since):
            connection.end_idle()

    def protocol(self) -> asyncio.Protocol:
        """What serves the next connection."""
        return HttpConnection(self._desk, self._connections)

    def announce_stop(self) -> None:
        """From here on each connection ends with its next answer, which says so; idle ones are left alone."""
        self._desk.stopping = True

    async def drain(self, timeout_s: float) -> None:
        """Answer what is under way, at most so long; end what is idle, and keep what still comes; close all."""
        loop = self._desk.loop
        ends_at = loop.time() + timeout_s
        await self._desk.finish(timeout_s)
        lingers_until = loop.time() + STOP_LINGER_S
        while self._connections and loop.time() < lingers_until:
            for connection in tuple(self._connections):
                connection.end_idle()
            await asyncio.sleep(STOP_LOOK_S)
        await self._desk.finish(max(0.0, ends_at - loop.time()))
        for connection in tuple(self._connections):
            connection.abort()
