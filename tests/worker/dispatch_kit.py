"""A dispatcher with one partition and the handlers of a test, without Redis.

What its handlers give up parks nothing, and nothing runs what they set aside: tests of retry queues have Redis.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType

import msgspec

from maskline import on
from maskline.runtime.clock import wall_clock_ms
from maskline.runtime.tasks import BackgroundTasks
from maskline.schemas.callback import CALLBACK_FIELD, RawCallback, encode_callback
from maskline.schemas.events import SessionFirstPartyRinging
from maskline.schemas.parameters import FORM_TYPE
from maskline.worker.api.binding import Table, bind
from maskline.worker.api.loading import load_handlers
from maskline.worker.counters import Counters
from maskline.worker.dispatch.dispatcher import Dispatcher
from maskline.worker.entries.dead_letter import DeadLetter, decode_dead_letter
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.ordering.reorder import Policy
from maskline.worker.partitions.ledger import GroupPosition, Lease
from maskline.worker.partitions.partition import Partition, PartitionSettings
from maskline.worker.partitions.session import LiveSession

START_MS = 1_767_225_600_000
RECEIVED_MS = START_MS - 250
PATIENCE_S = 60.0
"""For what is sure to come: a loaded machine must not fail a test."""


def module_of(*functions) -> ModuleType:
    module = ModuleType("under_test")
    for function in functions:
        vars(module)[function.__name__] = function
    return module


def partition_of_test(number: int = 3, *, token: int = 7, counters: Counters | None = None) -> Partition:
    settings = PartitionSettings("workers", Policy(5_000, 1, 256), False, 86_400)
    partition = Partition(
        Lease(number, token, f"{token} me"), GroupPosition(), settings, counters or Counters()
    )
    partition.lease_until = math.inf
    partition.session_cache = 1_000
    return partition


class OpenGates(HandlerGates):
    """Gates that hold no handler, however often it fails."""

    def failed(self, handler: str, session: str) -> None:
        pass


def gates_of(table: Table) -> HandlerGates:
    """The gates of the handlers of a table."""
    handlers = {handler.name: handler for bound in table.values() for handler in bound}
    return OpenGates(handlers.values(), wall_ms=wall_clock_ms, chance=lambda: 1.0)


def skipping(table: Table) -> Table:
    """The table with handlers whose dead letters do not park the session's later events."""
    return {
        kind: tuple(msgspec.structs.replace(handler, on_give_up="skip") for handler in handlers)
        for kind, handlers in table.items()
    }


class Dispatch:
    """A dispatcher with one partition: feed it sequence numbers of sessions, wait until all is handled or given up."""

    def __init__(self, *functions, concurrency: int = 256, late_dead: bool = False, context=None) -> None:
        self.counters = Counters()
        self.partition = partition_of_test(counters=self.counters)
        self.progress = asyncio.Event()
        table = skipping(bind(load_handlers([module_of(*functions)]), {}))
        self.background = BackgroundTasks()
        self.dispatcher = Dispatcher(
            table,
            concurrency=concurrency,
            late_dead=late_dead,
            counters=self.counters,
            on_progress=self._progressed,
            gates=gates_of(table),
            background=self.background,
            context=context,
        )
        self.entries = 0

    def _progressed(self, partition: Partition) -> None:
        partition.commit_requested = False
        self.progress.set()

    def arrive(self, *events: tuple[str, int], name: str = "SessionFirstPartyRinging", **parameters: str):
        """Put events in order, given as (session, number); returns the sessions that have work now."""
        entries = []
        for session, number in events:
            self.entries += 1
            body = f"EventName={name}&SessionUUID={session}&SequenceNumber={number}"
            body += "".join(f"&{key}={value}" for key, value in parameters.items())
            callback = RawCallback("POST", b"", FORM_TYPE, body.encode(), RECEIVED_MS, "MA1")
            field = [CALLBACK_FIELD, encode_callback(callback)]
            entries.append((f"{START_MS}-{self.entries}".encode(), field))
        decoded = self.partition.decode(entries, pending=False, now_ms=START_MS)
        return self.partition.arrive(decoded, {}, START_MS)

    def feed(self, *events: tuple[str, int], **named) -> list[LiveSession]:
        ready = self.arrive(*events, **named)
        self.dispatcher.submit(ready)
        return ready

    async def until_handled(self, *, left: int = 0) -> None:
        """Wait until all but `left` events are handled or given up."""
        async with asyncio.timeout(PATIENCE_S):
            while self.partition.unfinished > left:
                self.progress.clear()
                await self.progress.wait()

    def letters(self) -> list[DeadLetter]:
        """The dead letters of the next commit."""
        commit = self.partition.take_commit()
        self.partition.committed()
        return [decode_dead_letter(letter) for letter in commit.dead]


@asynccontextmanager
async def dispatching(*functions, **named) -> AsyncIterator[Dispatch]:
    """A `Dispatch` that is stopped at the end."""
    dispatch = Dispatch(*functions, **named)
    try:
        yield dispatch
    finally:
        async with asyncio.timeout(PATIENCE_S):
            dispatch.dispatcher.cancel(None, "the test is over")
            await dispatch.dispatcher.stop()


AT_ONCE = {"backoff_ms": 0, "backoff_max_ms": 0}


def every(**options):
    return on(SessionFirstPartyRinging, **options)


async def until(condition):
    """Turn the event loop until the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count=50):
    """Let everything run that could run."""
    for _ in range(count):
        await asyncio.sleep(0)
