"""Summaries with real workers: dead letters, replays and other groups, and no number in any output."""

import json

from process_kit import PATIENCE_S, Fleet
from servers import wait_until

from maskline.console.main import main

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


def hides_numbers(text: str) -> bool:
    return FIRST.lstrip("+") not in text and SECOND.lstrip("+") not in text


def test_dead_letters_replays_and_two_groups_that_both_sum_up(crew: Fleet, capsys, monkeypatch):
    for name, value in crew.environment().items():
        monkeypatch.setenv(name, value)

    def run(*argv: str) -> str:
        code = main(list(argv))
        out, err = capsys.readouterr()
        assert code == 0, out + err
        return out

    module, other = crew.directory / "billing.py", crew.directory / "other.py"
    module.write_text(HANDLERS)
    other.write_text(HANDLERS.replace('"billing"', '"others"').replace('"bug"', '"no bug"'))
    (crew.directory / "bug").touch()
    worker = crew.launch(handlers=f"maskline.handlers.call_summary,{module}")
    crew.launch(handlers=f"maskline.handlers.call_summary,{other}", group="others")
    for one in crew.workers:
        one.until_started()
    ended = {"Amount": "0.02", "Duration": "61"}
    crew.put(SESSION, 1)
    crew.put(SESSION, 2, EventName="SessionFirstPartyHangup")
    crew.put(SESSION, 3, EventName="SessionPartiesHangup", **ended)
    file, others = (crew.directory / f"{name}.txt" for name in ("billing", "others"))
    wait_until(lambda: crew.dead_letters() and others.exists(), within_s=PATIENCE_S, what="both summaries")

    (row,) = json.loads(run("dead", "list", "--event", "CallSummary", "--json"))
    assert (row["handler"], row["sequence_number"], row["session_uuid"]) == ("billing", None, SESSION)
    assert hides_numbers(row["reason"])
    shown = run("dead", "show", row["id"])
    assert hides_numbers(shown)
    assert "first_party_number = num_" in shown
    handlers = {row["name"]: row for row in json.loads(run("status", "--json"))["handlers"]}
    assert "billing" in handlers

    (crew.directory / "bug").unlink()
    run("dead", "replay", "--event", "CallSummary", "--yes")
    assert file.read_text().splitlines() == [f"{SESSION}:call:1 1 True"]
    # Each handler again, also the one that sums up: what it has emitted stays as it is.
    run("replay", "--session", SESSION, "--yes")
    assert file.read_text().splitlines() == [f"{SESSION}:call:1 1 True"] * 2
    wait_until(
        lambda: all(
            group["lag"] == 0
            for number in range(crew.partitions)
            for group in crew.client.xinfo_groups(crew.keys.callbacks(number))
        ),
        within_s=PATIENCE_S,
        what="both groups to have read everything",
    )
    assert others.read_text().splitlines() == [f"{SESSION}:call:1 1 False"]
    assert hides_numbers(worker.log)
    assert worker.log.count("billing num_") >= 3
