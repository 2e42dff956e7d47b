"""The file of the spool: order, bound, damage, the space given back."""

import os
import random
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from maskline.ingest.spool.counts import SpoolCounts
from maskline.ingest.spool.directory import wal_of
from maskline.ingest.spool.errors import DamagedError, SpoolError
from maskline.ingest.spool.sqlite_file import SpoolFile

MIB = 1 << 20
PARTITIONS = 12


@contextmanager
def journal_file(directory, max_bytes=64 * MIB):
    file = SpoolFile(directory / "j.db", PARTITIONS)
    file.open(max_bytes)
    with closing(file):
        yield file


def values(rows):
    return [(row.partition_hash, row.value) for row in rows]


def everything(file, rows_max=100, bytes_max=MIB):
    rows = []
    while page := file.page(rows[-1].id if rows else 0, rows_max, bytes_max):
        rows += page
    return rows


@pytest.mark.parametrize("count", [1, 2, 3, 100, 511, 512, 513, 1500])
def test_rows_are_read_in_order_also_after_reopening(tmp_path, count):
    written = [(random.Random(n).getrandbits(32), os.urandom(n % 50)) for n in range(count)]
    with journal_file(tmp_path) as file:
        file.insert(written[: count // 2])
        file.insert(written[count // 2 :])
        assert values(everything(file)) == written
    with journal_file(tmp_path) as file:
        assert values(everything(file)) == written
        assert file.state.callbacks == count
        assert file.state.size_bytes > sum(len(value) for _, value in written)
        counted = SpoolCounts(PARTITIONS)
        for partition_hash, _ in written:
            counted.add(partition_hash)
        assert (file.counts.buckets, file.counts.partitions) == (counted.buckets, counted.partitions)


def test_page_is_bounded_in_rows_and_bytes_and_has_at_least_one_row(tmp_path):
    with journal_file(tmp_path) as file:
        file.insert([(1, bytes(1000))] * 10 + [(2, bytes(100_000))] + [(3, b"")])
        assert len(file.page(0, 4, MIB)) == 4
        assert len(file.page(0, 100, 2500)) == 3
        assert values(file.page(10, 100, 10)) == [(2, bytes(100_000))]
        assert values(file.page(11, 100, 10)) == [(3, b"")]
        assert file.page(12, 100, 10) == []


def test_page_reads_no_more_values_than_it_returns(tmp_path):
    with journal_file(tmp_path) as file:
        file.insert([(1, bytes(60_000))] * 256)
        read_before = read_bytes()
        assert len(file.page(0, 256, 100_000)) == 2
        assert read_bytes() - read_before < 4 * MIB


def read_bytes():
    """What this process has read of files so far."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])


def test_delete_removes_these_rows_and_no_others(tmp_path):
    with journal_file(tmp_path) as file:
        file.insert([(n, b"%d" % n) for n in range(10)])
        rows = everything(file)
        file.delete([row.id for row in rows[:3] + rows[5:]])
        assert values(everything(file)) == [(3, b"3"), (4, b"4")]
        assert file.state.callbacks == 2
        file.delete([rows[0].id])  # once more: nothing is counted twice
        assert file.state.callbacks == 2
        assert file.state.oldest_at_ms is not None
        file.delete([row.id for row in rows])
        assert file.state == (0, 0, None)


def test_rows_that_a_full_disk_does_not_let_be_deleted_do_not_come_again(tmp_path, monkeypatch):
    ask = SpoolFile._execute

    def full(self, statement, values=()):
        if statement == "COMMIT":
            raise SpoolError("spool_full", "as if the disk were full")
        return ask(self, statement, values)

    rows = [(number, b"%d" % number) for number in range(10)]
    with journal_file(tmp_path) as file:
        file.insert(rows)
        with monkeypatch.context() as patch:
            patch.setattr(SpoolFile, "_execute", full)
            file.delete([1, 2, 3])
            file.delete([4])
            assert (values(everything(file, rows_max=2)), file.state.callbacks) == (rows[4:], 6)
            assert not file.is_empty()
        file.delete([5])  # there is room again
        assert (values(everything(file)), file.state.callbacks) == (rows[5:], 5)
        with monkeypatch.context() as patch:
            patch.setattr(SpoolFile, "_execute", full)
            file.delete([6, 7, 8, 9, 10])
            assert (everything(file), file.state.callbacks, file.is_empty()) == ([], 0, True)
        file.shrink()
        assert file.is_open
        assert file._execute("SELECT count(*) FROM spool") == (0,)
        assert file.insert(rows).start == 11
        assert values(everything(file)) == rows


def test_ids_go_on_after_the_file_was_emptied(tmp_path):
    """Else a reader's cursor would stand beyond what comes next."""
    with journal_file(tmp_path) as file:
        file.insert([(1, b"a"), (1, b"b")])
        (_, last) = everything(file)
        file.delete([row.id for row in everything(file)])
        file.insert([(1, b"c")])
        assert everything(file)[0].id > last.id


def test_size_bound_holds_and_space_is_used_again(tmp_path):
    with journal_file(tmp_path, MIB) as file:
        written = 0
        with pytest.raises(SpoolError) as caught:  # noqa: PT012 - which of them fails is not known
            while written < 10_000:
                file.insert([(1, bytes(1000))])
                written += 1
        assert (caught.value.code, caught.value.detail) == (
            "spool_full",
            "MASKLINE_SPOOL_MAX_BYTES is reached",
        )
        assert written > 400
        assert file.state.callbacks == written
        assert file.path.stat().st_size + wal_of(file.path).stat().st_size <= MIB
        with pytest.raises(SpoolError):
            file.probe_room()
        file.delete([row.id for row in everything(file)[:100]])
        file.probe_room()
        for _ in range(50):
            file.insert([(1, bytes(1000))])


def test_limit_can_be_lowered(tmp_path):
    with journal_file(tmp_path) as file:
        file.insert([(1, bytes(1000))] * 100)
        file.limit(-5)
        with pytest.raises(SpoolError, match="MASKLINE_SPOOL_MAX_BYTES"):
            file.insert([(1, bytes(1000))] * 100)
        file.limit(64 * MIB)
        file.insert([(1, bytes(1000))] * 100)
        assert file.state.callbacks == 200


def test_empty_file_gives_its_space_back(tmp_path):
    with journal_file(tmp_path) as file:
        for _ in range(10):
            file.insert([(1, bytes(1000))] * 1000)
        rows = [row.id for row in everything(file, 1000)]
        file.delete(rows[:-1])
        file.shrink()  # not empty: nothing happens
        assert file.path.stat().st_size > 5 * MIB
        file.delete(rows[-1:])
        file.shrink()
        assert file.path.stat().st_size + wal_of(file.path).stat().st_size < 100_000
        file.insert([(7, b"still in use")])
        assert values(everything(file)) == [(7, b"still in use")]


def test_file_is_made_for_its_owner_only(tmp_path):
    with journal_file(tmp_path) as file:
        file.insert([(1, b"a")])
        for path in (file.path, wal_of(file.path)):
            assert path.stat().st_mode & 0o077 == 0


def test_file_cannot_be_opened_twice(tmp_path):
    with journal_file(tmp_path), pytest.raises(SpoolError, match="BUSY"):
        SpoolFile(tmp_path / "j.db", PARTITIONS).open(MIB)


@pytest.mark.parametrize("rest", [b"", b"x" * 100_000])
def test_file_that_is_no_database_is_damaged(tmp_path, rest):
    (tmp_path / "j.db").write_bytes(b"this is no database, but it is long enough to be looked at" + rest)
    with pytest.raises(DamagedError):
        SpoolFile(tmp_path / "j.db", PARTITIONS).open(MIB)


def test_damage_in_the_middle_is_found_at_opening(tmp_path):
    with journal_file(tmp_path) as file:
        file.insert([(1, bytes(3000))] * 100)
    with (tmp_path / "j.db").open("r+b") as raw:
        raw.seek(40 * 4096)
        raw.write(b"\xff" * 4096)
    with pytest.raises(DamagedError):
        SpoolFile(tmp_path / "j.db", PARTITIONS).open(MIB)


def test_file_of_a_newer_release_is_left_alone(tmp_path):
    with journal_file(tmp_path) as file:
        file.insert([(1, b"a")])
    with closing(sqlite3.connect(tmp_path / "j.db")) as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(SpoolError, match="newer") as caught:
        SpoolFile(tmp_path / "j.db", PARTITIONS).open(MIB)
    assert not isinstance(caught.value, DamagedError)
