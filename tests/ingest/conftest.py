import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ingest_kit
import pytest
from ingest_processes import Process

sys.path.append(str(Path(__file__).parents[1] / "chaos"))  # its proxy stands between a node and Redis


@pytest.fixture(autouse=True)
def spool_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test spools into its own directory, never into the working directory."""
    monkeypatch.setattr(ingest_kit, "SPOOL_DIR", tmp_path / "spool")
    return tmp_path / "spool"


@pytest.fixture
def run_ingest() -> Iterator[Any]:
    processes: list[Process] = []

    def run(*arguments: str, **settings: Any) -> Process:
        processes.append(Process(*arguments, **settings))
        return processes[-1]

    yield run
    for process in processes:
        if process.process.poll() is None:
            process.kill()
