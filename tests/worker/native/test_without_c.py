"""Where the parts in C are, and a worker that has none."""

import shutil
import sysconfig
from pathlib import Path

from native_kit import BUILT, PARTS, WITHOUT
from process_kit import assert_complete_and_in_order

COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]


def test_parts_in_c_are_built_where_there_is_a_compiler():
    header = Path(sysconfig.get_path("include")) / "Python.h"
    assert bool(shutil.which(COMPILER) and header.exists()) == BUILT, f"{PARTS}: make setup builds them"


def test_worker_without_the_parts_in_c_does_the_same(crew):
    events = [(f"session-{index % 5}", index // 5 + 1) for index in range(40)]
    worker = crew.start(program=WITHOUT)
    crew.put_all(events[::-1])
    crew.until_drained()
    assert_complete_and_in_order(crew.calls(), events)
    assert worker.logged("worker started")["in_c"] is False
