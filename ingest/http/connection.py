"""One client connection: takes requests out of its bytes, has them verified and stored, answers them in order.

There is no task and no future for a request: it is taken in `data_received`, and answered when the publisher's reply
completes its PendingRequest. A request that a template fits (ingest.fastpath) is not even parsed; any other goes
through ingest.http.request_reader and ingest.http.request_decider. Each is taken out of the bytes by itself and
answered in its turn: later bytes never change how it is read, and the next request may be fast again.

| state | bytes come in | the outcome comes | the client has ended its side |
| --- | --- | --- | --- |
| idle | are read; once a request is complete: pending | | the connection ends |
| incomplete: a head has begun, or a body is awaited | are read; too late: 408 | | after a head: 400 |
| pending: a callback is being stored | wait their turn | answered; what waits is read | answered, then the end |
| blocked: the client does not read its answers | wait | | answers are written, then the end |
| finished: the last answer is written | are read and thrown away | | the connection ends |
| silent: our side was closed while idle | a callback is stored and not answered | | the connection ends |

Bounds: ingest.http.limits. A connection is closed in two steps (ingest.http.closing). A callback that was sent while an
idle connection was being closed is stored, though it cannot be answered (silent): Plivo may send it again, and then it
is a duplicate.
"""

import asyncio
import contextlib
import math
import socket
from time import time
from typing import cast

from maskline.ingest.auth.verifier import AcceptedCallback
from maskline.ingest.fastpath.head_templates import HeadTemplate
from maskline.ingest.http import limits
from maskline.ingest.http.closing import ConnectionCloser, unread_bytes
from maskline.ingest.http.context import ServerContext
from maskline.ingest.http.pending_request import PendingRequest
from maskline.ingest.http.request_decider import RequestDecider
from maskline.ingest.http.request_reader import ReceivedRequest, RequestReader
from maskline.ingest.http.responses import CONTINUE, OK, OK_AND_CLOSE, refusal_response
from maskline.ingest.outcome import NotStoredError
from maskline.ingest.parser.aiohttp_parser import HEAD_END, HEAD_LINE_MAX_BYTES
from maskline.ingest.parser.request_head import RequestHead, list_members, read_head
from maskline.ingest.publish.linger import WAITING_SENDER_S
from maskline.ingest.refusal import Refusal
from maskline.runtime.logs import get_logger

_log = get_logger("maskline.ingest")


class HttpConnection(asyncio.Protocol):
    """The protocol of one client connection. It is in `connections` from its beginning to its end."""

    __slots__ = (
        "_answered_s", "_awaits_body", "_client_ended", "_closer", "_connections", "_context", "_decider",
        "_fast_verifier", "_finished", "_idle_timer", "_is_resuming", "_peer", "_pending", "_read_timer", "_reader",
        "_reading_paused", "_silent", "_template", "_transport", "_turn_scheduled", "_waiting", "_write_timer",
        "idle_since",
    )  # fmt: skip

    def __init__(self, context: ServerContext, connections: set["HttpConnection"]) -> None:
        self._context = context
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._closer = ConnectionCloser(context.loop)
        self._template: HeadTemplate | None = None
        """Of the last head: most likely the next one's as well."""
        self._pending: PendingRequest | None = None
        self._awaits_body = False
        self._waiting = b""
        """Bytes received that belong to no complete request yet."""
        self._is_resuming = False
        """Whether `_resume` is running, further up the call stack."""
        self._turn_scheduled = False
        """Whether `_resume` is called in the loop's next turn."""
        self._reading_paused = False
        self._client_ended = False
        self._finished = False
        self._silent = False
        self._write_timer: asyncio.TimerHandle | None = None
        """Runs while the connection is blocked."""
        self._read_timer: asyncio.TimerHandle | None = None
        """Runs while a request is incomplete."""
        self._idle_timer: asyncio.TimerHandle | None = None
        self._answered_s = -math.inf
        """When the last answer was written, by the loop's clock."""
        self.idle_since = 0.0
        """The time of the last answer, by the loop's clock."""

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve."""
        # A cast and no check: uvloop's transports are not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        if (sock := transport.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):  # a socket of another family
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peername = transport.get_extra_info("peername")
        self._peer = str(peername[0]) if isinstance(peername, (list, tuple)) else str(peername or "")
        self._fast_verifier = self._context.fast_verifier(self._peer)
        self._decider = RequestDecider(self._context.verifier, self._fast_verifier, self._peer)
        self._reader = RequestReader(
            self._decider.check_head, self._context.max_body_bytes, self._context.awaits_body
        )
        self._connections.add(self)
        self.idle_since = self._context.loop.time()
        self._idle_timer = self._context.loop.call_later(self._context.idle_timeout_s, self._check_idle)

    def data_received(self, data: bytes) -> None:
        """Take the requests in these bytes, or queue them behind a pending one."""
        # Not _is_free(), which costs a call.
        if self._pending is not None or self._write_timer is not None or self._turn_scheduled:
            self._waiting += data
            self._pause_if_full()
            return
        try:
            if self._take_request(self._waiting + data if self._waiting else data) and self._waiting:
                self._resume()
        except Exception as error:  # noqa: BLE001 - a fault ends this connection and nothing else
            self.fail(error)

    def eof_received(self) -> bool:
        """Go on after the client has ended its side: it may still read the answers to all its requests."""
        self._client_ended = True
        self._end_with_client()
        return self._turn_scheduled or not self._is_free()

    def pause_writing(self) -> None:
        """Start the timeout of a client that does not read its answers."""
        self._write_timer = self._context.loop.call_later(limits.WRITE_TIMEOUT_S, self.abort)

    def resume_writing(self) -> None:
        """Go on, as the client reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._resume()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Clean up after the connection is closed. The outcome of a pending request still counts."""
        if self._awaits_body:
            self._context.count_refusal(limits.CLIENT_GONE)
        self._stop_awaiting()
        self._closer.connection_lost()
        self._connections.discard(self)
        self._transport = None
        self._waiting = b""
        for timer in (self._idle_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    # Requests

    def _take_request(self, data: bytes) -> bool:
        """Take the next request out of `data`, all bytes received so far. Returns whether the next may follow."""
        template = self._template
        match = None if template is None else template.match(data)
        if match is None:
            self._template = template = self._fast_verifier.head_templates.find(data)
            match = None if template is None else template.match(data)
        if template is None or match is None or self._awaits_body or self._finished:
            return self._read_request(data)
        captured = match.group(*template.groups)
        begin = match.end()
        end = begin + int(captured[1])
        if end > len(data) or begin > HEAD_LINE_MAX_BYTES or end - begin > self._context.max_body_bytes:
            return self._read_request(data)
        accepted = self._fast_verifier.verify(template, captured, data[begin:end], int(time() * 1000))
        if accepted is None:
            self._template = None  # it may be kept by this connection alone
            return self._read_request(data)
        self._waiting = data[end:]
        self._store(accepted, data, False)
        return True

    def _read_request(self, data: bytes) -> bool:
        """As `_take_request`, for a request off the fast path."""
        self._waiting = b""
        if self._finished:
            return False
        request = self._reader.read(data)
        if request is not None:
            return self._handle(request)
        self._waiting = self._reader.unread
        if self._reader.awaited_head is None:
            self._await_head()
        elif not self._awaits_body:
            self._await_body(self._reader.awaited_head)
        return False

    def _handle(self, request: ReceivedRequest) -> bool:
        """Answer a complete request at once, or have it stored. Returns whether the next may follow."""
        self._context.request_began()  # so that a stop sees no moment without it
        try:
            self._stop_awaiting()
            received_at_ms = int(time() * 1000)
            decision = self._decider.decide(request, received_at_ms)
            self._waiting = request.rest or b""
            ends = request.rest is None
            if isinstance(decision, Refusal):
                self._context.keep_refused(decision, request, received_at_ms, self._peer)
                self._refuse(decision, request.head, ends=ends)
                return not self._finished
            head = request.head
            self._store(decision, b"" if head is None else head.raw, ends)
            return True
        finally:
            self._context.request_ended()

    def _store(self, accepted: AcceptedCallback, data: bytes, closes: bool) -> None:
        """Have a callback stored; later requests wait. `data` begins with the request's head."""
        context = self._context
        context.requests_under_way += 1
        context.linger.from_waiting += context.loop.time() - self._answered_s < WAITING_SENDER_S
        if self._read_timer is not None:
            self._stop_awaiting()
        request = self._pending = PendingRequest(self, data, closes)
        try:
            context.router.store_for(request, *accepted)
        except NotStoredError as error:
            request.set_exception(error)

    def on_outcome(self, request: PendingRequest, error: NotStoredError | None) -> None:
        """Answer the pending request: its callback is stored (None), or will not be (`error`)."""
        context = self._context
        self._pending = None
        context.request_ended()
        close = request.closes or context.stopping
        if error is None:
            context.metrics.taken += 1
            response = OK_AND_CLOSE if close else OK
        else:
            refusal = limits.not_stored(error.code)
            head = read_head(request.data[: request.data.find(HEAD_END) + len(HEAD_END)])
            context.record_refusal(refusal, None if isinstance(head, Refusal) else head, self._peer)
            response = refusal_response(refusal, close=close)
        self._answer(response.encode(), request.closes)
        if self._waiting or self._reading_paused or self._client_ended:
            self._resume()

    def _refuse(self, refusal: Refusal, head: RequestHead | None, *, ends: bool) -> None:
        """Answer with a refusal; `head` is None where none could be read. `ends`: the connection ends with it."""
        self._context.record_refusal(refusal, head, self._peer)
        response = refusal_response(refusal, close=ends or self._context.stopping)
        is_head_request = head is not None and head.method == "HEAD"
        self._answer(response.encode_head() if is_head_request else response.encode(), ends)

    def _answer(self, response: bytes, ends: bool) -> None:
        """Write a response if the client can read it. It is the last one if the connection ends with it, or the node
        stops.
        """
        if ends:
            self._finish()
        transport = self._transport
        if transport is None or self._silent or transport.is_closing():
            return
        transport.write(response)
        self.idle_since = self._answered_s = self._context.loop.time()
        if ends or self._context.stopping:
            self._finish()
            self._close_our_side(transport)

    def _finish(self) -> None:
        self._finished = True
        self._waiting = b""

    # Requests that came while one was pending, or the connection was blocked

    def _resume(self) -> None:
        """Take waiting requests, as many as one turn of the loop may take."""
        if self._is_resuming or self._turn_scheduled:
            return
        self._is_resuming = True
        try:
            for _ in range(limits.TURN_MAX):
                if not (self._waiting and self._is_free() and self._take_request(self._waiting)):
                    break
            else:
                self._turn_scheduled = True
                self._context.loop.call_soon(self._take_turn)
        except Exception as error:  # noqa: BLE001 - a fault ends this connection and nothing else
            self.fail(error)
        finally:
            self._is_resuming = False
        self._pause_if_full()
        if self._reading_paused and self._transport is not None and not self._is_full():
            self._reading_paused = False
            self._transport.resume_reading()
        self._end_with_client()

    def _take_turn(self) -> None:
        self._turn_scheduled = False
        self._resume()

    def _pause_if_full(self) -> None:
        if self._is_full() and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _is_free(self) -> bool:
        """Whether the next request may be taken: none is pending, and the client reads its answers."""
        return self._pending is None and self._write_timer is None

    def _is_full(self) -> bool:
        return len(self._waiting) > limits.WAITING_MAX_BYTES

    # Incomplete requests

    def _await_head(self) -> None:
        if not self._waiting:
            self._stop_awaiting()  # blank lines and no more
        elif self._read_timer is None:
            self._read_timer = self._context.loop.call_later(limits.HEAD_TIMEOUT_S, self._give_up_head)

    def _await_body(self, head: RequestHead) -> None:
        self._stop_awaiting()
        self._awaits_body = True
        self._context.request_began()
        if expectations := set(list_members(head.headers, "Expect")):
            if expectations != {"100-continue"}:
                self._stop_awaiting()
                self._refuse(limits.EXPECTATION_FAILED, head, ends=True)
                return
            if head.version == (1, 1) and self._transport is not None and not self._silent:
                self._transport.write(CONTINUE)
        self._read_timer = self._context.loop.call_later(
            limits.READ_TIMEOUT_S, self._give_up_body, limits.READ_TIMED_OUT
        )

    def _stop_awaiting(self) -> None:
        """No head or body is awaited any more."""
        if self._awaits_body:
            self._awaits_body = False
            self._context.request_ended()
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
            self._reader.forget_incomplete_head()  # the fast path may have taken the request

    def _give_up_head(self) -> None:
        self._stop_awaiting()
        self._refuse(limits.HEAD_TIMED_OUT, None, ends=True)

    def _give_up_body(self, refusal: Refusal) -> None:
        self._refuse(self._reader.head_refusal or refusal, self._reader.awaited_head, ends=True)
        self._stop_awaiting()

    # The end

    def is_ending(self) -> bool:
        """Whether our side is closed, or will be after the written bytes."""
        return self._finished or self._silent

    def is_idle(self) -> bool:
        """Whether no byte of a request has come, not even into the socket's buffer."""
        return (
            self._is_free()
            and not self._awaits_body
            and not self._waiting
            and not self._finished
            and self._transport is not None
            and not self._transport.is_closing()
            and not unread_bytes(self._transport)
        )

    def end_if_idle(self) -> None:
        """Close an idle connection. A callback that the client sent before it knew is still stored."""
        if self._transport is not None and not self._silent and self.is_idle():
            self._silent = True
            self._close_our_side(self._transport)

    def _close_our_side(self, transport: asyncio.Transport) -> None:
        if self._reading_paused:
            self._reading_paused = False
            transport.resume_reading()
        self._closer.close_our_side(transport, client_ended=self._client_ended)

    def _check_idle(self) -> None:
        """Close the connection if it has been idle for the timeout, else check again when that may be."""
        context = self._context
        left_s = self.idle_since + context.idle_timeout_s - context.loop.time()
        if left_s <= 0 and self.is_idle():
            self.end_if_idle()
            return
        self._idle_timer = context.loop.call_later(
            left_s if left_s > 0 else context.idle_timeout_s, self._check_idle
        )

    def _end_with_client(self) -> None:
        """Close the connection if the client has ended its side and all that it sent is answered."""
        if not self._client_ended or self._turn_scheduled or not self._is_free():
            return
        if self._awaits_body:
            self._give_up_body(limits.CLIENT_GONE)
        elif self._transport is not None:
            self._close_our_side(self._transport)

    def abort(self) -> None:
        """Close at once, even if answers have not been read."""
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: Exception) -> None:
        """Close at once for a fault in maskline: it ends this connection and nothing else."""
        _log.error("connection failed", exc_info=error)
        self.abort()
