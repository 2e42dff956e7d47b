"""How much a read asks for: decisions alone."""

import pytest

from maskline.worker.streams.read_size import (
    OUTSTANDING_MAX_BYTES,
    QUICK_S,
    READ_MAX,
    READ_MAX_BYTES,
    READ_MIN_BYTES,
    READ_START_BYTES,
    SLOW_S,
    Pace,
)  # fmt: skip


def read(pace: Pace, entry_bytes: int, bytes_s: float, backlog: int = 1_000_000) -> tuple[int, float]:
    """One read through a pipe; entries and seconds."""
    entries = min(pace.entries, backlog)
    took_s = entries * entry_bytes / bytes_s
    pace.brought(entries, entries * entry_bytes, took_s, took_s, full=entries < backlog)
    return entries, took_s


def test_a_quick_link_soon_brings_as_much_as_is_ever_asked_for():
    pace = Pace()
    reads = [read(pace, 600, 1e9)[0] for _ in range(3)]
    assert reads[0] * 600 <= READ_START_BYTES
    assert reads[-1] == READ_MAX
    assert not pace.slow


@pytest.mark.parametrize("bytes_s", [20_000, 200_000, 2_000_000])
@pytest.mark.parametrize("entry_bytes", [300, 2_300, 65_000])
def test_a_thin_pipe_brings_reads_that_end_soon(bytes_s: int, entry_bytes: int):
    pace = Pace()
    longest_s = max(QUICK_S * 2, SLOW_S, 2 * READ_MIN_BYTES / bytes_s)
    times = [read(pace, entry_bytes, bytes_s)[1] for _ in range(40)]
    assert max(times[15:]) <= 2 * longest_s


def test_a_read_brings_no_more_than_its_bound_from_the_first_great_callbacks_on():
    pace = Pace()
    for entry_bytes in (300, 65_000, 300, 30_000, 65_000) * 20:
        read(pace, entry_bytes, 1e9)
        assert pace.entries * entry_bytes <= READ_MAX_BYTES


def test_a_cut_halves_down_to_a_least_that_still_brings_something():
    pace = Pace()
    pace.cut()
    assert pace.slow
    assert pace.read_bytes == READ_START_BYTES // 2
    for _ in range(100):
        pace.cut()
    assert pace.read_bytes == READ_MIN_BYTES
    assert pace.entries >= 1
    pace.brought(1, 5_000_000, 30.0, 30.0, full=True)
    assert pace.entries == 1


def test_a_busy_worker_asks_for_no_less():
    pace = Pace()
    pace.brought(256, READ_START_BYTES, 3.0, 0.0, full=True)
    assert pace.read_bytes == READ_START_BYTES
    assert not pace.slow


def test_idle_reads_teach_nothing_about_the_pipe():
    pace = Pace()
    for _ in range(1_000):
        pace.brought(0, 60, 0.25, 0.25, full=False)
        pace.brought(3, 3 * 700, 0.01, 0.01, full=False)
    assert pace.read_bytes == READ_START_BYTES


def test_great_callbacks_leave_room_for_few():
    pace = Pace()
    pace.brought(100, 100 * 65_536, 0.1, 0.1, full=True)
    assert pace.room(0) == OUTSTANDING_MAX_BYTES // 65_536
    assert pace.room(OUTSTANDING_MAX_BYTES) < 0
