"""Which modules are the user's own: those that a reload is for. Pure but for asking where files really are.

| a module is the user's own | |
| --- | --- |
| if its source lies below the working directory | wherever it was named, and also if another one imports it |
| or below the folder of a handler module | named by its path, or in a package installed in place (`pip install -e`) |
| but not if it is installed, or Python's | a virtual environment may lie below the working directory |
| nor maskline's | but for `maskline.handlers`, in a checkout of maskline that is the working directory |
"""

import sys
import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Final

from maskline.worker.api.entry_points import installed_handlers

_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_PYTHONS: Final = frozenset(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_FILES_MAX: Final = 16_384
"""Files of which it is remembered where they really are: asking for each of a thousand modules takes 40 ms."""

_OURS: Final = "maskline"
_SHIPPED: Final = "maskline.handlers"


class OwnModules:
    """The user's own modules, by where their sources lie. `names`: the handler modules, as MASKLINE_HANDLERS has them.

    `find_folders` is to be called when they are loaded.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        folders = (Path(name).resolve().parent for name in self._names if name.endswith(".py"))
        self.roots: set[Path] = {Path.cwd().resolve(), *folders}
        """The folders below which the user's modules lie."""

    def find_folders(self) -> None:
        """Note the folders of the handler modules that are loaded by a dotted name, or by an entry point."""
        by_entry_point = {found.name: found.module for found in installed_handlers()}
        for name in self._names:
            top = sys.modules.get(by_entry_point.get(name, name).partition(".")[0])
            file = None if top is None or top.__name__ == _OURS else _source(top)
            if file is not None and not _is_installed(file):
                self.roots.add(file.parent)

    def owns(self, name: str, file: Path) -> bool:
        """Whether a module of this name and source is the user's own."""
        if _within(name, _OURS) and not _within(name, _SHIPPED):
            return False
        return not _is_installed(file) and any(root in file.parents for root in self.roots)

    def loaded(self) -> dict[str, ModuleType]:
        """Those that are loaded, by name. What an import has begun and not finished counts too."""
        modules = [*sys.modules.items()]
        return {name: module for name, module in modules if name != "__main__" and self._is_own(name, module)}

    def imported_anew(self) -> dict[str, ModuleType]:
        """What a reload imports anew: the user's own, and the handler modules of maskline's that MASKLINE_HANDLERS
        names. Those may have what a setting names of the user's: MASKLINE_EXPIRE_FUNCTION.
        """
        shipped = {name for name in self._names if name.startswith(f"{_SHIPPED}.")}
        return self.loaded() | {name: sys.modules[name] for name in shipped if name in sys.modules}

    def _is_own(self, name: str, module: ModuleType) -> bool:
        try:
            files = _sources(module)
        except KeyError:
            return True  # a namespace package, and the import of the package that it is in has failed
        return bool(files) and all(self.owns(name, file) for file in files)

    def files(self) -> set[Path]:
        """The sources of those that are loaded."""
        return {file for module in self.loaded().values() if (file := _source(module)) is not None}


def _sources(module: ModuleType) -> list[Path]:
    """The source of a module; of a namespace package, which has none, those that it could have in its folders."""
    file = _source(module)
    if file is not None:
        return [file]
    if getattr(module, "__file__", None) is not None:
        return []  # in C
    folders = getattr(module, "__path__", ())
    return [_resolved(folder) / "__init__.py" for folder in folders if isinstance(folder, str)]


def _source(module: ModuleType) -> Path | None:
    """The source of a module; None for one of Python's or in C, and for a namespace package."""
    file = getattr(module, "__file__", None)
    return _resolved(file) if isinstance(file, str) and file.endswith(".py") else None


@lru_cache(_FILES_MAX)
def _resolved(file: str) -> Path:
    return Path(file).resolve()


@lru_cache(_FILES_MAX)
def _is_installed(file: Path) -> bool:
    return not _INSTALLED.isdisjoint(file.parts) or not _PYTHONS.isdisjoint(file.parents)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")
