"""Summaries with real workers: dead letters, replays and other groups, and no number in any output."""

import json
import subprocess
import sys
from pathlib import Path

from process_kit import PATIENCE_S, Fleet
from servers import wait_until

SESSION = "0f0f0f0f-aaaa-4bbb-8ccc-000000000001"
FIRST, SECOND = "+14155550123", "+447700900123"  # as the kit's callbacks have them

HANDLERS = """
from pathlib import Path
from maskline import on, Reject
from maskline.events import CallSummary

HERE = Path(__file__).parent

@on(CallSummary, name="billing")
async def bill(summary, ctx):
    print("billing", summary.first_party_number, repr(summary), flush=True)
    if (HERE / "bug").exists():
        raise Reject(f"nobody has {summary.first_party_number}")
    with (HERE / f"{ctx.log._context['handler']}.txt").open("a") as file:
        file.write(f"{summary.call_key} {summary.revision} {ctx.replayed}\\n")
"""


def run(crew: Fleet, *argv: str, code: int = 0) -> str:
    command = [str(Path(sys.executable).with_name("maskline")), *argv]
    done = subprocess.run(
        command, env=crew.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def hides_numbers(text: str) -> bool:
    return FIRST.lstrip("+") not in text and SECOND.lstrip("+") not in text


def test_dead_letters_replays_and_other_groups(crew: Fleet):
    module = crew.directory / "billing.py"
    module.write_text(HANDLERS)
    (crew.directory / "bug").touch()
    worker = crew.start(handlers=f"maskline.handlers.call_summary,{module}")
    other = crew.directory / "other.py"
    other.write_text(HANDLERS.replace('"billing"', '"others"'))
    crew.start(handlers=other, group="others", redis_url=crew.server.url)
    ended = {"Amount": "0.02", "Duration": "61"}
    crew.put(SESSION, 1)
    crew.put(SESSION, 2, EventName="SessionFirstPartyHangup")
    crew.put(SESSION, 3, EventName="SessionPartiesHangup", **ended)
    wait_until(crew.dead_letters, within_s=PATIENCE_S, what="a dead letter")

    (row,) = json.loads(run(crew, "dead", "list", "--event", "CallSummary", "--json"))
    assert (row["handler"], row["sequence_number"], row["session_uuid"]) == ("billing", None, SESSION)
    assert hides_numbers(row["reason"])
    shown = run(crew, "dead", "show", row["id"])
    assert hides_numbers(shown)
    assert "first_party_number = num_" in shown

    (crew.directory / "bug").unlink()
    file = crew.directory / "billing.txt"
    run(crew, "dead", "replay", "--event", "CallSummary", "--yes")
    assert file.read_text().splitlines() == [f"{SESSION}:call:1 1 True"]
    run(crew, "replay", "--session", SESSION, "--handler", "billing", "--yes")
    assert file.read_text().splitlines() == [f"{SESSION}:call:1 1 True"] * 2
    assert not (crew.directory / "others.txt").exists()
    wait_until(
        lambda: all(
            group["lag"] == 0
            for number in range(crew.partitions)
            for group in crew.client.xinfo_groups(crew.keys.callbacks(number))
        ),
        within_s=PATIENCE_S,
        what="both groups to have read everything",
    )
    assert hides_numbers(worker.log)
    assert worker.log.count("billing num_") >= 3
