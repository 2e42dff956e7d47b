"""MASKLINE_SPOOL_DIR: which file is whose.

| name | is |
| --- | --- |
| `spool-<namespace>-<n>.db`, `….db-wal` | the journal of slot n |
| `spool-<namespace>-<n>.lock` | locked (flock) as long as a process uses the slot |
| `….db.damaged-<seconds>` | a journal that could not be read, moved aside for an operator |

A process takes the lowest slot that nobody holds, with whatever lies there. So processes of a node never share a file,
and one that is started again after a crash finds its own. Slots that nobody holds any more are leftovers: whoever gets
their lock moves their callbacks on. The lock ends with the process, however it ends.

Whatever is unlinked or moved here is known to be this process's own by device and inode, not by its name: a directory
may be moved away and another put in its place, with the files of others.

The namespace stands in the name because callbacks must not change it: two deployments may share a directory.
"""

import contextlib
import errno
import fcntl
import os
import shlex
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final

from maskline.ingest.spool.open_file import Identity, identity_at, identity_of, unlink_own
from maskline.schemas.errors import ConfigError

SLOTS_MAX: Final = 1024
"""More than `--processes` allows on one machine."""


class Slot:
    """A place in the directory that this process holds."""

    __slots__ = ("_identity", "_lock", "lock_path", "number", "path")

    def __init__(self, path: Path, number: int, lock: int, lock_path: Path) -> None:
        self.path = path
        """Of the journal, which may not exist yet."""
        self.number = number
        self.lock_path = lock_path
        self._keep(lock)

    def hold(self) -> bool:
        """Whether others see that it is held; a lock file that somebody removed is made again.

        False where another process has it by now, or the directory is gone. Raises OSError where nobody can tell.
        """
        if identity_at(self.lock_path, follow=True) == self._identity:
            return True
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            lock = _lock(self.lock_path)
            if lock is not None:
                os.close(self._lock)
                self._keep(lock)
                return True
        return False

    def release(self, *, remove: bool = False) -> None:
        """Let others have it; with `remove` its lock file goes. Its journal is closed already."""
        try:
            if remove:
                unlink_own(self.lock_path, self._identity)
        finally:
            os.close(self._lock)

    def _keep(self, lock: int) -> None:
        self._lock = lock
        self._identity = identity_of(lock)

    def set_aside(self) -> str:
        """Move a damaged journal out of the way; its new name."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        # The log under the name that goes with it: SQLite's own tools recover both together.
        for source, target in ((wal_of(self.path), wal_of(aside)), (self.path, aside)):
            with contextlib.suppress(FileNotFoundError):
                source.rename(target)
        return aside.name


class SpoolDirectory:
    """The directory, as processes of one namespace see it."""

    def __init__(self, path: Path, namespace: str) -> None:
        self.path = path
        self._prefix = f"spool-{namespace}-"

    def take_slot(self, mine: Container[Identity] = ()) -> Slot:
        """The lowest free slot, but none with a file of `mine`, which this process has open already.

        Raises ConfigError where the directory cannot be made or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for number in range(SLOTS_MAX):
                if (slot := self._try(number, mine)) is not None:
                    # What is fsynced in a file that its directory forgets is lost in a power cut.
                    _sync(self.path)
                    return slot
        except OSError as error:
            raise ConfigError(f"MASKLINE_SPOOL_DIR: {_why_unusable(self.path, error)}") from None
        raise ConfigError(f"MASKLINE_SPOOL_DIR: {self.path} is used by {SLOTS_MAX} processes already")

    def leftovers(self, mine: Container[Identity] = ()) -> Iterator[Slot]:
        """Slots with a journal that no process holds; from now on this one does. None with a file of `mine`.

        Raises OSError where the directory cannot be listed.
        """
        for number in sorted(self._numbers()):
            with contextlib.suppress(OSError):  # another user's, or gone meanwhile
                slot = self._try(number, mine, only_used=True)
                if slot is not None:
                    yield slot

    def other_bytes(self, own: Path) -> int | None:
        """What the journals but this one take on the disk, of all namespaces. Damaged ones do not count.

        None where the directory cannot be listed.
        """
        mine = (own.name, wal_of(own).name)
        total = 0
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.name.endswith((".db", ".db-wal")) and entry.name not in mine:
                        with contextlib.suppress(OSError):
                            total += entry.stat().st_size
        except OSError:
            return None
        return total

    def damaged(self) -> list[str]:
        """Names of journals that were moved aside and wait for an operator."""
        with contextlib.suppress(OSError):
            names = [path.name for path in self.path.iterdir()]
            return sorted(name for name in names if ".db.damaged-" in name and not name.endswith("-wal"))
        return []

    def _numbers(self) -> list[int]:
        names = [path.name for path in self.path.iterdir()]
        middles = (
            name.removeprefix(self._prefix).removesuffix(".db")
            for name in names
            if name.startswith(self._prefix) and name.endswith(".db")
        )
        return [int(middle) for middle in middles if middle.isdecimal()]

    def _try(self, number: int, mine: Container[Identity], *, only_used: bool = False) -> Slot | None:
        """That slot, if nobody holds it; with `only_used`, if there is a journal besides."""
        path = self.path / f"{self._prefix}{number}.db"
        lock_path = self.path / f"{self._prefix}{number}.lock"
        lock = _lock(lock_path)
        if lock is None:
            return None
        try:
            there = identity_at(path, follow=True)
            if there in mine if there is not None else only_used:
                os.close(lock)
                return None
        except BaseException:
            os.close(lock)
            raise
        return Slot(path, number, lock, lock_path)


def _lock(path: Path) -> int | None:
    """Make and lock a lock file; None where another process holds it. Raises OSError."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the very file that is locked now.
            if identity_at(path, follow=True) == identity_of(lock):
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def wal_of(path: Path) -> Path:
    """SQLite's write-ahead log beside a file."""
    return path.with_name(f"{path.name}-wal")


def _why_unusable(path: Path, error: OSError) -> str:
    """What is wrong with the directory, and where it is a matter of rights, who asks for it and what mends it."""
    why = f"{path} cannot be used: {error.strerror or type(error).__name__}"
    if error.errno == errno.EROFS:
        return f"{why}: mount a volume there"
    if error.errno not in (errno.EACCES, errno.EPERM):
        return why
    real = path.resolve()  # chown does not follow a link
    owner: int | None = None
    with contextlib.suppress(OSError):
        owner = real.stat().st_uid
    mend = remedy(
        shlex.quote(str(real)), owner, os.geteuid(), os.getegid(), writable=os.access(real, os.W_OK | os.X_OK)
    )
    return f"{why}: this process is uid {os.geteuid()}; as root: {mend}"


def remedy(quoted: str, owner: int | None, uid: int, gid: int, *, writable: bool) -> str:
    """The shell command that lets uid write to a directory, which is `owner`'s, or does not exist yet. Pure."""
    if owner is None:
        return f"mkdir -p {quoted} && chown {uid}:{gid} {quoted}"
    if owner == uid and not writable:
        return f"chmod u+rwx {quoted}"
    return f"chown -R {uid}:{gid} {quoted}"


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
