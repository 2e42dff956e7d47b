"""Sorts callbacks by session on the disk, each once: an archive may have far more than fit into memory.

A SQLite file in the directory for temporary files (TMPDIR), which is removed as soon as it is open: nobody else can
read it, and nothing of it stays, whatever becomes of the command. It has phone numbers where the archive has.
"""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from maskline.schemas.errors import ConfigError

CACHE_KIB: Final = 32 * 1024
"""Of SQLite, for all sorting."""

SESSIONS_REMEMBERED_MAX: Final = 50_000
"""Sessions whose numbers are kept in memory, some 10 MB; callbacks of one session stand near each other."""

ENTRY_MAX: Final = 2**63 - 1
"""What SQLite can sort by; Redis has counted milliseconds since 1970 up to far below."""

_SCHEMA: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    uuid BLOB NOT NULL UNIQUE,
    partition INTEGER NOT NULL,
    selected INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE callbacks (
    session INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    identity TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (session, at_ms, counter, identity)
) WITHOUT ROWID;
"""

_WITH_NUMBERS: Final = """
UPDATE callbacks SET value = ?, tokens = 0
WHERE session = ? AND at_ms = ? AND counter = ? AND identity = ? AND tokens
"""


class SortedSession(NamedTuple):
    """A session that has a selected callback."""

    id: int
    """Numbers the sessions as they were met first, so about by their time."""
    uuid: str


class SessionSort:
    """Callbacks of sessions, sorted as they stood in their streams. A context manager.

    Raises ConfigError, one line, where the disk has no room.
    """

    def __init__(self) -> None:
        with _room():
            descriptor, name = tempfile.mkstemp(prefix="maskline-replay-")
            os.close(descriptor)
            try:
                self._db = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
                self._db.executescript(f"PRAGMA cache_size = -{CACHE_KIB};{_SCHEMA}")
                self._db.execute("BEGIN")
            finally:
                Path(name).unlink()
        self._known: dict[str, tuple[int, bool]] = {}
        """Sessions by SessionUUID: their number, and whether they are selected."""
        self.callbacks = 0
        """How many there are, those included that are not selected."""
        self.repeated = 0
        """How many were given again, and dropped."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(
        self,
        uuid: str,
        partition: int,
        entry_id: str,
        value: bytes,
        *,
        selected: bool,
        identity: str,
        tokens: bool = False,
    ) -> bool:
        """Add a callback. Returns False if it is there already: under the same ID, with the same identity. Then it is
        dropped, unless it has the phone numbers and the one that is there has `tokens`.

        `value`: the msgpack of its RawCallback. `selected`: it is to run again, so its session is fed.
        """
        with _room():
            session = self._session(uuid, partition, selected=selected)
            at_ms, _, counter = entry_id.partition("-")
            key = session, min(int(at_ms), ENTRY_MAX), min(int(counter), ENTRY_MAX), identity
            row = (*key, tokens, value)
            added = (
                self._db.execute("INSERT OR IGNORE INTO callbacks VALUES (?, ?, ?, ?, ?, ?)", row).rowcount
                > 0
            )
            if not added and not tokens:
                self._db.execute(_WITH_NUMBERS, (value, *key))
        if added:
            self.callbacks += 1
        else:
            self.repeated += 1
        return added

    def selected_sessions(self) -> int:
        """How many sessions are selected."""
        return int(self._db.execute("SELECT count(*) FROM sessions WHERE selected").fetchone()[0])

    def partitions(self) -> list[int]:
        """The partitions that have selected sessions, ascending."""
        with _room():
            self._db.execute(
                "CREATE INDEX IF NOT EXISTS by_partition ON sessions (partition, id) WHERE selected"
            )
        rows = self._db.execute("SELECT DISTINCT partition FROM sessions WHERE selected ORDER BY partition")
        return [partition for (partition,) in rows]

    def next_session(self, partition: int, after: int) -> SortedSession | None:
        """The first selected session of a partition whose number is greater than `after`; None behind the last."""
        row = self._db.execute(
            "SELECT id, uuid FROM sessions WHERE selected AND partition = ? AND id > ? ORDER BY id LIMIT 1",
            (partition, after),
        ).fetchone()
        return None if row is None else SortedSession(row[0], row[1].decode("utf-8", "surrogatepass"))

    def callbacks_of(self, session: int) -> Iterator[tuple[str, bytes]]:
        """Entry IDs and values of a session, by its number, in the order of the stream."""
        rows = self._db.execute(
            "SELECT at_ms, counter, value FROM callbacks WHERE session = ? ORDER BY at_ms, counter, identity",
            (session,),
        )
        return ((f"{at_ms}-{counter}", value) for at_ms, counter, value in rows)

    def _session(self, uuid: str, partition: int, *, selected: bool) -> int:
        """The session's number; it is selected from now on if `selected`."""
        number, known_selected = self._known.get(uuid, (0, False))
        if not number:
            encoded = uuid.encode("utf-8", "surrogatepass")
            self._db.execute(
                "INSERT OR IGNORE INTO sessions (uuid, partition) VALUES (?, ?)", (encoded, partition)
            )
            number, known = self._db.execute(
                "SELECT id, selected FROM sessions WHERE uuid = ?", (encoded,)
            ).fetchone()
            known_selected = bool(known)
        if selected and not known_selected:
            self._db.execute("UPDATE sessions SET selected = 1 WHERE id = ?", (number,))
        if len(self._known) >= SESSIONS_REMEMBERED_MAX:
            self._known.clear()
        self._known[uuid] = number, known_selected or selected
        return number


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Raises ConfigError where there is no room for what is to be written."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise ConfigError(
            f"the callbacks do not fit into {tempfile.tempdir or 'TMPDIR'} to be sorted ({error}): "
            "set TMPDIR to a directory with more room"
        ) from None
