"""Group commit: callbacks onto their partition's stream, many in one round trip.

- What gathers during a loop tick goes out together; while BATCHES_MAX are under way, more gathers: one write,
  one read and one wake-up for many callbacks, and no timer that would add to the latency.
- A callback counts as taken only by its own reply: one can be refused (OOM) while others are taken.
- A batch without replies in time loses the connection, and all that is under way with it. What the server did
  is unknown, so nobody hears "taken"; if it was, the repeat is a duplicate to the worker.
- With more than MASKLINE_IN_FLIGHT_MAX or WAITING_MAX_BYTES waiting, the next is refused at once: a bound on
  memory, and an answer while Plivo still listens.

`_settle` and `_fail` are the only places where the outcome of a batch is decided.
"""

import asyncio
from functools import partial
from typing import Any, Final

from ingest.metrics import Metrics
from runtime.link import Link, pack
from schemas.callback import CALLBACK_FIELD
from schemas.errors import MasklineError, RedisUnavailableError
from schemas.keys import Keys
from schemas.settings import Settings

BATCHES_MAX: Final = 2
"""Under way at once: one in the server while the next is on the wire. More only makes batches smaller."""

WAITING_MAX_BYTES: Final = 64 << 20
"""All that waits for Redis. An ordinary callback has 1 kB: only a flood of huge bodies meets this bound."""

LINK_GRACE_S: Final = 1.0
"""The link's own deadline comes after ours: ours tells the reason."""

_REFUSALS: Final = frozenset(
    {"oom", "readonly", "loading", "misconf", "noreplicas", "noauth", "noperm", "wrongtype", "masterdown"}
    | {"clusterdown", "moved", "ask", "tryagain", "busy", "unblocked"}
)
"""First words of error replies that become part of a code; a bound on the codes there are."""

_WRONG_SERVER: Final = frozenset({"redis_readonly", "redis_noauth", "redis_masterdown", "redis_loading"})
"""Refusals after which another connection may reach a server that takes writes, as after a failover."""


class PublishRefusedError(MasklineError):
    """Redis's fault, or too much at once: this callback was not taken, the next one may be."""

    def __init__(self, code: str) -> None:
        super().__init__(f"not published: {code}")
        self.code = code
        """A stable word: `busy`, `redis_oom`, `redis_readonly`, …, `redis_error`."""


class _Batch:
    """Callbacks that go out together, and who waits for them."""

    __slots__ = ("commands", "first_at", "size_bytes", "timer", "waiters")

    def __init__(self, first_at: float) -> None:
        self.commands: list[bytes] = []
        self.waiters: list[asyncio.Future[None]] = []
        self.size_bytes = 0
        self.first_at = first_at
        self.timer: asyncio.TimerHandle | None = None


class Publisher:
    """Appends callbacks to their streams over whatever link it was given last."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._timeout_s = settings.publish_timeout_ms / 1000
        self._waiting_max = settings.in_flight_max
        keys = Keys(settings.namespace)
        self._prefixes = [_xadd_prefix(keys.callbacks(number)) for number in range(settings.partitions)]
        self._link: Link | None = None
        self._why_away = "not connected to Redis"
        self._gathering: _Batch | None = None
        self._sending_soon = False
        self.batches_under_way = 0
        self.waiting = 0
        self.waiting_bytes = 0

    @property
    def attached(self) -> bool:
        return self._link is not None

    def attach(self, link: Link) -> None:
        """Publish over this link from now on."""
        self._link = link

    def detach(self, why: str) -> None:
        """Refuse everything until the next link. What is under way fails by the old, what gathers here."""
        self._link = None
        self._why_away = why
        if (batch := self._gathering) is not None:
            self._gathering = None
            self._fail(batch, RedisUnavailableError(why))

    def publish(self, partition: int, value: bytes) -> asyncio.Future[None]:
        """Append the value to the partition's stream; the future is done once Redis has confirmed it.

        Raises, at once or by the future, RedisUnavailableError where Redis is away or silent (it may have
        taken the callback or not), and PublishRefusedError where it was not taken.
        """
        if self._link is None:
            raise RedisUnavailableError(self._why_away)
        if self.waiting >= self._waiting_max or self.waiting_bytes > WAITING_MAX_BYTES:
            raise PublishRefusedError("busy")
        batch = self._gathering
        if batch is None:
            batch = self._gathering = _Batch(self._loop.time())
            batch.timer = self._loop.call_later(self._timeout_s, self._overdue)
            if self.batches_under_way < BATCHES_MAX and not self._sending_soon:
                self._sending_soon = True
                self._loop.call_soon(self._send)
        size = len(value)
        batch.commands.append(b"%b$%d\r\n%b\r\n" % (self._prefixes[partition], size, value))
        batch.size_bytes += size
        self.waiting += 1
        self.waiting_bytes += size
        waiter = self._loop.create_future()
        batch.waiters.append(waiter)
        return waiter

    def _send(self) -> None:
        self._sending_soon = False
        batch, link = self._gathering, self._link
        if batch is None or link is None:
            return
        self._gathering = None
        self.batches_under_way += 1
        count = len(batch.commands)
        self._metrics.batch_size.observe(count)
        replies = link.send(b"".join(batch.commands), count, timeout_s=self._timeout_s + LINK_GRACE_S)
        batch.commands.clear()
        replies.add_done_callback(partial(self._settle, batch))

    def _settle(self, batch: _Batch, future: asyncio.Future[list[Any]]) -> None:
        """The outcome of a batch that was sent."""
        self.batches_under_way -= 1
        if (error := future.exception()) is not None:
            self._fail(batch, error)
        else:
            self._release(batch)
            self._metrics.publish_s.observe(self._loop.time() - batch.first_at)
            refusals: set[str] = set()
            for waiter, reply in zip(batch.waiters, future.result(), strict=True):
                if waiter.done():  # whoever waited was cancelled
                    continue
                if reply.__class__ is bytes:
                    waiter.set_result(None)
                else:
                    code = _refusal(reply)
                    refusals.add(code)
                    waiter.set_exception(PublishRefusedError(code))
            if refusals:
                self._after_refusal(refusals)
        if self._gathering is not None:
            self._send()

    def _after_refusal(self, refusals: set[str]) -> None:
        self._metrics.batch_failures.update(refusals)
        if self._link is not None and not refusals.isdisjoint(_WRONG_SERVER):
            self._link.close()

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        """The outcome of a batch whose connection is gone, sent or not."""
        self._release(batch)
        self._metrics.batch_failures["redis_away"] += 1
        for waiter in batch.waiters:
            if not waiter.done():
                # Each its own: a shared exception would gather the tracebacks of all who await it.
                waiter.set_exception(RedisUnavailableError(str(error)))

    def _release(self, batch: _Batch) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
        self.waiting -= len(batch.waiters)
        self.waiting_bytes -= batch.size_bytes

    def _overdue(self) -> None:
        """A batch has no replies in time: its link goes, and whoever owns that detaches us."""
        self._metrics.batch_failures["redis_timeout"] += 1
        if self._link is not None:
            self._link.close()


def _xadd_prefix(stream: str) -> bytes:
    """`XADD stream * c`, packed as the head of a command whose last argument follows."""
    command = pack("XADD", stream, "*", CALLBACK_FIELD, b"")
    return command.removesuffix(b"$0\r\n\r\n")


def _refusal(reply: Any) -> str:
    """An error reply's code: `OOM command not allowed …` is `redis_oom`."""
    word = str(reply).partition(" ")[0].lower()
    return f"redis_{word}" if word in _REFUSALS else "redis_error"
