"""Several worker processes of one command."""

import os
import signal
import socket
from pathlib import Path

import pytest
from process_kit import PATIENCE_S, fleet
from servers import wait_until

NEEDING = """
import asyncio, os
from maskline import on, resource

@resource
async def link():
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["NEEDED_PORT"]))
    yield writer
    writer.close()

@on.every
async def handle(event, ctx, link):
    with open(os.environ["RECORD_FILE"], "a") as file:
        file.write(f"{os.getpid()}\\n")
"""


@pytest.fixture
def needing(tmp_path):
    file = tmp_path / "needing.py"
    file.write_text(NEEDING)
    return file


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_child_that_cannot_open_a_resource_does_not_stop_its_siblings(
    redis_server, namespace, tmp_path, needing
):
    with fleet(redis_server, namespace, tmp_path) as it, socket.create_server(("127.0.0.1", 0)) as needed:
        port = needed.getsockname()[1]
        worker = it.launch("--processes", "2", handlers=needing, NEEDED_PORT=port)
        wait_until(
            lambda: worker.log.count('"worker started"') == 2, within_s=PATIENCE_S, what="both to start"
        )
        needed.close()
        before = children(worker.pid)
        os.kill(before[0], signal.SIGKILL)
        wait_until(
            lambda: worker.logged("process failed to start"),
            within_s=PATIENCE_S,
            what="a refusal",
        )
        assert worker.process.poll() is None
        assert before[1] in children(worker.pid)
        it.put_all([(f"s{number}", 1) for number in range(20)])
        it.until_drained()
        with socket.create_server(("127.0.0.1", port)):
            wait_until(
                lambda: worker.log.count('"worker started"') == 3,
                within_s=PATIENCE_S,
                what="it to start again",
            )
            assert worker.terminate() == 0
        line = worker.logged("process failed to start")
        assert line is not None
        assert "the resource link could not be opened" in line["reason"]


def test_command_exits_2_with_one_line_if_no_child_can_open_a_resource(
    redis_server, namespace, tmp_path, needing
):
    with fleet(redis_server, namespace, tmp_path) as it:
        worker = it.launch("--processes", "3", handlers=needing, NEEDED_PORT=1)
        assert worker.process.wait(PATIENCE_S) == 2
        plain = [line for line in worker.log.splitlines() if not line.startswith("{")]
        assert len(plain) == 1
        assert "the resource link could not be opened" in plain[0]
