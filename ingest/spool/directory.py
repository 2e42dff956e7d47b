"""MASKLINE_SPOOL_DIR: assigns spool files to processes.

| name | is |
| --- | --- |
| `spool-<namespace>-<n>.db`, `….db-wal` | the spool file of slot n, and its write-ahead log |
| `spool-<namespace>-<n>.lock` | locked (flock) as long as a process uses the slot |
| `….db.damaged-<seconds>` | a spool file that could not be read, set aside for an operator |

A process acquires the lowest free slot, with the callbacks that lie there. So processes of a node never share a file,
and one that is started again after a crash finds its own. Slots of dead processes are leftovers: the process that gets
the lock of one drains its callbacks. The lock ends with the process, however it ends.

A file is unlinked or moved here only if its device and inode show that it is this process's own, not by its name: a
directory may be moved away, and another one with other processes' files may take its place.

The namespace is part of the name because callbacks must not change their namespace: two deployments may share a
directory.
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

from maskline.ingest.spool.file_identity import Identity, identity_at, identity_of, unlink_own
from maskline.schemas.errors import ConfigError

SLOTS_MAX: Final = 1024
"""More than `--processes` allows on one machine."""


class Slot:
    """A slot of the directory that this process holds: the path of a spool file, and the lock on it."""

    __slots__ = ("_identity", "_lock", "lock_path", "number", "path")

    def __init__(self, path: Path, number: int, lock: int, lock_path: Path) -> None:
        self.path = path
        """Of the spool file, which may not exist yet."""
        self.number = number
        self.lock_path = lock_path
        self._set_lock(lock)

    def ensure_locked(self) -> bool:
        """Make the lock file again if it was removed, so that others see that the slot is held. Returns whether it is
        held.

        False if another process has the slot by now, or the directory is gone. Raises OSError if that cannot be
        determined.
        """
        if identity_at(self.lock_path, follow=True) == self._identity:
            return True
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            lock = _lock(self.lock_path)
            if lock is not None:
                os.close(self._lock)
                self._set_lock(lock)
                return True
        return False

    def release(self, *, remove: bool = False) -> None:
        """Let other processes have the slot; its spool file is closed already. `remove`: unlink the lock file."""
        try:
            if remove:
                unlink_own(self.lock_path, self._identity)
        finally:
            os.close(self._lock)

    def _set_lock(self, lock: int) -> None:
        self._lock = lock
        self._identity = identity_of(lock)

    def set_aside(self) -> str:
        """Move a damaged spool file and its log out of the way. Returns the file's new name. Raises OSError."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}-again")
        # The log gets the matching name: SQLite's own tools recover both together.
        for source, target in ((wal_of(self.path), wal_of(aside)), (self.path, aside)):
            with contextlib.suppress(FileNotFoundError):
                source.rename(target)
        return aside.name


class SpoolDirectory:
    """The directory, as processes of one namespace see it."""

    def __init__(self, path: Path, namespace: str) -> None:
        self.path = path
        self._prefix = f"spool-{namespace}-"

    def acquire_slot(self, open_files: Container[Identity] = ()) -> Slot:
        """Acquire the lowest free slot, but none whose file is one of `open_files`, which this process has open.

        Raises ConfigError where the directory cannot be made or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for number in range(SLOTS_MAX):
                if (slot := self._try_slot(number, open_files)) is not None:
                    # Fsynced data is lost in a power cut if the directory does not know the file yet.
                    _sync(self.path)
                    return slot
        except OSError as error:
            raise ConfigError(f"MASKLINE_SPOOL_DIR: {_describe_unusable(self.path, error)}") from None
        raise ConfigError(f"MASKLINE_SPOOL_DIR: {self.path} is used by {SLOTS_MAX} processes already")

    def leftovers(self, open_files: Container[Identity] = ()) -> Iterator[Slot]:
        """Acquire the slots with a spool file that no process holds, but none whose file is one of `open_files`.

        Raises OSError where the directory cannot be listed.
        """
        for number in sorted(self._numbers()):
            with contextlib.suppress(OSError):  # another user's, or gone meanwhile
                slot = self._try_slot(number, open_files, only_used=True)
                if slot is not None:
                    yield slot

    def other_bytes(self, own: Path) -> int | None:
        """The bytes on the disk of all spool files but `own`, of all namespaces, damaged ones not counted.

        None where the directory cannot be listed.
        """
        open_files = (own.name, wal_of(own).name)
        total = 0
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.name.endswith((".db", ".db-wal")) and entry.name not in open_files:
                        with contextlib.suppress(OSError):
                            total += entry.stat().st_size
        except OSError:
            return None
        return total

    def damaged(self) -> list[str]:
        """The names of damaged spool files that were set aside and wait for an operator."""
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

    def _try_slot(
        self, number: int, open_files: Container[Identity], *, only_used: bool = False
    ) -> Slot | None:
        """Acquire this slot; None if another process holds it, or, with `only_used`, if it has no spool file."""
        path = self.path / f"{self._prefix}{number}.db"
        lock_path = self.path / f"{self._prefix}{number}.lock"
        lock = _lock(lock_path)
        if lock is None:
            return None
        try:
            there = identity_at(path, follow=True)
            if there in open_files if there is not None else only_used:
                os.close(lock)
                return None
        except BaseException:
            os.close(lock)
            raise
        return Slot(path, number, lock, lock_path)


def _lock(path: Path) -> int | None:
    """Make and lock a lock file. Returns its descriptor, None where another process holds it. Raises OSError."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that held it before may have removed the very file that is locked now.
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
    """The path of SQLite's write-ahead log beside a file."""
    return path.with_name(f"{path.name}-wal")


def _describe_unusable(path: Path, error: OSError) -> str:
    """Describe the fault of the directory; if permission is missing, also for which user, and the command that grants
    it.
    """
    why = f"{path} cannot be used: {error.strerror or type(error).__name__}"
    if error.errno == errno.EROFS:
        return f"{why}: mount a volume there"
    if error.errno not in (errno.EACCES, errno.EPERM):
        return why
    real = path.resolve()  # chown does not follow a link
    owner: int | None = None
    with contextlib.suppress(OSError):
        owner = real.stat().st_uid
    mend = permission_fix(
        shlex.quote(str(real)), owner, os.geteuid(), os.getegid(), writable=os.access(real, os.W_OK | os.X_OK)
    )
    return f"{why}: this process is uid {os.geteuid()}; as root: {mend}"


def permission_fix(quoted: str, owner: int | None, uid: int, gid: int, *, writable: bool) -> str:
    """The shell command that lets `uid` write to a directory. Pure.

    `quoted`: the directory, quoted for a shell. `owner`: whose it is, None if it does not exist yet. `writable`:
    whether its mode lets `uid` write.
    """
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
