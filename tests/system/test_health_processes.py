"""`maskline health` beside real nodes: several processes, one that is stopped, one that was killed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from process_kit import Fleet
from servers import wait_until
from system_kit import ingest


def ask(crew: Fleet, *arguments: str, **settings: Any) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from maskline.console.main import main; main()",
            "health",
            "--json",
            *arguments,
        ],
        env=crew.environment(**settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_health_of_ingest_and_worker_processes(crew: Fleet, tmp_path: Path) -> None:
    assert ask(crew)[0] == 1
    own = {"TMPDIR": str(tmp_path)}
    first = crew.start(admin_host="::", **own)
    second = crew.start(admin_host="::", **own)
    with ingest(crew, admin_host="::", **own):
        code, report = ask(crew, "--ready", admin_host="::", **own)
        assert code == 0, report
        assert sorted(process["command"] for process in report["processes"]) == ["ingest", "worker", "worker"]
        first.pause()
        code, report = ask(crew, "--timeout", "1", admin_host="::", **own)
        assert code == 1
        wrong = [process["pid"] for process in report["processes"] if not process["ok"]]
        assert wrong == [first.pid]
        assert ask(crew, "ingest", admin_host="::", **own)[0] == 0
        first.kill()  # its supervisor starts another; here there is none
        code, report = ask(crew, "worker", admin_host="::", **own)
        assert (code, [process["pid"] for process in report["processes"]]) == (0, [second.pid])
    second.terminate()
    assert ask(crew, admin_host="::", **own)[0] == 1
    assert not list(tmp_path.glob("maskline-*/*"))


def test_health_covers_each_of_several_processes(crew: Fleet, tmp_path: Path) -> None:
    own = {"TMPDIR": str(tmp_path)}
    supervisor = crew.launch("--processes", "2", **own)
    answers = wait_until(
        lambda: (found := ask(crew, **own)[1]["processes"])[1:] and found, within_s=60, what="two workers"
    )
    child = answers[0]["pid"]
    assert child != supervisor.pid
    subprocess.run(["kill", "-STOP", str(child)], check=True)
    code, report = ask(crew, "--timeout", "0.5", **own)
    subprocess.run(["kill", "-CONT", str(child)], check=True)
    assert code == 1
    assert [process["pid"] for process in report["processes"] if not process["ok"]] == [child]
    assert supervisor.terminate() == 0
