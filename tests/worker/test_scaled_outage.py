"""An outage of what a handler calls, under load: half an hour at a thousand a second, scaled to seconds.

Of the same at its true size `make bench ONLY=failures FULL=1` tells, latencies among it.
"""

import os
import time
from pathlib import Path
from statistics import median

from process_kit import PATIENCE_S, Fleet, WorkerProcess, assert_complete_and_in_order, load
from servers import wait_until

from maskline.worker.gates.breaker import PROBE_FIRST_S

HANDLERS = str(Path(__file__).with_name("downstream_handlers.py"))
BEFORE, DURING = load(60, 5, name="before", window=0), load(600, 5, name="during", window=0)
RATE = 800
TICK_S = 0.02
TRIES_MAX = 12
"""That count, of one event: those that follow each other in the worker until the handler is down, and what was under
way just then."""
FAILED_MAX = 300
"""Calls, of three thousand events: twenty until the handler is down, and those under way just then."""
WAITS_MAX = 4
"""Times the wait before: this is no measurement, but a worker that lets a handler hold others up takes many times."""
GROWTH_MAX = 1.2


def memory_bytes(worker: WorkerProcess) -> int:
    return int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def feed(crew: Fleet, events: list[tuple[str, int]]) -> dict[tuple[str, int], float]:
    """Put events at RATE; when each was put."""
    start, put = time.monotonic(), dict[tuple[str, int], float]()
    while len(put) < len(events):
        due = min(int((time.monotonic() - start) * RATE) + 1, len(events))
        batch = events[len(put) : due]
        crew.put_all(batch)
        put |= dict.fromkeys(batch, time.monotonic())
        time.sleep(TICK_S)
    return put


def waits(crew: Fleet, put: dict[tuple[str, int], float]) -> list[float]:
    """How long each event waited for the handler that is well."""
    return [
        call.start - put[call.session, call.number]
        for call in crew.calls()
        if call.handler == "mail" and (call.session, call.number) in put
    ]


def test_outage_under_load_costs_nothing_but_time(crew: Fleet, tmp_path: Path):
    away = tmp_path / "away"
    worker = crew.start(handlers=HANDLERS, DOWNSTREAM_AWAY=away, PYTHONPATH=Path(HANDLERS).parent)

    def until_mailed(put: dict[tuple[str, int], float]) -> None:
        wait_until(lambda: len(waits(crew, put)) == len(put), within_s=PATIENCE_S, what="mail to have all")

    before = feed(crew, BEFORE)
    until_mailed(before)
    away.touch()
    began = time.monotonic()
    third = len(DURING) // 3
    during = feed(crew, DURING[:third])
    until_mailed(during)
    memory = memory_bytes(worker)
    during |= feed(crew, DURING[third:])
    until_mailed(during)
    crew.until_drained()  # all are set aside: nothing is held back in the stream
    lasted_s = time.monotonic() - began
    assert memory_bytes(worker) < GROWTH_MAX * memory
    assert median(waits(crew, during)) < WAITS_MAX * max(median(waits(crew, before)), TICK_S)
    failed = [call for call in crew.calls() if call.handler == "bill" and call.outcome == "failed"]
    assert max(call.attempt for call in failed) <= TRIES_MAX
    assert len(failed) < FAILED_MAX + lasted_s / PROBE_FIRST_S
    away.unlink()

    def billed() -> bool:
        return sum(call.handler == "bill" and call.outcome == "done" for call in crew.calls()) >= len(
            BEFORE + DURING
        )

    wait_until(billed, within_s=2 * PATIENCE_S, what="everything to be worked off")
    for handler in ("bill", "mail"):
        handled = [call for call in crew.calls() if (call.handler, call.outcome) == (handler, "done")]
        assert len(handled) == len(BEFORE + DURING)
        assert_complete_and_in_order(handled, BEFORE + DURING)
    assert crew.dead_letters() == []
    assert worker.terminate() == 0
