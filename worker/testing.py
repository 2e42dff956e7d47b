"""A harness for tests of handler modules: callbacks in, in any order; what the handlers got, out. No Redis, no network.

    async def test_fare_is_settled_once():
        async with Harness("my_handlers") as harness:
            hangup = callback("SessionSecondPartyHangup", sequence_number=2, amount="0.0170")
            await harness.feed(hangup, callback("SessionSecondPartyAnswer", sequence_number=1), hangup)
        assert [call.event.sequence_number for call in harness.calls] == [1, 2]
        assert harness.duplicates == 1

Decoding, ordering and dispatch are the worker's own. Time is the harness's: it stands still until `pass_time`, and
retries come without their waits; a handler without `retries=` gives an event up after ten attempts. As in a worker,
every attempt begins with a copy of the context that the resources were opened in, which is a copy of the one that the
harness was entered in.
"""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlencode

import msgspec

from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.dead_letter_view import DeadLetterContext, DeadLetterView
from maskline.schemas.errors import ConfigError
from maskline.schemas.events import Event
from maskline.schemas.parameters import FORM_TYPE
from maskline.worker.api.binding import BoundDeadHandler, BoundHandler, bind, bind_dead
from maskline.worker.api.context import Context
from maskline.worker.api.loading import load_handlers
from maskline.worker.api.resources import Resources
from maskline.worker.api.retry_schedule import RetryPolicy
from maskline.worker.commands.retry_ops import Again, Append, Park, Pop, RetryOp
from maskline.worker.counters import Counters
from maskline.worker.dead_letters.calls import DeadLetterCalls
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.entries.dead_letter import DeadLetter, decode_dead_letter, public_id
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.ordering.reorder import Order, Policy
from maskline.worker.partitions.ledger import GroupPosition, Lease
from maskline.worker.partitions.partition import Partition, PartitionSettings

START_MS: Final = 1_767_225_600_000
"""Where the harness's time begins: 2026-01-01 00:00:00 UTC."""

SESSION_UUID: Final = "5e551011-0000-4000-8000-000000000000"
"""The session of callbacks that name none."""

UNCOUNTED_RETRIES: Final = 9
"""Retries of a handler without `retries=`, which a worker would try for a day: ten attempts show a test as much."""

CLOSE_S: Final = 60.0
"""For closing the resources. One that takes longer is cancelled, and fails the test."""

_SPELLINGS: Final = {
    "session_uuid": "SessionUUID",
    "from_number": "From",
    "to_number": "To",
    "recording_uuid": "RecordingUUID",
    "recording_url": "RecordingURL",
    "recording_resource_url": "RecordingResourceURL",
}
"""Attributes that Plivo does not spell as their names in camel case."""


def callback(event_name: str, **attributes: object) -> dict[str, str]:
    """The parameters of a callback, from attributes as handlers see them: `from_number=`, `billed_duration=`, …

    None stands for an absent one. Names in Plivo's own spelling are taken as they are. The session is SESSION_UUID
    unless one is given.
    """
    given = {"event_name": event_name, "session_uuid": SESSION_UUID, **attributes}
    return {
        _SPELLINGS.get(name, name if name[:1].isupper() else name.title().replace("_", "")): str(value)
        for name, value in given.items()
        if value is not None
    }


class Call(NamedTuple):
    """One attempt of one handler, and what it was given; the fields of a `Context` mean the same here."""

    handler: str
    """The handler's name, as logs and dead letters show it."""
    event: Event
    order: Order
    missing: tuple[int, ...]
    run: int
    attempt: int
    idempotency_key: str
    error: BaseException | None
    """What the handler raised; None if it has handled the event."""


class DeadCall(NamedTuple):
    """One call of a handler of dead letters."""

    handler: str
    letter: DeadLetterView
    error: BaseException | None
    """What the handler raised; None if it has ended well."""


class Harness:
    """Runs handler modules on callbacks that a test feeds. An async context manager: it opens and closes the resources.

    `modules`: dotted names, `.py` paths or modules. The settings mean the same as those of the same name, and have the
    same defaults (docs/settings.md):

    - `gap_timeout_ms`: how long, by the harness's time, an event waits for a missing number.
    - `first_sequence`: the number that opens a session.
    - `recording_sequence`: `own` or `shared`, whether recording events are numbered apart.
    - `late`: `deliver` or `dead`, what becomes of events that come too late.
    - `held_max`: events of a session that wait at a time, at most.
    - `concurrency`: sessions with a handler under way at a time.
    - `ignored_parameters`: names that do not count where two callbacks are compared.

    Raises ConfigError where a module cannot be loaded, and, when it is entered, what a resource failed to open with.
    """

    def __init__(
        self,
        *modules: str | ModuleType,
        gap_timeout_ms: int = 5_000,
        first_sequence: int = 1,
        recording_sequence: str = "own",
        late: str = "deliver",
        held_max: int = 256,
        concurrency: int = 256,
        ignored_parameters: Iterable[str] = (),
    ) -> None:
        self.calls: list[Call] = []
        """Every attempt, in the order they ended."""
        self.dead_letters: list[DeadLetter] = []
        """What handlers gave up, or what could not be read, in that order."""
        self.dead_calls: list[DeadCall] = []
        """Every call of a handler of dead letters, in the order they ended."""
        self._handlers = load_handlers(modules)
        self._settings = PartitionSettings(
            group="workers",
            policy=Policy(gap_timeout_ms, first_sequence, held_max),
            recording_shared=recording_sequence == "shared",
            session_ttl_s=86_400,
            ignored_parameters=frozenset(ignored_parameters),
        )
        self._late_dead = late == "dead"
        self._concurrency = concurrency
        self._counters = Counters()
        self._now_ms = START_MS
        self._entries = 0
        self._done = asyncio.Event()

    @property
    def duplicates(self) -> int:
        """How many callbacks were dropped because the same one had come before."""
        return self._counters.duplicates

    @property
    def waiting(self) -> int:
        """How many events wait for a missing number, or for the opening of a call."""
        return self._partition.held

    @property
    def parked(self) -> int:
        """How many events wait behind a dead letter of their session, as their handler parks."""
        return self._queues.parked

    async def __aenter__(self) -> Self:
        self._resources = Resources()
        try:
            opened = await self._resources.open(self._handlers.resources)
        except ConfigError as error:
            await self._resources.close(CLOSE_S)
            raise error.__cause__ or error from None
        table = {
            kind: tuple(self._recorded(handler) for handler in handlers)
            for kind, handlers in bind(self._handlers, opened).items()
        }
        self._dead_calls = DeadLetterCalls(
            [self._dead_recorded(handler) for handler in bind_dead(self._handlers, opened)],
            self._resources.context,
            entry_decoder(self._settings.ignored_parameters),
        )
        self._queues = _RetryQueueStore()
        self._dispatcher = Dispatcher(
            table,
            concurrency=self._concurrency,
            late_dead=self._late_dead,
            counters=self._counters,
            on_progress=self._progressed,
            gates=_OpenGates((), wall_ms=self._wall_ms, chance=lambda: 1.0),
            wall_ms=self._wall_ms,
            context=self._resources.context,
        )
        self._partition = Partition(Lease(0, 1, "1 harness"), GroupPosition(), self._settings, self._counters)
        self._partition.lease_until = math.inf
        self._partition.session_cache = 1_000_000
        return self

    async def __aexit__(self, *_: object) -> None:
        self._dispatcher.cancel(None, "the test is over")
        await self._dispatcher.stop()
        errors = await self._resources.close(CLOSE_S)
        if errors:
            raise (
                errors[0]
                if len(errors) == 1
                else BaseExceptionGroup("resources were not closed well", errors)
            )

    async def feed(self, *callbacks: Mapping[str, str] | RawCallback) -> None:
        """Feed callbacks in this order, at the harness's time; return when no handler has anything left to do.

        Each is the parameters of a callback, by Plivo's names, as `callback` makes them, or a whole RawCallback.
        """
        entries = []
        for given in callbacks:
            self._entries += 1
            entry_id = f"{self._now_ms}-{self._entries}"
            entries.append((entry_id.encode(), [CALLBACK_FIELD, encode_callback(self._raw(given))]))
        decoded = self._partition.decode(entries, pending=False, now_ms=self._now_ms)
        self._dispatcher.submit(self._partition.arrive(decoded, {}, self._now_ms))
        await self._until_handled()

    async def pass_time(self, seconds: float) -> None:
        """Move the harness's time on: events that have waited long enough for a missing number are handled."""
        self._now_ms += round(seconds * 1000)
        await self.feed()

    def _raw(self, given: Mapping[str, str] | RawCallback) -> RawCallback:
        if isinstance(given, RawCallback):
            return given
        return RawCallback("POST", b"", FORM_TYPE, urlencode(given).encode(), self._now_ms, "")

    def _progressed(self, partition: Partition) -> None:
        partition.commit_requested = False
        self._done.set()

    def _wall_ms(self) -> int:
        return self._now_ms

    async def _until_handled(self) -> None:
        partition = self._partition
        while partition.unfinished or partition.retry_queues or partition.wants_commit:
            if partition.unfinished or partition.retry_queues:
                self._done.clear()
                await self._done.wait()
                continue
            commit = partition.take_commit()
            partition.committed()
            await self._add_dead_letters([decode_dead_letter(letter) for letter in commit.dead])
            self._queues.change(commit.retry_ops)
            self._run_queues()

    async def _add_dead_letters(self, letters: Iterable[DeadLetter]) -> None:
        """Keep dead letters, and call their handlers."""
        for letter in letters:
            self.dead_letters.append(letter)
            letter_id = public_id(self._partition.number, f"{self._now_ms}-{len(self.dead_letters)}")
            await self._dead_calls.call(letter, letter_id, self._partition.token)

    def _run_queues(self) -> None:
        """Run what was set aside, as its waits are over here."""
        for handler, uuid, items in self._queues.due():
            session = self._partition.session_of(uuid, None)
            queue = self._partition.open_queue(
                session, handler, items, takes=1, waiting=len(items), now_ms=self._now_ms
            )
            if queue is not None:
                queue.scheduled = True
                self._dispatcher.submit([queue])

    def _recorded(self, handler: BoundHandler) -> BoundHandler:
        def record(event: Event, ctx: Context, error: BaseException | None) -> None:
            self.calls.append(
                Call(
                    handler.name,
                    event,
                    ctx.order,
                    ctx.missing,
                    ctx.run,
                    ctx.attempt,
                    ctx.idempotency_key,
                    error,
                )
            )

        retries = handler.policy.retries
        at_once = RetryPolicy(
            UNCOUNTED_RETRIES if retries is None else retries, 0, 0, handler.policy.give_up_after_s
        )
        call: Callable[..., Any] = _recording(handler.call, record, in_thread=handler.in_thread)
        return msgspec.structs.replace(handler, call=call, policy=at_once, concurrency=None, rate=None)

    def _dead_recorded(self, handler: BoundDeadHandler) -> BoundDeadHandler:
        async def call(letter: DeadLetterView, ctx: DeadLetterContext) -> None:
            error: BaseException | None = None
            try:
                await handler.call(letter, ctx)
            except BaseException as raised:
                error = raised
                raise
            finally:
                self.dead_calls.append(DeadCall(handler.name, letter, error))

        return msgspec.structs.replace(handler, call=call)


class _OpenGates(HandlerGates):
    """Gates that hold no handler, however often it fails: a test wants to see each event handled or given up."""

    def failed(self, handler: str, session: str) -> None:
        """Nothing follows."""

    def may_go_on(self, handler: str) -> bool:  # noqa: ARG002
        """Always."""
        return True


class _RetryQueueStore:
    """The retry queues, which a worker keeps in Redis, in memory."""

    def __init__(self) -> None:
        self._items: dict[tuple[str, str], list[bytes]] = {}
        self._parked: set[tuple[str, str]] = set()

    def change(self, ops: Iterable[RetryOp]) -> None:
        """Carry out what a commit changes."""
        for op in ops:
            if isinstance(op, (Append, Again, Pop, Park)):
                queue = op.handler, op.session
                items = self._items.setdefault(queue, [])
                if isinstance(op, Append):
                    items.append(op.item)
                elif isinstance(op, Again):
                    items[0] = op.item
                else:
                    del items[0]
                if isinstance(op, Park):
                    self._parked.add(queue)

    @property
    def parked(self) -> int:
        """How many items are in parked queues."""
        return sum(len(items) for queue, items in self._items.items() if queue in self._parked)

    def due(self) -> list[tuple[str, str, list[bytes]]]:
        """Handler, SessionUUID and items of each queue that is not parked and not empty."""
        return [
            (*queue, [*items]) for queue, items in self._items.items() if items and queue not in self._parked
        ]


def _recording(
    call: Callable[..., Any],
    record: Callable[[Event, Context, BaseException | None], None],
    *,
    in_thread: bool,
) -> Callable[..., Any]:
    def plain(event: Event, ctx: Context) -> Any:
        try:
            result = call(event, ctx)
        except BaseException as error:
            record(event, ctx, error)
            raise
        if inspect.isawaitable(result):  # a plain function around an async one
            return awaiting(event, ctx, result)
        record(event, ctx, None)
        return result

    async def awaiting(event: Event, ctx: Context, work: Awaitable[Any] | None = None) -> Any:
        try:
            result = await (call(event, ctx) if work is None else work)
        except BaseException as error:
            record(event, ctx, error)
            raise
        record(event, ctx, None)
        return result

    return plain if in_thread else awaiting


__all__ = ["SESSION_UUID", "Call", "DeadCall", "Harness", "callback"]
