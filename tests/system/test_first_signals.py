"""SIGTERM and SIGINT that come while a node is still importing its modules."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import wait_until

MASKLINE = str(Path(sys.executable).with_name("maskline"))
STALLS = """
import sys, time

class Stalls:
    def find_spec(self, name, path=None, target=None):
        if name == "structlog":
            open("importing", "w").close()
            for _ in range(6000):  # a signal right before one long sleep would be heard after it
                time.sleep(0.01)

sys.meta_path.insert(0, Stalls())
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "command",
    [
        [MASKLINE, "worker", "--processes", "2"],
        [MASKLINE, "dev"],
        [sys.executable, "-m", "maskline.ingest"],
        [sys.executable, "-m", "maskline.worker"],
    ],
)
def test_node_stopped_while_importing_exits_0_without_output(tmp_path, command, signum):
    (tmp_path / "sitecustomize.py").write_text(STALLS)
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, stderr=subprocess.PIPE
    )
    with process:
        wait_until((tmp_path / "importing").exists, within_s=60, what="the import to begin")
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
