"""A connection on the quick way: requests are decided as their bytes come in, and answered as Redis confirms.

aiohttp makes a task for each request, and objects for much that a callback has not got. Here the ordinary request,
a POST over HTTP/1.1 with its length and all its bytes, is looked at in `data_received` and answered from the
publisher's reply, without a task or a future of its own. At the first that is not ordinary, or is refused, the
connection goes over to aiohttp with all bytes not yet answered, for good (`_hand_over`): everything about HTTP that
is difficult is decided there and only there. That takes nothing but asyncio's own protocol interface.

| state | bytes come in | the outcome comes | client is gone |
| --- | --- | --- | --- |
| idle | looked at; if there is a whole request: busy | | |
| partial: a request's beginning is there | looked at together | | counted, if only the body was missing |
| busy: a request is being kept | wait their turn | answered; what waits is looked at | the outcome still counts |
| stuck: the client does not read | wait | | |

| bound | on |
| --- | --- |
| Desk.idle_timeout_s | idle and partial, from the last answer |
| HEAD_MAX_BYTES | partial, as long as the head is |
| PATIENCE_S, PIECES_MAX | partial, once the body is awaited; then aiohttp does, as long as ingest.server lets it |
| WAITING_MAX_BYTES | what waits behind a busy request; then nothing is read |
| WRITE_TIMEOUT_S | stuck |
"""

import asyncio
import contextlib
import socket
from time import time
from typing import Final, NamedTuple, cast

from ingest import responses
from ingest.borrowed import END, HEAD_MAX_BYTES, Heads
from ingest.desk import Desk
from ingest.heads import HeadLayout
from ingest.intake import Accepted, Refused
from ingest.origin import Headers
from ingest.outcomes import NotKeptError
from ingest.responses import TAKEN, TAKEN_AND_CLOSE, refusal
from runtime.logs import get_logger

PATIENCE_S: Final = 0.1
"""Proxies send head and body in two packets that follow each other at once. Whoever takes longer gets a task; and
a head that is no HTTP is answered so, although it has not come to its end."""
TAKEN_UP_S: Final = 0.05
"""aiohttp's task begins with what is handed over a few turns of the loop later."""
PIECES_MAX: Final = 8
"""Each piece of a body is looked at together with those before: many small ones would make that costly."""
WAITING_MAX_BYTES: Final = 65_536

_log = get_logger("maskline.ingest")

_BEGINNING: Final = b"POST /"

CLIENT_GONE: Final = Refused(400, "client_gone", "the connection ended before the body did")


def not_taken(code: str) -> Refused:
    """Plivo's turn again: neither Redis nor the spool has the callback."""
    return Refused(503, code, "the callback could not be kept, send it again")


class Connection(asyncio.Protocol):
    """One connection, until it is closed or handed on."""

    __slots__ = (
        "_body_awaited", "_connections", "_desk", "_exchange", "_heads", "_idle_since", "_idle_timer", "_layout",
        "_looking", "_patience", "_peer", "_pieces", "_quick", "_reading_paused", "_stuck", "_transport", "_waiting",
    )  # fmt: skip

    def __init__(self, desk: Desk, heads: Heads, connections: set["Connection"]) -> None:
        self._desk = desk
        self._heads = heads
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._layout: HeadLayout | None = None
        """Of the last head: most likely the next one's as well."""
        self._exchange: Exchange | None = None
        self._waiting = b""
        """Bytes that came in and are not answered nor being kept."""
        self._pieces = 0
        """In which a request has come so far that is not complete."""
        self._body_awaited = False
        self._looking = False
        self._reading_paused = False
        self._stuck: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast and no check: uvloop's transports are not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        if (sock := transport.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):  # a socket of another family
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peername = transport.get_extra_info("peername")
        self._peer = str(peername[0]) if isinstance(peername, (list, tuple)) else str(peername or "")
        self._quick = self._desk.quick(self._peer)
        self._connections.add(self)
        self._idle_since = self._desk.loop.time()
        self._idle_timer = self._desk.loop.call_later(self._desk.idle_timeout_s, self._look_idle)

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None or self._stuck is not None:  # not _is_free(), which costs a call
            self._waiting += data
            if (
                len(self._waiting) > WAITING_MAX_BYTES
                and not self._reading_paused
                and self._transport is not None
            ):
                self._reading_paused = True
                self._transport.pause_reading()
            return
        try:
            self._look(self._waiting + data if self._waiting else data)
        except Exception as error:  # noqa: BLE001 - as in Exchange
            self.fail(error)

    def pause_writing(self) -> None:
        self._stuck = self._desk.loop.call_later(responses.WRITE_TIMEOUT_S, self._abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        self._go_on()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._body_awaited:
            self._desk.count_refused(CLIENT_GONE)
        self._leave()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # Requests

    def _look(self, data: bytes) -> bool:
        """Take the next request out of these bytes, which are all there are; whether there was one."""
        layout = self._layout
        match = None if layout is None else layout.match(data)
        if match is None:
            self._layout = layout = self._quick.heads.find(data)
            match = None if layout is None else layout.match(data)
        if layout is None or match is None:
            return self._look_closely(data)
        target, length, signature, main_signature, nonce = match.group(*layout.groups)
        begin = match.end()
        end = begin + int(length)
        if end > len(data) or begin > HEAD_MAX_BYTES or end - begin > self._desk.max_body_bytes:
            return self._look_closely(data)
        accepted = self._quick.decide(
            layout, target, signature, main_signature, nonce, data[begin:end], int(time() * 1000)
        )
        if accepted is None:
            self._layout = None  # it may be forgotten by all but this connection
            return self._look_closely(data)
        self._keep(accepted, data, end)
        return True

    def _look_closely(self, data: bytes) -> bool:
        """The same for any ordinary request, as ingest.server does it; the rest is aiohttp's."""
        desk = self._desk
        begin = data.find(END) + len(END)
        if begin < len(END):
            if len(data) < HEAD_MAX_BYTES and data[: len(_BEGINNING)] == _BEGINNING[: len(data)]:
                self._await_more(data)
            else:
                self._hand_over(data)
            return False
        ordinary = self._heads.read(data[:begin]) if begin <= HEAD_MAX_BYTES else None
        if ordinary is None or ordinary.length > desk.max_body_bytes:
            self._hand_over(data)
            return False
        head = desk.intake.read_head(
            "POST", ordinary.target, ordinary.headers, peer=self._peer if desk.origin.asks_peer else ""
        )
        if isinstance(head, Refused):
            self._hand_over(data)
            return False
        end = begin + ordinary.length
        if end > len(data):
            self._await_more(data, body=True)
            return False
        body = data[begin:end]
        decision = desk.intake.decide(head, body, int(time() * 1000))
        if isinstance(decision, Refused):
            self._hand_over(data)
            return False
        self._quick.learn(ordinary, head, body)
        self._keep(decision, data, end)
        return True

    def _keep(self, accepted: Accepted, data: bytes, end: int) -> None:
        """Have the request kept that ends there; what comes behind it waits."""
        self._desk.under_way += 1
        if self._pieces:
            self._end_patience()
        self._waiting = data[end:]
        exchange = self._exchange = Exchange(self, data)
        try:
            self._desk.keeper.keep_for(exchange, *accepted)
        except NotKeptError as error:
            exchange.set_exception(error)

    def settled(self, exchange: "Exchange", error: NotKeptError | None) -> None:
        """The request's callback is safe, or will not be."""
        desk = self._desk
        self._exchange = None
        desk.ended()
        close = desk.stopping
        if error is None:
            desk.metrics.taken += 1
            answer = TAKEN_AND_CLOSE if close else TAKEN
        else:
            refused = self._refused(exchange, error)
            answer = refusal(refused, close=close)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(answer.whole())
        self._idle_since = desk.loop.time()
        if close:
            self._waiting = b""
            transport.close()
        elif self._waiting or self._reading_paused:
            self._go_on()

    def _refused(self, exchange: "Exchange", error: NotKeptError) -> Refused:
        """Count and log a callback that was good and could not be kept."""
        refused = not_taken(error.code)
        self._desk.count_refused(refused)
        ordinary = self._heads.read(exchange.data[: exchange.data.find(END) + len(END)])
        if ordinary is not None:  # it was, when the request came
            self._desk.refusals.note(refused, _Asked(self._peer, ordinary.target, ordinary.headers))
        return refused

    def _go_on(self) -> None:
        """Look at what came while a request was being kept, or the client did not read."""
        if self._looking:  # further down the stack
            return
        self._looking = True
        try:
            while self._waiting and self._is_free() and self._look(self._waiting):
                pass
        finally:
            self._looking = False
        if self._reading_paused and self._transport is not None and (self._is_free() or not self._is_full()):
            self._reading_paused = False
            self._transport.resume_reading()

    def _is_free(self) -> bool:
        return self._exchange is None and self._stuck is None

    def _is_full(self) -> bool:
        return len(self._waiting) > WAITING_MAX_BYTES

    # Incomplete requests

    def _await_more(self, data: bytes, *, body: bool = False) -> None:
        self._waiting = data
        if body and not self._body_awaited:
            self._body_awaited = True
            self._desk.began()
        self._pieces += 1
        if body and self._pieces > PIECES_MAX:
            self._hand_over(data)
        elif self._patience is None:
            self._patience = self._desk.loop.call_later(PATIENCE_S, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        if self._body_awaited or self._heads.breaks_off(self._waiting):
            self._hand_over(self._waiting)

    def _end_patience(self) -> None:
        self._pieces = 0
        if self._body_awaited:
            self._body_awaited = False
            self._desk.ended()
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    # The end

    def _hand_over(self, data: bytes) -> None:
        """Let aiohttp serve the connection from here on; these bytes are the first that it sees."""
        transport = self._transport
        if transport is None:
            return
        writing_paused = self._stuck is not None
        if self._body_awaited:
            # It stays under way: a stop must not close the connection before aiohttp's task has taken it up.
            self._desk.began()
            self._desk.loop.call_later(TAKEN_UP_S, self._desk.ended)
        self._leave()
        if transport.is_closing():
            return
        general = self._desk.general()
        transport.set_protocol(general)
        general.connection_made(transport)
        if writing_paused:
            general.pause_writing()
        if self._reading_paused:
            transport.resume_reading()
        general.data_received(data)

    def _leave(self) -> None:
        self._end_patience()
        self._connections.discard(self)
        self._transport = None
        self._waiting = b""
        for timer in (self._idle_timer, self._stuck):
            if timer is not None:
                timer.cancel()

    def _look_idle(self) -> None:
        """Close the connection, if it has been idle for so long."""
        desk = self._desk
        left_s = self._idle_since + desk.idle_timeout_s - desk.loop.time()
        if self._exchange is None and left_s <= 0:
            self.close()
            return
        self._idle_timer = desk.loop.call_later(
            left_s if left_s > 0 else desk.idle_timeout_s, self._look_idle
        )

    def fail(self, error: Exception) -> None:
        """A fault of ours: it ends this connection and nothing else."""
        _log.error("a connection has failed, which is a fault in maskline", exc_info=error)
        self._abort()

    def _abort(self) -> None:
        """The client does not read its answers."""
        if self._transport is not None:
            self._transport.abort()


class Exchange:
    """A request that waits to be kept. One object for each: an outcome that comes late must not meet the next.

    Nothing is raised to who tells the outcome: others wait for theirs behind this one.
    """

    __slots__ = ("_connection", "data")

    def __init__(self, connection: Connection, data: bytes) -> None:
        self._connection: Connection | None = connection
        self.data = data
        """What it was read from; its head stands at the beginning."""

    def done(self) -> bool:
        return self._connection is None

    def set_result(self, _: None, /) -> None:
        self._tell(None)

    def set_exception(self, exception: NotKeptError, /) -> None:
        self._tell(exception)

    def _tell(self, error: NotKeptError | None) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.settled(self, error)
            except Exception as fault:  # noqa: BLE001 - whatever it is
                connection.fail(fault)


class _Asked(NamedTuple):
    """ingest.refusals.Asked, of a head read again."""

    remote: str
    raw_path: str
    headers: Headers
    secure: bool = False
