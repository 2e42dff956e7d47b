"""One ingest process: wires the callback server, the publishers, the spool, the drainer and the admin port."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from time import time
from typing import Any, Final

from prometheus_client import CollectorRegistry

from maskline.ingest.auth.accounts import require_auth_tokens
from maskline.ingest.auth.verifier import CallbackVerifier
from maskline.ingest.delivery.drainer import Drainer
from maskline.ingest.delivery.rate_limiter import RateLimiter
from maskline.ingest.delivery.router import DeliveryRouter
from maskline.ingest.delivery.spool_notices import SpoolNotices
from maskline.ingest.http.server import CONNECTIONS_MAX, CallbackServer
from maskline.ingest.metrics import Gauges, Metrics
from maskline.ingest.outcome import InFlight
from maskline.ingest.publish.circuit_breaker import STATES
from maskline.ingest.publish.pool import PublisherPool
from maskline.ingest.refused.keeper import RefusedKeeper
from maskline.ingest.spool.spool import Spool
from maskline.runtime.admin.port_notes import Note
from maskline.runtime.admin.server import AdminServer, Health
from maskline.runtime.admin.vitals import vital_details
from maskline.runtime.disk_mounts import storage_risk
from maskline.runtime.logs import get_logger
from maskline.runtime.net.binding import ListenError
from maskline.runtime.net.descriptors import descriptors_max, for_clients
from maskline.runtime.net.listener import Listener
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.errors import ConfigError
from maskline.schemas.hosts import authority
from maskline.schemas.settings import ADMIN_PORTS, Settings

BACKLOG: Final = 1024
"""Connections that the kernel holds while the loop is busy: a burst after a failover of the load balancer."""

KEEPER_FINISH_S: Final = 1.0
"""What is kept of refused requests has so long to reach Redis at a stop, even if nothing is left of its timeout: the
next start has the mended settings, and this process the only copy."""

_log = get_logger("maskline.ingest")


def cannot_listen(error: ListenError) -> ConfigError:
    """The error for a port that callbacks cannot be taken on."""
    return ConfigError(f"MASKLINE_PORT, MASKLINE_HOST: cannot listen on {error.where}: {error.reason}")


class IngestNode:
    """Takes callbacks from `start` to `stop`.

    `index`: the number among the processes that share the port (`reuse_port`); it is added to the admin port.
    `spool_may_vanish`: do not warn of a spool that is lost with the machine or container, as in `maskline dev`. Raises
    ConfigError without MASKLINE_AUTH_TOKENS, unless MASKLINE_VERIFY is off.
    """

    def __init__(
        self, settings: Settings, *, index: int = 0, reuse_port: bool = False, spool_may_vanish: bool = False
    ) -> None:
        require_auth_tokens(settings)
        self._settings = settings
        self._index = index
        self._reuse_port = reuse_port
        self.metrics = Metrics()
        self._in_flight = InFlight()
        self._tasks = BackgroundTasks()
        self._pool = PublisherPool(
            settings, self.metrics, self._in_flight, self._tasks, name=f"maskline-ingest-{index}"
        )
        self._spool = Spool(settings, self.metrics, self._in_flight, self._tasks)
        rate_limiter = RateLimiter(settings.spool_drain_per_s)
        self._drainer = Drainer(settings, self._spool, self._pool, self._tasks, rate_limiter)
        self._notices = SpoolNotices(settings, self._spool, self._pool, self._tasks)
        router = DeliveryRouter(settings, self._in_flight, self._pool, self._spool, rate_limiter)
        verifier = CallbackVerifier(settings)
        self._refused_keeper = (
            RefusedKeeper(settings, verifier.dialled_url, self.metrics, self._tasks, self._pool.send_beside)
            if settings.refused_max_bytes
            else None
        )
        self._http = CallbackServer(
            settings, verifier, router, self.metrics, self._refused_keeper, self._pool.linger
        )
        self._spool_may_vanish = spool_may_vanish
        self._spool_risk = ""
        """Why the spool does not outlive a crash; empty if it does, or that is not known."""
        self._stopping = False
        self._stop_by = 0.0
        """The deadline of the stop, by the loop's clock."""
        self._listener = Listener(
            "callbacks", self._http.protocol, admit=self._http.admit, count=self.metrics.count_connection
        )
        self._closing = AsyncExitStack()
        registry = CollectorRegistry()
        registry.register(self.metrics)
        self.metrics.gauges = self._gauges
        self.metrics.background_failures = self._tasks.failures
        admin_port = ADMIN_PORTS["ingest"] if settings.admin_port is None else settings.admin_port
        self._admin = AdminServer(
            settings.admin_host,
            admin_port + index if admin_port else 0,
            live=self._live,
            ready=self._ready,
            registry=registry,
            search=settings.admin_port is None,
            avoid=settings.port,
            note=Note.of("ingest", settings),
        )
        self.port = settings.port
        """The configured port; once started, the real one."""

    @property
    def url(self) -> str:
        """The URL for callbacks, as seen from this machine."""
        where = self._listener.authority or authority(self._settings.host, self.port)
        return f"http://{where}/callbacks"

    @property
    def admin_port(self) -> int:
        """The admin port; once started, the real one."""
        return self._admin.port

    @property
    def admin_url(self) -> str:
        """The base URL of the admin port."""
        return self._admin.url

    async def start(self) -> None:
        """Take callbacks.

        Raises ConfigError for ports that are taken, a spool directory that cannot be used, and settings that contradict
        the namespace in Redis.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._tasks.stop)
            stack.push_async_callback(self._spool.stop)
            await self._spool.start()
            self._check_storage()
            stack.push_async_callback(self._pool.stop)
            await self._pool.start()
            await self._admin.start()
            stack.push_async_callback(self._admin.stop)
            if self._refused_keeper is not None:
                self._refused_keeper.start()
                stack.push_async_callback(self._finish_keeper, self._refused_keeper)
            self._notices.start()
            stack.push_async_callback(self._notices.stop)
            self._drainer.start()
            stack.push_async_callback(self._finish_drainer)
            self._listen()
            stack.push_async_callback(self._stop_http)
            self._closing = stack.pop_all()
        if self._settings.verify == "off":
            _log.warning("signature verification off", setting="MASKLINE_VERIFY")
        connections_max = for_clients(descriptors_max())
        if connections_max < CONNECTIONS_MAX:
            _log.warning("few file descriptors", connections_max=connections_max)
        _log.info("ingest started", url=self.url, admin=self.admin_url)

    async def stop(self) -> None:
        """Stop in two steps.

        For MASKLINE_STOP_DELAY_MS `/readyz` answers 503 and callbacks are taken as ever, until the load balancer has
        noticed. Then no more are taken, requests under way are answered and the spool is drained, both within
        MASKLINE_STOP_TIMEOUT_MS.
        """
        self._stopping = True
        self._http.announce_stop()
        if delay_ms := self._settings.stop_delay_ms:
            _log.info("ingest stopping", delay_ms=delay_ms)
            await asyncio.sleep(delay_ms / 1000)
        self._stop_by = asyncio.get_running_loop().time() + self._settings.stop_timeout_ms / 1000
        await self._closing.aclose()

    def _check_storage(self) -> None:
        if self._spool_may_vanish:
            return
        directory = self._settings.spool_dir
        self._spool_risk = storage_risk(directory)
        if self._spool_risk and self._index == 0:  # all processes have the same directory
            self._spool.log.at_risk(directory.resolve(), self._spool_risk)

    def _listen(self) -> None:
        settings = self._settings
        try:
            self._listener.open(settings.host, settings.port, backlog=BACKLOG, reuse_port=self._reuse_port)
        except ListenError as error:
            raise cannot_listen(error) from None
        self.port = self._listener.port

    async def _stop_http(self) -> None:
        await self._listener.close()
        await self._http.drain(self._settings.stop_timeout_ms / 1000)
        _log.info("ingest stopped", taken=self.metrics.taken)

    async def _finish_drainer(self) -> None:
        await self._drainer.finish(self._stop_by - asyncio.get_running_loop().time())

    async def _finish_keeper(self, keeper: RefusedKeeper) -> None:
        await keeper.finish(max(KEEPER_FINISH_S, self._stop_by - asyncio.get_running_loop().time()))

    def _gauges(self) -> Gauges:
        return Gauges(
            waiting=self._in_flight.callbacks,
            batches_under_way=sum(publisher.batches_under_way for publisher in self._pool.publishers),
            requests_under_way=self._http.requests_under_way,
            connections=self._http.connections,
            redis_connected=self._pool.connected,
            breakers=self._breakers(),
            spool_callbacks=self._spool.callbacks,
            spool_partitions=self._notices.partitions,
            spool_bytes=self._spool.size_bytes,
            spool_max_bytes=self._spool.max_bytes,
            spool_oldest_age_s=self._oldest_age_s() or 0.0,
            spool_ok=self._spool.error is None,
        )

    def _breakers(self) -> dict[str, int]:
        counts: dict[str, int] = dict.fromkeys(STATES, 0)
        for publisher in self._pool.publishers:
            counts[publisher.breaker.state] += 1
        return counts

    def _oldest_age_s(self) -> float | None:
        oldest_at_ms = self._spool.oldest_at_ms
        return None if oldest_at_ms is None else max(0.0, round(time() - oldest_at_ms / 1000, 3))

    def _live(self) -> Health:
        return Health(ok=True, details={"port": self.port})

    def _ready(self) -> Health:
        """Ready as long as callbacks can be stored; not with settings known to be wrong, nor during the stop."""
        ok = (self._pool.all_ready or self._spool.error is None) and not self._pool.misconfigured
        details = {
            "stopping": self._stopping,
            "redis": self._pool.details(),
            "spool": self._spool_details(),
            "waiting": self._in_flight.callbacks,
            "background": self._tasks.failing,
            **vital_details(),
        }
        return Health(ok=ok and not self._stopping, details=details)

    def _spool_details(self) -> dict[str, Any]:
        spool = self._spool
        oldest_at_ms = spool.oldest_at_ms
        details: dict[str, Any] = {
            "ok": spool.error is None,
            "callbacks": spool.callbacks,
            "bytes": spool.size_bytes,
            "max_bytes": spool.max_bytes,
            "oldest_age_s": self._oldest_age_s(),
            "oldest_at": None
            if oldest_at_ms is None
            else datetime.fromtimestamp(oldest_at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
            "reason": "" if spool.error is None else spool.error.detail,
        }
        if self._spool_risk:
            details["at_risk"] = self._spool_risk
        if spool.damaged:
            details["damaged"] = spool.damaged
        return details
