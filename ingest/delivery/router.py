"""Decides where a callback goes: to Redis, else to the spool, else back to the sender.

| Redis | of the same session in the spool | callback goes to |
| --- | --- | --- |
| takes callbacks | nothing | Redis; if that fails, the spool |
| takes callbacks | something | the spool, behind it; if that fails, Redis |
| does not (`ingest.publish.circuit_breaker`), or is slow | | the spool |
| is slow, and the spool is unhealthy | | Redis, and waits for it |
| may be probed, and the drainer has nothing to probe with (the spool is empty, or unhealthy) | | Redis, as the probe |

A callback that neither takes is answered 503, with the code of the last failure. With MASKLINE_IN_FLIGHT_MAX callbacks
or more than IN_FLIGHT_MAX_BYTES awaiting either, the next one is refused at once: a bound on memory, and an answer
while Plivo still listens.
"""

import asyncio
from typing import Final

from maskline.ingest.delivery.rate_limiter import RateLimiter
from maskline.ingest.outcome import AWAY, BEHIND, BUSY, Completion, InFlight, NotStoredError
from maskline.ingest.publish.pool import PublisherPool
from maskline.ingest.spool.spool import Spool
from maskline.ingest.spool.writer import WriteRequest
from maskline.schemas.settings import Settings

IN_FLIGHT_MAX_BYTES: Final = 64 << 20
"""Bounds the bytes of all callbacks in flight. An ordinary one has 1 kB: only a flood of huge bodies meets this
bound."""


class DeliveryRouter:
    """Has every callback stored somewhere, or says why not."""

    def __init__(
        self,
        settings: Settings,
        in_flight: InFlight,
        pool: PublisherPool,
        spool: Spool,
        rate_limiter: RateLimiter,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._in_flight_max = settings.in_flight_max
        self._in_flight = in_flight
        self._pool = pool
        self._spool = spool
        self._rate_limiter = rate_limiter
        pool.set_fallback(spool.write_all)
        spool.on_failed = self._on_spool_failed

    def store(self, partition_hash: int, value: bytes) -> asyncio.Future[None]:
        """Store a callback; the future is done once it is safe.

        `partition_hash`: the CRC-32 of the SessionUUID. `value`: the msgpack of a RawCallback. Raises NotStoredError:
        at once at the in-flight limit, by the future where neither Redis nor the spool took it.
        """
        completion: asyncio.Future[None] = self._loop.create_future()
        self.store_for(completion, partition_hash, value)
        return completion

    def store_for(self, completion: Completion, partition_hash: int, value: bytes) -> None:
        """Like `store`, but completes an existing completion, never synchronously.

        Raises NotStoredError at the in-flight limit.
        """
        in_flight = self._in_flight
        if in_flight.callbacks >= self._in_flight_max or in_flight.size_bytes > IN_FLIGHT_MAX_BYTES:
            raise NotStoredError(BUSY)
        publisher, spool = self._pool.publisher_of(partition_hash), self._spool
        if publisher.ready:
            if spool.error is not None or not spool.holds(partition_hash):
                publisher.publish_for(completion, partition_hash, value)
                return
            # It has to be drained too, while Redis gets one less directly: so the drain rate grows by one.
            self._rate_limiter.grant(1)
            spool.write_for(completion, BEHIND, partition_hash, value)
        elif (spool.error is not None and publisher.accepts_pages) or (
            (spool.error is not None or not spool.callbacks) and publisher.try_probe()
        ):
            publisher.publish_for(completion, partition_hash, value)
        else:
            spool.write_for(completion, publisher.breaker.reason or AWAY, partition_hash, value)

    def _on_spool_failed(self, request: WriteRequest, code: str) -> None:
        """Send callbacks that only queued behind others to Redis after all, and refuse the rest."""
        rows = zip(request.completions, request.partition_hashes, request.values, strict=True)
        for completion, partition_hash, value in rows:
            if completion.done():
                continue
            publisher = self._pool.publisher_of(partition_hash)
            if request.reason == BEHIND and publisher.ready:
                publisher.publish_for(completion, partition_hash, value)
            else:
                completion.set_exception(NotStoredError(code))
