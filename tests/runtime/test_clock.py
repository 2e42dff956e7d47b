import re
import time
from pathlib import Path

import pytest

from maskline.runtime import clock

ROOT = Path(clock.__file__).parents[1]


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="Linux has it")
def test_clock_of_leases_counts_the_time_of_a_suspended_machine():
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = clock.lease_clock()
    assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_without_boottime_monotonic_is_the_lease_clock(monkeypatch):
    monkeypatch.setattr(clock, "CLOCK", 10_000)  # no kernel has it
    assert clock._clock() is time.monotonic
    monkeypatch.setattr(clock, "CLOCK", None)
    assert clock._clock() is time.monotonic


def test_no_lease_is_compared_with_another_clock():
    """Times of leases stand in `lease_until`, `sent_at` and `attempt.now`: none is read by `monotonic`."""
    wrong = re.compile(r"(lease_until|sent_at|\.now\b|now=).*\bmonotonic\(\)|\bmonotonic\(\).*lease_until")
    files = [
        file
        for room in ("leases", "dispatch", "partitions")
        for file in (ROOT / "worker" / room).glob("*.py")
    ]
    assert len(files) > 10
    for file in files:
        for line in file.read_text().splitlines():
            assert not wrong.search(line), f"{file}: {line}"
