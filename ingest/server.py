"""HTTP: reads requests, has the intake decide and the keeper keep them, and answers.

Built on aiohttp's `web.Server`, its parser and connection handling without the Application: two paths need no
router, and what an Application adds costs as much as the verification. Public API only.

| bound | against |
| --- | --- |
| IDLE_TIMEOUT_S between requests, head included | clients that say nothing, or headers a byte a minute |
| READ_TIMEOUT_S for a body | the same with bodies; answered 408 |
| MASKLINE_MAX_BODY_BYTES, announced, sent or unpacked | huge bodies and compressed ones; 413 |
| HEAD_LINE_MAX_BYTES, HEADERS_MAX | floods of headers; aiohttp answers 400 |
| CONNECTIONS_MAX, the limit on descriptors less a reserve | more sockets than a process can serve; closed at once |
"""

import asyncio
import logging
from time import time
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError

from ingest.borrowed import Heads, heads
from ingest.connection import CLIENT_GONE, Connection, not_taken
from ingest.desk import Desk
from ingest.intake import BODY_TOO_LARGE, Intake, Refused
from ingest.keeper import Keeper
from ingest.metrics import Metrics
from ingest.outcomes import NotKeptError
from ingest.responses import TAKEN, TAKEN_AND_CLOSE, closes, refusal
from runtime.descriptors import descriptors_max, for_clients
from runtime.logs import get_logger
from schemas.settings import Settings

IDLE_TIMEOUT_S: Final = 75.0
"""Longer than the usual 60 s of load balancers: they close first, and no request meets a closing socket."""
READ_TIMEOUT_S: Final = 10.0
"""Plivo sends a kilobyte in one go; ten seconds serve the slowest link."""
LINGER_S: Final = 2.0
"""How long the rest of a refused body is read, so that the client sees the answer rather than a reset."""
HEAD_LINE_MAX_BYTES: Final = 16_384
"""The request line and each header; a GET bears all parameters, percent-encoded, in its line."""
HEADERS_MAX: Final = 128
CONNECTIONS_MAX: Final = 8_192
"""Each costs some 10 kB even when idle. Plivo holds dozens, load balancers hundreds."""

QUICK: Final = True
"""Off, aiohttp serves every request: the same answers, at half the speed. The tests run over both."""

_log = get_logger("maskline.ingest")

READ_TIMED_OUT: Final = Refused(408, "read_timeout", f"the body did not arrive within {READ_TIMEOUT_S:g} s")
BODY_BROKEN: Final = Refused(400, "body_broken", "the body's transfer or content encoding is broken")
EXPECTATION_FAILED: Final = Refused(417, "expectation_failed", "only 100-continue can be expected")


class CallbackServer:
    """The HTTP side of a node."""

    def __init__(self, settings: Settings, intake: Intake, keeper: Keeper, metrics: Metrics) -> None:
        self._intake = intake
        self._keeper = keeper
        self._metrics = metrics
        self._max_body_bytes = settings.max_body_bytes
        self._asks_peer = intake.origin.asks_peer
        self._heads: Heads | None = heads if QUICK else None
        self._connections: set[Connection] = set()
        self._server = web.Server(
            self._handle,
            logger=_HttpLog(metrics).logger(),
            access_log=None,
            keepalive_timeout=IDLE_TIMEOUT_S,
            lingering_time=LINGER_S,
            max_line_size=HEAD_LINE_MAX_BYTES,
            max_field_size=HEAD_LINE_MAX_BYTES,
            max_headers=HEADERS_MAX,
        )
        self._desk = Desk(
            intake, keeper, metrics, self._server,
            max_body_bytes=settings.max_body_bytes, idle_timeout_s=IDLE_TIMEOUT_S,
        )  # fmt: skip

    @property
    def connections(self) -> int:
        return len(self._connections) + len(self._server.connections)

    @property
    def under_way(self) -> int:
        """Requests that have not got their answer yet."""
        return self._desk.under_way

    def admit(self, descriptor: int, opening: int) -> str:
        """The reason against one more connection, where there is one. See runtime.listener."""
        if self.connections + opening >= CONNECTIONS_MAX:
            return "too_many"
        return "descriptors_reserved" if descriptor >= for_clients(descriptors_max()) else ""

    def protocol(self) -> asyncio.Protocol:
        """What serves the next connection."""
        if self._heads is None:
            return self._server()
        return Connection(self._desk, self._heads, self._connections)

    def announce_stop(self) -> None:
        """From here on each connection ends with its next answer, which says so; idle ones are left alone."""
        self._desk.stopping = True

    async def drain(self, timeout_s: float) -> None:
        """Answer what is under way, at most so long, then close every connection."""
        await self._desk.finish(timeout_s)
        for connection in tuple(self._connections):
            connection.close()
        self._server.pre_shutdown()
        # What still hangs has had its time; aiohttp waits this long twice before it cancels.
        await self._server.shutdown(0.1)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        desk = self._desk
        desk.began()
        try:
            refused = await self._take(request)
        finally:
            desk.ended()
        close = desk.stopping or closes(request)
        if refused is None:
            self._metrics.taken += 1
            return TAKEN_AND_CLOSE if close else TAKEN
        desk.count_refused(refused)
        if refused is not CLIENT_GONE:
            desk.refusals.note(refused, request)
        return refusal(refused, close=close or not request.content.is_eof())

    async def _take(self, request: web.BaseRequest) -> Refused | None:
        head = self._intake.read_head(
            request.method,
            request.raw_path,
            request.headers,
            peer=(request.remote or "") if self._asks_peer else "",
        )
        if isinstance(head, Refused):
            return head
        content = request.content
        if content.is_eof() and content.exception() is None:
            body = content.read_nowait()
        else:
            read = await self._read(request)
            if isinstance(read, Refused):
                return read
            body = read
        decision = self._intake.decide(head, body, int(time() * 1000))
        if isinstance(decision, Refused):
            return decision
        try:
            await self._keeper.keep(*decision)
        except NotKeptError as error:
            return not_taken(error.code)
        return None

    async def _read(self, request: web.BaseRequest) -> bytes | Refused:
        """A body that had not arrived with its head."""
        if expectation := request.headers.get("Expect"):
            if expectation.lower() != "100-continue":
                return EXPECTATION_FAILED
            if request.version == HttpVersion11 and request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                while part := await request.content.readany():
                    size += len(part)
                    if size > self._max_body_bytes:
                        return BODY_TOO_LARGE
                    parts.append(part)
        except TimeoutError:
            return READ_TIMED_OUT
        except (web.RequestPayloadError, HttpProcessingError):
            return BODY_BROKEN
        except OSError:
            return CLIENT_GONE
        return b"".join(parts)


class _HttpLog(logging.Filter):
    """What aiohttp's server would log. A malformed request is counted, not shown: it may hold anything."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics

    def logger(self) -> logging.Logger:
        # One of this server alone, outside the tree: nothing of it may reach the handlers of others.
        logger = logging.Logger("maskline.ingest.http", logging.DEBUG)  # noqa: LOG001 - see above
        logger.addFilter(self)
        return logger

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            self._metrics.malformed += 1
            _log.debug("malformed HTTP", reason=type(error).__name__)
        elif isinstance(error, (web.RequestPayloadError, ConnectionError)):
            # The rest of a body that was refused already, read so that the client sees why.
            _log.debug("the rest of a body could not be read", reason=type(error).__name__)
        elif record.levelno >= logging.ERROR:
            _log.error("a request failed", exc_info=error)
        return False
