"""What fails is set aside, in order, through stops and kills: worker processes and a real server."""

import json
from pathlib import Path

import pytest
from process_kit import PATIENCE_S, Fleet
from servers import wait_until

from maskline.schemas.keys import partition_of

HANDLERS = str(Path(__file__).parents[1] / "retrying_handlers.py")


@pytest.fixture
def retrying(crew: Fleet, tmp_path: Path) -> "Retrying":
    return Retrying(crew, tmp_path)


class Retrying:
    """A fleet whose handlers fail until they are mended."""

    def __init__(self, crew: Fleet, directory: Path) -> None:
        self.crew = crew
        self.mended = directory / "mended"

    def start(self, **settings):
        return self.crew.start(handlers=HANDLERS, MENDED_FILE=self.mended, **settings)

    def calls(self, handler: str, session: str) -> list[tuple[int, int, str]]:
        """Number, attempt and outcome of each call."""
        if not self.crew.record_file.exists():
            return []
        lines = [json.loads(line) for line in self.crew.record_file.read_text().splitlines()]
        return [
            (line["number"], line["attempt"], line["outcome"])
            for line in lines
            if line["handler"] == handler and line["session"] == session
        ]

    def until_done(self, handler: str, session: str, numbers: list[int]) -> None:
        def done() -> bool:
            return [number for number, _, how in self.calls(handler, session) if how == "done"] == numbers

        wait_until(done, within_s=PATIENCE_S, what=f"{handler} to handle {numbers}")

    def counts(self, session: str) -> dict[bytes, bytes]:
        partition = partition_of(session, self.crew.partitions)
        return {
            name: count
            for name, count in self.crew.client.hgetall(self.crew.keys.retry_counts(partition)).items()
            if count != b"0"
        }

    def queue_keys(self) -> list[bytes]:
        return [
            key
            for key in self.crew.client.keys(f"{{{self.crew.namespace}:*}}:retry*")
            if b":retry-counts:" not in key
        ]


def test_events_wait_in_order_behind_one_that_fails_and_other_handlers_go_on(retrying: Retrying):
    crew = retrying.crew
    worker = retrying.start(RETRY_AFTER_MS=2_500)
    crew.put_all([("wait", number) for number in (1, 2, 3)])
    retrying.until_done("well", "wait", [1, 2, 3])
    crew.until_drained()
    assert retrying.counts("wait") == {b"waiting parks": b"3"}
    state = crew.keys.session(partition_of("wait", crew.partitions), "wait")
    assert crew.client.ttl(state) == -1, "it must last as long as its queue"
    assert [call[:2] for call in retrying.calls("parks", "wait")] == [(1, 1)]
    retrying.mended.touch()
    retrying.until_done("parks", "wait", [1, 2, 3])
    assert retrying.calls("parks", "wait")[1:] == [(1, 2, "done"), (2, 1, "done"), (3, 1, "done")]
    wait_until(lambda: not retrying.counts("wait"), within_s=PATIENCE_S)
    wait_until(lambda: not retrying.queue_keys(), within_s=PATIENCE_S, what="the queue to be gone")
    wait_until(lambda: crew.client.ttl(state) > 0, within_s=PATIENCE_S)
    crew.put("wait", 4)
    retrying.until_done("parks", "wait", [1, 2, 3, 4])
    assert worker.terminate() == 0
    assert crew.dead_letters() == []


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_attempts_and_what_is_done_outlive_the_worker(retrying: Retrying, way: str):
    retrying.crew.put_all([("wait", number) for number in (1, 2)])
    for round_ in (1, 2, 3):
        worker = retrying.start(RETRY_AFTER_MS=2_001)
        wait_until(lambda count=round_: len(retrying.calls("parks", "wait")) >= count, within_s=PATIENCE_S)
        retrying.crew.until_drained()
        wait_until(
            lambda: not retrying.crew.client.keys(f"{{{retrying.crew.namespace}:*}}:retry-taken*"),
            within_s=PATIENCE_S,
            what="the failed attempt to be committed",
        )
        if way == "stop":
            assert worker.terminate() == 0
        else:
            worker.kill()
    retrying.mended.touch()
    retrying.start()
    retrying.until_done("parks", "wait", [1, 2])
    attempts = [attempt for number, attempt, _ in retrying.calls("parks", "wait") if number == 1]
    assert attempts == sorted(set(attempts)), "no attempt is counted twice, and none is forgotten"
    assert retrying.calls("well", "wait") == [(1, 1, "done"), (2, 1, "done")]


def test_stop_in_the_middle_of_inline_retries_keeps_their_count(retrying: Retrying):
    retrying.crew.put("wait", 1)
    worker = retrying.start(RETRY_AFTER_MS=900)
    wait_until(lambda: len(retrying.calls("parks", "wait")) == 2, within_s=PATIENCE_S)
    assert worker.terminate() == 0
    retrying.mended.touch()
    retrying.start()
    retrying.until_done("parks", "wait", [1])
    assert [attempt for _, attempt, _ in retrying.calls("parks", "wait")] == [1, 2, 3]
    assert retrying.calls("well", "wait") == [(1, 1, "done")]


def test_rejected_event_parks_its_queue_or_is_skipped(retrying: Retrying):
    crew = retrying.crew
    retrying.start(SKIP_TOO=1)
    crew.put_all([("reject", number) for number in (1, 2, 3, 4)])
    retrying.until_done("well", "reject", [1, 2, 3, 4])
    retrying.until_done("skips", "reject", [1, 3, 4])
    crew.until_drained()
    assert [number for number, _, how in retrying.calls("parks", "reject") if how == "done"] == [1]
    assert retrying.counts("reject") == {b"waiting parks": b"2", b"parked parks": b"2"}
    letters = {letter.handler: letter for letter in crew.dead_letters()}
    assert {name: (letter.parked, letter.sequence_number) for name, letter in letters.items()} == {
        "parks": (True, 2),
        "skips": (False, 2),
    }
    lines = [json.loads(line) for line in crew.record_file.read_text().splitlines()]
    skipped = {line["number"]: line["skipped"] for line in lines if line["handler"] == "skips"}
    assert skipped == {1: [], 2: [], 3: [2], 4: [2]}


def test_queue_whose_handler_ends_the_process_is_given_up_and_parked(retrying: Retrying):
    crew = retrying.crew
    crew.put_all([("crash", number) for number in (1, 2, 3)])
    crew.put_all([("s1", number) for number in (1, 2, 3)])
    deaths = 0
    worker = retrying.start()

    def given_up() -> bool:
        nonlocal deaths, worker
        if worker.process.poll() is not None:
            deaths += 1
            assert deaths <= 4, worker.log
            worker = retrying.start()
        return bool(crew.dead_letters())

    wait_until(given_up, within_s=4 * PATIENCE_S, what="the event to be given up")
    (letter,) = crew.dead_letters()
    assert (letter.code, letter.handler, letter.sequence_number) == ("crashed_worker", "parks", 2)
    assert deaths == 2, "the third time a sandbox dies in its place"
    retrying.until_done("parks", "s1", [1, 2, 3])
    assert retrying.counts("crash") == {b"waiting parks": b"1", b"parked parks": b"1"}
    assert retrying.calls("well", "crash") == [(number, 1, "done") for number in (1, 2, 3)]
