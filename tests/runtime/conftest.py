import os
import textwrap

import pytest
from running_kit import PRELUDE, Running


@pytest.fixture
def start(tmp_path):
    """Starts `python -m NAME` with the given source, which children find as `child`."""
    runs = []

    def begin(source, *argv, child=""):
        (tmp_path / "parent.py").write_text(PRELUDE + textwrap.dedent(source))
        (tmp_path / "child.py").write_text(PRELUDE + textwrap.dedent(child))
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
        runs.append(Running("-m", "parent", *argv, env=env))
        return runs[-1]

    yield begin
    for run in runs:
        run.timer.cancel()
        run.process.kill()
        run.process.communicate()
