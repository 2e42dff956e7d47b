"""Finds and imports handler modules by what MASKLINE_HANDLERS calls them.

A name is the path of a `.py` file, the name of an entry point of an installed package, or dotted. Whatever goes wrong
is a `Mistake`.
"""

import importlib
import importlib.util
import signal
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from maskline.runtime.startup import search_path
from maskline.schemas.errors import Mistake
from maskline.worker.api.complaints import Notes, taking_notes
from maskline.worker.api.entry_points import InstalledHandlers, installed_handlers
from maskline.worker.api.import_failures import mistake_of_import
from maskline.worker.api.places import shown_path
from maskline.worker.api.source_loader import SourceLoader
from maskline.worker.api.spelling import did_you_mean

MODULES_NAMED_MAX: Final = 5
"""How many modules of a folder a mistake names."""


class Imported(NamedTuple):
    """What came of a name."""

    module: ModuleType | None
    notes: Notes
    """What `@on` noted meanwhile, and `mistakes` of the import itself behind it."""
    new: Collection[str]
    """The names of all modules that were imported with it and had not been before."""
    source: str = ""
    """The text of a module that could not be imported, and of the file that it failed in; empty if not found."""


class _Found(NamedTuple):
    """Where a module is: a dotted name, or a file."""

    dotted: str = ""
    file: Path | None = None
    packages: tuple[Path, ...] = ()
    """Directories of the installed package that brings it."""


def import_named(name: str, source: str) -> Imported:
    """Import one handler module. `source`: where the name stands (MASKLINE_HANDLERS), for mistakes in the name."""
    # A user's own module, and those that it imports, are in the directory where the worker is started.
    search_path.add_working_directory()
    with taking_notes() as notes:
        found = _find(name, source)
        if isinstance(found, Mistake):
            notes.mistakes.append(found)
            return Imported(None, notes, set())
        before = set(sys.modules)
        text = ""
        module: Any = None  # a module may put anything into sys.modules in its own place
        try:
            module = _import_file(found.file) if found.file else importlib.import_module(found.dotted)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and _interrupted_by_hand():
                raise
            mistake = _import_mistake(error, found, name, source)
            notes.mistakes.append(mistake)
            text = _text_of({str(found.file or _found_file(found.dotted)), mistake.file})
    if module is not None and not isinstance(module, ModuleType):
        notes.mistakes.append(Mistake(f"{source}: {name} puts another object in its place in sys.modules"))
        module = None
    new = set(sys.modules) - before
    if notes.mistakes:
        forget(module, new, notes.files)
    return Imported(module, notes, new, text)


def _text_of(files: Iterable[str]) -> str:
    """The text of sources, as far as they can be read."""
    texts = []
    for file in filter(None, files):
        with suppress(OSError):
            texts.append(Path(file).read_text(encoding="utf-8", errors="replace"))
    return "\n".join(texts)


def forget(module: ModuleType | None, new: Collection[str], files: Collection[str] = ()) -> None:
    """Let the next attempt import a module with mistakes anew: as after an import that fails.

    `new`: the names of the modules that were imported with it; of those the ones that are made of `files` go as well.
    """
    for name in new:
        other = sys.modules.get(name)
        if other is not None and (other is module or getattr(other, "__file__", None) in files):
            del sys.modules[name]


def name_of(module: ModuleType) -> str:
    """A module's name as it was imported, whatever the module has set `__name__` to."""
    spec = vars(module).get("__spec__")
    return spec.name if isinstance(spec, ModuleSpec) else str(vars(module).get("__name__", ""))


def file_of(module: ModuleType) -> str:
    """The file that a module was imported from; empty if it was made of none."""
    spec = vars(module).get("__spec__")
    return spec.origin or "" if isinstance(spec, ModuleSpec) and spec.has_location else ""


def modules_below(module: ModuleType) -> list[str]:
    """The dotted names of the modules in a package, those without an underscore in front."""
    spec = vars(module).get("__spec__")
    folders = list(spec.submodule_search_locations or ()) if isinstance(spec, ModuleSpec) else []
    return [f"{name_of(module)}.{path.stem}" for folder in folders for path in _modules_in(Path(folder))]


def _find(name: str, source: str) -> _Found | Mistake:
    path = Path(name)
    if name.endswith(".py"):
        if path.is_file():
            return _Found(file=path.resolve())
        near = did_you_mean(path.name, [other.name for other in _modules_in(path.parent)])
        what = "a directory, no file" if path.is_dir() else "no such file"
        return Mistake(f"{source}: {name}: there is {what}{near or '; correct the path'}")
    if "/" in name or "\\" in name or name == ".":
        return _path_without_file(path, name, source)
    return _find_dotted(name, source)


def _path_without_file(path: Path, name: str, source: str) -> Mistake:
    if path.is_dir():
        files = _listed(str(path / file.name) for file in _modules_in(path))
        return Mistake(f"{source}: {name} is a directory: name modules in it{files and f', as {files}'}")
    dotted = name.strip("./").replace("/", ".").replace("\\", ".")
    return Mistake(f"{source}: {name} is no module: write {dotted}, or the file's path with .py")


def _find_dotted(name: str, source: str) -> _Found | Mistake:
    brought = [entry for entry in installed_handlers() if entry.name == name]
    if brought:
        return _find_installed(brought, name, source)
    if hidden := search_path.hidden_module(name):
        file, other = hidden
        return Mistake(
            f"{source}: {name}: {file} cannot be imported under this name, {other} has it:"
            " rename it, or give its path"
        )
    return _Found(name)


def _find_installed(brought: list[InstalledHandlers], name: str, source: str) -> _Found | Mistake:
    modules = {entry.module for entry in brought}
    entry = brought[0]
    if len(modules) > 1:
        several = " and ".join(sorted({f"{it.package} ({it.module})" for it in brought}))
        return Mistake(f"{source}: {name} is brought by several packages, {several}: write the module's name")
    if ":" in entry.module:
        return Mistake(
            f"{source}: {name}: the package {entry.package} must name a module as its entry point, not {entry.module}"
        )
    if entry.module != name and (own := _file_of(name)) is not None:
        return Mistake(
            f"{source}: {name} is a module ({shown_path(own)}), and what the package {entry.package} calls its"
            f" module {entry.module}: write {entry.module}, or the path of the file"
        )
    file = _file_of(entry.module.partition(".")[0])
    packages = [Path(file).parent if Path(file).name == "__init__.py" else Path(file)] if file else []
    return _Found(entry.module, packages=tuple(packages))


def _file_of(dotted: str) -> str | None:
    """The file of a module; None if there is none of this name."""
    try:
        spec = importlib.util.find_spec(dotted)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), dotted)


def _import_file(path: Path) -> ModuleType:
    # A file imported by its dotted name as well, or named twice, is one module; else every event would be handled
    # twice.
    for known in list(sys.modules.values()):
        if getattr(known, "__file__", None) == str(path) and known.__name__ != "__main__":
            return known
    # A file called queue.py must not take the place of the module queue, nor yarl.py that of the library.
    name, count = path.stem, 0
    while name in sys.modules or (count == 0 and name in search_path.NEEDED):
        count += 1
        name = f"handlers_file_{path.stem}" + (f"_{count}" if count > 1 else "")
    loaded = importlib.util.spec_from_file_location(name, path, loader=SourceLoader(name, str(path)))
    assert loaded is not None  # noqa: S101  it has a loader
    assert loaded.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(loaded)
    sys.modules[name] = module
    try:
        loaded.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _import_mistake(error: BaseException, found: _Found, name: str, source: str) -> Mistake:
    own = str(found.file or _found_file(found.dotted))
    mistake = mistake_of_import(error, own, found.packages)
    if mistake.file:
        return mistake
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{found.dotted}.".startswith(f"{missing}."):  # the module itself, or a package above it
        return _no_such_module(error, missing, name, source)
    return Mistake(f"{source}: {name}: {mistake.text}")


def _no_such_module(error: BaseException, missing: str, name: str, source: str) -> Mistake:
    if "is not a package" in str(error):
        return Mistake(f"{source}: there is no module {name}, as {name.rpartition('.')[0]} is a single file")
    folder = Path(*name.split(".")[:-1])
    prefix = name.rpartition(".")[0]
    known = [f"{prefix}.{path.stem}" if prefix else path.stem for path in _modules_in(folder)]
    known += [entry.name for entry in installed_handlers()]
    hint = did_you_mean(name, known) or "; correct the name, or install the package that brings it"
    what = f"module {name}" if missing == name else f"module {name} ({missing} is not found)"
    return Mistake(f"{source}: there is no {what}{hint}")


def _found_file(dotted: str) -> str:
    file = getattr(sys.modules.get(dotted), "__file__", None) or _file_of(dotted)
    return file if isinstance(file, str) and file.endswith(".py") else ""


def _modules_in(folder: Path) -> list[Path]:
    """The `.py` files and packages in a folder that could be handler modules, by name."""
    try:
        found = [
            path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
        ]
    except OSError:
        return []
    return sorted(
        path for path in found if not path.name.startswith(("_", "test_")) and path.stem != "conftest"
    )


def _listed(names: Iterable[str]) -> str:
    named = list(names)
    more = ", …" if len(named) > MODULES_NAMED_MAX else ""
    return ", ".join(named[:MODULES_NAMED_MAX]) + more


def _interrupted_by_hand() -> bool:
    """Whether a KeyboardInterrupt may be Ctrl-C, and not the module's own: nodes handle that signal themselves."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler
