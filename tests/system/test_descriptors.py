"""Nodes that run out of file descriptors, by their clients, their handlers, or a limit that is lowered."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from process_kit import HANDLERS, PATIENCE_S, Fleet, load
from servers import RedisServer, free_port, wait_until
from system_kit import AUTH_ID, AUTH_TOKEN, Traffic

from maskline.runtime.net.descriptors import RESERVE_MIN, for_clients

GREEDY = """
import os
from maskline import on
taken = []
@on.every(retries=0)
async def take_all(event, ctx):
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        raise RuntimeError(f"out of descriptors after {len(taken)}") from None
@on.every(name="content")
async def content(event, ctx):
    pass
"""


NEARLY_ALL = 398
"""Of 400: the connection of the probe before may be closed just then."""


class Node:
    """`python -m maskline.ingest` or `worker` with limits on its descriptors, its stderr in a file."""

    def __init__(
        self, argv: tuple[str, ...], environment: dict[str, str], log: Path, limits: tuple[int, int]
    ) -> None:
        self.log_file = log
        self.admin = int(environment["MASKLINE_ADMIN_PORT"])
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"maskline.{argv[0]}", *argv[1:]],
                env=environment,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),  # noqa: PLW1509 - no threads here
            )

    def ask(self, path: str, *, index: int = 0) -> str:
        assert self.process.poll() is None, self.log_file.read_text()
        url = f"http://127.0.0.1:{self.admin + index}{path}"
        with urllib.request.urlopen(url, timeout=5) as response:
            return str(response.read().decode())

    def until_ready(self, *, index: int = 0) -> None:
        def is_ready() -> bool:
            with contextlib.suppress(OSError):
                return bool(self.ask("/readyz", index=index))
            return False

        wait_until(is_ready, within_s=PATIENCE_S, what="the node to be ready")

    def metric(self, name: str, *, index: int = 0) -> float:
        text = self.ask("/metrics", index=index)
        found = re.search(rf"^maskline_[a-z]+_{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def descriptors(self) -> dict[str, int]:
        return dict(json.loads(self.ask("/readyz"))["descriptors"])

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def limit(self, soft: int, hard: int) -> None:
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (soft, hard))

    def cpu_s(self) -> float:
        ticks = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    nodes: list[Node] = []

    def begin(*argv: str, environment: dict[str, str], limits: tuple[int, int], index: int = 0) -> Node:
        environment = environment | {"MASKLINE_ADMIN_PORT": str(free_port())}
        nodes.append(Node(argv, environment, tmp_path / f"node-{len(nodes)}.log", limits))
        nodes[-1].until_ready(index=index)
        return nodes[-1]

    yield begin
    for node in nodes:
        node.process.kill()
        node.process.wait()


def for_ingest(crew: Fleet, port: int) -> dict[str, str]:
    return crew.environment(
        handlers=None,
        host="127.0.0.1",
        port=port,
        auth_tokens=f"{AUTH_ID}:{AUTH_TOKEN}",
        spool_dir=crew.directory / "spool",
    )


@contextlib.contextmanager
def crowd(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that say nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]


def still_open(connections: list[socket.socket]) -> int:
    count = 0
    for connection in connections:
        connection.setblocking(False)
        try:
            count += connection.recv(1) != b""
        except BlockingIOError:
            count += 1
        except ConnectionError:
            continue
    return count


@pytest.mark.parametrize("limit", [100, 300])
def test_clients_leave_ingest_the_descriptors_it_needs(
    own_redis: RedisServer, own_crew: Fleet, start: Any, limit: int
) -> None:
    port = free_port()
    node = start("ingest", environment=for_ingest(own_crew, port), limits=(limit, limit))
    with Traffic(f"http://127.0.0.1:{port}/callbacks") as traffic:
        traffic.until(50)
        with crowd(port, 400) as connections:
            wait_until(
                lambda: still_open(connections) < for_clients(limit), what="those too many to be closed"
            )
            assert still_open(connections) > for_clients(limit) - 60
            wait_until(lambda: node.metric("connections_refused_total") + still_open(connections) == 400)
            assert node.metric("accept_failures_total") == 0
            assert node.descriptors() == {"open": node.metric("descriptors_open"), "max": limit}
            own_redis.kill()
            traffic.until(50)  # by the spool
            wait_until(lambda: node.metric("spool_callbacks") > 0)
            own_redis.start()
            wait_until(lambda: node.metric("spool_callbacks") == 0, within_s=PATIENCE_S)
            traffic.until(50)
        wait_until(lambda: node.metric("connections") < 40, what="the crowd to be gone")
        with crowd(port, 10) as connections:
            wait_until(lambda: node.metric("connections") >= 10)
            assert still_open(connections) == 10
    assert set(traffic.answers) == {200}
    assert node.stop() == 0
    (line, *_) = node.logged("connections refused")
    assert (line["level"], line["listener"], line["reason"]) == (
        "warning",
        "callbacks",
        "descriptors_reserved",
    )
    assert len(node.logged("connections refused")) < 5
    assert node.logged("few file descriptors")


def test_ingest_without_descriptors_refuses_counts_and_answers_health(crew: Fleet, start: Any) -> None:
    port = free_port()
    node = start("ingest", environment=for_ingest(crew, port), limits=(1_000, 1_000))
    with Traffic(f"http://127.0.0.1:{port}/callbacks") as traffic:
        traffic.until(50)
        node.limit(15, 1_000)  # more are open
        with crowd(port, 100) as connections:
            # One or two may find a number that is free below the limit.
            wait_until(lambda: node.metric("connections_refused_total") + still_open(connections) == 100)
            wait_until(lambda: still_open(connections) < 5, what="nearly all to be refused")
            for _ in range(10):  # each on a connection of its own
                assert json.loads(node.ask("/readyz"))["ok"]
            assert node.metric("accept_failures_total") >= 90
        traffic.until(200)
        node.limit(1_000, 1_000)
        with crowd(port, 10) as connections:
            wait_until(lambda: node.metric("connections") >= 10)
            assert still_open(connections) == 10
    assert set(traffic.answers) == {200}
    assert 0 < len(node.logged("connections refused")) < 5
    assert node.stop() == 0


def test_connection_that_cannot_be_accepted_does_not_spin_the_loop(crew: Fleet, start: Any) -> None:
    port = free_port()
    node = start("ingest", environment=for_ingest(crew, port), limits=(1_000, 1_000))
    node.limit(3, 1_000)  # not even a spare's number is below
    with crowd(port, 10) as connections:
        wait_until(lambda: node.logged("accepting connections paused"))
        before, began = node.cpu_s(), time.monotonic()
        wait_until(lambda: time.monotonic() > began + 1)
        assert node.cpu_s() - before < 0.5
        node.limit(1_000, 1_000)
        wait_until(lambda: node.metric("connections") == 10, what="those that waited to be accepted")
        assert still_open(connections) == 10
    assert node.stop() == 0


def test_handler_that_takes_all_descriptors_leaves_health_and_work_under_way(
    crew: Fleet, tmp_path: Path, start: Any
) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    environment = crew.environment(handlers=tmp_path / "greedy.py")
    node = start("worker", environment=environment, limits=(100, 400))
    crew.put_all(load(2, 2))
    wait_until(crew.dead_letters, within_s=PATIENCE_S, what="the greedy handler to fail")
    crew.put_all([("later", number) for number in range(1, 21)])
    crew.until_drained()
    assert re.search(r'attempts_succeeded_total{handler="[^"]*content"} 24.0', node.ask("/metrics"))
    for _ in range(10):
        health = json.loads(node.ask("/readyz"))
        assert (health["ok"], health["descriptors"]["max"]) == (True, 400)
        assert health["descriptors"]["open"] >= NEARLY_ALL
    assert node.metric("descriptors_open") >= NEARLY_ALL
    assert node.stop() == 0


def test_worker_without_descriptors_connects_once_there_are_some(
    own_redis: RedisServer, own_crew: Fleet, start: Any
) -> None:
    node = start("worker", environment=own_crew.environment(), limits=(2_000, 2_000))
    own_crew.put_all([("first", 1)])
    own_crew.until_drained()
    node.limit(20, 2_000)  # more are open
    own_redis.restart()

    def is_unwell() -> bool:
        try:
            return not node.ask("/readyz")
        except urllib.error.HTTPError as error:
            return error.code == 503

    wait_until(is_unwell, within_s=PATIENCE_S, what="the worker to say that it is not connected")
    node.limit(2_000, 2_000)
    own_crew.put_all([("later", number) for number in range(1, 21)])
    own_crew.until_drained()
    assert node.stop() == 0


@pytest.mark.parametrize("command", ["ingest", "worker"])
@pytest.mark.parametrize("processes", [1, 2])
def test_soft_limit_is_raised_to_the_hard_one(crew: Fleet, start: Any, command: str, processes: int) -> None:
    last = processes - 1
    node = start(
        command,
        "--processes",
        str(processes),
        environment=for_ingest(crew, 0) | {"MASKLINE_HANDLERS": HANDLERS},
        limits=(200, 700),
        index=last,
    )
    assert node.metric("descriptors_max", index=last) == 700


@pytest.mark.parametrize("limit", [16, 64, 100, 1_024, 65_536, 1 << 30])
def test_clients_get_most_but_never_all(limit: int) -> None:
    assert limit * 3 // 4 <= for_clients(limit) <= max(limit * 3 // 4, limit - RESERVE_MIN)
