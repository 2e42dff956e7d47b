"""Handlers that bring their worker down: real workers that die of them, and workers that are killed from outside."""

from pathlib import Path

import pytest
from process_kit import PATIENCE_S, Fleet, assert_complete_and_in_order, by_session
from servers import wait_until

DEADLY = str(Path(__file__).parents[1] / "deadly_handlers.py")
LEASE_MS = 600
DEATHS_MAX = 8
"""Once unmarked, twice marked, then the sandbox: a few more where two of them bring one worker down in turn."""
KILLS = 5
"""Two more than bring an event into the sandbox: those cut a sandbox run."""


def deaths(crew: Fleet, **settings: object) -> int:
    """Start a worker again whenever it has died, until everything is handled or given up; how often it did."""
    count = 0
    settings |= {"lease_ttl_ms": LEASE_MS, "handlers": DEADLY, "PYTHONPATH": Path(DEADLY).parent}
    worker = crew.launch(**settings)

    def quiet() -> bool:
        nonlocal count, worker
        if worker.process.poll() is not None:
            count += 1
            assert count <= DEATHS_MAX, worker.log
            worker = crew.launch(**settings)
        return crew.drained()

    wait_until(quiet, within_s=4 * PATIENCE_S, what="everything to be handled or given up")
    assert worker.terminate() == 0
    return count


def deadly_calls(crew: Fleet) -> int:
    return sum(line["what"] == "deadly" for line in crew.lines())


@pytest.mark.parametrize("way", ["exit", "fault", "plain"])
def test_only_the_event_that_crashes_workers_is_a_dead_letter(crew: Fleet, way: str):
    beside = [(f"s{session}", number) for number in range(1, 6) for session in range(40)]
    crew.put_all([*beside[:100], (f"{way}1", 1), (f"{way}1", 2), (f"{way}1", 3), *beside[100:]])
    # What is ignored is of the callback: the sandbox's key must be the worker's for all that.
    assert deaths(crew, ignored_parameters="EventTimestamp,From") == 3, (
        "once unmarked, twice marked; the fourth time a sandbox dies in its place"
    )
    (letter,) = crew.dead_letters()
    assert (letter.session_uuid, letter.sequence_number) == (f"{way}1", 2)
    assert letter.code == "crashed_worker"
    assert letter.handler == ("thread" if way == "plain" else "record")
    done = [c for c in crew.calls() if c.outcome == "done"]
    assert_complete_and_in_order([c for c in done if c.session.startswith("s")], beside)
    rest = [call.number for call in by_session(done)[f"{way}1"]]
    # Where the plain handler is the deadly one, the other has handled the event all the same.
    assert sorted(set(rest)) == ([1, 2, 3] if way == "plain" else [1, 3])
    keys = {line["key"] for line in crew.lines() if line["what"] == "deadly"}
    assert len(keys) == 1
    assert not any(crew.client.exists(crew.keys.marks(number)) for number in range(crew.partitions))


@pytest.mark.parametrize("way", ["interrupt", "stop", "task"])
def test_handler_that_ends_the_event_loop_ends_no_worker(crew: Fleet, way: str):
    events = [(f"s{session}", number) for number in range(1, 4) for session in range(10)]
    crew.put_all([*events, (f"{way}1", 1), (f"{way}1", 2), (f"{way}1", 3)])
    worker = crew.start(handlers=DEADLY, PYTHONPATH=Path(DEADLY).parent)
    crew.until_drained()
    assert_complete_and_in_order(
        [c for c in crew.calls() if c.session.startswith("s") and c.session != "stop1"], events
    )
    handled = [call.number for call in crew.calls(f"{way}1") if call.outcome == "done"]
    if way == "interrupt":
        (letter,) = crew.dead_letters()
        assert (letter.code, letter.sequence_number, letter.attempts) == ("retries_exhausted", 2, 3)
        assert handled == [1, 3]
    else:
        assert not crew.dead_letters()
        assert handled == [1, 2, 3]
        assert worker.logged("event loop interrupted")
    assert worker.terminate() == 0


def test_two_crashing_events_are_told_apart(crew: Fleet):
    beside = [(f"s{session}", number) for number in range(1, 4) for session in range(20)]
    crew.put_all([*beside, ("kill1", 1), ("kill1", 2), ("fault2", 1), ("fault2", 2), ("fault2", 3)])
    deaths(crew)
    letters = {(letter.session_uuid, letter.sequence_number, letter.code) for letter in crew.dead_letters()}
    assert letters == {("kill1", 2, "crashed_worker"), ("fault2", 2, "crashed_worker")}
    done = [c for c in crew.calls() if c.outcome == "done"]
    assert_complete_and_in_order([c for c in done if c.session.startswith("s")], beside)


def test_event_that_crashes_its_worker_once_is_handled_after_that(crew: Fleet, tmp_path: Path):
    crew.put_all([("exit1", 1), ("exit1", 2), ("exit1", 3)])
    assert deaths(crew, DEADLY_ONCE=tmp_path / "once") == 1
    assert not crew.dead_letters()
    assert_complete_and_in_order(crew.calls(), [("exit1", number) for number in (1, 2, 3)])


def test_kills_from_outside_never_make_a_slow_event_a_dead_letter(crew: Fleet):
    """Each kill finds the same handlers under way: only a sandbox can clear them."""
    events = [(f"slow{session}", number) for number in (1, 2) for session in range(3)]
    crew.put_all(events)
    for kill in range(KILLS):
        worker = crew.launch(lease_ttl_ms=LEASE_MS, RECORD_MS=80)  # slow: 800 ms
        before = len(crew.lines())

        def at_work(before: int = before) -> bool:
            # A sandbox opens the recorder as well, and says so.
            return any(line["what"] == "opened" for line in crew.lines()[before:]) and (
                worker.metric("handlers_running") > 0 or crew.drained()  # noqa: B023 - asked at once
            )

        worker.until_started()
        wait_until(at_work, within_s=PATIENCE_S, what=f"handlers under way before kill {kill}")
        worker.kill()
    crew.start(lease_ttl_ms=LEASE_MS, RECORD_MS=80)
    crew.until_drained()
    assert not crew.dead_letters()
    assert_complete_and_in_order([c for c in crew.calls() if c.outcome == "done"], events)
