"""Jobs by the real commands, carried out by worker processes that are killed: a real server, real signals."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from process_kit import PATIENCE_S, Fleet, WorkerProcess
from servers import wait_until

from maskline.schemas.jobs import decode_job
from maskline.worker.entries.queue_item import decode_item

HANDLERS = str(Path(__file__).parents[1] / "retrying_handlers.py")
NOT_LOST_MS = 20_000
"""The leases of a worker that is never killed: where it gets no turn for a second, its events must not run again."""
MASKLINE = str(Path(sys.executable).with_name("maskline"))


class Night:
    """A fleet with a handler that rejects number 2 of the sessions `reject…`, and the operator's commands."""

    def __init__(self, crew: Fleet, directory: Path) -> None:
        self.crew = crew
        self.mended = directory / "mended"
        self.commands: list[subprocess.Popen[str]] = []

    def start(self, **settings: Any) -> WorkerProcess:
        return self.crew.start(handlers=HANDLERS, MENDED_FILE=self.mended, **settings)

    def command(self, *argv: str) -> "subprocess.Popen[str]":
        """Start `maskline …`, which goes on beside the test."""
        environment = {**self.crew.environment(handlers=HANDLERS), "MENDED_FILE": str(self.mended)}
        del environment["MASKLINE_ADMIN_PORT"]
        self.commands.append(
            subprocess.Popen(
                [MASKLINE, *argv], env=environment, text=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return self.commands[-1]

    def report(self, command: "subprocess.Popen[str]", *, code: int) -> dict[str, Any]:
        """The JSON that a command ends with, and this exit code."""
        out, errors = command.communicate(timeout=2 * PATIENCE_S)
        assert command.returncode == code, out + errors
        return dict(json.loads(out))

    def calls(self, handler: str = "parks", session: str = "", outcome: str = "done") -> list[dict[str, Any]]:
        """The calls of a handler that ended so, in their order."""
        return [
            line
            for line in self.crew.lines()
            if line["handler"] == handler
            and line["session"].startswith(session)
            and line["outcome"] == outcome
        ]

    def until_replayed(self, count: int) -> None:
        wait_until(
            lambda: sum(call["replayed"] for call in self.calls()) >= count,
            within_s=PATIENCE_S, what=f"{count} calls of a replay",
        )  # fmt: skip

    def park(self, sessions: list[str], numbers: range) -> None:
        """Have the handler reject number 2 of each session, so that the rest waits behind it."""
        self.crew.put_all([(session, number) for number in numbers for session in sessions])
        self.crew.until_drained()
        assert len(self.crew.dead_letters()) == len(sessions)

    def left(self) -> set[tuple[str, int]]:
        """The events that `parks` has not handled as far as Redis knows: dead letters, and what waits in queues."""
        found = {(str(one.session_uuid), int(one.sequence_number or 0)) for one in self.crew.dead_letters()}
        pattern = f"{{{self.crew.namespace}:*}}:retry:workers:parks:*"
        for key in self.crew.client.keys(pattern):
            session = key.decode().rpartition(":")[2]
            items = [decode_item(item) for item in self.crew.client.lrange(key, 0, -1)]
            stream = self.crew.stream(session)
            for item in items:
                ((_, fields),) = self.crew.client.xrange(stream, item.entry_id, item.entry_id)
                assert fields[b"c"] == item.callback
                found.add((session, int(item.callback.partition(b"SequenceNumber=")[2][:1])))
        return found


@pytest.fixture
def night(crew: Fleet, tmp_path: Path):
    it = Night(crew, tmp_path)
    yield it
    for command in it.commands:
        command.kill()
        command.communicate()


def numbers_of(calls: list[dict[str, Any]]) -> dict[str, list[int]]:
    by_session: defaultdict[str, list[int]] = defaultdict(list)
    for call in calls:
        by_session[call["session"]].append(call["number"])
    return dict(by_session)


def test_killed_replay_leaves_nothing_out_and_repeats_only_what_was_under_way(night: Night) -> None:
    sessions = [f"reject{at}" for at in range(240)]
    worker = night.start()
    night.park(sessions, range(1, 6))
    night.mended.touch()
    command = night.command("dead", "replay", "--handler", "parks", "--rate", "150", "--yes", "--json")
    for killed_at in (150, 450):
        night.until_replayed(killed_at // 4)  # of each session one in four is a replayed dead letter
        worker.kill()
        before, left = len(night.calls()), night.left()
        assert left, "it was killed in the middle"
        worker = night.start()
        wait_until(lambda seen=before: len(night.calls()) > seen, within_s=PATIENCE_S)
    report = night.report(command, code=0)
    assert (report["succeeded"], report["state"]) == (240, "done")
    wait_until(lambda: not night.left(), within_s=PATIENCE_S, what="what waited behind the letters")
    calls = night.calls()[before:]
    assert numbers_of(calls).keys() == {session for session, _ in left}
    for session, numbers in numbers_of(calls).items():
        assert numbers == sorted({number for of, number in left if of == session}), session
    for session, numbers in numbers_of(night.calls()).items():
        assert list(dict.fromkeys(numbers)) == [1, 2, 3, 4, 5], session
    assert numbers_of(night.calls("well")) == {session: [1, 2, 3, 4, 5] for session in sessions}
    assert len({call["key"] for call in night.calls()}) == 5 * len(sessions), "a repeat has the same key"


def test_replayed_session_is_never_mixed_with_its_live_events(night: Night) -> None:
    night.start(lease_ttl_ms=NOT_LOST_MS)
    night.crew.put_all([("ride", number) for number in range(1, 41)])
    night.crew.until_drained()
    command = night.command("replay", "--session", "ride", "--yes", "--json")
    live = 40
    # One commit takes the runs of 250 events for two handlers; between two commits live events may come.
    while command.poll() is None and live < 240:
        live += 1
        night.crew.put("ride", live)
        wait_until(lambda number=live: number in numbers_of(night.calls("well"))["ride"], within_s=PATIENCE_S)
    report = night.report(command, code=0)
    for handler in ("well", "parks"):
        wait_until(
            lambda of=handler: [c["number"] for c in night.calls(of) if not c["replayed"]][-1] == live,
            within_s=PATIENCE_S,
        )
        calls = night.calls(handler)
        again = [call["number"] for call in calls if call["replayed"]]
        assert again == list(range(1, len(again) + 1)), "each once, in order"
        assert len(again) >= 40
        assert [call["number"] for call in calls if not call["replayed"]] == list(range(1, live + 1))
        kinds = "".join("r" if call["replayed"] else "l" for call in calls)
        assert kinds.strip("l") == "r" * len(again), "no live event between those that run again"
        assert report["succeeded"] == 2 * len(again)


def test_discarded_letters_let_the_rest_go_on(night: Night) -> None:
    night.start(lease_ttl_ms=NOT_LOST_MS)
    night.park(["reject0", "reject1"], range(1, 5))
    report = night.report(night.command("dead", "discard", "--session", "reject0", "--yes", "--json"), code=0)
    assert (report["discarded"], report["state"]) == (1, "done")
    wait_until(lambda: len(night.calls("parks", "reject0")) == 3, within_s=PATIENCE_S)
    seen = [(call["number"], call["skipped"]) for call in night.calls("parks", "reject0")]
    assert seen == [(1, []), (3, [2]), (4, [2])]
    assert numbers_of(night.calls())["reject1"] == [1], "the other session waits on"


def test_job_goes_on_without_its_starter_and_keeps_to_its_rate(night: Night) -> None:
    count, rate = 45, 30
    night.start()
    night.park([f"reject{at}" for at in range(count)], range(1, 4))
    night.mended.touch()
    command = night.command("dead", "replay", "--all", "--rate", str(rate), "--yes", "--json")
    night.until_replayed(1)
    command.kill()
    wait_until(lambda: not night.left(), within_s=PATIENCE_S, what="the replay to end")
    assert sorted(numbers_of(night.calls()).values()) == [[1, 2, 3]] * count
    begun = [call["at"] for call in night.calls() if call["replayed"]]
    assert len(begun) == count
    at_once = 3  # what a tenth of a second brings
    assert max(begun) - min(begun) > 0.8 * (count - at_once) / rate, "faster than its rate"
    listed = night.command("replay", "list", "--json").communicate(timeout=PATIENCE_S)[0]
    assert [(job["state"], job["succeeded"]) for job in json.loads(listed)] == [("done", count)]


@pytest.mark.parametrize("way", ["reject", "wait"])
def test_job_stops_itself_if_what_it_runs_fails_again(night: Night, way: str) -> None:
    """Given up at once, or tried on for a day: the command says within seconds that the bug is still there."""
    night.start(GIVE_UP_FIRST=1)
    night.park([f"{way}{at}" for at in range(60)], range(1, 4))
    command = night.command("dead", "replay", "--all", "--rate", "40", "--yes", "--json")
    report = night.report(command, code=1)
    assert report["state"] == "failing"
    again = report["failed"] + report["under_way"]
    assert 5 <= again < 60, report
    assert report["succeeded"] == 0
    assert (report["under_way"] > 0) is (way == "wait")
    assert len(night.crew.dead_letters()) == 60 - report["under_way"], "what was not begun is as it was"
    (job,) = night.crew.client.hvals(night.crew.keys.jobs)
    assert decode_job(job).failing
