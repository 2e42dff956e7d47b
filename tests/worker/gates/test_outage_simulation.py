"""The gates of several workers through an outage of what a handler calls, simulated: pace, probes, attempts.

Time goes in steps. In each, events arrive for sessions of their own; a worker runs those of a handler that is not held
and sets the others aside; its retry runner works off what is set aside as the gates allow. A call ends CALL_S later; it
fails if the downstream was away, or had too much to do, when it began.
"""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from gates_kit import Handler

from maskline.worker.gates.breaker import (
    FAILURES_MAX,
    GROWTH_MAX_S,
    GROWTH_MIN_S,
    PROBE_FIRST_S,
    RECOVERED_AT,
)
from maskline.worker.gates.gates import HandlerGates

STEP_S = 0.02
CALL_S = 0.1
QUEUES_MAX = 64
"""Retry queues under way in a worker, as the retry runner bounds them."""
LIVE_MAX = 256
"""MASKLINE_CONCURRENCY."""


@dataclass
class Downstream:
    """What the handlers call: away from `dies_at` to `back_at`, and overloaded above `capacity` calls at once."""

    dies_at: float
    back_at: float
    capacity: int = 1_000_000
    under_way: int = 0

    def fails(self, now: float) -> bool:
        return self.dies_at <= now < self.back_at or self.under_way > self.capacity


@dataclass
class Worker:
    """One worker with its gates. `waiting`: sessions whose event is set aside."""

    downstream: Downstream
    seed: int
    now: float = 0.0
    waiting: deque[str] = field(default_factory=deque)
    calls: deque[tuple[float, str, bool, bool]] = field(default_factory=deque)
    """When each ends, its session, whether it fails, and whether it is a retry queue's."""
    queues: int = 0
    done: int = 0
    counted_failures: int = 0
    """Attempts that failed and were spent."""
    began: list[float] = field(default_factory=list)
    """When calls began."""
    most: int = 0
    """Calls at once while held."""

    def __post_init__(self) -> None:
        chance = random.Random(self.seed).random
        self.gates = HandlerGates([Handler("bill")], wall_ms=lambda: 1, chance=chance, clock=lambda: self.now)

    @property
    def held(self) -> bool:
        return "bill" in self.gates.holds

    def step(self, now: float, arrivals: list[str]) -> None:
        self.now = now
        self._end_calls()
        for session in arrivals:
            if self.held or len(self.calls) >= LIVE_MAX:
                self.waiting.append(session)
            else:
                self._call(session, from_queue=False)
        self._work_off()
        if not self.waiting and not self.queues:
            self.gates.nothing_due("bill")

    def _end_calls(self) -> None:
        while self.calls and self.calls[0][0] <= self.now:
            _, session, failed, from_queue = self.calls.popleft()
            self.downstream.under_way -= 1
            if not failed:
                self.done += 1
                if "bill" in self.gates.failing:
                    self.gates.succeeded("bill")
            else:
                self.gates.failed("bill", session)
                self.counted_failures += not self.held
                self.waiting.append(session)
            if from_queue:
                self.queues -= 1
                self.gates.queue_ended("bill")

    def _work_off(self) -> None:
        free = min(self.gates.take_max("bill"), QUEUES_MAX - self.queues, len(self.waiting))
        for _ in range(free):
            self.gates.queue_began("bill")
            self.queues += 1
            self._call(self.waiting.popleft(), from_queue=True)
        if self.held:
            self.most = max(self.most, self.queues)

    def _call(self, session: str, *, from_queue: bool) -> None:
        self.downstream.under_way += 1
        failed = self.downstream.fails(self.now)
        self.calls.append((self.now + CALL_S, session, failed, from_queue))
        self.began.append(self.now)


def simulate(
    workers: list[Worker], *, until: float, per_second: float, watch=lambda _now: None, seed: int = 1
) -> None:
    """Let events arrive at `per_second` in all, spread over the workers by chance."""
    rng, number, due = random.Random(seed), 0, 0.0
    for step in range(int(until / STEP_S)):
        now, due = step * STEP_S, due + per_second * STEP_S
        arrivals: list[list[str]] = [[] for _ in workers]
        while number < due:
            arrivals[rng.randrange(len(workers))].append(f"session-{number}")
            number += 1
        for worker, its_arrivals in zip(workers, arrivals, strict=True):
            worker.step(now, its_arrivals)
        watch(now)


@pytest.mark.parametrize("seed", [1, 2])
def test_outage_spends_no_attempts_and_ends_without_a_herd(seed: int) -> None:
    """Half an hour at 1,000 a second, scaled: three minutes at 100."""
    dies_at, back_at = 10.0, 190.0
    downstream = Downstream(dies_at, back_at)
    workers = [Worker(downstream, seed * 10 + number) for number in range(4)]
    up_at: dict[int, float] = {}

    def watch(now: float) -> None:
        for number, worker in enumerate(workers):
            if now > back_at and not worker.held:
                up_at.setdefault(number, now)

    simulate(workers, until=300.0, per_second=100, watch=watch, seed=seed)
    for number, worker in enumerate(workers):
        # What was under way when it died fails as well, and is spent at most.
        assert worker.counted_failures <= FAILURES_MAX
        during = [at for at in worker.began if dies_at + 2 <= at < back_at]
        assert during  # it is probed
        # 1, 2, 4, … 32, and then at least 45 s apart.
        assert len(during) <= 6 + (back_at - dies_at) / 45
        after = [at for at in worker.began if at >= back_at]
        assert after[0] - back_at <= 60
        for passed in range(1, 8):
            pace = [at for at in after if at < after[0] + passed * GROWTH_MIN_S]
            at_once = 2 ** (passed - 1)
            arrived = 100  # once up, what comes runs beside
            assert len(pace) <= at_once * 2 * (GROWTH_MIN_S / CALL_S + 1) + arrived
        assert worker.most <= QUEUES_MAX
        assert up_at[number] - after[0] <= 7 * GROWTH_MAX_S
        assert not worker.waiting
    total = sum(worker.done for worker in workers)
    assert 30_000 - total <= 4 * LIVE_MAX


def test_downstream_that_comes_back_weak_is_not_kept_down() -> None:
    """It takes 20 calls at once; 4 workers with a backlog would make 256."""
    downstream = Downstream(1.0, 30.0, capacity=20)
    workers = [Worker(downstream, number) for number in range(4)]
    simulate(workers, until=120.0, per_second=50)
    assert not any(worker.waiting for worker in workers)
    assert not any(worker.held for worker in workers)
    since_back = sum(len([at for at in worker.began if at >= 30.0]) for worker in workers)
    assert since_back <= 2 * 120 * 50  # most calls succeed


def test_workers_do_not_probe_in_step() -> None:
    downstream = Downstream(0.0, 1_000.0)
    workers = [Worker(downstream, number) for number in range(4)]
    simulate(workers, until=150.0, per_second=40)
    last = [worker.began[-1] for worker in workers]
    assert max(last) - min(last) > PROBE_FIRST_S
    assert all(worker.most <= RECOVERED_AT for worker in workers)
