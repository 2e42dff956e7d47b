"""Port notes: every node writes a file with the place of its admin port, for `maskline health`, which cannot know a
moved port.

- A note is a file below `maskline-<uid>` in TMPDIR, /tmp or /dev/shm, the first that can be written. A container with a
  read-only file system has at least one of them.
- Its process keeps it locked (flock) as long as it lives, however it ends. An unlocked note is left over, and the next
  process that finds it removes it.
- It holds the settings that decide where a process listens and which deployment it belongs to, to distinguish several
  on one machine.
- The directory is locked as well: systemd-tmpfiles, which removes old files, leaves those of locked directories alone.

Without a note (nowhere to write, another user) `maskline health` asks where the settings say.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from maskline.schemas.hosts import LOOPBACKS
from maskline.schemas.settings import Settings

NOTE_MAX_BYTES: Final = 65_536
"""Bound on one file; a hundred addresses take a tenth of it."""
NOTES_MAX: Final = 4_096
"""Bound on the files that are read: more than there can be processes on a machine."""

_SUFFIX: Final = ".json"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process's admin port is, and whose process it is."""

    command: str
    """`ingest` or `worker`."""
    namespace: str
    group: str
    """Of a worker; empty for ingest, which has none."""
    admin_host: str
    admin_port: int | None
    """Both as they were set, not as they are in use."""
    pid: int
    addresses: tuple[tuple[str, int], ...] = ()
    """Where to dial: addresses and ports."""

    @classmethod
    def of(cls, command: str, settings: Settings) -> Self:
        """The note of this process, which runs `command` with these settings, before it listens."""
        return cls(
            command=command,
            namespace=settings.namespace,
            group=settings.group if command == "worker" else "",
            admin_host=settings.admin_host,
            admin_port=settings.admin_port,
            pid=os.getpid(),
        )

    def is_of(self, command: str, settings: Settings) -> bool:
        """Whether a process of this command with these settings has written it."""
        other = Note.of(command, settings)
        return all(
            getattr(self, field) == getattr(other, field)
            for field in ("command", "namespace", "group", "admin_host", "admin_port")
        )


class WrittenNote:
    """The note of this process, as a locked file. Its directory is locked too."""

    def __init__(self, directory: int, name: str, file: int) -> None:
        self._directory = directory
        self._name = name
        self._file = file

    def remove(self) -> None:
        """Remove the file, and release both locks."""
        with contextlib.suppress(OSError):
            os.unlink(self._name, dir_fd=self._directory)
        os.close(self._file)
        os.close(self._directory)


def dialable(addresses: list[tuple[Any, ...]]) -> tuple[tuple[str, int], ...]:
    """Addresses and ports to dial for sockets that listen on `addresses` (as `getsockname` gives them)."""
    return tuple((_dialable(*address), address[1]) for address in addresses)


def write_note(note: Note) -> WrittenNote:
    """Write the note of this process. Raises OSError if it can be written nowhere."""
    errors: list[OSError] = []
    for place in _places():
        try:
            directory = _open_directory(place, make=True)
        except OSError as error:
            errors.append(error)
            continue
        try:
            for _ in _live(directory):
                pass  # removes leftover notes, so that none pile up if nobody runs `maskline health`
            left = _write(directory, note)
            fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            errors.append(error)
            os.close(directory)
        else:
            return left
    raise errors[0]


def read_notes() -> list[Note]:
    """The notes of all live processes of this user."""
    found = []
    for place in _places():
        with contextlib.suppress(OSError):
            directory = _open_directory(place, make=False)
            try:
                for data in _live(directory):
                    with contextlib.suppress(msgspec.MsgspecError):
                        found.append(msgspec.json.decode(data, type=Note))
            finally:
                os.close(directory)
    return found


def _places() -> list[Path]:
    places = (os.environ.get("TMPDIR", ""), "/tmp", "/dev/shm")  # noqa: S108 - _open_directory checks whose it is
    return list(dict.fromkeys(path for place in places if (path := Path(place)).is_absolute()))


def _open_directory(place: Path, *, make: bool) -> int:
    """The directory of this user. Raises OSError, also if somebody else could have made it."""
    path = place / f"maskline-{os.geteuid()}"
    if make:
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o700)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    about = os.fstat(directory)
    if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(directory)
        raise PermissionError(f"{path} belongs to somebody else")
    return directory


def _write(directory: int, note: Note) -> WrittenNote:
    name = f"{note.command}-{note.pid}-{os.urandom(4).hex()}"
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(file, msgspec.json.encode(note))
        # Only now it gets a name that readers search for: nobody reads half of it, or finds it without its lock.
        os.rename(name, name + _SUFFIX, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        os.close(file)
        raise
    return WrittenNote(directory, name + _SUFFIX, file)


def _live(directory: int) -> Iterator[bytes]:
    """The contents of the notes whose processes live; the other notes are removed."""
    names = sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIX))
    for name in names[:NOTES_MAX]:
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except OSError:  # gone meanwhile
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield os.read(file, NOTE_MAX_BYTES)
        except OSError:  # a file system without locks: nothing can be known
            continue
        else:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
        finally:
            os.close(file)


def _dialable(host: str, _port: int, _flow: int = 0, scope: int = 0) -> str:
    host = LOOPBACKS.get(host, host)
    return f"{host}%{scope}" if scope else host
