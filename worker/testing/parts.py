"""What the worker of a harness is made of: its settings, its clock, its gates, and what outlives its crash."""

import contextvars
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from typing import Final, NamedTuple

from maskline.worker.api.binding import BoundHandler, Table
from maskline.worker.api.retry_schedule import RetryPolicy
from maskline.worker.counters import Counters
from maskline.worker.dead_letters.calls import DeadLetterCalls
from maskline.worker.gates.gates import HandlerGates
from maskline.worker.ordering.reorder import Policy
from maskline.worker.partitions.partition import PartitionSettings
from maskline.worker.testing.kept import Kept

PARTITION: Final = 0
GROUP: Final = "workers"

UNCOUNTED_RETRIES: Final = 9
"""Retries of a handler without `retries=` while retries do not wait; a worker would try for a day. Ten attempts show a
test as much."""

SESSION_TTL_S: Final = 86_400
SESSIONS_MAX: Final = 1_000_000
"""Sessions in memory: what a test feeds stays there."""


class WorkerSettings(NamedTuple):
    """The settings of a worker that a harness has, with the meaning of the MASKLINE_ ones."""

    gap_timeout_ms: int = 5_000
    first_sequence: int = 1
    recording_sequence: str = "own"
    late: str = "deliver"
    held_max: int = 256
    concurrency: int = 256
    ignored_parameters: frozenset[str] = frozenset()
    dead_ttl_s: int = 604_800
    retry_waits: bool = False
    """Failures are handled in the harness's time as in a worker's; otherwise retries follow at once, no handler goes
    down, and none has limits."""

    def partition(self) -> PartitionSettings:
        """Those that a partition needs."""
        return PartitionSettings(
            group=GROUP,
            policy=Policy(self.gap_timeout_ms, self.first_sequence, self.held_max),
            recording_shared=self.recording_sequence == "shared",
            session_ttl_s=SESSION_TTL_S,
            ignored_parameters=self.ignored_parameters,
        )


class Clock:
    """The time of a harness, milliseconds since the epoch, and what is to be called when it gets there."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._timers_set = 0

    def wall_ms(self) -> int:
        """The time, ms."""
        return self.now_ms

    def seconds(self) -> float:
        """The time, seconds."""
        return self.now_ms / 1000

    def call_at(self, at_ms: int, function: Callable[[], None]) -> None:
        """Call a function once the time is `at_ms`."""
        self._timers_set += 1
        heappush(self._timers, (at_ms, self._timers_set, function))

    @property
    def next_timer_ms(self) -> int | None:
        """When the next function is to be called; None if there is none."""
        return self._timers[0][0] if self._timers else None

    def run_timers(self) -> None:
        """Call the functions that are due."""
        while self._timers and self._timers[0][0] <= self.now_ms:
            heappop(self._timers)[2]()


class Arrived(NamedTuple):
    """A callback that was read, and what it came to at once."""

    at_ms: int
    entry_id: str
    encoded: bytes
    became: str
    """`released`, `waits` (for others, or it did), `duplicate`, or `dead letter`."""


class Parts(NamedTuple):
    """What a worker is made of that outlives it: another one goes on with the same."""

    kept: Kept
    clock: Clock
    counters: Counters
    table: Table
    dead_calls: DeadLetterCalls
    context: contextvars.Context
    """The one that the resources were opened in."""
    arrivals: list[Arrived]


def at_once(handler: BoundHandler) -> BoundHandler:
    """The handler, whose retries do not wait, and which has no limits."""
    policy = handler.policy
    retries = UNCOUNTED_RETRIES if policy.retries is None else policy.retries
    return BoundHandler(
        handler.name,
        handler.call,
        handler.in_thread,
        RetryPolicy(retries, 0, 0, policy.give_up_after_s),
        handler.timeout_s,
        handler.on_give_up,
    )


def gates_of(handlers: Mapping[str, BoundHandler], clock: Clock, settings: WorkerSettings) -> HandlerGates:
    """The gates of a worker's handlers, by the harness's clock and without chance."""
    kind = HandlerGates if settings.retry_waits else _NeverDownGates
    return kind(handlers.values(), wall_ms=clock.wall_ms, chance=lambda: 0.0, clock=clock.seconds)


class _NeverDownGates(HandlerGates):
    """Gates that only pauses close: a test wants to see each event handled or given up, however often one fails."""

    def failed(self, handler: str, session: str) -> None:
        """Nothing follows."""
