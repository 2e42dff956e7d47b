"""One SQLite file of callbacks that wait for Redis. It has no thread and no loop: the caller waits for the disk.

- WAL with synchronous FULL: a commit has been fsynced when it returns, and a process or a machine that dies between
  two commits leaves the file whole.
- Locking mode EXCLUSIVE: no second process reads the file, and there is no shared-memory file that a full disk could
  corrupt.
- Many rows in one statement, a whole page in one row of JSON: the interpreter's lock is released and taken again once a
  statement, and beside a busy event loop each time may cost milliseconds.
- SQLite itself enforces the size bound, by its page count. Pages of deleted rows are used again, and given back to the
  disk once the file is empty.
- A full disk may not even allow a deletion. Rows that could not be deleted are remembered, and once nothing else is
  left, the file is begun anew. Otherwise a spool that fills its disk by itself would never be drained.
- The file is identified by device and inode, also to check whether it is still at its path (`ingest.spool.open_file`).

| column | holds |
| --- | --- |
| `id` | the order of arrival |
| `at_ms` | when it was written, in milliseconds of the wall clock |
| `route` | the partition hash, CRC-32 of the SessionUUID: the partition is `route % partitions` |
| `value` | what goes into the stream, the msgpack of a RawCallback |
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from maskline.ingest.outcome import SPOOL_FAILED, SPOOL_FULL
from maskline.ingest.spool.counts import SpoolCounts
from maskline.ingest.spool.errors import DamagedError, SpoolError, from_os_error
from maskline.ingest.spool.file_identity import OpenFile

VERSION: Final = 1
"""Of the tables, kept in `user_version`."""
INSERT_ROWS_MAX: Final = 512
"""Rows of one statement; the statements for 1, 2, 4 … 512 rows are all that are ever prepared."""
WAL_MAX_BYTES: Final = 4 << 20
"""How large the write-ahead log grows, besides one commit; less for a small spool."""
SCRATCH_BYTES: Final = 64 << 10
"""Bytes written to probe whether there is room again: as large as many callbacks, so that not every other one fails."""
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
"""The sizes first: a window over the values would read all rows of the limit, even beyond the bytes."""
_BY_PLACE: Final = "SELECT route, count(*) FROM spool GROUP BY route & 65535, route % ?"
"""One row for each bucket and partition: all of it counts alike (`ingest.spool.counts`)."""
_read_page: Final = msgspec.json.Decoder(list[tuple[int, int, str]]).decode


class Row(NamedTuple):
    """One callback of a file."""

    id: int
    partition_hash: int
    value: bytes


class FileState(NamedTuple):
    """The contents of a file: counts and sizes."""

    callbacks: int = 0
    size_bytes: int = 0
    """Bytes that they take on the disk; 0 if there are none."""
    oldest_at_ms: int | None = None
    """When the oldest was written, in milliseconds of the wall clock."""


class SpoolFile:
    """One file, used by one thread. `state` may be read by others: it is replaced as a whole.

    `partitions`: MASKLINE_PARTITIONS.
    """

    def __init__(self, path: Path, partitions: int) -> None:
        self.path = path
        self.state = FileState()
        self._partitions = partitions
        self.counts = SpoolCounts(partitions)
        """Of the callbacks that were found when the file was opened."""
        self.open_file = OpenFile(path)
        self._miscounted = False
        self._pending_deletes: set[int] = set()
        """Ids of rows that could not be deleted yet: at most as many as the file has rows."""
        self._max_bytes = 0
        self._db: sqlite3.Connection | None = None
        self._next_id = 1
        self._page_bytes = 4096
        self._pages_max = 0
        self._log_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and not closed since."""
        return self._db is not None

    def open(self, max_bytes: int) -> None:
        """Open or make the file, and count the callbacks in it.

        `max_bytes`: how large the file and its log may grow together. Raises SpoolError, DamagedError.
        """
        self._max_bytes = max_bytes
        try:
            with self._translating_errors():
                self.open_file.open()
                self._db = sqlite3.connect(self.path, isolation_level=None, timeout=0)
                self._prepare(max_bytes)
                self._recount()
                self.open_file.open_log()
                if not self.open_file.in_place():
                    raise SpoolError(SPOOL_FAILED, "the file was replaced while it was opened")  # noqa: TRY301
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Write the log back into the file, as far as the disk allows, and close it. Removes nothing of others."""
        db, self._db = self._db, None
        self._pending_deletes.clear()
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            with contextlib.suppress(sqlite3.Error, OSError), self.open_file.log_of_others_kept():
                db.close()
        self.open_file.close()

    def remove(self) -> bool:
        """Close the file, and unlink it and its log if it is empty. Returns whether it was.

        It decides by the rows in the file, not by the counts.
        """
        try:
            empty = self.is_empty()
            if empty:
                self.open_file.unlink()
        except (SpoolError, OSError):
            empty = False
        self.close()
        if empty:
            # If that fails, the next process to open the path removes a log without its file.
            with contextlib.suppress(OSError):
                self.open_file.unlink_log()
        return empty

    def is_empty(self) -> bool:
        """Whether the file holds no callback, but for those that wait for their deletion. Raises SpoolError."""
        with self._translating_errors():
            pending = len(self._pending_deletes)
            (rows,) = self._execute("SELECT count(*) FROM (SELECT 1 FROM spool LIMIT ?)", (pending + 1,))
            return bool(rows == pending)

    def limit(self, max_bytes: int) -> None:
        """Let the file and its log grow to so many bytes together. Raises SpoolError."""
        pages = max(1, (max_bytes - self._log_bytes) // self._page_bytes)
        if pages != self._pages_max:
            with self._translating_errors():
                self._execute(f"PRAGMA max_page_count = {pages}")
            self._pages_max = pages

    def insert(self, rows: Sequence[tuple[int, bytes]], at_ms: int | None = None) -> range:
        """Write (partition_hash, value) rows in one transaction: all are fsynced, or none. Returns their ids.

        `at_ms`: when they were spooled, in milliseconds of the wall clock; now, if not given. Raises SpoolError.
        """
        at_ms = int(time.time() * 1000) if at_ms is None else at_ms
        if self._miscounted:
            with self._translating_errors():
                self._recount()
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
                self._execute(_INSERTS[count], values)
                done += count
        self._next_id = ids.stop
        before = self.state
        oldest = at_ms if before.oldest_at_ms is None else min(at_ms, before.oldest_at_ms)
        self._set_state(before.callbacks + len(rows), oldest)
        return ids

    def page(self, after_id: int, rows_max: int, bytes_max: int) -> list[Row]:
        """The next rows with a larger id than `after_id`, in order of arrival; at least one if there is one.

        `rows_max` and `bytes_max` bound the page. Raises SpoolError.
        """
        with self._translating_errors():
            start = after_id
            while True:
                (text,) = self._execute(_PAGE, (start, rows_max, bytes_max))
                found = [
                    Row(id_, partition_hash, bytes.fromhex(value))
                    for id_, partition_hash, value in _read_page(text)
                ]
                rows = (
                    [row for row in found if row.id not in self._pending_deletes]
                    if self._pending_deletes
                    else found
                )
                if rows or not found:
                    break
                start = found[-1].id
            if not after_id and bool(rows) != bool(self.state.callbacks):
                self._recount()
            return rows

    def delete(self, ids: Sequence[int]) -> None:
        """Delete the rows with these ids; later, where a full disk does not allow it. Raises SpoolError."""
        all_ids = [*self._pending_deletes.union(ids)]
        try:
            with self._transaction():
                self._execute(
                    "DELETE FROM spool WHERE id IN (SELECT value FROM json_each(?))", (str(all_ids),)
                )
                (deleted,) = self._execute("SELECT changes()")
                first = self._execute("SELECT at_ms FROM spool ORDER BY id LIMIT 1")
        except DamagedError:
            raise
        except SpoolError as error:
            if error.code != SPOOL_FULL:
                raise
            deleted, first = len(all_ids), (self.state.oldest_at_ms,)
            before, self._pending_deletes = len(self._pending_deletes), set(all_ids)
        else:
            before = len(self._pending_deletes)
            self._pending_deletes.clear()
        left = max(0, self.state.callbacks - (deleted - before))
        self._set_state(left, first[0] if first and left else None)

    def probe_room(self) -> None:
        """Probe by writing whether the next callbacks have room. Raises SpoolError."""
        with self._transaction():
            self._execute("REPLACE INTO scratch VALUES (1, zeroblob(?))", (SCRATCH_BYTES,))
        with self._transaction():
            self._execute("DELETE FROM scratch")

    def shrink(self) -> None:
        """Give the disk space of an empty file back; later, where a full disk does not even allow that."""
        with contextlib.suppress(SpoolError), self._translating_errors():
            if not self.is_empty():
                self._recount()
            elif self._pending_deletes:
                self.remove()
                self.open(self._max_bytes)
            elif self._pages()[0] * self._page_bytes > SHRINK_OVER_BYTES:
                self._execute("VACUUM")
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # Inside

    def _prepare(self, max_bytes: int) -> None:
        self._execute("PRAGMA locking_mode = EXCLUSIVE")
        (mode,) = self._execute("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise SpoolError(SPOOL_FAILED, f"SQLite keeps its journal as {mode} here")
        (self._page_bytes,) = self._execute("PRAGMA page_size")
        log_bytes = self._log_bytes = wal_max_bytes(max_bytes)
        self._execute("PRAGMA synchronous = FULL")
        self._execute("PRAGMA temp_store = MEMORY")
        self._execute(f"PRAGMA wal_autocheckpoint = {max(1, log_bytes // 2 // self._page_bytes)}")
        self._execute(f"PRAGMA journal_size_limit = {log_bytes}")
        self.limit(max_bytes)
        (version,) = self._execute("PRAGMA user_version")
        if version > VERSION:
            raise SpoolError(SPOOL_FAILED, f"{self.path.name} was written by a newer maskline")
        if version == 0:
            with self._transaction():
                for statement in _TABLES.split(";")[:-1]:
                    self._execute(statement)
                self._execute(f"PRAGMA user_version = {VERSION}")

    def _recount(self) -> None:
        """Count everything anew, in one pass, which also finds most damage there is."""
        counts = SpoolCounts(self._partitions)
        callbacks = 0
        assert self._db is not None  # noqa: S101 - for the type checker
        for partition_hash, count in self._db.execute(_BY_PLACE, (self._partitions,)):
            counts.add(partition_hash, count)
            callbacks += count
        callbacks -= len(self._pending_deletes)
        first = self._execute("SELECT at_ms FROM spool ORDER BY id LIMIT 1")
        (last_id,) = self._execute("SELECT max(id) FROM spool")
        # Not SQLite's own numbering: that begins again once the table is empty, behind the drainer's cursor.
        self._next_id = max(self._next_id, (last_id or 0) + 1)
        self.counts = counts
        self._miscounted = False
        self._set_state(callbacks, first[0] if first else None)

    def _set_state(self, callbacks: int, oldest_at_ms: int | None) -> None:
        """Set the new counts, after a commit: an error here must not make the commit fail."""
        self.state = FileState(callbacks, self.state.size_bytes if callbacks else 0, oldest_at_ms)
        with contextlib.suppress(sqlite3.Error):
            pages, free = self._pages()
            size_bytes = (pages - free) * self._page_bytes if callbacks else 0
            self.state = FileState(callbacks, size_bytes, oldest_at_ms)

    def _pages(self) -> tuple[int, int]:
        pages, free = self._execute("SELECT * FROM pragma_page_count, pragma_freelist_count")
        return pages, free

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement. Returns the first row of its result, None if there is none."""
        if self._db is None:
            raise SpoolError(SPOOL_FAILED, "the file is not open")
        return self._db.execute(statement, values).fetchone()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translating_errors():
            self._execute("BEGIN IMMEDIATE")
            yield
            self._execute("COMMIT")

    @contextlib.contextmanager
    def _translating_errors(self) -> Iterator[None]:
        """On any error roll back, and raise a SpoolError in its place."""
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
            return from_os_error(error)
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind == sqlite3.SQLITE_CONSTRAINT or not isinstance(error, sqlite3.Error):
            self._miscounted = True  # probably: ids come twice, or the statement was interrupted
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
    """How many of a spool's `max_bytes` are kept for the write-ahead log; half of them bound one commit."""
    return min(WAL_MAX_BYTES, max_bytes // 4)
