"""The admin port: `/healthz`, `/readyz`, `/metrics`, and nothing of the callbacks.

Health is asked of the node at each request, never cached: a probe that answers from memory tells of the past.
What fails while answering is a failed probe (503, 500 for metrics), logged, and never a crash of the node.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import msgspec
import prometheus_client
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from runtime.logs import get_logger
from schemas.errors import ConfigError

STOP_TIMEOUT_S: Final = 1.0
"""A probe or a scrape under way at the stop may finish; more patience would only delay the stop."""
KEEPALIVE_TIMEOUT_S: Final = 75.0
"""Longer than the usual scrape interval, so that a scraper keeps its connection."""

_HEADERS: Final = {"Cache-Control": "no-store", "Server": "maskline"}
_encode: Final = msgspec.json.Encoder(enc_hook=str).encode
_log = get_logger("maskline.admin")


class Health(NamedTuple):
    ok: bool
    details: dict[str, Any]
    """How the parts are, for the JSON body; nothing secret."""


class AdminServer:
    """Serves the admin port of one process. `start` raises ConfigError where it cannot listen."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        live: Callable[[], Health],
        ready: Callable[[], Health],
        registry: prometheus_client.CollectorRegistry,
    ) -> None:
        self.host = host
        self.port = port
        """The port asked for; once started, the real one."""
        self._registry = registry
        app = web.Application()
        app.router.add_get("/healthz", _probe(live))
        app.router.add_get("/readyz", _probe(ready))
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=STOP_TIMEOUT_S,
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
        )

    async def start(self) -> None:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port).start()
        except (OSError, OverflowError) as error:
            await self._runner.cleanup()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            where = f"{self.host}:{self.port}"
            raise ConfigError(
                f"MASKLINE_ADMIN_PORT: the admin port {where} cannot be opened: {reason}"
            ) from None
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
        # On the loop, not in a thread: collectors read counters that change on the loop only, without locks.
        body = encoder(self._registry)
        return web.Response(body=body, headers={**_HEADERS, "Content-Type": content_type})


def _probe(ask: Callable[[], Health]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_request: web.Request) -> web.Response:
        try:
            health = ask()
            body = _encode({"ok": health.ok, **health.details})
        except Exception as error:  # noqa: BLE001 - whatever broke, the probe's answer is: not well
            _log.exception("health check failed")
            health = Health(ok=False, details={})
            body = _encode({"ok": False, "error": f"the health check failed: {type(error).__name__}"})
        return web.Response(
            status=200 if health.ok else 503, body=body, headers=_HEADERS, content_type="application/json"
        )

    return answer
