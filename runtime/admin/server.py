"""The admin port: `/healthz`, `/readyz`, `/metrics`, and nothing of the callbacks.

The node is asked for its health at each request, as a cached answer would be stale. An error while answering is a
failed probe (503, 500 for metrics) and logged, never a crash of the node. The port answers even when the process has
run out of file descriptors (runtime.net.listener).
"""

import errno
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import prometheus_client
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from maskline.runtime.admin.default_registry import DefaultRegistry
from maskline.runtime.admin.port_notes import Note, WrittenNote, dialable, write_note
from maskline.runtime.logs import get_logger
from maskline.runtime.net.binding import ListenError
from maskline.runtime.net.descriptors import is_short
from maskline.runtime.net.listener import Listener
from maskline.schemas.errors import ConfigError

STOP_TIMEOUT_S: Final = 1.0
"""How long a probe or a scrape under way at the stop may take; more would only delay the stop."""
KEEPALIVE_TIMEOUT_S: Final = 10.0
"""From the last answer to the end of the next request's head: aiohttp counts a head that has begun as idle. A client
that asks less often connects again, which costs a probe or a scraper nothing."""
BODY_TIMEOUT_S: Final = 1.0
"""A request here has no body; one that announces it has so long to send it."""
PORTS_TRIED: Final = 100
"""Ports tried, from the default one upwards; an operator with more processes on one machine sets the port."""
CONNECTIONS_MAX: Final = 64
"""Connections of probes and scrapers; any more are forgotten ones, and must not take all descriptors."""
BACKLOG: Final = 64

_HEADERS: Final = {"Cache-Control": "no-store", "Server": "maskline"}
_encode: Final = msgspec.json.Encoder(enc_hook=str).encode
_log = get_logger("maskline.admin")


class Health(NamedTuple):
    """The answer to a probe: 200 if `ok`, else 503."""

    ok: bool
    details: dict[str, Any]
    """The state of the parts, for the JSON body; nothing secret."""


class AdminServer:
    """Serves the admin port of one process, at `hosts` and `port`.

    `live`, `ready`: called for each probe. `registry`: what `/metrics` shows. `search`: if the port is taken, use the
    next free one, except `avoid`, which another part of the process needs. `note`: written for `maskline health` while
    this serves.
    """

    def __init__(
        self,
        hosts: str,
        port: int,
        *,
        live: Callable[[], Health],
        ready: Callable[[], Health],
        registry: prometheus_client.CollectorRegistry,
        search: bool = False,
        avoid: int = 0,
        note: Note | None = None,
    ) -> None:
        self._hosts = hosts
        self.port = port
        """The port asked for; once started, the real one."""
        self._ports = [port]
        if search:
            self._ports = [port for port in range(port, port + PORTS_TRIED) if port != avoid]
        self._note = note
        self._written_note: WrittenNote | None = None
        self._live = live
        self._ready = ready
        self._registry = registry
        self._others = DefaultRegistry()
        self._listener: Listener | None = None
        app = web.Application()
        app.router.add_get("/healthz", self._answer_live)
        app.router.add_get("/readyz", self._answer_ready)
        app.router.add_get("/metrics", self._answer_metrics)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=STOP_TIMEOUT_S,
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
            lingering_time=BODY_TIMEOUT_S,
        )

    @property
    def url(self) -> str:
        """The URL of this port from this machine; empty before `start`."""
        return "" if self._listener is None else f"http://{self._listener.authority}"

    async def start(self) -> None:
        """Listen and answer from now on. Raises ConfigError if it cannot listen."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None  # noqa: S101 - it is there once set up

        def admit(_descriptor: int, opening: int) -> str:
            return "too_many" if len(server.connections) + opening >= CONNECTIONS_MAX else ""

        listener = Listener("admin", server, vital=True, admit=admit)
        wanted = self.port
        try:
            self._open(listener)
        except ListenError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"MASKLINE_ADMIN_PORT: the admin port {error.where} cannot be opened: {error.reason}"
            ) from None
        self._listener = listener
        self.port = listener.port
        if wanted not in (0, self.port):
            _log.info("admin port moved", taken=wanted, port=self.port)
        if self._note is not None:
            self._write_note(msgspec.structs.replace(self._note, addresses=dialable(listener.addresses)))

    def _open(self, listener: Listener) -> None:
        for port in self._ports:
            try:
                listener.open(self._hosts, port, backlog=BACKLOG)
            except ListenError as error:
                if error.errno != errno.EADDRINUSE or port == self._ports[-1]:
                    raise
            else:
                return

    def _write_note(self, note: Note) -> None:
        try:
            self._written_note = write_note(note)
        except OSError as error:
            # `maskline health` then asks the port of the settings, which is right unless it was taken.
            log = _log.info if self.port == self._ports[0] else _log.warning
            log("port note not written", reason=str(error))

    async def stop(self) -> None:
        """Remove the note, answer what is under way, and close the port."""
        if self._written_note is not None:
            self._written_note.remove()
            self._written_note = None
        if self._listener is not None:
            await self._listener.close()
        await self._runner.cleanup()

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
        # Maskline's own on the loop, not in a thread: they read counters that change on the loop only, without locks.
        body = await self._others.add_to(encoder(self._registry), encoder)
        return self._response(web.Response(body=body, headers={**_HEADERS, "Content-Type": content_type}))

    async def _answer_live(self, _request: web.Request) -> web.Response:
        return self._response(_probe(self._live))

    async def _answer_ready(self, _request: web.Request) -> web.Response:
        return self._response(_probe(self._ready))

    @staticmethod
    def _response(response: web.Response) -> web.Response:
        if is_short():
            response.force_close()  # the next probe needs its descriptor
        return response


def _probe(ask: Callable[[], Health]) -> web.Response:
    try:
        health = ask()
        body = _encode({"ok": health.ok, **health.details})
    except Exception as error:  # noqa: BLE001 - after any error the probe's answer is: not well
        _log.exception("health check failed")
        health = Health(ok=False, details={})
        body = _encode({"ok": False, "error": f"the health check failed: {type(error).__name__}"})
    return web.Response(
        status=200 if health.ok else 503, body=body, headers=_HEADERS, content_type="application/json"
    )
