"""One SQLite file of callbacks that wait for Redis. No thread and no loop: whoever calls waits for the disk.

- WAL with synchronous FULL: a commit has been fsynced when it returns, and a process or a machine that dies between
  two commits leaves the file whole.
- Locking mode EXCLUSIVE: no second process reads along, and no shared-memory file that a full disk could tear.
- Many rows in one statement, a whole page in one row of JSON: the interpreter's lock is let go and taken again once a
  statement, and beside a busy event loop each time may cost milliseconds.
- The bound is the file's page count, kept by SQLite itself; pages of deleted rows are used again, and given back to
  the disk once the file is empty.
- What may go and cannot be deleted, since a full disk does not allow even that, is remembered as gone; once nothing
  else is left, the file is begun anew. Else a spool that fills its disk by itself would never be drained.
- Which file it is, and whether that still lies at its path, is known by device and inode (`ingest.spool.open_file`).

| column | holds |
| --- | --- |
| `id` | the order of arrival |
| `at_ms` | when it was written, by the wall clock |
| `route` | CRC-32 of the session: the partition is `route % partitions` |
| `value` | what goes into the stream |
"""

import contextlib
import os
import sqlite3
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from maskline.ingest.outcome import SPOOL_FAILED, SPOOL_FULL
from maskline.ingest.spool.errors import DamagedError, SpoolError, of_the_system
from maskline.ingest.spool.open_file import OpenFile

VERSION: Final = 1
"""Of the table, in `user_version`."""
HELD_BUCKETS: Final = 1 << 16
"""Sessions are counted by the low bits of their route. With a thousand of them here, one in 65 others shares a
bucket and takes the way through the spool as well, for no harm but the detour."""
INSERT_ROWS_MAX: Final = 512
"""Rows of one statement; the statements for 1, 2, 4 … 512 rows are all that are ever prepared."""
WAL_MAX_BYTES: Final = 4 << 20
"""How far the write-ahead log grows, besides one commit; less for a small spool."""
SCRATCH_BYTES: Final = 64 << 10
"""Written to find out whether there is room again: as much as many callbacks, so that not every other one fails."""
DISK_ROOM_BYTES: Final = 32 << 20
"""SQLite has one error for a full disk and for its page limit; with more than this free it is the limit."""
SHRINK_OVER_BYTES: Final = 1 << 20
"""An empty file larger than this gives its space back to the disk."""

_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_TABLES: Final = """
    CREATE TABLE spool (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, route INTEGER NOT NULL, value BLOB NOT NULL);
    CREATE TABLE scratch (id INTEGER PRIMARY KEY, value BLOB);
"""
_INSERTS: Final = {
    1 << power: "INSERT INTO spool (id, at_ms, route, value) VALUES "  # noqa: S608 - placeholders only
    + ",".join(["(?,?,?,?)"] * (1 << power))
    for power in range(INSERT_ROWS_MAX.bit_length())
}
_PAGE: Final = """
    SELECT json_group_array(json_array(id, route, hex(value))) FROM spool WHERE id > ?1 AND id <= (
        SELECT max(id) FROM (
            SELECT id, sum(size) OVER (ORDER BY id) - size AS size_before
            FROM (SELECT id, length(value) AS size FROM spool WHERE id > ?1 ORDER BY id LIMIT ?2)
        ) WHERE size_before < ?3
    )
"""
"""The sizes first: a window over the values would read all that the rows allow, whatever the bytes do."""
_read_page: Final = msgspec.json.Decoder(list[tuple[int, int, str]]).decode


class Row(NamedTuple):
    id: int
    partition_hash: int
    value: bytes


class FileState(NamedTuple):
    """What lies in a file."""

    callbacks: int = 0
    size_bytes: int = 0
    """What they take on the disk; 0 where there are none."""
    oldest_at_ms: int | None = None


class SpoolFile:
    """One file, used by one thread. `state` may be read by others: it is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = FileState()
        self.held = array("I")
        """Callbacks by HELD_BUCKETS, as found when the file was opened."""
        self.which = OpenFile(path)
        self._miscounted = False
        self._gone: set[int] = set()
        """Ids that are to be deleted with the next ones: as many as the file has rows, at most."""
        self._max_bytes = 0
        self._db: sqlite3.Connection | None = None
        self._next_id = 1
        self._page_bytes = 4096
        self._pages_max = 0
        self._log_bytes = 0

    @property
    def is_open(self) -> bool:
        return self._db is not None

    def open(self, max_bytes: int) -> None:
        """Open or make the file, and count what lies there. Raises SpoolError, DamagedError."""
        self._max_bytes = max_bytes
        try:
            with self._errors():
                self.which.open()
                self._db = sqlite3.connect(self.path, isolation_level=None, timeout=0)
                self._prepare(max_bytes)
                self._count()
                self.which.open_log()
                if not self.which.in_place():
                    raise SpoolError(SPOOL_FAILED, "the file was replaced while it was opened")  # noqa: TRY301
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it; the log is written back into it as far as the disk allows. Nothing that is not its own goes."""
        db, self._db = self._db, None
        self._gone.clear()
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            with contextlib.suppress(sqlite3.Error, OSError), self.which.log_of_others_kept():
                db.close()
        self.which.close()

    def remove(self) -> bool:
        """Close it, and unlink it and its log if nothing lies in it; whether that was so.

        The file is asked, not the count.
        """
        try:
            empty = self.is_empty()
            if empty:
                self.which.unlink()
        except (SpoolError, OSError):
            empty = False
        self.close()
        if empty:
            with contextlib.suppress(OSError):  # a log without its file is removed by whoever opens the next
                self.which.unlink_log()
        return empty

    def is_empty(self) -> bool:
        """Ask the file. Raises SpoolError."""
        with self._errors():
            (more,) = self._ask("SELECT count(*) FROM (SELECT 1 FROM spool LIMIT ?)", (len(self._gone) + 1,))
            return bool(more == len(self._gone))

    def limit(self, max_bytes: int) -> None:
        """Let the file and its log grow to so many bytes together."""
        pages = max(1, (max_bytes - self._log_bytes) // self._page_bytes)
        if pages != self._pages_max:
            with self._errors():
                self._ask(f"PRAGMA max_page_count = {pages}")
            self._pages_max = pages

    def insert(self, rows: Sequence[tuple[int, bytes]], at_ms: int | None = None) -> range:
        """Write (route, value) rows in one transaction: all, fsynced, or none; their ids. Raises SpoolError.

        `at_ms`: since when they are kept, by the wall clock; now, if not given.
        """
        at_ms = int(time.time() * 1000) if at_ms is None else at_ms
        if self._miscounted:
            with self._errors():
                self._count()
        ids = range(self._next_id, self._next_id + len(rows))
        with self._transaction():
            done = 0
            while done < len(rows):
                count = min(INSERT_ROWS_MAX, 1 << ((len(rows) - done).bit_length() - 1))
                first = ids.start + done
                values = [
                    field
                    for number, row in enumerate(rows[done : done + count], first)
                    for field in (number, at_ms, *row)
                ]
                self._ask(_INSERTS[count], values)
                done += count
        self._next_id = ids.stop
        before = self.state
        oldest = at_ms if before.oldest_at_ms is None else min(at_ms, before.oldest_at_ms)
        self._set_state(before.callbacks + len(rows), oldest)
        return ids

    def page(self, after: int, rows_max: int, bytes_max: int) -> list[Row]:
        """The next rows after that id in order of arrival, at least one if there is one. Raises SpoolError."""
        with self._errors():
            start = after
            while True:
                (text,) = self._ask(_PAGE, (start, rows_max, bytes_max))
                found = [
                    Row(id_, partition_hash, bytes.fromhex(value))
                    for id_, partition_hash, value in _read_page(text)
                ]
                rows = [row for row in found if row.id not in self._gone] if self._gone else found
                if rows or not found:
                    break
                start = found[-1].id
            if not after and bool(rows) != bool(self.state.callbacks):
                self._count()
            return rows

    def delete(self, ids: Sequence[int]) -> None:
        """Delete the rows with these ids, now or later. Raises DamagedError."""
        all_ids = [*self._gone.union(ids)]
        try:
            with self._transaction():
                self._ask("DELETE FROM spool WHERE id IN (SELECT value FROM json_each(?))", (str(all_ids),))
                (deleted,) = self._ask("SELECT changes()")
                first = self._ask("SELECT at_ms FROM spool ORDER BY id LIMIT 1")
        except DamagedError:
            raise
        except SpoolError as error:
            if error.code != SPOOL_FULL:
                raise
            deleted, first = len(all_ids), (self.state.oldest_at_ms,)
            before, self._gone = len(self._gone), set(all_ids)
        else:
            before = len(self._gone)
            self._gone.clear()
        left = max(0, self.state.callbacks - (deleted - before))
        self._set_state(left, first[0] if first and left else None)

    def try_room(self) -> None:
        """Find out by writing whether the next callbacks have room. Raises SpoolError."""
        with self._transaction():
            self._ask("REPLACE INTO scratch VALUES (1, zeroblob(?))", (SCRATCH_BYTES,))
        with self._transaction():
            self._ask("DELETE FROM scratch")

    def shrink(self) -> None:
        """Give the disk space of an empty file back; not yet, where the disk does not even allow that."""
        with contextlib.suppress(SpoolError), self._errors():
            if not self.is_empty():
                self._count()
            elif self._gone:
                self.remove()
                self.open(self._max_bytes)
            elif self._pages()[0] * self._page_bytes > SHRINK_OVER_BYTES:
                self._ask("VACUUM")
                self._ask("PRAGMA wal_checkpoint(TRUNCATE)")

    # Inside

    def _prepare(self, max_bytes: int) -> None:
        self._ask("PRAGMA locking_mode = EXCLUSIVE")
        (mode,) = self._ask("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise SpoolError(SPOOL_FAILED, f"SQLite keeps its journal as {mode} here")
        (self._page_bytes,) = self._ask("PRAGMA page_size")
        log_bytes = self._log_bytes = wal_max_bytes(max_bytes)
        self._ask("PRAGMA synchronous = FULL")
        self._ask("PRAGMA temp_store = MEMORY")
        self._ask(f"PRAGMA wal_autocheckpoint = {max(1, log_bytes // 2 // self._page_bytes)}")
        self._ask(f"PRAGMA journal_size_limit = {log_bytes}")
        self.limit(max_bytes)
        (version,) = self._ask("PRAGMA user_version")
        if version > VERSION:
            raise SpoolError(SPOOL_FAILED, f"{self.path.name} was written by a newer maskline")
        if version == 0:
            with self._transaction():
                for statement in _TABLES.split(";")[:-1]:
                    self._ask(statement)
                self._ask(f"PRAGMA user_version = {VERSION}")

    def _count(self) -> None:
        """One walk over everything, which also finds most damage there is."""
        held = array("I", bytes(4 * HELD_BUCKETS))
        callbacks = 0
        assert self._db is not None  # noqa: S101 - for the type checker
        for bucket, count in self._db.execute("SELECT route & 65535, count(*) FROM spool GROUP BY 1"):
            held[bucket] = count
            callbacks += count
        callbacks -= len(self._gone)
        first = self._ask("SELECT at_ms FROM spool ORDER BY id LIMIT 1")
        (last_id,) = self._ask("SELECT max(id) FROM spool")
        # Not SQLite's own numbering: that begins again once the table is empty, under the cursor of whoever drains.
        self._next_id = max(self._next_id, (last_id or 0) + 1)
        self.held = held
        self._miscounted = False
        self._set_state(callbacks, first[0] if first else None)

    def _set_state(self, callbacks: int, oldest_at_ms: int | None) -> None:
        """After the commit: what fails here must not make it fail."""
        self.state = FileState(callbacks, self.state.size_bytes if callbacks else 0, oldest_at_ms)
        with contextlib.suppress(sqlite3.Error):
            pages, free = self._pages()
            size_bytes = (pages - free) * self._page_bytes if callbacks else 0
            self.state = FileState(callbacks, size_bytes, oldest_at_ms)

    def _pages(self) -> tuple[int, int]:
        pages, free = self._ask("SELECT * FROM pragma_page_count, pragma_freelist_count")
        return pages, free

    def _ask(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """The first row of the answer, if there is one."""
        if self._db is None:
            raise SpoolError(SPOOL_FAILED, "the file is not open")
        return self._db.execute(statement, values).fetchone()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._ask("BEGIN IMMEDIATE")
            yield
            self._ask("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever goes wrong: nothing stays half done, and it comes out as SpoolError."""
        try:
            yield
        except BaseException as error:
            if self._db is not None and self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            if isinstance(error, SpoolError) or not isinstance(error, Exception):
                raise
            raise self._translated(error) from (
                None if isinstance(error, (sqlite3.Error, OSError)) else error
            )

    def _translated(self, error: Exception) -> SpoolError:
        if isinstance(error, OSError):
            return of_the_system(error)
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind == sqlite3.SQLITE_CONSTRAINT or not isinstance(error, sqlite3.Error):
            self._miscounted = True  # as it seems: ids come twice, or nobody knows how far it got
        if kind in _DAMAGED:
            return DamagedError(SPOOL_FAILED, f"{self.path.name} is damaged")
        if kind == sqlite3.SQLITE_FULL:
            with contextlib.suppress(OSError):
                disk = os.statvfs(self.path)
                if disk.f_bavail * disk.f_frsize > DISK_ROOM_BYTES:
                    return SpoolError(SPOOL_FULL, "MASKLINE_SPOOL_MAX_BYTES is reached")
            return SpoolError(SPOOL_FULL, "the disk is full")
        return SpoolError(SPOOL_FAILED, getattr(error, "sqlite_errorname", type(error).__name__))


def wal_max_bytes(max_bytes: int) -> int:
    """The part of a spool's bytes that is kept for the write-ahead log; half of it bounds one commit."""
    return min(WAL_MAX_BYTES, max_bytes // 4)
