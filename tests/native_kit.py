"""The parts in C, where they are built, and how a test does without them.

Tests of both ways are parametrised with WAYS. Where there is no compiler there is one way only, to test as to use.
"""

from importlib.util import find_spec

import pytest

from maskline.worker.entries import decode
from maskline.worker.partitions import partition

PARTS = (
    "maskline.schemas.fastdecode.native",
    "maskline.worker.native.entries",
    "maskline.worker.native.order",
    "maskline.worker.native.packing",
)
BUILT = all(find_spec(part) for part in PARTS)
WAYS = ("c", "python") if BUILT else ("python",)

WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({PARTS}))
runpy.run_module("maskline.worker", run_name="__main__", alter_sys=True)
"""
"""A worker's program: importing the parts fails there, as though they were not built."""


def go(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let partitions go this way."""
    if way == "python":
        monkeypatch.setattr(partition, "arrive_ordinary", None)
        monkeypatch.setattr(partition, "evict_idle", None)
        monkeypatch.setattr(decode, "IN_C", False)
        monkeypatch.setattr(partition, "entry_decoder", decode.EntryDecoder)
    else:
        assert partition.arrive_ordinary is not None
        assert partition.evict_idle is not None
        assert decode.IN_C
