"""What a node's start imports: its length is what a deploy, a crash and a sandbox run wait for."""

import subprocess
import sys
from pathlib import Path

import pytest

MASKLINE = str(Path(sys.executable).with_name("maskline"))


@pytest.mark.parametrize(
    "command", [["-m", "maskline.worker"], [MASKLINE, "ingest"]], ids=["module", "command"]
)
def test_start_imports_no_library_that_only_clusters_need(command):
    started = [sys.executable, "-X", "importtime", *command, "--help"]
    imported = subprocess.run(started, capture_output=True, text=True, check=True, timeout=60).stderr
    # The modules inside packages: a name alone is listed for an attempt to import it, too.
    packages = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in imported.splitlines() if "." in line
    }
    assert {"maskline", "structlog"} <= packages
    assert "redis" not in packages
