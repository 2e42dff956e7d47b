"""The gates of all handlers: who is held, who may run, and what is said about it."""

from collections.abc import Iterator

import pytest
from gates_kit import Handler
from structlog.testing import capture_logs

from maskline.schemas.handler_control import HandlerReport, Pause
from maskline.worker.gates.breaker import FAILURES_MAX, UNBOUNDED
from maskline.worker.gates.gates import RECOVERING_RETRY_MS, HandlerGates


class Clock:
    """Both clocks of a test, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return int(self.now * 1000) + 5


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logs() -> Iterator[list]:
    with capture_logs() as lines:
        yield lines


def gates_of(clock: Clock, *handlers: Handler) -> HandlerGates:
    return HandlerGates(
        handlers or [Handler("bill"), Handler("mail")],
        wall_ms=clock.wall_ms,
        chance=lambda: 0.0,
        clock=clock,
    )


def take_down(gates: HandlerGates, handler: str = "bill") -> None:
    for number in range(FAILURES_MAX):
        gates.failed(handler, f"session-{number}")


def test_handler_that_is_well_is_in_no_set(clock: Clock) -> None:
    gates = gates_of(clock)
    assert not gates.holds
    assert not gates.failing
    assert gates.take_max("bill") == UNBOUNDED
    assert gates.next_look_s("bill") is None
    assert gates.up_since_ms("bill") == 0
    gates.failed("bill", "session")
    assert gates.failing == {"bill"}
    gates.succeeded("bill")
    assert not gates.failing


def test_down_recovering_up(clock: Clock, logs: list) -> None:
    gates, changed = gates_of(clock), []
    gates.on_change = changed.append
    take_down(gates)
    assert gates.holds == gates.failing == {"bill"}
    assert gates.take_max("bill") == 0
    assert gates.take_max("mail") == UNBOUNDED
    assert gates.held_retry_ms("bill") == 0
    assert gates.reports()["bill"] == HandlerReport(down_since_ms=1_000_005)
    assert not changed
    clock.now += gates.next_look_s("bill")
    assert gates.take_max("bill") == 1
    gates.queue_began("bill")
    assert gates.take_max("bill") == 0
    gates.succeeded("bill")
    gates.queue_ended("bill")
    assert "bill" in changed
    assert gates.state("bill") == "recovering"
    assert gates.held_retry_ms("bill") == RECOVERING_RETRY_MS
    assert gates.holds == gates.failing == {"bill"}
    assert gates.take_max("bill") == 1
    gates.nothing_due("bill")
    assert not gates.holds
    assert not gates.failing
    assert gates.up_since_ms("bill") == clock.wall_ms()
    assert gates.reports()["bill"] == HandlerReport(up_since_ms=clock.wall_ms())
    assert [(line["event"], line["handler"]) for line in logs] == [
        ("handler down", "bill"),
        ("handler recovering", "bill"),
        ("handler up", "bill"),
    ]


def test_recovery_ends_by_time_at_the_look_that_finds_it(clock: Clock) -> None:
    gates = gates_of(clock)
    take_down(gates)
    clock.now += 1
    gates.queue_began("bill")
    gates.succeeded("bill")
    gates.queue_ended("bill")
    looks = 0
    while (wait_s := gates.next_look_s("bill")) is not None:
        clock.now += wait_s
        looks += 1
        assert looks < 200
    assert gates.take_max("bill") == UNBOUNDED
    assert not gates.holds


def test_paused_is_held_and_logged_once(clock: Clock, logs: list) -> None:
    gates, changed = gates_of(clock), []
    gates.on_change = changed.append
    pause = Pause(clock.wall_ms() - 60_000, "rates are wrong")
    gates.set_paused({"bill": pause, "of another module": pause})
    gates.set_paused({"bill": pause})
    assert gates.holds == {"bill"}
    assert gates.paused("bill") == pause
    assert gates.take_max("bill") == 0
    assert gates.next_look_s("bill") is None
    assert not gates.may_go_on("bill")
    assert not changed
    gates.nothing_due("bill")
    assert gates.holds == {"bill"}
    gates.set_paused({})
    assert changed
    assert gates.holds == {"bill"}  # what has gathered goes first
    assert gates.take_max("bill") == 1
    gates.nothing_due("bill")
    assert not gates.holds
    assert gates.up_since_ms("bill") == clock.wall_ms()
    assert [line["event"] for line in logs] == ["handler paused", "handler resumed", "handler up"]
    assert logs[0]["why"] == "rates are wrong"
    assert logs[1]["paused_s"] == 60


def test_pause_of_a_handler_that_is_down_ends_with_a_probe(clock: Clock) -> None:
    gates = gates_of(clock)
    take_down(gates)
    gates.set_paused({"bill": Pause(0)})
    clock.now += 600
    assert gates.take_max("bill") == 0
    gates.set_paused({})
    assert gates.state("bill") == "down"
    assert gates.take_max("bill") == 1


def test_queue_stops_when_its_handler_goes_down_or_is_paused(clock: Clock) -> None:
    gates = gates_of(clock)
    assert gates.may_go_on("bill")
    take_down(gates)
    assert not gates.may_go_on("bill")
    gates.set_paused({"mail": Pause(0)})
    assert not gates.may_go_on("mail")
    assert not gates.may_go_on("unknown")


def test_concurrency_counts_live_events_and_queues(clock: Clock) -> None:
    gates, changed = gates_of(clock, Handler("bill", concurrency=2)), []
    gates.on_change = changed.append
    assert gates.take_max("bill") == 2
    assert gates.admit("bill")
    gates.queue_began("bill")
    assert gates.take_max("bill") == 0
    assert gates.next_look_s("bill") is None
    assert not gates.admit("bill")
    gates.release("bill")
    assert changed == ["bill"]
    assert gates.take_max("bill") == 1
    assert not gates.admit("bill")  # behind the one that waits
    gates.queue_ended("bill")
    gates.nothing_due("bill")
    assert gates.admit("bill")


def test_rate_counts_every_call(clock: Clock) -> None:
    gates = gates_of(clock, Handler("bill", rate=2.0))
    assert gates.take_max("bill") == 1
    gates.queue_began("bill")
    assert not gates.may_go_on("bill")
    assert gates.take_max("bill") == 0
    assert gates.next_look_s("bill") == pytest.approx(0.5)
    clock.now += 0.5
    assert gates.may_go_on("bill")
    clock.now += 0.5
    gates.queue_ended("bill")
    gates.queue_began("bill")
    gates.queue_ended("bill", ran=False)
    assert gates.admit("bill")
    gates.release("bill")
    assert not gates.admit("bill")


def test_held_handler_admits_nothing(clock: Clock) -> None:
    gates = gates_of(clock, Handler("bill", concurrency=2))
    gates.set_paused({"bill": Pause(0)})
    assert not gates.admit("bill")


def test_limits_bound_a_recovery(clock: Clock) -> None:
    gates = gates_of(clock, Handler("bill", concurrency=3, rate=20.0))
    take_down(gates)
    clock.now += 1
    gates.queue_began("bill")
    gates.succeeded("bill")
    gates.queue_ended("bill")
    clock.now += 100
    assert gates.take_max("bill") == 2  # the burst of its rate
    gates.queue_began("bill")
    gates.queue_began("bill")
    assert gates.next_look_s("bill") == pytest.approx(0.05)


def test_new_worker_begins_with_what_others_knew(clock: Clock, logs: list) -> None:
    gates = gates_of(clock)
    gates.take_over("bill", HandlerReport(down_since_ms=5_000, up_since_ms=1_000))
    gates.take_over("bill", HandlerReport(down_since_ms=7_000, up_since_ms=2_000))
    gates.take_over("unknown", HandlerReport(down_since_ms=7_000))
    assert gates.holds == {"bill"}
    assert gates.reports()["bill"] == HandlerReport(5_000, 2_000)
    assert gates.take_max("bill") == 1  # it finds out at once
    assert [line["event"] for line in logs] == ["handler down"]


def test_unknown_handlers_are_ignored(clock: Clock) -> None:
    gates = gates_of(clock)
    take_down(gates, "unknown")
    gates.succeeded("unknown")
    gates.queue_began("unknown")
    gates.queue_ended("unknown")
    gates.nothing_due("unknown")
    gates.release("unknown")
    assert gates.take_max("unknown") == 0
    assert gates.admit("unknown")
    assert gates.up_since_ms("unknown") == 0
    assert gates.next_look_s("unknown") is None
    assert gates.paused("unknown") is None
    assert not gates.holds
    assert not gates.failing
