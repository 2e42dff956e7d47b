"""Which file is open, whatever its name leads to by now.

An open file lives on when it is moved or removed, and what is written to it is lost to the next start. So a journal
knows itself by device and inode, not by its name; and it unlinks and renames nothing else.
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
"""Since a directory's last change, until the next one shows for sure: the kernel's clock for it turns every 1 to 10 ms.
"""
COARSE_NS: Final = 3_000_000_000
"""The same where times are written down in whole seconds, or in even ones."""


def identity_at(path: Path | str, *, follow: bool = False) -> Identity | None:
    """Which file lies there, a symbolic link being one itself unless `follow`; None where none does.

    Raises OSError where that cannot be told.
    """
    try:
        status = os.stat(path, follow_symlinks=follow)  # noqa: PTH116 - twice as fast as Path's, at every commit
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


class Stamp(NamedTuple):
    """Which directory it is, and when a name in it last came, went, or was given to another file."""

    device: int
    inode: int
    changed_ns: int

    def is_settled(self) -> bool:
        """Whether the next change will show."""
        whole_seconds = self.changed_ns % 1_000_000_000 == 0
        return time.time_ns() - self.changed_ns > (COARSE_NS if whole_seconds else FINE_NS)


def stamp_of(directory: Path) -> Stamp | None:
    """None where there is no such directory. Raises OSError where that cannot be told."""
    try:
        status = os.stat(directory)  # noqa: PTH116 - as below
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stamp(status.st_dev, status.st_ino, status.st_mtime_ns)


def identity_of(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def unlink_own(path: Path | str, identity: Identity | None) -> None:
    """Remove what lies there if it is that file, and leave it alone otherwise. Raises OSError."""
    if identity is not None and identity_at(path) == identity:
        Path(path).unlink(missing_ok=True)


class OpenFile:
    """A database file of SQLite's, and its write-ahead log. All that asks the system raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: Identity | None = None
        """Of the file that was opened last."""
        self._entry: Identity | None = None
        """Of what lies at the path: another than the file where that is a symbolic link."""
        self._log_path = ""
        self._log_identity: Identity | None = None
        self._descriptors: list[int] = []
        """Open as long as SQLite's own: closing one drops all locks that this process has on the file."""

    def open(self) -> None:
        """Make the file, for its owner alone, unless it is there. Before SQLite opens it."""
        # SQLite would make it readable for all; the log beside it gets the same mode.
        self._descriptors = [os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)]
        self.identity = identity_of(self._descriptors[0])
        self._entry = identity_at(self.path)
        self._log_identity = None

    def open_log(self) -> None:
        """Once SQLite has opened it and made the log."""
        # Where the file is a symbolic link, SQLite puts the log beside what it leads to.
        self._log_path = f"{os.path.realpath(self.path)}-wal"
        self._descriptors.append(os.open(self._log_path, os.O_RDONLY | os.O_CLOEXEC))
        self._log_identity = identity_of(self._descriptors[1])

    def close(self) -> None:
        """After SQLite has closed it."""
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
        """A symbolic link lies at the path: the file is in a directory of its own."""
        return self._entry != self.identity

    def is_own(self) -> bool:
        """Whether what lies at the path is what was opened there."""
        return self._entry is not None and identity_at(self.path) == self._entry

    def is_lost(self) -> bool:
        """Whether no path at all leads to the file or its log: what lies in it ends with this process."""
        return any(os.fstat(descriptor).st_nlink == 0 for descriptor in self._descriptors)

    def unlink(self) -> None:
        unlink_own(self.path, self.identity)

    def unlink_log(self) -> None:
        unlink_own(self._log_path, self._log_identity)

    @contextlib.contextmanager
    def log_of_others_kept(self) -> Iterator[None]:
        """For SQLite's close: it unlinks what lies at the log's path, whose ever it is, unless the file has moved."""
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
