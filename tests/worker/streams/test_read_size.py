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
    ReadSize,
)  # fmt: skip


def read(size: ReadSize, entry_bytes: int, bytes_s: float, backlog: int = 1_000_000) -> tuple[int, float]:
    """One read through a pipe; entries and seconds."""
    entries = min(size.entries, backlog)
    took_s = entries * entry_bytes / bytes_s
    size.completed(entries, entries * entry_bytes, took_s, took_s, full=entries < backlog)
    return entries, took_s


def test_quick_network_soon_gets_reads_of_the_greatest_size():
    size = ReadSize()
    reads = [read(size, 600, 1e9)[0] for _ in range(3)]
    assert reads[0] * 600 <= READ_START_BYTES
    assert reads[-1] == READ_MAX
    assert not size.slow


@pytest.mark.parametrize("bytes_s", [20_000, 200_000, 2_000_000])
@pytest.mark.parametrize("entry_bytes", [300, 2_300, 65_000])
def test_thin_network_gets_reads_that_end_soon(bytes_s: int, entry_bytes: int):
    size = ReadSize()
    longest_s = max(QUICK_S * 2, SLOW_S, 2 * READ_MIN_BYTES / bytes_s)
    times = [read(size, entry_bytes, bytes_s)[1] for _ in range(40)]
    assert max(times[15:]) <= 2 * longest_s


def test_read_stays_within_its_bound_from_the_first_large_callbacks_on():
    size = ReadSize()
    for entry_bytes in (300, 65_000, 300, 30_000, 65_000) * 20:
        read(size, entry_bytes, 1e9)
        assert size.entries * entry_bytes <= READ_MAX_BYTES


def test_interruptions_halve_a_read_down_to_its_minimum():
    size = ReadSize()
    size.interrupted()
    assert size.slow
    assert size.read_bytes == READ_START_BYTES // 2
    for _ in range(100):
        size.interrupted()
    assert size.read_bytes == READ_MIN_BYTES
    assert size.entries >= 1
    size.completed(1, 5_000_000, 30.0, 30.0, full=True)
    assert size.entries == 1


def test_busy_worker_does_not_ask_for_less():
    size = ReadSize()
    size.completed(256, READ_START_BYTES, 3.0, 0.0, full=True)
    assert size.read_bytes == READ_START_BYTES
    assert not size.slow


def test_idle_reads_do_not_change_the_size():
    size = ReadSize()
    for _ in range(1_000):
        size.completed(0, 60, 0.25, 0.25, full=False)
        size.completed(3, 3 * 700, 0.01, 0.01, full=False)
    assert size.read_bytes == READ_START_BYTES


def test_large_callbacks_leave_room_for_few():
    size = ReadSize()
    size.completed(100, 100 * 65_536, 0.1, 0.1, full=True)
    assert size.room(0) == OUTSTANDING_MAX_BYTES // 65_536
    assert size.room(OUTSTANDING_MAX_BYTES) < 0
