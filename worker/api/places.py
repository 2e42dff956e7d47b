"""Where a mistake stands: the file and the line of the user's that led to it.

A file is the user's if it belongs neither to maskline, nor to Python, nor to an installed package. Files of an
installed package that brings handlers count as the user's while that package is loaded.
"""

import linecache
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, NamedTuple

from maskline.runtime.startup.search_path import OWN_NAME, ROOT
from maskline.worker.api.annotations import innermost

_OWN: Final = Path(ROOT, OWN_NAME)
_SHIPPED: Final = _OWN / "handlers"
"""The modules that ship read as a user's do, and so do the mistakes of those who change them."""
_PYTHON: Final = Path(os.__file__).absolute().parent
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})

DEFINITION_LINES_MAX: Final = 200
"""So many lines below the first decorator the `def` is looked for."""


class Place(NamedTuple):
    """A line of a file."""

    file: str = ""
    line: int = 0

    @property
    def shown(self) -> str:
        """As mistakes show it."""
        return f"{shown_path(self.file)}:{self.line}" if self.file else ""


def shown_path(file: str) -> str:
    """The path from the working directory where the file is below it, else the path as it is."""
    try:
        relative = os.path.relpath(file)
    except (OSError, ValueError):  # the working directory is gone, or on another drive
        return file
    return file if relative.startswith(os.pardir) else relative


def is_users(file: str, packages: Collection[Path] = ()) -> bool:
    """Whether a source file is the user's. `packages`: directories of installed packages that count as theirs."""
    if not file or file.startswith("<") or _is_own(file):
        return False
    path = Path(file).absolute()
    if any(path.is_relative_to(package) for package in packages):
        return True
    return not (path.is_relative_to(_PYTHON) or _INSTALLED & {*path.parts})


def caller() -> Place:
    """The line that called into maskline: that of the decorator, where `@on` finds a mistake."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  the documented way to the caller's line
    while frame is not None:
        if not _is_own(frame.f_code.co_filename):
            return Place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return Place()


def _is_own(file: str) -> bool:
    path = Path(file).absolute()
    return path.is_relative_to(_OWN) and not path.is_relative_to(_SHIPPED)


def is_shipped(file: str) -> bool:
    """Whether a source file belongs to a handler module that ships with maskline."""
    return Path(file).absolute().is_relative_to(_SHIPPED)


def deepest_users_line(traceback: TracebackType | None, packages: Collection[Path] = ()) -> Place:
    """The innermost line of the user's in a traceback: what they wrote, and not the library that it failed in."""
    found = Place()
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_users(code.co_filename, packages):
            found = Place(code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def place_of(function: Callable[..., Any]) -> Place:
    """The line of a function's `def`; below its decorators, if it has any."""
    code: CodeType | None = getattr(innermost(function), "__code__", None)
    if code is None:
        return Place()
    linecache.checkcache(code.co_filename)
    definition = re.compile(rf"\s*(async\s+)?def\s+{re.escape(code.co_name)}\b")
    for line in range(code.co_firstlineno, code.co_firstlineno + DEFINITION_LINES_MAX):
        if definition.match(linecache.getline(code.co_filename, line)):
            return Place(code.co_filename, line)
    return Place(code.co_filename, code.co_firstlineno)
