"""Where a callback goes: to Redis, else to the spool, else back to the sender.

| Redis | of the same session in the spool | callback goes to |
| --- | --- | --- |
| takes callbacks | nothing | Redis; if that fails, the spool |
| takes callbacks | something | the spool, behind it; if that fails, Redis |
| does not (`ingest.publish.circuit_breaker`), or is slow | | the spool |
| is slow, and the spool is unwell | | Redis, and waits for it |
| may be probed, and nothing in the spool is there to do it (it is empty, or unwell) | | Redis, as the probe |

What neither takes is answered 503, with the code of the last failure. With more than MASKLINE_IN_FLIGHT_MAX or
WAITING_MAX_BYTES waiting for either, the next is refused at once: a bound on memory, and an answer while Plivo
still listens.
"""

import asyncio
from typing import Final

from maskline.ingest.delivery.rate_limiter import RateLimiter
from maskline.ingest.outcome import AWAY, BEHIND, BUSY, Completion, InFlight, NotStoredError
from maskline.ingest.publish.pool import PublisherPool
from maskline.ingest.spool.spool import Spool
from maskline.ingest.spool.writer import WriteRequest
from maskline.schemas.settings import Settings

WAITING_MAX_BYTES: Final = 64 << 20
"""All that waits. An ordinary callback has 1 kB: only a flood of huge bodies meets this bound."""


class DeliveryRouter:
    """Has every callback kept somewhere."""

    def __init__(
        self, settings: Settings, load: InFlight, pool: PublisherPool, spool: Spool, pace: RateLimiter
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting_max = settings.in_flight_max
        self._load = load
        self._pool = pool
        self._spool = spool
        self._pace = pace
        pool.refuse_to(spool.put_all)
        spool.on_failed = self._not_spooled

    def keep(self, route: int, value: bytes) -> asyncio.Future[None]:
        """Keep a callback; the future is done once it is safe.

        Raises NotKeptError, at once or by the future, where nothing took it.
        """
        waiter: asyncio.Future[None] = self._loop.create_future()
        self.keep_for(waiter, route, value)
        return waiter

    def keep_for(self, waiter: Completion, route: int, value: bytes) -> None:
        """The same for somebody who waits already; the waiter is not told before this returns."""
        load = self._load
        if load.callbacks >= self._waiting_max or load.size_bytes > WAITING_MAX_BYTES:
            raise NotStoredError(BUSY)
        publisher, spool = self._pool.of(route), self._spool
        if publisher.ready:
            if spool.trouble is not None or not spool.holds(route):
                publisher.publish_for(waiter, route, value)
                return
            # It adds to what is to be drained, and nothing to what reaches Redis: so the drain gets faster by it.
            self._pace.grant(1)
            spool.put_for(waiter, BEHIND, route, value)
        elif (spool.trouble is not None and publisher.drains) or (
            (spool.trouble is not None or not spool.callbacks) and publisher.may_probe()
        ):
            publisher.publish_for(waiter, route, value)
        else:
            spool.put_for(waiter, publisher.breaker.reason or AWAY, route, value)

    def _not_spooled(self, puts: WriteRequest, code: str) -> None:
        """The spool failed: only what merely queued behind others has another chance."""
        for waiter, route, value in zip(puts.waiters, puts.routes, puts.values, strict=True):
            if waiter.done():
                continue
            publisher = self._pool.of(route)
            if puts.reason == BEHIND and publisher.ready:
                publisher.publish_for(waiter, route, value)
            else:
                waiter.set_exception(NotStoredError(code))
