"""Where segments are kept: a folder, or an object store. `open_store` finds out which.

Both promise the same: when `put` returns, the segment is there as a whole and survives a loss of power; a reader sees
all of it or nothing.
"""

import asyncio
import contextlib
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from maskline.handlers.segments.errors import ArchiveError, DamagedSegmentError
from maskline.handlers.segments.names import SUFFIX
from maskline.schemas.errors import ConfigError

FILE_MAX_BYTES: Final = 192 << 20
"""Of a segment that is read: MASKLINE_ARCHIVE_SEGMENT_MAX_BYTES ends at 64 MiB, and a callback may be as large."""

GONE: Final = "it is gone: somebody has removed it meanwhile, or it is a link to nothing"

LEFT_BEHIND_S: Final = 3_600
"""A temporary file that is so old belongs to a writer that was killed: the next one removes it."""

CONNECT_TIMEOUT_S: Final = 5
REQUEST_TIMEOUT_S: Final = 30
RETRIES_MAX: Final = 3
RETRY_FOR_S: Final = 45
"""Requests to an object store are repeated within these bounds; then the handler fails, and the worker takes over."""

ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
"""Where an operator names a server of his own; if it is named by `http://`, it is spoken to without TLS."""


_REQUEST: Final = re.compile(r"Error performing \w+ \S+ in \S+(?:, | - )")
"""How obstore begins what it says of a request: with an address whose times look like phone numbers in logs."""


class ArchiveStore(Protocol):
    """What an archive needs of the place where it is kept. Paths have `/` between their parts."""

    async def put(self, path: str, data: bytes) -> None:
        """Keep a segment for good. Raises ArchiveError if that is not certain."""

    async def get(self, path: str) -> bytes:
        """A segment's bytes. Raises DamagedSegmentError if it is no file or is gone, ArchiveError if reading fails."""

    def days(self) -> AsyncIterator[str]:
        """The folders `2026/11/30`, the oldest first. Raises ArchiveError."""

    async def names(self, day: str) -> list[str]:
        """The paths of all files in a day's folder, sorted; those of writers at work are left out."""


def open_store(url: str, *, write: bool) -> ArchiveStore:
    """The store of a folder or a URL. `write`: make the folder if need be, and remove what a killed writer left.

    Raises ConfigError where it cannot be used at all.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        folder = FolderStore(Path(rest if separator else url).expanduser())
        folder.prepare(write=write)
        return folder
    return ObjectStore(url)


class FolderStore:
    """Segments in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._durable_folder: Path | None = None
        """The day's folder that was written to last: it survives a loss of power."""

    def prepare(self, *, write: bool) -> None:
        """Check that the folder can be used. Raises ConfigError."""
        try:
            if write:
                _make_folders(self._root)
                self._remove_left_behind()
            elif not self._root.is_dir():
                raise ConfigError(f"there is no archive at {self._root}: no such folder")
        except OSError as error:
            raise ConfigError(f"the archive's folder {self._root} cannot be used: {error.strerror}") from None

    async def put(self, path: str, data: bytes) -> None:
        """As `ArchiveStore.put`: written under another name, fsynced, renamed, and the folder fsynced."""
        try:
            await asyncio.to_thread(self._write, self._root / path, data)
        except OSError as error:
            raise ArchiveError(f"{self._root}: {error.strerror or error}") from None

    async def get(self, path: str) -> bytes:
        """As `ArchiveStore.get`."""
        try:
            return await asyncio.to_thread(_read, self._root / path)
        except FileNotFoundError:
            raise DamagedSegmentError(GONE) from None
        except OSError as error:
            raise ArchiveError(f"{path}: {error.strerror or error}") from None

    async def days(self) -> AsyncIterator[str]:
        """As `ArchiveStore.days`."""
        try:
            found = await asyncio.to_thread(_day_folders, self._root)
        except OSError as error:
            raise ArchiveError(f"{error.filename}: {error.strerror or error}") from None
        for day in found:
            yield day

    async def names(self, day: str) -> list[str]:
        """As `ArchiveStore.names`."""
        try:
            names = await asyncio.to_thread(os.listdir, self._root / day)
        except FileNotFoundError:
            return []  # its last segment was removed meanwhile
        except OSError as error:
            raise ArchiveError(f"{day}: {error.strerror or error}") from None
        return sorted(f"{day}/{name}" for name in names if not name.startswith("."))

    def _write(self, path: Path, data: bytes) -> None:
        folder = path.parent
        if folder != self._durable_folder or not folder.is_dir():
            _make_folders(folder, self._root)
            self._durable_folder = folder
        _write_durably(path, data)

    def _remove_left_behind(self) -> None:
        before = time.time() - LEFT_BEHIND_S
        for folder in sorted(self._root.glob("[0-9]*/[0-9]*/[0-9]*"))[-2:]:
            for file in folder.glob(f".*{SUFFIX}"):
                with contextlib.suppress(FileNotFoundError):
                    if file.stat().st_mtime < before:
                        file.unlink()


def _make_folders(folder: Path, root: Path | None = None) -> None:
    """Make a folder and those above it, for this user alone, so that they survive a loss of power.

    `root`: it is there, and what is below it is fsynced even if it is there: another writer may be about to.
    """
    if folder == root or (root is None and folder.is_dir()):
        return
    _make_folders(folder.parent, root)
    folder.mkdir(mode=0o700, exist_ok=True)
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _day_folders(root: Path) -> list[str]:
    """The folders `2026/11/30` of an archive, sorted. Raises OSError for one that cannot be read."""
    found = [""]
    for _ in ("year", "month", "day"):
        above, found = found, []
        for folder in above:
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                below = sorted(
                    one for one in (root / folder).iterdir() if one.name.isdecimal() and one.is_dir()
                )
                found += [one.relative_to(root).as_posix() for one in below]
    return found


def _write_durably(path: Path, data: bytes) -> None:
    hidden = path.with_name(f".{path.name}")
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        hidden.rename(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _read(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedSegmentError("it is no file")
    with path.open("rb") as file:
        return file.read(FILE_MAX_BYTES + 1)  # what is larger is no segment, and its end is missing


class ObjectStore:
    """Segments in a bucket of S3, Google Cloud Storage, Azure, or what speaks as one of them; by obstore.

    Credentials, region and endpoint come from the environment, as those services name them: AWS_ACCESS_KEY_ID,
    AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY, …
    """

    def __init__(self, url: str) -> None:
        self._obstore = _obstore()
        self._url = url
        options: dict[str, Any] = {}
        if not url.startswith("memory:"):
            options["client_options"] = {
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
                # obstore's own reading of AWS_ALLOW_HTTP ends where client options are given.
                "allow_http": any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS),
            }
            options["retry_config"] = {
                "max_retries": RETRIES_MAX,
                "retry_timeout": timedelta(seconds=RETRY_FOR_S),
            }
        if url.startswith("s3") and "AWS_CHECKSUM_ALGORITHM" not in os.environ:
            options["config"] = {"checksum_algorithm": "SHA256"}  # the server checks what it has received
        try:
            self._store = _store_of(self._obstore, url, options)
        except (ValueError, TypeError, self._obstore.exceptions.BaseError) as error:
            raise ConfigError(f"the archive {url} cannot be used: {_first_line(error)}") from None

    async def put(self, path: str, data: bytes) -> None:
        """As `ArchiveStore.put`: one PUT that creates the object, confirmed by the store.

        A PUT whose answer was lost is repeated, and finds the object there: it is ours if its bytes are.
        """
        try:
            await self._store.put_async(path, data, mode="create", use_multipart=False)
        except self._obstore.exceptions.AlreadyExistsError:
            if await self.get(path) != data:
                raise ArchiveError(f"{path} is there already, with other bytes") from None
        except self._errors as error:
            raise ArchiveError(f"a segment was not stored in {self._url}: {_first_line(error)}") from None

    async def get(self, path: str) -> bytes:
        """As `ArchiveStore.get`."""
        try:
            found = await self._store.get_async(path)
            if found.meta["size"] > FILE_MAX_BYTES:
                return b""
            return bytes(await found.bytes_async())
        except (self._obstore.exceptions.NotFoundError, FileNotFoundError):
            raise DamagedSegmentError(GONE) from None
        except self._errors as error:
            raise ArchiveError(f"{path} cannot be read: {_first_line(error)}") from None

    async def days(self) -> AsyncIterator[str]:
        """As `ArchiveStore.days`."""
        for year in await self._folders(""):
            for month in await self._folders(year):
                for day in await self._folders(month):
                    yield day

    async def names(self, day: str) -> list[str]:
        """As `ArchiveStore.names`."""
        try:
            found = [one["path"] async for some in self._store.list(day, chunk_size=1_000) for one in some]
        except self._errors as error:
            raise ArchiveError(f"{day} cannot be listed: {_first_line(error)}") from None
        return sorted(found)

    async def _folders(self, above: str) -> Iterable[str]:
        try:
            found = await self._store.list_with_delimiter_async(above or None)
        except self._errors as error:
            raise ArchiveError(f"{self._url} cannot be listed: {_first_line(error)}") from None
        folders = found["common_prefixes"]
        return sorted(folder for folder in folders if folder.rpartition("/")[2].isdecimal())

    @property
    def _errors(self) -> tuple[type[BaseException], ...]:
        return (self._obstore.exceptions.BaseError, OSError, ValueError)


_memory: Final[dict[str, Any]] = {}
"""Stores of `memory://name` URLs, each one for the whole process: for trying things out."""


def _store_of(obstore: Any, url: str, options: dict[str, Any]) -> Any:
    if url.startswith("memory:"):
        return _memory.setdefault(url, obstore.store.MemoryStore())
    return obstore.store.from_url(url, **options)


def _obstore() -> Any:
    try:
        import obstore  # noqa: PLC0415 - a folder needs none
        import obstore.exceptions  # noqa: PLC0415
        import obstore.store  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "an archive in an object store needs obstore: pip install 'maskline[archive]'"
        ) from None
    return obstore


def _first_line(error: BaseException) -> str:
    """What went wrong, without the debug texts that obstore appends, which may repeat a request."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return _REQUEST.sub("", line)[:200]
