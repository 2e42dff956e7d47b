"""The whole way: simulated sessions, signed and shuffled, by HTTP into ingest, through Redis, to a handler."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from example_counts import LONG
from process_kit import Call, Fleet, by_session
from system_kit import AUTH_ID, AUTH_TOKEN, ingest

SESSIONS = 1_000 if LONG else 300


@pytest.fixture
def ingest_url(crew: Fleet) -> Iterator[str]:
    with ingest(crew) as url:
        yield url


def seen(calls: list[Call], *, recording: bool) -> list[dict[str, Any]]:
    """What `--expect` says of a lane, as the handler saw it."""
    return [
        {
            "event_name": c.event_name,
            "sequence_number": c.number,
            "run": c.run,
            "order": c.order,
            "missing": c.missing,
        }
        for c in calls
        if c.number is not None and c.event_name.startswith("SessionRecording") == recording
    ]


def test_every_event_reaches_the_handler_once_and_in_order(crew: Fleet, ingest_url: str, tmp_path: Path):
    # Nothing is lost, so no gap may be given up, however slow the machine.
    worker = crew.start(gap_timeout_ms=120_000, lease_ttl_ms=10_000)
    expect = tmp_path / "expect.jsonl"
    played = subprocess.run(
        [
            str(Path(sys.executable).with_name("maskline")),
            "simulate",
            "--url",
            ingest_url,
            "--sessions",
            str(SESSIONS),
            "--calls",
            "1",
            "--rate",
            "0",
            "--shuffle",
            "0.5",
            "--duplicates",
            "0.1",
            "--seed",
            "7",
            "--expect",
            str(expect),
            "--json",
        ],
        env=crew.environment(auth_tokens=f"{AUTH_ID}:{AUTH_TOKEN}"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert played.returncode == 0, played.stderr
    report = json.loads(played.stdout)
    assert report["answered"] == {"200": report["sent"]}
    crew.until_drained()

    expected = [json.loads(line) for line in expect.read_text().splitlines()]
    sessions = by_session(crew.calls())
    assert len(expected) == SESSIONS
    assert sessions.keys() == {one["session_uuid"] for one in expected}
    for one in expected:
        calls = sessions[one["session_uuid"]]
        assert seen(calls, recording=False) == one["status"]
        assert seen(calls, recording=True) == one["recording"]
        assert sorted(c.event_name for c in calls if c.number is None) == sorted(one["unsequenced"])
        assert len({c.key for c in calls}) == len(calls)
        assert all(before.end <= after.start for before, after in pairwise(calls))
    assert report["duplicates"] > report["sent"] / 20
    assert (
        worker.metric("duplicates_total")
        == report["duplicates"]
        == sum(one["duplicates"] for one in expected)
    )
    assert len(crew.calls()) == report["sent"] - report["duplicates"]
    assert not crew.dead_letters()
    assert worker.terminate() == 0
