"""A slice of `make chaos`, short and slow enough for any machine: the real command, its table, its way out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from servers import wait_until

RUN = Path(__file__).with_name("run.py")
DURATION_S, RATE = 24, 60
LEASE_S = 2.5
"""A process that gets no turn for so long is not to be expected even beside all other tests."""
SEED = 361_338
"""One fault of each kind, on every role: a spool removed, descriptors used up, a log that nobody reads, a slow link, a
failover and the old primary's return, a kill, restarts, a cut, a server that stops."""


def command(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("SEED", "DURATION_S", "RATE")
    }
    return subprocess.Popen(
        [sys.executable, str(RUN), "--keep", str(tmp_path / "kept"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(directory: Path) -> list[int]:
    """Processes whose files are in the directory, by what the kernel says of their open ones."""
    pids: list[int] = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and any(
                str(link.readlink()).startswith(str(directory)) for link in (process / "fd").iterdir()
            ):
                pids.append(int(process.name))
        except OSError:
            continue
    return pids


def test_chaos_run_keeps_all_promises(tmp_path: Path):
    process = command(
        tmp_path,
        "--seed",
        str(SEED),
        "--duration-s",
        str(DURATION_S),
        "--rate",
        str(RATE),
        "--lease-s",
        str(LEASE_S),
        "--json",
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err + out
    report: dict[str, Any] = json.loads(out)
    assert report["held"]
    assert not any(report["broken"].values())
    faults = {kind.partition(" ")[0] for kind in report["faults"]}
    assert faults >= {
        "spool",
        "descriptors",
        "log",
        "slow",
        "fail_over",
        "come_back",
        "kill",
        "restart",
        "cut",
        "stop",
    }
    assert report["counts"]["callbacks answered 200"] > DURATION_S * RATE / 2
    assert report["counts"]["calls"] >= report["counts"]["callbacks answered 200"]
    assert report["recovery"]["drained"]["count"] == 1
    assert report["recovery"]["replayed"]["count"] == 1
    assert report["counts"]["commands of operators"] > 5
    assert f"SEED={SEED}" in err
    assert not alive(tmp_path)


def test_directory_that_is_not_empty_is_refused(tmp_path: Path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "history.jsonl").touch()
    process = command(tmp_path)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "must be empty" in out


def test_interrupted_run_stops_all_processes_and_has_no_verdict(tmp_path: Path):
    process = command(tmp_path, "--seed", "1", "--duration-s", "600", "--rate", str(RATE))
    handlers = tmp_path / "kept" / "handlers.jsonl"
    wait_until(
        lambda: process.poll() is not None or (handlers.exists() and handlers.stat().st_size > 10_000),
        within_s=60,
        what="the run to be under way",
    )
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "nothing is decided" in out
    assert not alive(tmp_path)
