"""Group commit: callbacks onto their partition's stream, many in one round trip.

- What gathers during a loop tick goes out together; while BATCHES_MAX are under way, more gathers: one write,
  one read and one wake-up for many callbacks, and no timer that would add to the latency.
- A callback counts as taken only by its own reply: one can be refused (OOM) while others are taken; where
  MASKLINE_DURABILITY asks for more, only if the reply of the batch's last command says so too.
- A batch without replies in time loses the connection, and all that is under way with it. What the server did
  is unknown, so nobody hears "taken"; if it was, the repeat is a duplicate to the worker.
- What was not taken is handed on with the futures that wait for it (`on_refused`), to whoever keeps it elsewhere.
- A failure of the whole server opens the breaker, and what gathers then is handed on at once.

`_settle` is the only place where the outcome of a batch that was sent is decided.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import hiredis

from ingest.breaker import Breaker
from ingest.durability import Durability
from ingest.metrics import Metrics
from ingest.outcomes import (
    AWAY,
    MOVED,
    NOT_DURABLE,
    OF_THE_SERVER,
    TIMEOUT,
    WRONG_SERVER,
    NotKeptError,
    refusal,
)
from runtime.link import Link, pack
from schemas.callback import CALLBACK_FIELD
from schemas.keys import Keys
from schemas.settings import Settings

BATCHES_MAX: Final = 4
"""Under way at once. With two, what comes meanwhile waits for a trip to end before its own begins, a tenth more at p50
under half load. More make batches smaller: four cost a fiftieth of what it takes at its most."""

LINK_GRACE_S: Final = 1.0
"""The link's own deadline comes after ours: ours tells the reason."""


class Waiter(Protocol):
    """Who waits for a callback to be kept: a future, or whoever needs none to be told (ingest.connection).

    It is told once, with None or a NotKeptError, if it is not `done` yet; that may call back into the keeper.
    """

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...

    def set_exception(self, exception: NotKeptError, /) -> None: ...


Waiters = list[Waiter]
OnRefused = Callable[[str, Waiters, list[int], list[bytes]], None]
"""Takes over callbacks that were refused for one reason: code, futures, routes, values."""


class Load:
    """What waits in the process, for Redis or for the spool: one sum, so that one bound holds for all of it."""

    __slots__ = ("callbacks", "size_bytes")

    def __init__(self) -> None:
        self.callbacks = 0
        self.size_bytes = 0


class _Batch:
    """Callbacks that go out together, and who waits for them."""

    __slots__ = ("first_at", "page", "routes", "size_bytes", "timer", "values", "waiters")

    def __init__(self, first_at: float) -> None:
        self.routes: list[int] = []
        self.values: list[bytes] = []
        self.waiters: Waiters = []
        self.page: asyncio.Future[list[str]] | None = None
        """Who waits instead for the whole batch."""
        self.size_bytes = 0
        self.first_at = first_at
        self.timer: asyncio.TimerHandle | None = None


class Publisher:
    """Appends callbacks to their streams on one server, over whatever link it was given last."""

    def __init__(self, settings: Settings, metrics: Metrics, load: Load | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._timeout_s = settings.publish_timeout_ms / 1000
        self._durability = Durability(settings.durability, settings.publish_timeout_ms)
        keys = Keys(settings.namespace)
        self._partitions = settings.partitions
        self._prefixes = [_xadd_prefix(keys.callbacks(number)) for number in range(settings.partitions)]
        self._link: Link | None = None
        self._loss = AWAY
        """What the loss of the present link is called."""
        self._gathering: _Batch | None = None
        self._sending_soon = False
        self.on_refused: OnRefused = _tell_waiters
        self.on_moved: Callable[[], None] = lambda: None
        """Called when the server says that a partition is on another one."""
        self.breaker = Breaker()
        self.load = Load() if load is None else load
        # A confirmation blocks what follows on the connection, and covers all before it. So one at a time: what comes
        # meanwhile waits for one more, and not for one after the other.
        self._batches_max = 1 if self._durability.command else BATCHES_MAX
        self.batches_under_way = 0
        self.ready = False
        """Connected, and the breaker closed: the next callback may be published."""

    @property
    def attached(self) -> bool:
        return self._link is not None

    def attach(self, link: Link) -> None:
        """Publish over this link from now on."""
        self._link = link
        self._loss = AWAY
        self.breaker.connected()
        self._look()

    def detach(self) -> None:
        """Publish nothing until the next link. What is under way fails by the old, what gathers here."""
        self._link = None
        self._trip(AWAY)

    @property
    def probe_due(self) -> bool:
        """Whether `may_probe` would say yes."""
        return self._link is not None and self.breaker.probe_due(self._loop.time())

    def may_probe(self) -> bool:
        """Whether, though not ready, the next batch may try: then it has to."""
        return self._link is not None and self.breaker.try_probe(self._loop.time())

    def publish(self, route: int, value: bytes) -> asyncio.Future[None]:
        """Append the value to the stream of the route's partition; the future is done once it is taken.

        Raises NotKeptError without a link. What is not taken later goes to `on_refused`.
        """
        if self._link is None:
            raise NotKeptError(AWAY)
        waiter: asyncio.Future[None] = self._loop.create_future()
        self.publish_for(waiter, route, value)
        return waiter

    def publish_for(self, waiter: Waiter, route: int, value: bytes) -> None:
        """The same for somebody who waits already; there must be a link."""
        batch = self._gathering
        if batch is None:
            batch = self._gathering = self._begin()
            if self.batches_under_way < self._batches_max and not self._sending_soon:
                self._sending_soon = True
                self._loop.call_soon(self._send_gathered)
        size = len(value)
        batch.routes.append(route)
        batch.values.append(value)
        batch.size_bytes += size
        self.load.callbacks += 1
        self.load.size_bytes += size
        batch.waiters.append(waiter)

    def append(self, rows: Sequence[tuple[int, bytes]]) -> asyncio.Future[list[str]]:
        """Append these (route, value) as a batch of their own, in their order.

        The future holds a code for each, empty where it was taken, and never fails.
        """
        page: asyncio.Future[list[str]] = self._loop.create_future()
        if self._link is None:
            page.set_result([AWAY] * len(rows))
            return page
        batch = self._begin()
        batch.page = page
        batch.routes = [route for route, _ in rows]
        batch.values = [value for _, value in rows]
        self._send(batch, self._link)
        return page

    def _begin(self) -> _Batch:
        batch = _Batch(self._loop.time())
        batch.timer = self._loop.call_later(self._timeout_s, self._overdue)
        return batch

    def _send_gathered(self) -> None:
        self._sending_soon = False
        batch, link = self._gathering, self._link
        if batch is None or link is None:
            return
        self._gathering = None
        self._metrics.batch_size.observe(len(batch.values))
        self._send(batch, link)

    def _send(self, batch: _Batch, link: Link) -> None:
        self.batches_under_way += 1
        prefixes, partitions, confirm = self._prefixes, self._partitions, self._durability.command
        commands = [
            b"%b$%d\r\n%b\r\n" % (prefixes[route % partitions], len(value), value)
            for route, value in zip(batch.routes, batch.values, strict=True)
        ]
        count = len(commands)
        if confirm:
            commands.append(confirm)
            count += 1
        replies = link.send(b"".join(commands), count, timeout_s=self._timeout_s + LINK_GRACE_S, at_once=True)
        replies.add_done_callback(partial(self._settle, batch))

    def _settle(self, batch: _Batch, future: asyncio.Future[list[Any]]) -> None:
        """The outcome of a batch that was sent."""
        self.batches_under_way -= 1
        self._release(batch)
        if future.exception() is not None:
            self._refuse(batch, [self._loss] * len(batch.values))
            self._metrics.batch_failures[AWAY] += 1
            self._trip(self._loss)
        else:
            self._metrics.publish_s.observe(self._loop.time() - batch.first_at)
            self._read(batch, future.result())
        if (
            self._gathering is not None
            and not self._sending_soon
            and self.batches_under_way < self._batches_max
        ):
            self._send_gathered()

    def _read(self, batch: _Batch, replies: list[Any]) -> None:
        confirmation = replies.pop() if self._durability.command else None
        durable = confirmation is None or self._durability.reached(confirmation)
        if durable and all([reply.__class__ is bytes for reply in replies]):  # noqa: C419 - a list is the faster
            self._taken(batch)
            if self.breaker.state != "closed":
                self.breaker.succeeded()
                self._look()
            return
        otherwise = "" if durable else NOT_DURABLE
        codes = [otherwise if reply.__class__ is bytes else refusal(reply) for reply in replies]
        self._refuse(batch, codes)
        refusals = {*codes} - {""}
        self._metrics.batch_failures.update(refusals)
        for code in sorted(
            refusals, key=OF_THE_SERVER.__contains__
        ):  # what opens the breaker has the last word
            self._trip(code)
        if not refusals.isdisjoint(MOVED):
            self.on_moved()
        # An append-only file that was switched off is an error; the checks of the next connection tell which.
        switched_off = isinstance(confirmation, hiredis.ReplyError)
        if self._link is not None and (switched_off or not refusals.isdisjoint(WRONG_SERVER)):
            self._link.close()

    def _taken(self, batch: _Batch) -> None:
        if batch.page is not None:
            if not batch.page.done():
                batch.page.set_result([""] * len(batch.values))
            return
        for waiter in batch.waiters:
            if not waiter.done():  # whoever waited was cancelled
                waiter.set_result(None)

    def _refuse(self, batch: _Batch, codes: list[str]) -> None:
        """Tell what was taken of a batch, and hand on what was not."""
        if batch.page is not None:
            if not batch.page.done():
                batch.page.set_result(codes)
            return
        refused: dict[str, tuple[Waiters, list[int], list[bytes]]] = {}
        for waiter, route, value, code in zip(batch.waiters, batch.routes, batch.values, codes, strict=True):
            if waiter.done():
                continue
            if not code:
                waiter.set_result(None)
                continue
            waiters, routes, values = refused.setdefault(code, ([], [], []))
            waiters.append(waiter)
            routes.append(route)
            values.append(value)
        for code, (waiters, routes, values) in refused.items():
            self.on_refused(code, waiters, routes, values)

    def _trip(self, code: str) -> None:
        """Tell the breaker of a failure; once it is open, what gathers has nothing to wait for."""
        self.breaker.failed(code, self._loop.time())
        self._look()
        if not self.ready and (batch := self._gathering) is not None:
            self._gathering = None
            self._release(batch)
            self._refuse(batch, [self.breaker.reason or AWAY] * len(batch.values))

    def _look(self) -> None:
        self.ready = self._link is not None and self.breaker.state == "closed"

    def _release(self, batch: _Batch) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
        self.load.callbacks -= len(batch.waiters)
        self.load.size_bytes -= batch.size_bytes

    def _overdue(self) -> None:
        """A batch has no replies in time: its link goes, and whoever owns that detaches us."""
        self._metrics.batch_failures[TIMEOUT] += 1
        self._loss = TIMEOUT
        self._trip(TIMEOUT)
        if self._link is not None:
            self._link.close()


def _tell_waiters(code: str, waiters: Waiters, _routes: list[int], _values: list[bytes]) -> None:
    for waiter in waiters:
        # Each its own: a shared exception would gather the tracebacks of all who await it.
        waiter.set_exception(NotKeptError(code))


def _xadd_prefix(stream: str) -> bytes:
    """`XADD stream * c`, packed as the head of a command whose last argument follows."""
    command = pack("XADD", stream, "*", CALLBACK_FIELD, b"")
    return command.removesuffix(b"$0\r\n\r\n")
