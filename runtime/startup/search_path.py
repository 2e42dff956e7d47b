"""Orders the search path for modules: maskline first, then the libraries, the working directory last.

A user's project may well have a `redis.py` or a `maskline.py`. None of them may take the place of maskline, or of a
library that it needs, however a process was started. If one does all the same, because PYTHONPATH has it first, the
start ends with one line that names it.

This module is imported before anything else, so it imports only what Python itself has loaded by then.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, all_suffixes
from importlib.util import find_spec

OWN_NAME = "maskline"
"""The one name at the top that is ours."""

LIBRARIES = frozenset(
    {
        "aiohappyeyeballs", "aiohttp", "aiosignal", "async_timeout", "attr", "attrs", "frozenlist", "hiredis", "idna",
        "markdown_it", "mdurl", "msgspec", "multidict", "prometheus_client", "propcache", "pygments", "redis", "rich",
        "structlog", "typing_extensions", "uvloop", "yarl",
    }
)  # fmt: skip
"""The packages that maskline needs, and those that they need, by name; a test compares them with what is installed."""

NEEDED = {OWN_NAME} | LIBRARIES | sys.stdlib_module_names
"""Names that a module of the user's must not take."""

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
"""The directory that holds the package `maskline`."""

_EXIT_USAGE = 2


def order_search_path() -> None:
    """Have maskline found first and modules of the working directory last, in this process.

    Exits with 2 and one line if a file of the user's hides a module that maskline needs.
    """
    if not any(isinstance(finder, _OwnFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OwnFinder())
    last = [entry for entry in sys.path if _is_working_directory(entry) and not _is_installed(entry)]
    sys.path[:] = [entry for entry in sys.path if entry not in last] + last[:1]
    for name, file in hiding_modules():
        os.write(
            2,
            f"maskline: {file} takes the place of the module {name}, which maskline needs: "
            "rename it, or take its directory out of PYTHONPATH\n".encode("utf-8", "backslashreplace"),
        )
        sys.exit(_EXIT_USAGE)


def add_working_directory() -> None:
    """Let modules of the working directory be imported, after everything else."""
    if not any(_is_working_directory(entry) for entry in sys.path):
        sys.path.append(_absolute(os.curdir))


class _OwnFinder:
    """Finds the package `maskline` where this file is, with any search path."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        del path, target
        return PathFinder.find_spec(name, [ROOT]) if name == OWN_NAME else None


def hiding_modules() -> Iterator[tuple[str, str]]:
    """The modules that maskline needs and a file of the user's hides: each name, and the file imported instead."""
    for entry in sys.path:
        if _is_installed(entry):
            continue
        try:
            files = os.listdir(entry or os.curdir)
        except OSError:  # there is none, or it is a zip file
            continue
        for name in sorted(NEEDED & {file.partition(".")[0] for file in files}):
            file = _location(_spec(name))
            if os.path.dirname(file) == _absolute(entry) and not _is_copy(name, entry, files):
                yield name, file


def _spec(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ValueError, ImportError):  # ValueError: a loaded module that says nothing of its origin
        return None


def _location(spec: ModuleSpec | None) -> str:
    """The file of a module, or the directory of a package; empty if it has none."""
    if spec is None:
        return ""
    if spec.submodule_search_locations:
        return _absolute(next(iter(spec.submodule_search_locations)))
    return _absolute(spec.origin) if spec.has_location and spec.origin else ""


def _is_copy(name: str, entry: str, files: Sequence[str]) -> bool:
    """Whether the module on this entry of the path is a library installed there, or one that is found nowhere else."""
    if name in LIBRARIES:
        metadata = (".dist-info", ".egg-info")
        if any(file.lower().startswith(name) and file.endswith(metadata) for file in files):
            return True
    others = [other for other in sys.path if other != entry]
    return name != OWN_NAME and PathFinder.find_spec(name, others) is None


def hidden_module(name: str) -> tuple[str, str] | None:
    """If a dotted name means a module of the user's, but another one is imported: the locations of both."""
    top = name.partition(".")[0]
    found = _location(_spec(top))
    if not found:
        return None
    for entry in [os.curdir, *(sys.path if top == OWN_NAME else ())]:
        directory = _absolute(entry)
        meant = os.path.join(directory, *name.split("."))
        for file in (*(meant + suffix for suffix in all_suffixes()), os.path.join(meant, "__init__.py")):
            if os.path.isfile(file) and not _same(os.path.dirname(found), directory):
                return file, found
    return None


def _is_working_directory(entry: str) -> bool:
    return entry in ("", os.curdir) or _same(entry, os.curdir)


def _is_installed(entry: str) -> bool:
    """Whether an entry of the path is Python's own, a directory of installed packages, or the one of maskline."""
    library = os.path.dirname(_absolute(os.__file__))
    return (
        os.path.basename(os.path.normpath(entry)) in ("site-packages", "dist-packages")
        or _absolute(entry) in (ROOT, library)
        or _absolute(entry).startswith(os.path.join(library, ""))
    )


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one or os.curdir, other or os.curdir)
    except OSError:  # one of them is gone
        return False


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)
    except OSError:  # the working directory is gone
        return entry
