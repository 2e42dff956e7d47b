"""Handlers that are down or paused, in real worker processes: nothing is lost, overtaken or given up."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from process_kit import PATIENCE_S, Call, Fleet, WorkerProcess, assert_complete_and_in_order, load
from servers import wait_until

from maskline.schemas.handler_control import (
    REVISION_FIELD,
    HandlerReport,
    Pause,
    decode_reports,
    encode_pause,
    pause_field,
)
from maskline.worker.gates.breaker import FAILURES_MAX, PROBE_FIRST_S

HANDLERS = str(Path(__file__).with_name("downstream_handlers.py"))
EVENTS = load(10, 3)


class Crew:
    """Workers whose handler `bill` calls a service, which is away or there."""

    def __init__(self, fleet: Fleet, away: Path) -> None:
        self.fleet = fleet
        self._away = away
        away.touch()

    def start(self) -> WorkerProcess:
        here = str(Path(__file__).parent)
        return self.fleet.start(handlers=HANDLERS, DOWNSTREAM_AWAY=str(self._away), PYTHONPATH=here)

    def mend(self) -> None:
        self._away.unlink()

    def calls(self, handler: str, outcome: str = "done") -> list[Call]:
        return [call for call in self.fleet.calls() if (call.handler, call.outcome) == (handler, outcome)]

    def until_done(self, handler: str) -> None:
        wait_until(
            lambda: len(self.calls(handler)) >= len(EVENTS),
            within_s=PATIENCE_S,
            what=f"all calls of {handler}",
        )
        assert len(self.calls(handler)) == len(EVENTS)
        assert_complete_and_in_order(self.calls(handler), EVENTS)

    def report(self, worker: WorkerProcess) -> HandlerReport:
        value = self.fleet.client.hget(self.fleet.keys.handlers, worker.worker_id)
        return decode_reports(value).get("bill", HandlerReport()) if value else HandlerReport()

    def until_down(self, worker: WorkerProcess) -> HandlerReport:
        wait_until(
            lambda: self.report(worker).down_since_ms, within_s=PATIENCE_S, what="the handler to be down"
        )
        return self.report(worker)

    def until_up(self, worker: WorkerProcess) -> None:
        wait_until(
            lambda: self.report(worker).up_since_ms and not self.report(worker).down_since_ms,
            within_s=PATIENCE_S,
            what="the handler to be up",
        )

    def set_pause(self, pause: Pause | None) -> None:
        client, key, field = self.fleet.client, self.fleet.keys.control, pause_field("bill")
        if pause is None:
            client.hdel(key, field)
        else:
            client.hset(key, field, encode_pause(pause))
        client.hincrby(key, REVISION_FIELD, 1)


@pytest.fixture
def workers(crew: Fleet, tmp_path: Path) -> Iterator[Crew]:
    return Crew(crew, tmp_path / "away")


def ready(worker: WorkerProcess) -> int:
    started: dict[str, Any] = worker.logged("worker started") or {}
    with urllib.request.urlopen(f"{started['admin']}/readyz", timeout=60) as response:  # noqa: S310 our own
        return int(response.status)


def test_outage_costs_nothing_but_time_and_outlasts_a_deploy(workers: Crew) -> None:
    first = workers.start()
    workers.fleet.put_all(EVENTS)
    since_ms = workers.until_down(first).down_since_ms
    workers.until_done("mail")
    workers.fleet.until_drained()
    assert ready(first) == 200
    assert first.metric("handler_down", handler="bill") == 1
    assert first.metric("handler_down", handler="mail") == 0
    assert first.metric("events_set_aside_total", handler="bill") >= 10
    wait_until(
        lambda: first.metric("events_waiting", handler="bill") == len(EVENTS),
        within_s=PATIENCE_S,
        what="the count of what waits",
    )
    assert first.terminate() == 0

    before = len(workers.calls("bill", "failed"))
    second = workers.start()
    assert workers.until_down(second).down_since_ms == since_ms
    wait_until(
        lambda: len(workers.calls("bill", "failed")) > before, within_s=PATIENCE_S, what="a probe at once"
    )
    probes = workers.calls("bill", "failed")[before:]
    lasted_s = probes[-1].start - probes[0].start
    assert len(probes) <= 1 + lasted_s / PROBE_FIRST_S
    workers.mend()
    workers.until_done("bill")
    workers.until_up(second)
    assert workers.fleet.dead_letters() == []
    assert second.metric("handler_down", handler="bill") == 0
    # What failed while it was down was not counted: attempts are those before.
    assert sum(call.attempt - 1 for call in workers.calls("bill")) <= FAILURES_MAX
    assert second.logged("handler recovering")
    assert second.logged("handler up")


def test_pause_holds_from_the_first_event_on_through_deaths_until_it_ends(workers: Crew) -> None:
    workers.mend()
    workers.set_pause(Pause(1_700_000_000_000, "rates are wrong"))
    early = [event for event in EVENTS if event[0] < "s5"]
    workers.fleet.put_all(early)
    first = workers.start()
    paused = wait_until(lambda: first.logged("handler paused"), within_s=PATIENCE_S, what="the pause")
    assert paused["why"] == "rates are wrong"
    wait_until(
        lambda: len(workers.calls("mail")) == len(early), within_s=PATIENCE_S, what="the other handler"
    )
    second = workers.start()
    workers.fleet.until_balanced(2)
    first.kill()
    workers.fleet.put_all(event for event in EVENTS if event not in early)
    wait_until(
        lambda: len({(call.session, call.number) for call in workers.calls("mail")}) == len(EVENTS),
        within_s=PATIENCE_S,
        what="the other handler to get all",
    )
    workers.fleet.until_drained()
    assert second.metric("handler_paused", handler="bill") == 1
    assert ready(second) == 200
    assert workers.calls("bill") == workers.calls("bill", "failed") == []
    workers.set_pause(None)
    workers.until_done("bill")
    assert workers.fleet.dead_letters() == []
    assert second.logged("handler resumed")
