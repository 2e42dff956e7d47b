"""Group commit: appends callbacks to their partition's stream, many in one round trip.

- Callbacks of one loop tick are sent together; while BATCHES_MAX are under way, more gather. So many callbacks cost one
  write, one read and one wake-up. Where they come often, the loop waits for more of them (`ingest.publish.linger`).
- A callback counts as taken only by its own reply: one can be refused (OOM) while others are taken. Where
  MASKLINE_DURABILITY asks for more, the reply of the batch's last command must say so too.
- A request's batch without replies in time is given up: its callbacks go elsewhere. The connection stays open, since
  the replies may come late: then the server is slow, and spooled callbacks go there all the same. A page of the spool
  waits for SILENCE_TIMEOUTS_S, after which the connection counts as dead.
- A server that has not answered may or may not have stored a batch, so nobody gets "taken". If it has, the repeat is a
  duplicate to the worker. COPIES_MAX bounds how often one callback is repeated for that reason.
- A callback that was not taken is handed on with its completion (`on_refused`), for another place to keep it.
- A failure of the whole server opens the circuit breaker; from then on callbacks are handed on at once.

`_on_replies` is the only place where the outcome of a batch that was sent is decided; `ingest.publish.batch` says when
a deadline is believed.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, Final

import hiredis

from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import (
    AWAY,
    MOVED,
    NOT_DURABLE,
    SERVER_FAILURES,
    TIMEOUT,
    WRONG_SERVER,
    Completion,
    InFlight,
    NotStoredError,
    OnRefused,
    fail_all,
    refusal_code,
)
from maskline.ingest.publish.batch import Batch
from maskline.ingest.publish.circuit_breaker import CircuitBreaker
from maskline.ingest.publish.deadline_timer import DeadlineTimer
from maskline.ingest.publish.durability import Durability
from maskline.ingest.publish.linger import Linger
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.keys import Keys
from maskline.schemas.settings import Settings

BATCHES_MAX: Final = 4
"""Under way at once. With two, what comes meanwhile waits for a round trip to end before its own begins, a tenth more
at p50 under half load. More make batches smaller: four cost a fiftieth of the maximum throughput."""

SILENCE_TIMEOUTS_S: Final = (5.0, 10.0, 20.0, 40.0, 60.0)
"""How long a connection may be silent with something under way. The first finds a dead connection soon. Each next one
applies after a connection that was cut for its silence, until the server answers in time: it may only be slow."""
COPIES_MAX: Final = 1 + len(SILENCE_TIMEOUTS_S)
"""Of one callback in the stream, from a server that answers within the last of SILENCE_TIMEOUTS_S: one by the request
that did not wait for the reply, and one by each page whose connection was cut. (A connection that others cut costs one
more.)"""
UNCONFIRMED_ROWS_MAX: Final = 8192
"""Rows remembered as appended and not confirmed: more than a page of each spool file there usually is."""


class Publisher:
    """Appends callbacks to their streams on one server, over the connection it was given last.

    `in_flight`: counts the process's callbacks that await an outcome, these among them. `linger`: the pauses of the
    process's event loop.
    """

    def __init__(self, settings: Settings, metrics: Metrics, in_flight: InFlight, linger: Linger) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._timeout_s = settings.publish_timeout_ms / 1000
        self._durability = Durability(settings.durability, settings.publish_timeout_ms)
        keys = Keys(settings.namespace)
        self._partitions = settings.partitions
        self._prefixes = [_xadd_prefix(keys.callbacks(number)) for number in range(settings.partitions)]
        self._connection: PipelinedConnection | None = None
        self._silence_level = 0
        """Which of SILENCE_TIMEOUTS_S applies."""
        self._sent: list[Batch] = []
        self._given_up = 0
        """How many of these are given up."""
        self._unconfirmed: set[tuple[int, bytes]] = set()
        """Rows of pages that this connection has appended, and the server has not confirmed as durable."""
        self._gathering: Batch | None = None
        self._sending_soon = False
        self._deadlines = DeadlineTimer(self._loop, self._check_deadlines)
        self.on_refused: OnRefused = fail_all
        """Takes over callbacks that were not taken."""
        self.on_attached: Callable[[], object] = lambda: None
        """Called with a new connection, before anything is published over it."""
        self.on_moved: Callable[[], None] = lambda: None
        """Called when the server says that a partition is on another one."""
        self.breaker = CircuitBreaker()
        self.in_flight = in_flight
        self._linger = linger
        # A confirmation blocks later commands on the connection, and covers all before it. So one at a time: callbacks
        # that come meanwhile wait for one more confirmation, and not for one after the other.
        self._batches_max = 1 if self._durability.command else BATCHES_MAX
        self.ready = False
        """Connected, and the breaker closed: the next callback may be published."""
        self.accepts_pages = False
        """Connected, and not known to refuse: pages of the spool may be published, though it may take long."""
        self._was_slow = False
        self.late_reply_s = 0.0
        """How long the last reply took that came late."""
        self.on_slow: Callable[[], None] = lambda: None
        """Called when the server turns out to be slow, and when that is over."""

    @property
    def connection(self) -> PipelinedConnection | None:
        """The connection to publish over; None without one."""
        return self._connection

    @property
    def connected(self) -> bool:
        """Whether there is a connection to publish over."""
        return self._connection is not None

    @property
    def batches_under_way(self) -> int:
        """Batches that were sent and not answered, those that were given up among them."""
        return len(self._sent)

    @property
    def slow(self) -> bool:
        """Whether the server takes callbacks, but later than a request may wait."""
        return self.breaker.state == "slow"

    @property
    def in_time_s(self) -> float:
        """How long replies may take to be of use to a request, in seconds."""
        return self._durability.in_time_s

    def attach(self, connection: PipelinedConnection) -> None:
        """Publish over this connection from now on."""
        self._connection = connection
        self._unconfirmed.clear()
        self.on_attached()
        self.breaker.connected()
        self._refresh()

    def detach(self) -> None:
        """Publish nothing until the next connection. Batches under way fail with the old one, others here."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.timed_out:
            self._silence_level = min(self._silence_level + 1, len(SILENCE_TIMEOUTS_S) - 1)
        self._on_failure(_loss_code(connection))

    @property
    def probe_due(self) -> bool:
        """Whether `try_probe` would grant a probe."""
        # A batch that was given up and may still be answered is a probe already.
        return (
            self._connection is not None and not self._given_up and self.breaker.probe_due(self._loop.time())
        )

    def try_probe(self) -> bool:
        """Whether, though not `ready`, the caller may publish one batch as a probe; granted, it has to."""
        return self.probe_due and self.breaker.try_probe(self._loop.time())

    def publish(self, partition_hash: int, value: bytes) -> asyncio.Future[None]:
        """Append a callback to the stream of its partition; the future is done once the server has taken it.

        `partition_hash`: the CRC-32 of the SessionUUID. `value`: the msgpack of a RawCallback. Raises NotStoredError
        without a connection; what is not taken later goes to `on_refused`.
        """
        if self._connection is None:
            raise NotStoredError(AWAY)
        completion: asyncio.Future[None] = self._loop.create_future()
        self.publish_for(completion, partition_hash, value)
        return completion

    def publish_for(self, completion: Completion, partition_hash: int, value: bytes) -> None:
        """Like `publish`, but completes an existing completion. There must be a connection."""
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
        """Append these (partition_hash, value) rows as one batch, in their order, however long the server takes.

        The future never fails: it holds a code for each row, empty where it was taken. Rows that this connection has
        appended before without a confirmation are not appended again: they are only confirmed.
        """
        page: asyncio.Future[list[str]] = self._loop.create_future()
        if self._connection is None:
            page.set_result([AWAY] * len(rows))
            return page
        batch = Batch(self._loop.time(), self._on_replies)
        batch.page = page
        batch.known = [row in self._unconfirmed for row in rows]
        fresh = [row for row, known in zip(rows, batch.known, strict=True) if not known]
        batch.partition_hashes = [partition_hash for partition_hash, _ in fresh]
        batch.values = [value for _, value in fresh]
        self._send(batch, self._connection)
        return page

    def send_beside(self, command: bytes) -> asyncio.Future[list[Any]] | None:
        """Send one packed command that appends no callback; the future holds its reply, or fails with the connection.

        None, and nothing is sent, while the server takes no callbacks.
        """
        if not self.ready or self._connection is None:
            return None
        return self._connection.send(command, 1, timeout_s=self.silence_timeout_s())

    def silence_timeout_s(self) -> float:
        """How long the connection may be silent with something under way, in seconds."""
        return max(SILENCE_TIMEOUTS_S[self._silence_level], 2 * self._timeout_s)

    def _begin(self) -> Batch:
        batch = Batch(self._loop.time(), self._on_replies)
        # A slow server is asked only by requests that the spool cannot help: late is better than not at all.
        timeout_s = max(self._timeout_s, SILENCE_TIMEOUTS_S[0]) if self.slow else self._timeout_s
        batch.check_at = batch.first_at + timeout_s
        self._deadlines.watch(batch.check_at)
        return batch

    def _send_gathered(self) -> None:
        self._sending_soon = False
        batch, connection = self._gathering, self._connection
        if batch is None or connection is None:
            return
        self._gathering = None
        self._metrics.batch_size.observe(len(batch.values))
        self._send(batch, connection)
        # With others under way, replies are due sooner, or Redis is slow: then callbacks gather anyway.
        if len(self._sent) == 1:
            self._linger.sent(len(batch.values))

    def _send(self, batch: Batch, connection: PipelinedConnection) -> None:
        batch.sent_at = self._loop.time()
        self._sent.append(batch)
        prefixes, partitions, confirm = self._prefixes, self._partitions, self._durability.command
        if confirm and not self.ready:
            confirm = self._durability.page_command
        commands = [
            b"%b$%d\r\n%b\r\n" % (prefixes[partition_hash % partitions], len(value), value)
            for partition_hash, value in zip(batch.partition_hashes, batch.values, strict=True)
        ]
        count = len(commands)
        if confirm:
            commands.append(confirm)
            count += 1
        batch.connection = connection
        silence_s = self.silence_timeout_s()
        connection.send_for(batch, b"".join(commands), count, timeout_s=silence_s, at_once=True)

    def _on_replies(self, batch: Batch, replies: list[Any] | None) -> None:
        """Decide the outcome of a batch that was sent; `replies` is None if the connection was lost."""
        self._sent.remove(batch)
        self._given_up -= batch.given_up
        self._release(batch)
        if replies is None:
            loss = _loss_code(batch.connection)
            self._refuse(batch, [loss] * len(batch.values), loss)
            self._metrics.batch_failures[loss] += 1
            self._on_failure(loss)
        else:
            self._metrics.publish_s.observe(self._loop.time() - batch.first_at)
            self._read_replies(batch, replies)
        if self._gathering is not None and not self._sending_soon and len(self._sent) < self._batches_max:
            self._send_gathered()

    def _read_replies(self, batch: Batch, replies: list[Any]) -> None:
        confirmation = replies.pop() if self._durability.command else None
        durable = confirmation is None or self._durability.reached(confirmation)
        if durable and all([reply.__class__ is bytes for reply in replies]):  # noqa: C419 - a list is the faster
            self._complete(batch)
            if self.breaker.state != "closed":
                self.breaker.succeeded(self._latency_share(batch))
                self._refresh()
            return
        otherwise = "" if durable else NOT_DURABLE
        codes = [otherwise if reply.__class__ is bytes else refusal_code(reply) for reply in replies]
        self._remember_unconfirmed(batch, codes)
        self._refuse(batch, codes, otherwise)
        refusals = {*codes, otherwise} - {""}
        self._metrics.batch_failures.update(refusals)
        # The failure that opens the breaker decides.
        for code in sorted(refusals, key=SERVER_FAILURES.__contains__):
            self._on_failure(code, self._latency_share(batch))
        if not refusals.isdisjoint(MOVED):
            self.on_moved()
        # An append-only file that was switched off is an error; the checks of the next connection name it.
        switched_off = isinstance(confirmation, hiredis.ReplyError)
        if self._connection is not None and (switched_off or not refusals.isdisjoint(WRONG_SERVER)):
            self._connection.close()

    def _latency_share(self, batch: Batch) -> float:
        """How long the replies took, as a share of the time that a request waits for them."""
        took_s = self._loop.time() - batch.sent_at
        share = took_s / self._durability.in_time_s
        if share > 1.0:
            self.late_reply_s = took_s
        else:
            self._silence_level = 0
        return share

    def _remember_unconfirmed(self, batch: Batch, codes: list[str]) -> None:
        """Note which rows of a page lie in the stream without being durable."""
        if batch.page is None:
            return
        if len(self._unconfirmed) > UNCONFIRMED_ROWS_MAX:
            self._unconfirmed.clear()
        rows = zip(batch.partition_hashes, batch.values, codes, strict=True)
        self._unconfirmed.update((hash_, value) for hash_, value, code in rows if code == NOT_DURABLE)

    def _complete(self, batch: Batch) -> None:
        """Complete a batch that was taken as a whole."""
        if batch.page is not None:
            if self._unconfirmed and any(batch.known):
                self._unconfirmed.clear()
            batch.complete_page([""] * len(batch.values), "")
            return
        for completion in batch.completions:
            if not completion.done():  # its request was cancelled
                completion.set_result(None)

    def _refuse(self, batch: Batch, codes: list[str], otherwise: str) -> None:
        """Complete the callbacks of a batch that were taken, and hand on the others.

        `otherwise`: the code of rows of a page that were not appended again.
        """
        if batch.given_up:
            return
        if batch.page is not None:
            batch.complete_page(codes, otherwise)
            return
        for code, (completions, partition_hashes, values) in batch.complete(codes).items():
            self.on_refused(code, completions, partition_hashes, values)

    def _on_failure(self, code: str, share: float = 0.0) -> None:
        """Report a failure to the breaker; once that is open, gathered callbacks are handed on."""
        self.breaker.failed(code, self._loop.time(), share)
        self._refresh()
        if not self.accepts_pages and (batch := self._gathering) is not None:
            self._gathering = None
            self._release(batch)
            self._refuse(batch, [self.breaker.reason or AWAY] * len(batch.values), "")

    def _refresh(self) -> None:
        """Derive `ready` and `accepts_pages` from the breaker and the connection."""
        state, connected = self.breaker.state, self._connection is not None
        self.ready = connected and state == "closed"
        self.accepts_pages = connected and state in {"closed", "slow"}
        if self._was_slow != (state == "slow"):
            self._was_slow = state == "slow"
            self.on_slow()

    def _release(self, batch: Batch) -> None:
        """Drop the batch's deadline, and subtract its callbacks from those in flight."""
        batch.check_at = inf
        self.in_flight.callbacks -= len(batch.completions)
        self.in_flight.size_bytes -= batch.size_bytes

    def _awaited(self) -> Iterable[Batch]:
        """All batches that have no outcome yet, in order of arrival."""
        return self._sent if self._gathering is None else [*self._sent, self._gathering]

    def _check_deadlines(self) -> float:
        """Give up all that is under way if a batch has no replies in time. Returns when to check again."""
        now = self._loop.time()
        due = [batch for batch in self._awaited() if batch.check_at <= now]
        if [batch for batch in due if batch.is_overdue(now, self._timeout_s)]:
            self._metrics.batch_failures[TIMEOUT] += 1
            for under_way in list(self._sent):
                self._give_up(under_way)
            self._on_failure(TIMEOUT)
        return min((batch.check_at for batch in self._awaited()), default=inf)

    def _give_up(self, batch: Batch) -> None:
        """Hand on a request's batch that the server has not answered. In order of arrival: before what gathers."""
        if batch.page is not None or batch.given_up:
            return
        self._release(batch)
        self._refuse(batch, [TIMEOUT] * len(batch.values), "")
        batch.give_up()
        self._given_up += 1


def _loss_code(connection: PipelinedConnection | None) -> str:
    """The code for the loss of a connection."""
    return TIMEOUT if connection is not None and connection.timed_out else AWAY


def _xadd_prefix(stream: str) -> bytes:
    """`XADD stream * c`, packed as the head of a command whose last argument follows."""
    command = pack("XADD", stream, "*", CALLBACK_FIELD, b"")
    return command.removesuffix(b"$0\r\n\r\n")
