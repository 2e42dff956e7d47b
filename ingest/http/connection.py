"""A connection: requests are read as their bytes come in, decided, and answered as Redis confirms.

There is no task and no future for a request: it is looked at in `data_received` and answered from the publisher's
reply. A request of a known layout (ingest.fastpath.head_templates) is not even parsed; any other is read by
ingest.parser.request_head and ingest.parser.request_body. Each is taken out of the bytes by itself and answered in
its turn, so what stands behind a request, whatever it is, never reaches it.

| state | bytes come in | the outcome comes | client is gone |
| --- | --- | --- | --- |
| idle | looked at; if there is a whole request: busy | | |
| partial: a head has begun, or a body is awaited | looked at; too late: 408 | | after a head: 400 |
| busy: a request is being kept | wait their turn | answered; what waits is looked at | the outcome still counts |
| stuck: the client does not read | wait | | |
| ended: the last answer is written | read and thrown away | | |
| mute: ended as idle | kept, if a request; there is no answer any more | | the outcome still counts |

A client that ends its side gets the answers to all that it sent; then the connection ends.

A connection is ended in two steps: our side first, then, when the client has ended too or LINGER_S is over, all of it.
Closed at once, with bytes unread or on their way, the client would get a reset in place of the answers before it; and a
callback that was written as an idle connection came to its end would be lost. It is kept instead (mute), and Plivo,
which gets no answer, may send it again: a duplicate.

| bound | on |
| --- | --- |
| Desk.idle_timeout_s (MASKLINE_KEEPALIVE_S) | idle, from the last answer |
| HEAD_TIMEOUT_S | partial, from the head's first byte to its end |
| READ_TIMEOUT_S | partial, from the head's end to the body's |
| HEAD_MAX_BYTES, MASKLINE_MAX_BODY_BYTES | partial |
| WAITING_MAX_BYTES | what waits behind a busy request; then nothing is read |
| TURN_MAX | requests looked at in one turn of the loop |
| WRITE_TIMEOUT_S | stuck; ended with answers that are not read |
| LINGER_S | ended and mute |
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from time import time
from typing import Final, NamedTuple, cast

from maskline.ingest.auth.dialled_url import Headers
from maskline.ingest.auth.verifier import AcceptedCallback, Head
from maskline.ingest.fastpath.head_templates import HeadTemplate, is_ordinary
from maskline.ingest.http import responses
from maskline.ingest.http.context import ServerContext
from maskline.ingest.http.responses import CONTINUE, TAKEN, TAKEN_AND_CLOSE, refusal
from maskline.ingest.outcome import NotStoredError
from maskline.ingest.parser.aiohttp_parser import HEAD_END, HEAD_LINE_MAX_BYTES, NO_HEADERS
from maskline.ingest.parser.request_body import BODY_BROKEN, BodyReader
from maskline.ingest.parser.request_head import (
    HEAD_MAX_BYTES,
    HEAD_TOO_LARGE,
    RequestHead,
    check_incomplete_head,
    list_members,
    read_head,
    skip_blank_lines,
)
from maskline.ingest.refusal import Refusal
from maskline.runtime.logs import get_logger

HEAD_TIMEOUT_S: Final = 10.0
"""A head is a kilobyte, sent in one go; ten seconds serve the slowest link."""
READ_TIMEOUT_S: Final = 10.0
"""The same for a body."""
LINGER_S: Final = 2.0
"""Some round trips, so that the client sees the answer rather than a reset, and what it wrote meanwhile arrives."""
WAITING_MAX_BYTES: Final = 65_536
TURN_MAX: Final = 64
"""Refused requests cost no wait for Redis: a flood of them on one connection must leave the others their turn."""

_log = get_logger("maskline.ingest")

CLIENT_GONE: Final = Refusal(400, "client_gone", "the connection ended before the body did")
HEAD_TIMED_OUT: Final = Refusal(
    408, "head_timeout", f"the head that had begun did not end within {HEAD_TIMEOUT_S:g} s"
)
READ_TIMED_OUT: Final = Refusal(408, "read_timeout", f"the body did not arrive within {READ_TIMEOUT_S:g} s")
EXPECTATION_FAILED: Final = Refusal(417, "expectation_failed", "only 100-continue can be expected")


def not_taken(code: str) -> Refusal:
    """Plivo's turn again: neither Redis nor the spool has the callback."""
    return Refusal(503, code, "the callback could not be kept, send it again")


class Incoming(NamedTuple):
    """A request whose head has been read."""

    head: RequestHead
    taken: Head | Refusal
    """What the intake says of its head."""
    body: BodyReader


class HttpConnection(asyncio.Protocol):
    """One connection, until it is closed."""

    __slots__ = (
        "_client_ended", "_connections", "_deadline", "_desk", "_due", "_ended", "_exchange", "_idle_timer",
        "_incoming", "_layout", "_lingering", "_looked", "_looking", "_mute", "_peer", "_quick", "_reading_paused",
        "_stuck", "_transport", "_waiting", "idle_since",
    )  # fmt: skip

    def __init__(self, desk: ServerContext, connections: set["HttpConnection"]) -> None:
        self._desk = desk
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._layout: HeadTemplate | None = None
        """Of the last head: most likely the next one's as well."""
        self._exchange: PendingRequest | None = None
        self._incoming: Incoming | None = None
        """A request whose body is awaited."""
        self._waiting = b""
        """Bytes that came in and belong to no request yet."""
        self._looked = 0
        """How many of them are whole lines of a head that has been found to be one so far."""
        self._looking = False
        self._due = False
        """Whether the next turn of the loop goes on looking."""
        self._reading_paused = False
        self._client_ended = False
        self._ended = False
        self._mute = False
        self._stuck: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self.idle_since = 0.0
        """The time of the last answer, by the loop's clock."""

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
        self.idle_since = self._desk.loop.time()
        self._idle_timer = self._desk.loop.call_later(self._desk.idle_timeout_s, self._look_idle)

    def data_received(self, data: bytes) -> None:
        # Not _is_free(), which costs a call.
        if self._exchange is not None or self._stuck is not None or self._due:
            self._waiting += data
            self._pause_if_full()
            return
        try:
            if self._look(self._waiting + data if self._waiting else data) and self._waiting:
                self._go_on()
        except Exception as error:  # noqa: BLE001 - as in Exchange
            self.fail(error)

    def eof_received(self) -> bool:
        """The client has written its last; it may still read answers."""
        self._client_ended = True
        self._end_with_client()
        return self._due or not self._is_free()

    def pause_writing(self) -> None:
        self._stuck = self._desk.loop.call_later(responses.WRITE_TIMEOUT_S, self.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        self._go_on()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._incoming is not None:
            self._desk.count_refused(CLIENT_GONE)
        self._end_waiting()
        self._connections.discard(self)
        self._transport = None
        self._waiting = b""
        for timer in (self._idle_timer, self._stuck, self._lingering):
            if timer is not None:
                timer.cancel()

    # Requests

    def _look(self, data: bytes) -> bool:
        """Take the next request out of these bytes, which are all there are; whether there was one."""
        layout = self._layout
        match = None if layout is None else layout.match(data)
        if match is None:
            self._layout = layout = self._quick.heads.find(data)
            match = None if layout is None else layout.match(data)
        if layout is None or match is None or self._incoming is not None or self._ended:
            return self._look_closely(data)
        target, length, signature, main_signature, nonce = match.group(*layout.groups)
        begin = match.end()
        end = begin + int(length)
        if end > len(data) or begin > HEAD_LINE_MAX_BYTES or end - begin > self._desk.max_body_bytes:
            return self._look_closely(data)
        accepted = self._quick.decide(
            layout, target, signature, main_signature, nonce, data[begin:end], int(time() * 1000)
        )
        if accepted is None:
            self._layout = None  # it may be forgotten by all but this connection
            return self._look_closely(data)
        self._waiting = data[end:]
        self._keep(accepted, data, False)
        return True

    def _look_closely(self, data: bytes) -> bool:
        """The same for any request."""
        if self._ended:
            self._waiting = b""
            return False
        if self._incoming is not None:
            self._waiting = b""
            return self._read_body(self._incoming, data)
        data = skip_blank_lines(data)
        begin = data.find(HEAD_END, max(0, self._looked - len(HEAD_END))) + len(HEAD_END)
        if begin < len(HEAD_END):
            self._await_head(data)
            return False
        desk = self._desk
        head = HEAD_TOO_LARGE if begin > HEAD_MAX_BYTES else read_head(data[:begin])
        if isinstance(head, Refusal):
            self._end_waiting()
            self._refuse(head, None, ends=True)
            return False
        taken = desk.intake.read_head(
            head.method, head.target, head.headers, peer=self._peer if desk.origin.asks_peer else ""
        )
        self._waiting = b""
        incoming = Incoming(head, taken, BodyReader(head, desk.max_body_bytes))
        return self._read_body(incoming, data[begin:])

    def _read_body(self, incoming: Incoming, data: bytes) -> bool:
        """Take the body, or more of it; whether the request is whole and the connection goes on."""
        head, taken, body = incoming
        rest = body.feed(data)
        if rest is None and not isinstance(taken, Refusal):
            if self._incoming is None:
                self._await_body(incoming)
            return False
        self._desk.began()  # so that a stop sees no moment without it
        try:
            self._end_waiting()
            if isinstance(taken, Refusal):
                decision: AcceptedCallback | Refusal = taken
            elif isinstance(rest, bytes):
                decision = self._decide(head, taken, body.contents())
            else:
                decision = rest or READ_TIMED_OUT
            goes_on = isinstance(rest, bytes) and head.keep_alive
            if isinstance(rest, bytes) and goes_on:
                self._waiting = rest
            if isinstance(decision, Refusal):
                self._refuse(decision, head, ends=not goes_on)
                return not self._ended
            self._keep(decision, head.raw, not goes_on)
            return True
        finally:
            self._desk.ended()

    def _decide(
        self, head: RequestHead, taken: Head, contents: list[bytes | Refusal]
    ) -> AcceptedCallback | Refusal:
        """The first of the body's readings that is good; else what is against the first."""
        now_ms = int(time() * 1000)
        against: Refusal | None = None
        for content in contents:
            refused = content if isinstance(content, Refusal) else None
            if isinstance(content, bytes):
                decision = self._desk.intake.decide(taken, content, now_ms)
                if isinstance(decision, AcceptedCallback):
                    if is_ordinary(head):
                        self._quick.learn(head, taken, content)
                    return decision
                refused = decision
            against = against or refused
        return against or BODY_BROKEN

    def _keep(self, accepted: AcceptedCallback, data: bytes, closes: bool) -> None:
        """Have a request kept; what comes behind it waits. `data` begins with its head."""
        self._desk.under_way += 1
        if self._deadline is not None:
            self._end_waiting()
        exchange = self._exchange = PendingRequest(self, data, closes)
        try:
            self._desk.router.store_for(exchange, *accepted)
        except NotStoredError as error:
            exchange.set_exception(error)

    def settled(self, exchange: "PendingRequest", error: NotStoredError | None) -> None:
        """The request's callback is safe, or will not be."""
        desk = self._desk
        self._exchange = None
        desk.ended()
        close = exchange.closes or desk.stopping
        if error is None:
            desk.metrics.taken += 1
            answer = TAKEN_AND_CLOSE if close else TAKEN
        else:
            refused = not_taken(error.code)
            head = read_head(exchange.data[: exchange.data.find(HEAD_END) + len(HEAD_END)])
            self._note(refused, None if isinstance(head, Refusal) else head)  # it was none, when it came
            answer = refusal(refused, close=close)
        self._answer(answer.whole(), exchange.closes)
        if self._waiting or self._reading_paused or self._client_ended:
            self._go_on()

    def _refuse(self, refused: Refusal, head: RequestHead | None, *, ends: bool) -> None:
        """Answer at once; `head`: None where there is none that could be read."""
        self._note(refused, head)
        answer = refusal(refused, close=ends or self._desk.stopping)
        is_head = head is not None and head.method == "HEAD"
        self._answer(answer.head() if is_head else answer.whole(), ends)

    def _note(self, refused: Refusal, head: RequestHead | None) -> None:
        self._desk.count_refused(refused)
        target, headers = ("", NO_HEADERS) if head is None else (head.target, head.headers)
        self._desk.refusals.note(refused, _Asked(self._peer, target, headers))

    def _answer(self, answer: bytes, ends: bool) -> None:
        """Write an answer, if it can be read; the last, where the connection ends with it or by a stop."""
        if ends:
            self._end()
        transport = self._transport
        if transport is None or self._mute or transport.is_closing():
            return
        transport.write(answer)
        self.idle_since = self._desk.loop.time()
        if ends or self._desk.stopping:
            self._end()
            self._end_our_side(transport)

    def _end(self) -> None:
        self._ended = True
        self._waiting = b""

    # What came while a request was being kept, or the client did not read

    def _go_on(self) -> None:
        """Look at it, as much of it as is due now."""
        if self._looking or self._due:  # further down the stack, or in the next turn
            return
        self._looking = True
        try:
            for _ in range(TURN_MAX):
                if not (self._waiting and self._is_free() and self._look(self._waiting)):
                    break
            else:
                self._due = True
                self._desk.loop.call_soon(self._take_turn)
        except Exception as error:  # noqa: BLE001 - as in Exchange
            self.fail(error)
        finally:
            self._looking = False
        self._pause_if_full()
        if self._reading_paused and self._transport is not None and not self._is_full():
            self._reading_paused = False
            self._transport.resume_reading()
        self._end_with_client()

    def _take_turn(self) -> None:
        self._due = False
        self._go_on()

    def _pause_if_full(self) -> None:
        if self._is_full() and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _is_free(self) -> bool:
        return self._exchange is None and self._stuck is None

    def _is_full(self) -> bool:
        return len(self._waiting) > WAITING_MAX_BYTES

    # Incomplete requests

    def _await_head(self, data: bytes) -> None:
        self._waiting = data
        looked = check_incomplete_head(data, self._looked)
        if isinstance(looked, Refusal):
            self._end_waiting()
            self._refuse(looked, None, ends=True)
            return
        self._looked = looked
        if not data:
            self._end_waiting()  # blank lines and no more
        elif self._deadline is None:
            self._deadline = self._desk.loop.call_later(HEAD_TIMEOUT_S, self._give_up_head)

    def _await_body(self, incoming: Incoming) -> None:
        self._desk.began()
        self._end_waiting()
        self._incoming = incoming
        head = incoming.head
        if expected := set(list_members(head.headers, "Expect")):
            if expected != {"100-continue"}:
                self._end_waiting()
                self._refuse(EXPECTATION_FAILED, head, ends=True)
                return
            if head.version == (1, 1) and self._transport is not None and not self._mute:
                self._transport.write(CONTINUE)
        self._deadline = self._desk.loop.call_later(READ_TIMEOUT_S, self._give_up_body, READ_TIMED_OUT)

    def _end_waiting(self) -> None:
        """A head or a body that was awaited is there, or is awaited no longer."""
        self._looked = 0
        if self._incoming is not None:
            self._incoming = None
            self._desk.ended()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up_head(self) -> None:
        self._end_waiting()
        self._refuse(HEAD_TIMED_OUT, None, ends=True)

    def _give_up_body(self, refused: Refusal) -> None:
        head = None if self._incoming is None else self._incoming.head
        self._refuse(refused, head, ends=True)
        self._end_waiting()

    # The end

    def is_ending(self) -> bool:
        return self._ended or self._mute

    def is_idle(self) -> bool:
        """Whether nothing of a request is here, nor anything of one unread."""
        return (
            self._is_free() and self._incoming is None and not self._waiting and not self._ended
            and self._transport is not None and not self._transport.is_closing()
            and not _unread_bytes(self._transport)
        )  # fmt: skip

    def end_idle(self) -> None:
        """End an idle connection. What the client wrote before it knew is kept, if it is a callback."""
        if self._transport is not None and not self._mute and self.is_idle():
            self._mute = True
            self._end_our_side(self._transport)

    def _end_our_side(self, transport: asyncio.Transport) -> None:
        if self._reading_paused:
            self._reading_paused = False
            transport.resume_reading()
        if self._lingering is None:
            self._lingering = self._desk.loop.call_later(LINGER_S, self._look_lingering)
        if self._client_ended:
            transport.close()
            return
        try:
            transport.write_eof()
        except OSError:  # the client is gone
            transport.abort()

    def _look_lingering(self) -> None:
        """Close at once, unless there are answers that the client has still to read."""
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._lingering = self._desk.loop.call_later(responses.WRITE_TIMEOUT_S, self.abort)
        else:
            self.abort()

    def _look_idle(self) -> None:
        """End the connection, if it has been idle for so long."""
        desk = self._desk
        left_s = self.idle_since + desk.idle_timeout_s - desk.loop.time()
        if left_s <= 0 and self.is_idle():
            self.end_idle()
            return
        self._idle_timer = desk.loop.call_later(
            left_s if left_s > 0 else desk.idle_timeout_s, self._look_idle
        )

    def _end_with_client(self) -> None:
        """End the connection, if the client has ended its side and nothing that it sent is left to be looked at."""
        if not self._client_ended or self._due or not self._is_free():
            return
        if self._incoming is not None:
            self._give_up_body(CLIENT_GONE)
        elif self._transport is not None:
            self._end_our_side(self._transport)

    def abort(self) -> None:
        """Close at once, also where answers have not been read."""
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: Exception) -> None:
        """A fault of ours: it ends this connection and nothing else."""
        _log.error("a connection has failed, which is a fault in maskline", exc_info=error)
        self.abort()


class PendingRequest:
    """A request that waits to be kept. One object for each: an outcome that comes late must not meet the next.

    Nothing is raised to who tells the outcome: others wait for theirs behind this one.
    """

    __slots__ = ("_connection", "closes", "data")

    def __init__(self, connection: HttpConnection, data: bytes, closes: bool) -> None:
        self._connection: HttpConnection | None = connection
        self.data = data
        """What it was read from; its head stands at the beginning."""
        self.closes = closes
        """Whether the connection ends with it."""

    def done(self) -> bool:
        return self._connection is None

    def set_result(self, _: None, /) -> None:
        self._tell(None)

    def set_exception(self, exception: NotStoredError, /) -> None:
        self._tell(exception)

    def _tell(self, error: NotStoredError | None) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.settled(self, error)
            except Exception as fault:  # noqa: BLE001 - whatever it is
                connection.fail(fault)


class _Asked(NamedTuple):
    """maskline.ingest.http.refusal_log.Asked."""

    remote: str
    raw_path: str
    headers: Headers
    secure: bool = False


def _unread_bytes(transport: asyncio.Transport) -> int:
    """How many bytes lie in the socket's buffer that the loop has not read yet."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))[0])
    except OSError:  # something that cannot be asked
        return 0
