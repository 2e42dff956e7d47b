"""Identifies the open spool file, wherever its path leads by now.

An open file still takes writes after it was moved or removed, but the next start does not find them. So a spool file is
identified by device and inode, not by its name, and nothing else is unlinked or renamed.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

Identity = tuple[int, int]
"""Device and inode."""

FINE_NS: Final = 100_000_000
"""After a directory's last change, until the next one surely has another time: the kernel's clock for it ticks every 1
to 10 ms."""
COARSE_NS: Final = 3_000_000_000
"""The same on file systems that keep times in whole seconds, or in even ones."""


def identity_at(path: Path | str, *, follow: bool = False) -> Identity | None:
    """The identity of what lies at a path, None where nothing does. `follow`: of what a symbolic link leads to.

    Raises OSError where that cannot be determined.
    """
    try:
        status = os.stat(path, follow_symlinks=follow)  # noqa: PTH116 - twice as fast as Path's, at every commit
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


class Stamp(NamedTuple):
    """The state of a directory: which one it is, and when a name in it was last added, removed or replaced."""

    device: int
    inode: int
    changed_ns: int

    def shows_next_change(self) -> bool:
        """Whether the next change is sure to give another stamp."""
        whole_seconds = self.changed_ns % 1_000_000_000 == 0
        return time.time_ns() - self.changed_ns > (COARSE_NS if whole_seconds else FINE_NS)


def stamp_of(directory: Path) -> Stamp | None:
    """The stamp of a directory, None where there is none. Raises OSError where that cannot be determined."""
    try:
        status = os.stat(directory)  # noqa: PTH116 - as below
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stamp(status.st_dev, status.st_ino, status.st_mtime_ns)


def identity_of(descriptor: int) -> Identity:
    """The identity of an open file. Raises OSError."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def unlink_own(path: Path | str, identity: Identity | None) -> None:
    """Unlink what lies at a path if it is the file with this identity. Raises OSError."""
    if identity is not None and identity_at(path) == identity:
        Path(path).unlink(missing_ok=True)


class OpenFile:
    """The identities of an SQLite file and its write-ahead log. Methods that make system calls raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: Identity | None = None
        """Of the file that was opened last."""
        self._entry: Identity | None = None
        """Of what lies at the path: differs from `identity` where that is a symbolic link."""
        self._log_path = ""
        self._log_identity: Identity | None = None
        self._descriptors: list[int] = []
        """Open as long as SQLite's own: closing one drops all locks that this process has on the file."""

    def open(self) -> None:
        """Make the file, for its owner alone, unless it exists. To be called before SQLite opens it."""
        # SQLite would make it readable for all; the log beside it gets the same mode.
        self._descriptors = [os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)]
        self.identity = identity_of(self._descriptors[0])
        self._entry = identity_at(self.path)
        self._log_identity = None

    def open_log(self) -> None:
        """Identify the log. To be called once SQLite has opened the file and made the log."""
        # If the path is a symbolic link, SQLite makes the log beside its target.
        self._log_path = f"{os.path.realpath(self.path)}-wal"
        self._descriptors.append(os.open(self._log_path, os.O_RDONLY | os.O_CLOEXEC))
        self._log_identity = identity_of(self._descriptors[1])

    def close(self) -> None:
        """Close the descriptors. To be called after SQLite has closed the file."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def in_place(self) -> bool:
        """Whether the paths of the file and its log lead to what is open."""
        return (
            identity_at(self.path) == self._entry
            and (self._entry == self.identity or identity_at(self.path, follow=True) == self.identity)
            and identity_at(self._log_path) == self._log_identity
        )

    @property
    def is_link(self) -> bool:
        """Whether a symbolic link lies at the path, so that the file is in another directory."""
        return self._entry != self.identity

    def is_own(self) -> bool:
        """Whether the path leads to the file that was opened there."""
        return self._entry is not None and identity_at(self.path) == self._entry

    def is_lost(self) -> bool:
        """Whether no path at all leads to the file or its log: its callbacks are lost with this process."""
        return any(os.fstat(descriptor).st_nlink == 0 for descriptor in self._descriptors)

    def unlink(self) -> None:
        """Unlink the file, unless another one lies at its path."""
        unlink_own(self.path, self.identity)

    def unlink_log(self) -> None:
        """Unlink the log, unless another file lies at its path."""
        unlink_own(self._log_path, self._log_identity)

    @contextlib.contextmanager
    def log_of_others_kept(self) -> Iterator[None]:
        """Protect another's log while SQLite closes the file.

        SQLite unlinks the file at the log's path, even another process's, unless it has moved. So it is moved.
        """
        if (
            self._log_identity is None
            or not self.is_own()
            or identity_at(self._log_path) in {None, self._log_identity}
        ):
            yield
        else:
            aside = self.path.with_name(f"{self.path.name}.closing")
            self.path.rename(aside)
            try:
                yield
            finally:
                aside.rename(self.path)
