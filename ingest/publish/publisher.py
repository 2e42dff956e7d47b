"""Group commit: callbacks onto their partition's stream, many in one round trip.

- What gathers during a loop tick goes out together; while BATCHES_MAX are under way, more gathers: one write,
  one read and one wake-up for many callbacks, and no timer that would add to the latency.
- A callback counts as taken only by its own reply: one can be refused (OOM) while others are taken; where
  MASKLINE_DURABILITY asks for more, only if the reply of the batch's last command says so too.
- A request's batch without replies in time is given up: its callbacks go elsewhere. The connection stays, since the
  replies may come late: then the server is slow, and what is spooled goes there all the same. A page of the spool
  waits for PATIENCE_S, after which the connection counts as dead.
- What the server did is unknown where it has not answered, so nobody hears "taken"; if it was, the repeat is a
  duplicate to the worker. COPIES_MAX bounds how often one callback is repeated for it.
- A loop that stood still has not read the replies that are there: no deadline is believed at the first look.
- What was not taken is handed on with the futures that wait for it (`on_refused`), to whoever keeps it elsewhere.
- A failure of the whole server opens the breaker, and what gathers then is handed on at once.

`_settle` is the only place where the outcome of a batch that was sent is decided.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import hiredis

from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import (
    AWAY,
    MOVED,
    NOT_DURABLE,
    OF_THE_SERVER,
    TIMEOUT,
    WRONG_SERVER,
    Completion,
    Completions,
    InFlight,
    NotStoredError,
    OnRefused,
    refusal,
)
from maskline.ingest.publish.circuit_breaker import CircuitBreaker
from maskline.ingest.publish.durability import Durability
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings

BATCHES_MAX: Final = 4
"""Under way at once. With two, what comes meanwhile waits for a trip to end before its own begins, a tenth more at p50
under half load. More make batches smaller: four cost a fiftieth of what it takes at its most."""

PATIENCE_S: Final = (5.0, 10.0, 20.0, 40.0, 60.0)
"""How long a connection may be silent with something under way. The first finds a dead connection soon; each next one
holds after a connection that was cut for its silence, until the server answers in time: it may only be slow."""
COPIES_MAX: Final = 1 + len(PATIENCE_S)
"""Of one callback in the stream, from a server that answers within the last of PATIENCE_S: one by the request that did
not wait for the reply, and one by each page whose connection was cut. (A connection that others cut costs one more.)"""
LOOK_AGAIN_S: Final = 0.05
"""Between looks at an overdue batch: time to read what has come while the loop stood still."""
LOOKS_MAX: Final = 5
"""A loop that is late at every look is overloaded for good; then the requests are not to wait any longer."""
APPENDED_MAX: Final = 8192
"""Rows remembered as appended and not confirmed: more than a page of each journal there usually is."""


class _Batch:
    """Callbacks that go out together, and who waits for them."""

    __slots__ = (
        "completions",
        "first_at",
        "given_up",
        "known",
        "look_at",
        "looks",
        "page",
        "partition_hashes",
        "replies",
        "sent_at",
        "size_bytes",
        "timer",
        "values",
    )  # fmt: skip

    def __init__(self, first_at: float) -> None:
        self.partition_hashes: list[int] = []
        self.values: list[bytes] = []
        self.completions: Completions = []
        self.page: asyncio.Future[list[str]] | None = None
        """Who waits instead for the whole batch."""
        self.known: list[bool] = []
        """Of a page: which of its rows were appended before, and lack only the confirmation."""
        self.size_bytes = 0
        self.first_at = first_at
        self.sent_at = first_at
        self.timer: asyncio.TimerHandle | None = None
        self.replies: asyncio.Future[list[Any]] | None = None
        self.looks = 0
        self.look_at = 0.0
        self.given_up = False
        """Its callbacks went elsewhere, and only whether the server answers is of interest."""


class Publisher:
    """Appends callbacks to their streams on one server, over whatever link it was given last."""

    def __init__(self, settings: Settings, metrics: Metrics, in_flight: InFlight | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._timeout_s = settings.publish_timeout_ms / 1000
        self._durability = Durability(settings.durability, settings.publish_timeout_ms)
        keys = Keys(settings.namespace)
        self._partitions = settings.partitions
        self._prefixes = [_xadd_prefix(keys.callbacks(number)) for number in range(settings.partitions)]
        self._redis: PipelinedConnection | None = None
        self._patience = 0
        """Which of PATIENCE_S."""
        self._sent: list[_Batch] = []
        self._given_up = 0
        """Of these, how many are given up."""
        self._appended: set[tuple[int, bytes]] = set()
        """Rows of pages that this link has appended, and the server has not confirmed as durable."""
        self._gathering: _Batch | None = None
        self._sending_soon = False
        self.on_refused: OnRefused = _tell_waiters
        self.on_moved: Callable[[], None] = lambda: None
        """Called when the server says that a partition is on another one."""
        self.breaker = CircuitBreaker()
        self.in_flight = InFlight() if in_flight is None else in_flight
        # A confirmation blocks what follows on the connection, and covers all before it. So one at a time: what comes
        # meanwhile waits for one more, and not for one after the other.
        self._batches_max = 1 if self._durability.command else BATCHES_MAX
        self.ready = False
        """Connected, and the breaker closed: the next callback may be published."""
        self.accepts_pages = False
        """Connected, and not known to refuse: pages of the spool may be published, though it may take long."""
        self._was_slow = False
        self.reply_s = 0.0
        """How long the last reply took that came late."""
        self.on_slow: Callable[[], None] = lambda: None
        """Called when the server turns out to be slow, and when that is over."""

    @property
    def connected(self) -> bool:
        return self._redis is not None

    @property
    def batches_under_way(self) -> int:
        return len(self._sent)

    @property
    def slow(self) -> bool:
        """It takes what it is given, but later than a request may wait."""
        return self.breaker.state == "slow"

    @property
    def in_time_s(self) -> float:
        return self._durability.in_time_s

    def attach(self, redis: PipelinedConnection) -> None:
        """Publish over this link from now on."""
        self._redis = redis
        self._appended.clear()
        self.breaker.connected()
        self._refresh()

    def detach(self) -> None:
        """Publish nothing until the next link. What is under way fails by the old, what gathers here."""
        redis, self._redis = self._redis, None
        if redis is not None and redis.timed_out:
            self._patience = min(self._patience + 1, len(PATIENCE_S) - 1)
        self._on_failure(_loss(redis))

    @property
    def probe_due(self) -> bool:
        """Whether `may_probe` would say yes."""
        # What is given up and may still be answered is a probe already.
        return self._redis is not None and not self._given_up and self.breaker.probe_due(self._loop.time())

    def try_probe(self) -> bool:
        """Whether, though not ready, the next batch may try: then it has to."""
        return self.probe_due and self.breaker.try_probe(self._loop.time())

    def publish(self, partition_hash: int, value: bytes) -> asyncio.Future[None]:
        """Append the value to the stream of the route's partition; the future is done once it is taken.

        Raises NotKeptError without a link. What is not taken later goes to `on_refused`.
        """
        if self._redis is None:
            raise NotStoredError(AWAY)
        completion: asyncio.Future[None] = self._loop.create_future()
        self.publish_for(completion, partition_hash, value)
        return completion

    def publish_for(self, completion: Completion, partition_hash: int, value: bytes) -> None:
        """The same for somebody who waits already; there must be a link."""
        batch = self._gathering
        if batch is None:
            batch = self._gathering = self._begin()
            if len(self._sent) < self._batches_max and not self._sending_soon:
                self._sending_soon = True
                self._loop.call_soon(self._send_gathered)
        size = len(value)
        batch.partition_hashes.append(partition_hash)
        batch.values.append(value)
        batch.size_bytes += size
        self.in_flight.callbacks += 1
        self.in_flight.size_bytes += size
        batch.completions.append(completion)

    def publish_page(self, rows: Sequence[tuple[int, bytes]]) -> asyncio.Future[list[str]]:
        """Append these (route, value) as a batch of their own, in their order, however long the server takes.

        The future holds a code for each, empty where it was taken, and never fails. What this connection has appended
        before, and was not durable yet, is not appended again: it is only confirmed.
        """
        page: asyncio.Future[list[str]] = self._loop.create_future()
        if self._redis is None:
            page.set_result([AWAY] * len(rows))
            return page
        batch = _Batch(self._loop.time())
        batch.page = page
        batch.known = [row in self._appended for row in rows]
        fresh = [row for row, known in zip(rows, batch.known, strict=True) if not known]
        batch.partition_hashes = [partition_hash for partition_hash, _ in fresh]
        batch.values = [value for _, value in fresh]
        self._send(batch, self._redis)
        return page

    def _begin(self) -> _Batch:
        batch = _Batch(self._loop.time())
        # Of a slow server only those ask whom the spool cannot help: late is better than not at all.
        timeout_s = max(self._timeout_s, PATIENCE_S[0]) if self.slow else self._timeout_s
        batch.timer = self._loop.call_later(timeout_s, self._overdue, batch)
        return batch

    def _send_gathered(self) -> None:
        self._sending_soon = False
        batch, redis = self._gathering, self._redis
        if batch is None or redis is None:
            return
        self._gathering = None
        self._metrics.batch_size.observe(len(batch.values))
        self._send(batch, redis)

    def _send(self, batch: _Batch, redis: PipelinedConnection) -> None:
        batch.sent_at = self._loop.time()
        self._sent.append(batch)
        prefixes, partitions, confirm = self._prefixes, self._partitions, self._durability.command
        if confirm and not self.ready:
            confirm = self._durability.patient
        commands = [
            b"%b$%d\r\n%b\r\n" % (prefixes[partition_hash % partitions], len(value), value)
            for partition_hash, value in zip(batch.partition_hashes, batch.values, strict=True)
        ]
        count = len(commands)
        if confirm:
            commands.append(confirm)
            count += 1
        patience_s = max(PATIENCE_S[self._patience], 2 * self._timeout_s)
        batch.replies = redis.send(b"".join(commands), count, timeout_s=patience_s, at_once=True)
        batch.replies.add_done_callback(partial(self._on_replies, batch, redis))

    def _on_replies(
        self, batch: _Batch, redis: PipelinedConnection, future: asyncio.Future[list[Any]]
    ) -> None:
        """The outcome of a batch that was sent."""
        self._sent.remove(batch)
        self._given_up -= batch.given_up
        self._release(batch)
        if future.exception() is not None:
            loss = _loss(redis)
            self._refuse(batch, [loss] * len(batch.values), loss)
            self._metrics.batch_failures[loss] += 1
            self._on_failure(loss)
        else:
            self._metrics.publish_s.observe(self._loop.time() - batch.first_at)
            self._read(batch, future.result())
        if self._gathering is not None and not self._sending_soon and len(self._sent) < self._batches_max:
            self._send_gathered()

    def _read(self, batch: _Batch, replies: list[Any]) -> None:
        confirmation = replies.pop() if self._durability.command else None
        durable = confirmation is None or self._durability.reached(confirmation)
        if durable and all([reply.__class__ is bytes for reply in replies]):  # noqa: C419 - a list is the faster
            self._taken(batch)
            if self.breaker.state != "closed":
                self.breaker.succeeded(self._share(batch))
                self._refresh()
            return
        otherwise = "" if durable else NOT_DURABLE
        codes = [otherwise if reply.__class__ is bytes else refusal(reply) for reply in replies]
        self._remember(batch, codes)
        self._refuse(batch, codes, otherwise)
        refusals = {*codes, otherwise} - {""}
        self._metrics.batch_failures.update(refusals)
        for code in sorted(
            refusals, key=OF_THE_SERVER.__contains__
        ):  # what opens the breaker has the last word
            self._on_failure(code, self._share(batch))
        if not refusals.isdisjoint(MOVED):
            self.on_moved()
        # An append-only file that was switched off is an error; the checks of the next connection tell which.
        switched_off = isinstance(confirmation, hiredis.ReplyError)
        if self._redis is not None and (switched_off or not refusals.isdisjoint(WRONG_SERVER)):
            self._redis.close()

    def _share(self, batch: _Batch) -> float:
        """How long the replies took, as a share of what a request waits for them."""
        took_s = self._loop.time() - batch.sent_at
        share = took_s / self._durability.in_time_s
        if share > 1.0:
            self.reply_s = took_s
        else:
            self._patience = 0
        return share

    def _remember(self, batch: _Batch, codes: list[str]) -> None:
        """Note what a page has appended, and what was not durable: it lies in the stream."""
        if batch.page is None:
            return
        if len(self._appended) > APPENDED_MAX:
            self._appended.clear()
        rows = zip(batch.partition_hashes, batch.values, codes, strict=True)
        self._appended.update(
            (partition_hash, value) for partition_hash, value, code in rows if code == NOT_DURABLE
        )

    def _taken(self, batch: _Batch) -> None:
        if batch.page is not None:
            if self._appended and any(batch.known):
                self._appended.clear()
            if not batch.page.done():
                batch.page.set_result([""] * len(batch.known))
            return
        for completion in batch.completions:
            if not completion.done():  # whoever waited was cancelled
                completion.set_result(None)

    def _refuse(self, batch: _Batch, codes: list[str], otherwise: str) -> None:
        """Tell what was taken of a batch, and hand on what was not; `otherwise`: for what it did not append again."""
        if batch.given_up:
            return
        if batch.page is not None:
            if not batch.page.done():
                fresh = iter(codes)
                batch.page.set_result([otherwise if known else next(fresh) for known in batch.known])
            return
        refused: dict[str, tuple[Completions, list[int], list[bytes]]] = {}
        for completion, partition_hash, value, code in zip(
            batch.completions, batch.partition_hashes, batch.values, codes, strict=True
        ):
            if completion.done():
                continue
            if not code:
                completion.set_result(None)
                continue
            completions, partition_hashes, values = refused.setdefault(code, ([], [], []))
            completions.append(completion)
            partition_hashes.append(partition_hash)
            values.append(value)
        for code, (completions, partition_hashes, values) in refused.items():
            self.on_refused(code, completions, partition_hashes, values)

    def _on_failure(self, code: str, share: float = 0.0) -> None:
        """Tell the breaker of a failure; once it is open, what gathers has nothing to wait for."""
        self.breaker.failed(code, self._loop.time(), share)
        self._refresh()
        if not self.accepts_pages and (batch := self._gathering) is not None:
            self._gathering = None
            self._release(batch)
            self._refuse(batch, [self.breaker.reason or AWAY] * len(batch.values), "")

    def _refresh(self) -> None:
        state, linked = self.breaker.state, self._redis is not None
        self.ready = linked and state == "closed"
        self.accepts_pages = linked and state in {"closed", "slow"}
        if self._was_slow != (state == "slow"):
            self._was_slow = state == "slow"
            self.on_slow()

    def _release(self, batch: _Batch) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
        self.in_flight.callbacks -= len(batch.completions)
        self.in_flight.size_bytes -= batch.size_bytes

    def _overdue(self, batch: _Batch) -> None:
        """A batch has no replies in time, as it seems."""
        batch.timer = None
        if batch.replies is not None and batch.replies.done():
            return  # `_settle` is about to run
        now = self._loop.time()
        # Once more where this was the first look, or the loop was late for it: replies that are there are read by then.
        if batch.looks < LOOKS_MAX and (not batch.looks or now > batch.look_at + LOOK_AGAIN_S):
            batch.looks += 1
            batch.look_at = max(now + LOOK_AGAIN_S, batch.sent_at + self._timeout_s / 2)
            batch.timer = self._loop.call_at(batch.look_at, self._overdue, batch)
            return
        self._metrics.batch_failures[TIMEOUT] += 1
        for under_way in list(self._sent):
            self._give_up(under_way)
        self._on_failure(TIMEOUT)

    def _give_up(self, batch: _Batch) -> None:
        """Hand on a request's batch that the server has not answered. In order of arrival: all before what gathers."""
        answered = batch.replies is not None and batch.replies.done()
        if batch.page is not None or batch.given_up or answered:
            return
        self._release(batch)
        self._refuse(batch, [TIMEOUT] * len(batch.values), "")
        batch.given_up = True
        self._given_up += 1
        batch.completions, batch.partition_hashes, batch.values, batch.size_bytes = [], [], [], 0


def _loss(redis: PipelinedConnection | None) -> str:
    """What the loss of a link is called."""
    return TIMEOUT if redis is not None and redis.timed_out else AWAY


def _tell_waiters(code: str, completions: Completions, _routes: list[int], _values: list[bytes]) -> None:
    for completion in completions:
        # Each its own: a shared exception would gather the tracebacks of all who await it.
        completion.set_exception(NotStoredError(code))


def _xadd_prefix(stream: str) -> bytes:
    """`XADD stream * c`, packed as the head of a command whose last argument follows."""
    command = pack("XADD", stream, "*", CALLBACK_FIELD, b"")
    return command.removesuffix(b"$0\r\n\r\n")
