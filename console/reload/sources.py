"""The sources that a reload depends on, as they were found, and what of a change is worth a reload.

A file's content decides, not its time: editors save by renaming, save twice, or save what has not changed. Its content
is read where the file system says anything new of it, or named it as changed.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

FILES_MAX: Final = 5_000
"""Python files that are looked at, in all folders together: an order of magnitude more than a project of handlers."""


class Source(NamedTuple):
    """A file as it was found."""

    stat: tuple[int, int, int, int]
    """Its modification and change times, size and inode."""
    digest: bytes
    """Of its content."""


Sources = dict[Path, Source]


def read_sources(
    folders: Iterable[Path], before: Mapping[Path, Source], touched: Collection[Path] = ()
) -> Sources:
    """The Python files that lie directly in these folders. `before`: as they were found last; of those that have the
    same stat the content is not read again, unless they are among `touched`.
    """
    found: Sources = {}
    for folder in folders:
        try:
            files = sorted(folder.glob("*.py"))
        except OSError:  # the folder is gone
            continue
        for file in files[: FILES_MAX - len(found)]:
            try:
                status = file.stat()
                stat = status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
                known = before.get(file)
                if known is not None and known.stat == stat and file not in touched:
                    found[file] = known
                else:
                    found[file] = Source(stat, hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
            except OSError:  # gone since, or a folder of that name
                continue
    return found


def worth_a_reload(
    before: Mapping[Path, Source], now: Mapping[Path, Source], loaded: Collection[Path], *, failed: bool
) -> list[Path]:
    """The changed files for which the modules are loaded anew: those that are loaded, and new ones. Pure.

    A new one may be what an import looks for that is allowed to fail; a test is not. After a load that failed, any
    change may be what it needs: `loaded` says what the running version has.
    """
    changed = [
        file
        for file in sorted({*before, *now})
        if (before[file].digest if file in before else None) != (now[file].digest if file in now else None)
    ]
    if failed:
        return changed
    return [file for file in changed if file in loaded or (file not in before and not _is_test(file))]


def _is_test(file: Path) -> bool:
    return file.name == "conftest.py" or file.stem.startswith("test_") or file.stem.endswith("_test")
