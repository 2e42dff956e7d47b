"""The callback server: admits connections, serves each with an HttpConnection, and closes all of them.

| bound | against |
| --- | --- |
| CONNECTIONS_MAX, the limit on descriptors less a reserve | more sockets than a process can serve: closed at once |
| SHED_ABOVE of these | idle connections that take the place of new ones: those idle for longest are closed |

ingest.http.limits has the limits on one connection.
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
from maskline.ingest.publish.linger import Linger
from maskline.ingest.refused.keeper import RefusedKeeper
from maskline.runtime.net.descriptors import descriptors_max, for_clients
from maskline.schemas.settings import Settings

CONNECTIONS_MAX: Final = 8_192
"""Each costs some 10 kB even when idle. Plivo holds dozens, load balancers hundreds."""
SHED_ABOVE: Final = 7 / 8
"""The share of the most connections above which idle ones are closed."""
SHED_IDLE_S: Final = 10.0
"""A client that sent something within these seconds is likely to send more on the same connection."""
SHED_AT_ONCE_MAX: Final = 64
SHED_INTERVAL_S: Final = 0.01
"""The least time between two searches for idle connections: one takes a millisecond."""
STOP_LINGER_S: Final = 0.2
"""How long the stop waits for callbacks sent on idle connections before the client knew of it: a round trip and a
margin."""
STOP_POLL_S: Final = 0.01

FAST_PATH: Final = True
"""Without it every request is parsed: the same answers, at half the speed. The tests run with and without."""


class CallbackServer:
    """The HTTP side of a node. `keeper`: keeps refused requests; None if none are kept. `linger`: counts requests of
    senders that wait for answers.

    Raises ConfigError where the installed aiohttp has another parser.
    """

    def __init__(
        self,
        settings: Settings,
        verifier: CallbackVerifier,
        router: DeliveryRouter,
        metrics: Metrics,
        keeper: RefusedKeeper | None,
        linger: Linger,
    ) -> None:
        check_parser()
        self._connections: set[HttpConnection] = set()
        self._shed_at = 0.0
        self._context = ServerContext(
            verifier,
            router,
            metrics,
            linger,
            max_body_bytes=settings.max_body_bytes,
            idle_timeout_s=settings.keepalive_s,
            fast_path=FAST_PATH,
            keeper=keeper,
        )

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    @property
    def requests_under_way(self) -> int:
        """Requests that have no answer yet."""
        return self._context.requests_under_way

    def admit(self, descriptor: int, opening: int) -> str:
        """The reason to refuse one more connection, empty where there is none (see runtime.net.listener).

        `descriptor`: the new connection's. `opening`: how many others are being opened.
        """
        count = self.connections + opening
        descriptors = for_clients(descriptors_max())
        surplus = max(count - CONNECTIONS_MAX * SHED_ABOVE, descriptor - descriptors * SHED_ABOVE)
        if surplus >= 0:
            self._shed(int(surplus) + 1)
        if count >= CONNECTIONS_MAX:
            return "too_many"
        return "descriptors_reserved" if descriptor >= descriptors else ""

    def _shed(self, surplus: int) -> None:
        """Close the connections that were idle for longest, `surplus` with those that are closing already."""
        now = self._context.loop.time()
        if now < self._shed_at + SHED_INTERVAL_S:
            return
        self._shed_at = now
        remaining = [each for each in self._connections if not each.is_ending()]
        count = min(SHED_AT_ONCE_MAX, surplus - (self.connections - len(remaining)))
        idle = (each for each in remaining if each.idle_since <= now - SHED_IDLE_S)
        for connection in heapq.nsmallest(count, idle, key=lambda each: each.idle_since):
            connection.end_if_idle()

    def protocol(self) -> asyncio.Protocol:
        """The protocol of the next connection."""
        return HttpConnection(self._context, self._connections)

    def announce_stop(self) -> None:
        """Have each connection end with its next answer, which says so; idle ones stay open."""
        self._context.stopping = True

    async def drain(self, timeout_s: float) -> None:
        """Answer the requests under way within `timeout_s`, close idle connections, store late callbacks, close all."""
        loop = self._context.loop
        ends_at = loop.time() + timeout_s
        await self._context.finish_requests(timeout_s)
        lingers_until = loop.time() + STOP_LINGER_S
        while self._connections and loop.time() < lingers_until:
            for connection in tuple(self._connections):
                connection.end_if_idle()
            await asyncio.sleep(STOP_POLL_S)
        await self._context.finish_requests(max(0.0, ends_at - loop.time()))
        for connection in tuple(self._connections):
            connection.abort()
