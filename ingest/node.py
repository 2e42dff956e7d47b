"""One ingest process: the callback server, the publisher with its connection, the admin port."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Final

from prometheus_client import CollectorRegistry

from ingest.connector import Connector
from ingest.intake import Intake
from ingest.metrics import Gauges, Metrics
from ingest.publisher import Publisher
from ingest.server import CallbackServer
from runtime.admin import AdminServer, Health
from runtime.logs import get_logger
from schemas.errors import ConfigError
from schemas.settings import Settings

ADMIN_PORT: Final = 9090
BACKLOG: Final = 1024
"""Connections the kernel holds while the loop is busy: a burst after a failover of the load balancer."""

_log = get_logger("maskline.ingest")


def cannot_listen(settings: Settings, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(
        f"MASKLINE_PORT, MASKLINE_HOST: cannot listen on {settings.host}:{settings.port}: {reason}"
    )


class IngestNode:
    """Takes callbacks from `start` to `stop`.

    `index` is the place among processes that share the port (`reuse_port`): the admin port counts up with it.
    """

    def __init__(self, settings: Settings, *, index: int = 0, reuse_port: bool = False) -> None:
        if settings.verify != "off" and not settings.auth_tokens:
            raise ConfigError(
                "MASKLINE_AUTH_TOKENS is empty: set it to auth_id:token, "
                "or MASKLINE_VERIFY=off to take unsigned callbacks"
            )
        self._settings = settings
        self._index = index
        self._reuse_port = reuse_port
        self.metrics = Metrics()
        self._publisher = Publisher(settings, self.metrics)
        self._connector = Connector(settings, self._publisher, self.metrics, name=f"maskline-ingest-{index}")
        self._http = CallbackServer(settings, Intake(settings), self._publisher, self.metrics)
        self._listener: asyncio.Server | None = None
        self._closing = AsyncExitStack()
        registry = CollectorRegistry()
        registry.register(self.metrics)
        self.metrics.gauges = self._gauges
        admin_port = ADMIN_PORT if settings.admin_port is None else settings.admin_port
        self._admin = AdminServer(
            settings.admin_host,
            admin_port + index if admin_port else 0,
            live=self._live,
            ready=self._ready,
            registry=registry,
        )
        self.port = settings.port
        """The port asked for; once started, the real one."""

    @property
    def url(self) -> str:
        """Where callbacks go, as seen from this machine unless MASKLINE_PUBLIC_URL says better."""
        host = self._settings.host
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host)  # noqa: S104 - compared only
        return f"http://{shown or (f'[{host}]' if ':' in host else host)}:{self.port}/callbacks"

    @property
    def admin_url(self) -> str:
        return f"http://{self._admin.host}:{self._admin.port}"

    async def start(self) -> None:
        """Take callbacks. Raises ConfigError for ports that are taken and settings that Redis contradicts."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._connector.stop)
            await self._connector.start()
            await self._admin.start()
            stack.push_async_callback(self._admin.stop)
            await self._listen()
            stack.push_async_callback(self._stop_http)
            self._closing = stack.pop_all()
        if self._settings.verify == "off":
            _log.warning("signatures are not verified (MASKLINE_VERIFY=off): anybody can send callbacks")
        _log.info("ingest takes callbacks", url=self.url, admin=self.admin_url)

    async def stop(self) -> None:
        """Take no more, answer what is under way within MASKLINE_STOP_TIMEOUT_MS, and close."""
        await self._closing.aclose()

    async def _listen(self) -> None:
        settings = self._settings
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._http.protocol,
                settings.host,
                settings.port,
                backlog=BACKLOG,
                reuse_address=True,
                reuse_port=self._reuse_port or None,
            )
        except OSError as error:
            raise cannot_listen(settings, error) from None
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _stop_http(self) -> None:
        if self._listener is not None:
            self._listener.close()
        await self._http.drain(self._settings.stop_timeout_ms / 1000)
        _log.info("ingest has stopped", taken=self.metrics.taken)

    def _gauges(self) -> Gauges:
        return Gauges(
            waiting=self._publisher.waiting,
            batches_under_way=self._publisher.batches_under_way,
            requests_under_way=self._http.under_way,
            connections=self._http.connections,
            redis_connected=self._publisher.attached,
        )

    def _live(self) -> Health:
        return Health(ok=True, details={"port": self.port})

    def _ready(self) -> Health:
        taken = self._publisher.attached
        redis: dict[str, Any] = {"address": self._connector.address, "connected": taken}
        if not taken:
            redis["reason"] = self._connector.trouble
        return Health(ok=taken, details={"redis": redis, "waiting": self._publisher.waiting})
