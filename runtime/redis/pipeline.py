"""One pipelined connection to Redis: bytes out in one write a loop tick, replies back in order.

redis-py sends a command, or a pipeline, and waits for its reply; intake and dispatch instead have many batches under
way on one connection. This connection takes commands that are already packed, writes what gathered during a loop tick
with one call, and hands the replies to their batches as hiredis parses them. It speaks RESP2, unless its owner asks the
server for RESP3, for its push messages: they come between replies, and go to `on_push`.

A deadline counts silence, not the time to the last byte of a reply: through a thin pipe a big one may take a minute,
and cutting it would only have it sent again. PROGRESS_MIN_BYTES says what counts as progress.

A connection never reconnects: it is lost as a whole, with every batch under way, and its owner opens the next one
(`runtime.redis.connect`). Nobody knows which commands were carried out before the loss, so every command must be safe
to repeat.
"""

import asyncio
import contextlib
import contextvars
import fcntl
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import hiredis

from maskline.runtime.redis.addresses import ServerAddress
from maskline.schemas.errors import RedisUnavailableError

Argument = bytes | str | int

REPLY_TIMEOUT_S: Final = 5.0
"""A connection without progress for so long, while a batch waits, is dead or half-open, and is closed."""

PROGRESS_MIN_BYTES: Final = 4_096
"""Bytes that must be received or sent within a batch's timeout to count as progress, unless fewer answer a batch: below
a kilobyte a second nothing gets done, and a trickle must not keep a connection for ever."""

WATCH_INTERVAL_S: Final = 0.25

_NOTHING: Final = object()

_PushMessage: Final = hiredis.PushNotification


def pack(*arguments: Argument) -> bytes:
    """One command in Redis's wire format."""
    packed: bytes = hiredis.pack_command(arguments)  # type: ignore[arg-type]  # its stub knows one argument alone
    return packed


class ReplyReceiver(Protocol):
    """Receives the replies of a batch: a future, or an object with the same methods, which costs no loop turn.

    It is completed once, while it is not `done`, in the loop turn in which the last reply is read. What it raises ends
    the connection. It may close the connection, and send on it.
    """

    def done(self) -> bool:
        """Whether nobody awaits the replies any more."""

    def set_result(self, replies: list[Any], /) -> None:
        """Take the replies of all commands, in their order."""

    def set_exception(self, error: RedisUnavailableError, /) -> None:
        """The connection is lost; nobody knows which of the commands were carried out."""


class _Batch:
    """Commands that were sent together: their replies so far, and when they are overdue without progress."""

    __slots__ = ("begun_at", "count", "deadline", "receiver", "replies", "timeout_s")

    def __init__(self, receiver: ReplyReceiver, count: int, deadline: float, timeout_s: float) -> None:
        self.receiver = receiver
        self.count = count
        self.deadline = deadline
        self.timeout_s = timeout_s
        self.begun_at = 0.0
        """When the first reply had come, but not all of them; 0 before."""
        self.replies: list[Any] = []


class PipelinedConnection(asyncio.Protocol):
    """A connected, authenticated Redis connection. Made by `runtime.redis.connect.RedisEndpoint.connect`."""

    def __init__(self, on_lost: Callable[[], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[_Batch] = deque()
        self._out: list[bytes] = []
        self._lost: RedisUnavailableError | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._overdue: _Batch | None = None
        self._on_lost = on_lost
        self._context = contextvars.copy_context()
        """The context for callbacks of the loop, not the sender's: a user's code may have bound log values in its
        own."""
        self.on_push: Callable[[list[Any]], None] | None = None
        """Takes each push message of RESP3: its kind, and what it says."""
        self.server_address: ServerAddress | None = None
        """The server's address; None before it is connected."""
        self.timed_out = False
        """Whether it was closed because the server did not answer in time."""
        self.received_bytes = 0
        """Since the connection was made."""
        self.transfer_s = 0.0
        """The time from the first to the last reply of the last batch: what its size took, without the latency."""
        self._answered = 0
        self._sent_bytes = 0
        self._moved = 0
        """Bytes received and sent at the last progress."""
        self._answered_then = 0
        self._moved_at = 0.0

    @property
    def address(self) -> str:
        """The server's address, as `10.0.0.7:6379` or the path of a socket; empty before it is connected."""
        return "" if self.server_address is None else self.server_address.text

    @property
    def connected(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and self._lost is None

    # What callers use

    def send(
        self, packed: bytes, count: int, *, timeout_s: float = REPLY_TIMEOUT_S, at_once: bool = False
    ) -> asyncio.Future[list[Any]]:
        """Send `count` packed commands (`pack`); the future's result is the list of their replies in order.

        `at_once`: write now, instead of gathering until the next turn of the loop, as the caller has gathered already.

        An error reply stands in the list as `hiredis.ReplyError`. The future fails with RedisUnavailableError when the
        connection is lost, or when there is no progress for `timeout_s`, which closes the connection.
        """
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self.send_for(future, packed, count, timeout_s=timeout_s, at_once=at_once)
        return future

    def send_for(
        self,
        receiver: ReplyReceiver,
        packed: bytes,
        count: int,
        *,
        timeout_s: float = REPLY_TIMEOUT_S,
        at_once: bool = False,
    ) -> None:
        """Like `send`, but the replies go to an existing receiver. It may fail before this returns."""
        if self._lost is not None or self._transport is None:
            _fail_receiver(receiver, str(self._lost or "not connected to Redis"))
            return
        self._waiting.append(_Batch(receiver, count, self._loop.time() + timeout_s, timeout_s))
        self._sent_bytes += len(packed)
        if at_once and not self._out:
            self._transport.write(packed)
            return
        if not self._out:
            self._loop.call_soon(self._flush, context=self._context)
        self._out.append(packed)

    async def execute(self, *arguments: Argument, timeout_s: float = REPLY_TIMEOUT_S) -> Any:
        """Send one command and return its reply. Raises hiredis.ReplyError for an error reply."""
        (reply,) = await self.send(pack(*arguments), 1, timeout_s=timeout_s)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def close(self) -> None:
        """Close the connection; batches under way fail."""
        self._fail("this process has closed the connection to Redis")

    @property
    def loss(self) -> str:
        """The side that has ended the connection, and why; empty while it is open."""
        return "" if self._lost is None else str(self._lost)

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, and watch the deadlines from now on."""
        # A cast and no check: uvloop's transports are not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._watch = self._loop.call_later(WATCH_INTERVAL_S, self._check_deadline)

    def data_received(self, data: bytes) -> None:
        """Parse replies and hand them to their batches, push messages to `on_push`."""
        reader = self._reader
        self.received_bytes += len(data)
        reader.feed(data)
        try:
            while waiting := self._waiting:  # a receiver that closes the connection replaces it
                batch = waiting[0]
                replies, count = batch.replies, batch.count
                while len(replies) < count:
                    reply = reader.gets()
                    if reply is _NOTHING:
                        if replies and not batch.begun_at:
                            batch.begun_at = self._loop.time()
                        return
                    if reply.__class__ is _PushMessage:
                        self._handle_push(reply)
                        continue
                    replies.append(reply)
                waiting.popleft()
                self._answered += 1
                self.transfer_s = self._loop.time() - batch.begun_at if batch.begun_at else 0.0
                if not batch.receiver.done():
                    batch.receiver.set_result(replies)
            if self.on_push is not None:  # else nothing comes unasked
                while (message := reader.gets()) is not _NOTHING:
                    self._handle_push(message)
        except hiredis.ProtocolError:
            self._fail("Redis sent something that is not its protocol")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the batches under way."""
        self._fail(
            f"the connection to Redis was lost: {type(exc).__name__ if exc else 'closed by the server'}"
        )

    # Inside

    def _handle_push(self, message: Any) -> None:
        if self.on_push is not None and message.__class__ is _PushMessage:
            self.on_push(message)

    def _flush(self) -> None:
        if self._out and self._transport is not None and self._lost is None:
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()

    def _check_deadline(self) -> None:
        now = self._loop.time()
        moved = self.received_bytes + self._sent_bytes - self._unsent_bytes()
        if moved - self._moved >= PROGRESS_MIN_BYTES or self._answered != self._answered_then:
            self._moved, self._answered_then, self._moved_at = moved, self._answered, now
        overdue = self._waiting[0] if self._waiting else None
        if overdue is not None and max(overdue.deadline, self._moved_at + overdue.timeout_s) >= now:
            overdue = None
        # Only at the second check: if this process itself stood still, the replies have come and are not read yet.
        if overdue is not None and overdue is self._overdue:
            self.timed_out = True
            self._fail(
                "this process has closed the connection to Redis: no answer in time, Redis is slow or mute"
            )
            return
        self._overdue = overdue
        self._watch = self._loop.call_later(WATCH_INTERVAL_S, self._check_deadline)

    def _unsent_bytes(self) -> int:
        """Bytes that were sent and have not reached the server's kernel yet."""
        if self._transport is None:
            return 0
        unsent = self._transport.get_write_buffer_size()
        with contextlib.suppress(OSError, AttributeError):  # a system, or a transport, that does not say
            sock = self._transport.get_extra_info("socket")
            unsent += struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        return unsent

    def _fail(self, why: str) -> None:
        if self._lost is not None:
            return
        self._lost = RedisUnavailableError(why)
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        self._out.clear()
        # Half of a huge reply may lie there, for as long as somebody holds on to this connection.
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        for batch in waiting:
            batch.replies = []
            try:
                _fail_receiver(batch.receiver, why)
            except Exception as error:  # noqa: BLE001 - a fault of one receiver: the others must hear of the loss
                message = "a receiver of replies failed"
                self._loop.call_exception_handler({"message": message, "exception": error})
        if self._on_lost is not None:
            self._on_lost()


def _fail_receiver(receiver: ReplyReceiver, why: str) -> None:
    if not receiver.done():
        receiver.set_exception(RedisUnavailableError(why))
        if isinstance(receiver, asyncio.Future):
            receiver.exception()  # asyncio must not warn, at collection, about a future whose owner has gone
