"""Deploys while handlers fail: what has succeeded runs once, and what fails is counted on, in order."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from example_counts import LONG
from process_kit import PATIENCE_S, Fleet
from servers import wait_until

HANDLERS = str(Path(__file__).parents[1] / "retrying_handlers.py")
DEPLOYS = 8 if LONG else 4
SESSIONS = 4
"""Fewer than it takes for the handler to be down: then no try would count."""
NUMBERS = (1, 2)
RETRY_MS = 700
"""Some tries follow each other in a worker, and then they are set aside: deploys meet both."""


def calls(crew: Fleet) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The calls of each handler in each session, in their order."""
    found: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in crew.record_file.read_text().splitlines() if crew.record_file.exists() else ():
        call = json.loads(line)
        found[call["handler"], call["session"]].append(call)
    return found


def test_deploys_during_a_backoff_run_nothing_twice(crew: Fleet, tmp_path: Path):
    mended = tmp_path / "mended"
    settings = {"handlers": HANDLERS, "MENDED_FILE": mended, "RETRY_AFTER_MS": RETRY_MS}
    sessions = [f"wait{number}" for number in range(SESSIONS)]
    crew.put_all([(session, number) for number in NUMBERS for session in sessions])
    old = crew.start(**settings)
    for deploy in range(1, DEPLOYS + 1):
        tries = max((call["attempt"] for one in calls(crew).values() for call in one), default=0)
        wait_until(
            lambda more=tries: any(call["attempt"] > more for one in calls(crew).values() for call in one),
            within_s=PATIENCE_S,
            what=f"further tries before deploy {deploy}",
        )
        new = crew.start(**settings)  # as a rolling update does: the new one is there before the old one goes
        assert old.terminate() == 0
        old = new
    mended.touch()

    def done() -> bool:
        found = calls(crew)
        return all(
            [call["number"] for call in found["parks", session] if call["outcome"] == "done"] == [*NUMBERS]
            for session in sessions
        )

    wait_until(done, within_s=PATIENCE_S, what="all to be handled, in order")
    found = calls(crew)
    for session in sessions:
        assert [call["number"] for call in found["well", session]] == [*NUMBERS], "what succeeded ran once"
        first = [call for call in found["parks", session] if call["number"] == NUMBERS[0]]
        assert [call["attempt"] for call in first] == [*range(1, len(first) + 1)], "each try is counted once"
        (second,) = [call for call in found["parks", session] if call["number"] == NUMBERS[1]]
        assert second["attempt"] == 1
        assert len({call["key"] for call in first}) == 1
    assert max(call["attempt"] for one in found.values() for call in one) > DEPLOYS
    assert old.terminate() == 0
    assert crew.dead_letters() == []
