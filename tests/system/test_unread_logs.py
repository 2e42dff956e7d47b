"""Nodes whose stderr is a full pipe that nobody reads: they work on, say what they drop, and stop."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from process_kit import HANDLERS, LEASE_TTL_MS, PATIENCE_S, Fleet, assert_complete_and_in_order, load
from servers import free_port, wait_until
from system_kit import AUTH_ID, AUTH_TOKEN, Traffic

LOUD = """
from maskline import on
@on.every
async def shout(event, ctx):
    for _ in range(20):
        ctx.log.info("x" * 30_000)
"""

PRINTING = """
import sys
from maskline import on
@on.every
async def show(event, ctx):
    print(event.event_name, flush=True)
    print(event.event_name, file=sys.stderr)
"""


class Node:
    """`python -m maskline.ingest` or `worker`, its stderr a pipe that is full from the start."""

    def __init__(self, *argv: str, environment: dict[str, str]) -> None:
        self.reader, writer = os.pipe()
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"." * 4_095 + b"\n")
        os.set_blocking(writer, True)
        self.admin = environment["MASKLINE_ADMIN_PORT"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"maskline.{argv[0]}", *argv[1:]],
            env=environment,
            stdout=writer,
            stderr=writer,
            stdin=subprocess.DEVNULL,
        )
        os.close(writer)

    def ask(self, path: str) -> str:
        assert self.process.poll() is None
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=PATIENCE_S) as response:
            return str(response.read().decode())

    def until_ready(self) -> None:
        def is_ready() -> bool:
            with contextlib.suppress(OSError):
                return bool(self.ask("/readyz"))
            return False

        wait_until(is_ready, within_s=PATIENCE_S, what="the node to be ready")

    def log(self) -> dict[str, int]:
        return dict(json.loads(self.ask("/readyz"))["log"])

    def dropped(self) -> float:
        found = re.search(r"^maskline_\w+_log_lines_dropped_total (\S+)$", self.ask("/metrics"), re.MULTILINE)
        assert found is not None
        return float(found[1])

    def until_dropped(self) -> None:
        wait_until(lambda: self.dropped() > 0, within_s=PATIENCE_S, what="lines to be dropped")
        assert self.log()["lines_dropped"] > 0

    def read_all(self) -> list[dict[str, Any]]:
        """The log from here on to its end, once the node has stopped."""
        with os.fdopen(os.dup(self.reader)) as lines:
            return [json.loads(line) for line in lines if not line.startswith(".")]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.reader)


@pytest.fixture
def start() -> Iterator[Any]:
    nodes: list[Node] = []

    def begin(*argv: str, environment: dict[str, str]) -> Node:
        nodes.append(Node(*argv, environment=environment | {"MASKLINE_ADMIN_PORT": str(free_port())}))
        return nodes[-1]

    yield begin
    for node in nodes:
        node.close()


def test_worker_with_a_full_log_pipe_keeps_its_leases_and_reports_dropped_lines(
    crew: Fleet, tmp_path: Path, start: Any
) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    node = start("worker", environment=crew.environment(handlers=f"{HANDLERS},{tmp_path / 'loud.py'}"))
    wait_until(lambda: sum(crew.shares()) == crew.partitions, within_s=PATIENCE_S, what="the leases")
    leases = crew.leases()
    events = load(5, 5)
    crew.put_all(events)
    crew.until_drained()
    assert_complete_and_in_order(crew.calls(), events)
    node.until_dropped()
    dropped = node.dropped()
    began = crew.client.time()[0]
    wait_until(
        lambda: crew.client.time()[0] > began + 2 * LEASE_TTL_MS / 1000, what="the leases to be renewed"
    )
    assert crew.leases() == leases
    read: list[dict[str, Any]] = []
    reading = threading.Thread(target=lambda: read.extend(node.read_all()))
    reading.start()
    wait_until(lambda: node.log()["lines_waiting"] == 0, within_s=PATIENCE_S, what="the queue to be read")
    assert node.stop() == 0
    reading.join()
    (told,) = [line for line in read if line["event"] == "log lines dropped"]
    assert (told["lines"], told["level"], told["logger"]) == (dropped, "warning", "maskline.logs")
    assert read[-1]["event"] == "worker stopped"
    assert crew.leases() == {}


def test_worker_goes_on_and_stops_although_nobody_reads_what_a_handler_prints(
    crew: Fleet, tmp_path: Path, start: Any
) -> None:
    (tmp_path / "printing.py").write_text(PRINTING)
    node = start("worker", environment=crew.environment(handlers=tmp_path / "printing.py"))
    crew.put_all(load(1, 1))
    crew.until_drained()
    assert node.stop() == 0
    assert crew.leases() == {}


def test_ingest_with_a_full_log_pipe_goes_on_and_stops(crew: Fleet, tmp_path: Path, start: Any) -> None:
    port = free_port()
    environment = crew.environment(
        handlers=None,
        host="127.0.0.1",
        port=port,
        auth_tokens=f"{AUTH_ID}:{AUTH_TOKEN}",
        spool_dir=tmp_path / "spool",
        log_level="debug",
    )
    node = start("ingest", environment=environment)
    node.until_ready()
    with Traffic(f"http://127.0.0.1:{port}/callbacks") as traffic:
        traffic.until(500)
    assert set(traffic.answers) == {200}
    assert node.log()["lines_waiting"] > 0
    assert node.dropped() == 0
    assert node.stop() == 0


@pytest.mark.parametrize("command", ["ingest", "worker"])
def test_several_processes_with_a_full_log_pipe_stop(
    crew: Fleet, tmp_path: Path, start: Any, command: str
) -> None:
    environment = crew.environment(
        host="127.0.0.1", port=0, auth_tokens=f"{AUTH_ID}:{AUTH_TOKEN}", spool_dir=tmp_path / "spool"
    )
    node = start(command, "--processes", "2", environment=environment)
    node.until_ready()
    child = children(node.process.pid)[0]
    os.kill(child, signal.SIGKILL)  # the supervisor has something to say about it
    wait_until(
        lambda: len(children(node.process.pid)) == 2 and child not in children(node.process.pid),
        within_s=PATIENCE_S,
        what="another in its place",
    )
    node.until_ready()
    assert node.stop() == 0


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
