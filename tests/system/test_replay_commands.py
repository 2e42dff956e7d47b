"""The operator's commands with a real worker: what failed runs again or is discarded, and the rest follows in order."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from process_kit import PATIENCE_S, Fleet
from servers import wait_until

from maskline.schemas.keys import partition_of

HANDLERS = """
from pathlib import Path
from maskline import on

HERE = Path(__file__).parent

@on.every(name="fares", retries=0)
async def settle_fare(event, ctx):
    if ctx.sequence_number == 3 and (HERE / "bug").exists():
        raise KeyError("amount")
    with (HERE / "fares.txt").open("a") as file:
        file.write(f"{event.session_uuid} {ctx.sequence_number} {ctx.replayed} {ctx.skipped}\\n")
"""


def maskline(crew: Fleet, *argv: str, code: int = 0) -> Any:
    """What a command prints as JSON."""
    command = [str(Path(sys.executable).with_name("maskline")), *argv, "--json"]
    done = subprocess.run(command, env=crew.environment(), capture_output=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_dead_letters_and_kept_callbacks_run_again(crew: Fleet):
    (crew.directory / "fares.py").write_text(HANDLERS)
    (crew.directory / "bug").touch()
    crew.start(handlers=crew.directory / "fares.py")

    def handled(session: str) -> list[str]:
        file = crew.directory / "fares.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{session} ")]

    crew.put_all((session, number) for session in ("mended", "left") for number in range(1, 6))

    def waiting() -> list[int]:
        queues = [
            crew.keys.retry_queue(partition_of(it, crew.partitions), "fares", it) for it in ("mended", "left")
        ]
        return [crew.client.llen(queue) for queue in queues]

    wait_until(lambda: len(crew.dead_letters()) == 2 and waiting() == [2, 2], within_s=PATIENCE_S)
    rows = maskline(crew, "dead", "list")
    assert [row["waiting"] for row in rows] == [2, 2]
    assert {(row["handler"], row["sequence_number"], row["parked"]) for row in rows} == {("fares", 3, True)}
    (group,) = maskline(crew, "dead", "groups")
    assert (group["count"], group["waiting"], group["error_type"]) == (2, 4, "KeyError")
    assert group["frame"] == "fares.py:settle_fare"

    report = maskline(crew, "dead", "replay", "--group", group["group_key"], "--yes", code=1)
    assert (report["state"], report["succeeded"], report["failed"]) == ("done", 0, 2)
    (crew.directory / "bug").unlink()
    report = maskline(crew, "dead", "replay", "--session", "mended", "--yes")
    assert (report["state"], report["succeeded"]) == ("done", 1)
    report = maskline(crew, "dead", "discard", "--all", "--yes")
    assert (report["state"], report["discarded"]) == ("done", 1)
    wait_until(lambda: len(handled("mended") + handled("left")) == 9, within_s=PATIENCE_S, what="what waited")
    assert handled("mended") == ["1 False ()", "2 False ()", "3 True ()", "4 False ()", "5 False ()"]
    assert handled("left") == ["1 False ()", "2 False ()", "4 False (3,)", "5 False (3,)"]
    assert crew.dead_letters() == []

    report = maskline(crew, "replay", "--session", "mended", "--handler", "fares", "--yes")
    assert (report["kind"], report["selected"], report["succeeded"]) == ("callbacks", 5, 5)
    assert handled("mended")[5:] == [f"{number} True ()" for number in range(1, 6)]
    assert [row["state"] for row in maskline(crew, "replay", "list")] == ["done"] * 4
