"""Watches the folders of the user's modules, each by itself and not what lies below.

The whole working directory, as others watch it, would not do: Valkey and the spool write below `.maskline` all the
time, and each write would put off the moment at which nothing has changed for a while.
"""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

import watchfiles

from maskline.console.reload.own_modules import OwnModules

QUIET_MS: Final = 50
"""Several saves, and an editor's several writes, are one change, if no more than this lies between them."""
CHANGE_MAX_MS: Final = 300
"""A change is reported after this even if files go on changing, as a log in the working directory does."""
LOOK_AGAIN_MS: Final = 2_000
"""Everything is looked at so often, in case that a change was missed: while the folders to watch were changed, or on a
file system that does not tell."""
NEW_FOLDERS_MAX: Final = 100
"""Folders that are made below the watched ones while dev runs, and watched from then on."""

# It says of each change that it is one.
logging.getLogger("watchfiles").setLevel(logging.WARNING)

_IGNORED: Final = ("__pycache__", "node_modules", "site-packages")


class Watcher:
    """Watches for changes."""

    def __init__(self, own: OwnModules) -> None:
        self._own = own
        self._new_folders: set[Path] = set()

    def folders(self) -> set[Path]:
        """The folders to watch: of the modules that are loaded, those below which they may lie, and new ones."""
        every = {*self._own.roots, *self._new_folders, *(file.parent for file in self._own.files())}
        return {folder for folder in every if folder.is_dir()}

    async def changes(self) -> AsyncIterator[set[Path]]:
        """The files that may have changed, each time that some have; an empty set where nobody said so."""
        while True:
            folders = self.folders()
            watch = watchfiles.awatch(
                *folders,
                watch_filter=_is_source_or_folder,
                debounce=CHANGE_MAX_MS,
                step=QUIET_MS,
                rust_timeout=LOOK_AGAIN_MS,
                yield_on_timeout=True,
                recursive=False,
                ignore_permission_denied=True,
            )
            async with aclosing(watch):
                async for changes in watch:
                    touched = {Path(name) for _, name in changes}
                    self._watch_new(touched)
                    yield touched
                    if self.folders() != folders:
                        break

    def _watch_new(self, touched: set[Path]) -> None:
        for path in touched:
            for folder in _folders_from(path):
                if len(self._new_folders) < NEW_FOLDERS_MAX:
                    self._new_folders.add(folder)


def _is_source_or_folder(_change: watchfiles.Change, name: str) -> bool:
    path = Path(name)
    return path.suffix == ".py" or (not _is_ignored(path) and path.is_dir())


def _folders_from(path: Path) -> Iterator[Path]:
    if path.is_dir() and not _is_ignored(path):
        yield path
        for below in path.iterdir():
            yield from _folders_from(below)


def _is_ignored(path: Path) -> bool:
    return path.name.startswith(".") or path.name in _IGNORED
