"""Admin ports of several nodes on one machine: found where they are not set; set and taken, exit code 2."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from process_kit import PATIENCE_S, Fleet
from servers import free_port, wait_until
from system_kit import AUTH_ID, AUTH_TOKEN


class Run:
    """A command and what it logs."""

    def __init__(self, argv: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        self.log_file = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"maskline.{argv[0]}", *argv[1:]],
                env=environment,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
            )

    def admin_urls(self, count: int) -> list[str]:
        """Of `count` nodes, once they have started."""

        def found() -> list[str]:
            assert self.process.poll() is None, self.log_file.read_text()
            return re.findall(r'"admin":"(http://127\.0\.0\.1:\d+)"', self.log_file.read_text())

        wait_until(lambda: len(found()) >= count, within_s=PATIENCE_S, what=f"{count} nodes to start")
        return found()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def start(crew: Fleet, tmp_path: Path) -> Iterator[Any]:
    runs: list[Run] = []

    def begin(*argv: str, **settings: Any) -> Run:
        defaults = {
            "host": "127.0.0.1",
            "port": 0,
            "auth_tokens": f"{AUTH_ID}:{AUTH_TOKEN}",
            "spool_dir": tmp_path / "spool",
            "admin_port": None,
        }
        environment = crew.environment(**(defaults | settings))
        runs.append(Run(argv, environment, tmp_path / f"log-{len(runs)}"))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait()


def test_nodes_without_an_admin_port_find_free_ones(start: Any) -> None:
    runs = [start("ingest", "--processes", "2"), start("worker"), start("worker", "--processes", "2")]
    urls = [url for run, count in zip(runs, (2, 1, 2), strict=True) for url in run.admin_urls(count)]
    assert len(set(urls)) == len(urls) == 5
    for url in urls:
        with urllib.request.urlopen(f"{url}/healthz", timeout=PATIENCE_S) as response:  # noqa: S310 - our own
            assert json.load(response)["ok"]
    assert [run.stop() for run in runs] == [0, 0, 0]


def started_on_9090(start: Any) -> Run:
    """A node whose callback port is the default admin port, once no node of another test has that."""

    def started() -> Run | None:
        run: Run = start("ingest", port=9090)
        wait_until(
            lambda: run.process.poll() is not None or "ingest started" in run.log_file.read_text(),
            within_s=PATIENCE_S,
            what="the node to start, or to end",
        )
        if run.process.poll() is None:
            return run
        assert "cannot listen on 127.0.0.1:9090: Address already in use" in run.log_file.read_text()
        return None

    found: Run = wait_until(started, within_s=PATIENCE_S, what="a free port 9090")
    return found


def test_default_admin_port_avoids_the_callback_port(start: Any) -> None:
    run = started_on_9090(start)
    (url,) = run.admin_urls(1)
    assert not url.endswith(":9090")
    assert '"http://127.0.0.1:9090/callbacks"' in run.log_file.read_text()


def test_processes_count_up_from_the_set_admin_port(start: Any) -> None:
    port = free_port()
    run = start("worker", "--processes", "2", admin_port=port)
    assert sorted(run.admin_urls(2)) == [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"]
    assert run.stop() == 0


@pytest.mark.parametrize("command", ["ingest", "worker"])
@pytest.mark.parametrize("source", ["environment", "file"])
def test_set_admin_port_that_is_taken_exits_2(start: Any, tmp_path: Path, command: str, source: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = tmp_path / "maskline.toml"
        config.write_text(f"MASKLINE_ADMIN_PORT = {port}\n")
        settings = {"admin_port": port} if source == "environment" else {"config": config}
        run = start(command, **settings)
        assert run.process.wait(PATIENCE_S) == 2
    complaints = [line for line in run.log_file.read_text().splitlines() if not line.startswith("{")]
    assert len(complaints) == 1
    assert "MASKLINE_ADMIN_PORT" in complaints[0]
    assert str(port) in complaints[0]
