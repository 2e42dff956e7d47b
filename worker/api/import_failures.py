"""What an exception means that ends the import of a handler module: one line, where it stands and what to do.

The place is the user's own line: the deepest one of theirs in the traceback, and not the one in a library, or in
Python's import, that raised. Where Python says what went wrong in words of its own, as for two modules that import each
other, the mistake says what that means here.
"""

import importlib.util
import re
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from types import ModuleType
from typing import Final

from maskline.runtime.startup import search_path
from maskline.schemas.errors import ConfigError, Mistake
from maskline.schemas.privacy import redact
from maskline.worker.api.places import Place, deepest_users_line, is_shipped, is_users, shown_path
from maskline.worker.api.spelling import did_you_mean

TEXT_MAX_CHARS: Final = 300
"""Of the message of an exception: a line must stay one that can be read."""

PUBLIC_MODULES: Final = ("maskline", "maskline.events", "maskline.testing")
"""Where handler modules import from."""

_URL_LOGIN: Final = re.compile(r"://[^\s/@]*@")
_CANNOT_IMPORT: Final = re.compile(r"cannot import name '([^']*)' from '([^']*)'")


def mistake_of_import(error: BaseException, file: str, packages: Collection[Path] = ()) -> Mistake:
    """The mistake that an exception shows, raised while a module was imported.

    `file`: the module's own, empty where it was not found. `packages`: as for `is_users`.
    """
    place = deepest_users_line(error.__traceback__, packages)
    if isinstance(error, ConfigError) and place.file and is_shipped(place.file):
        place = Place()  # a module that ships names the setting, or the file, in which the mistake is
    elif isinstance(error, (SyntaxError, UnicodeDecodeError, ValueError)):
        place = _place_in_source(error, place, file, packages)
    text = _explained(error)
    return Mistake(text, shown_path(place.file) if place.file else "", place.line)


def message_of(error: BaseException) -> str:
    """The message of an exception in one line: short, without phone numbers and without the log-in of a URL."""
    try:
        # The text of a SyntaxError repeats the file and the line.
        text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    except Exception:  # noqa: BLE001  a user's exception, whose text may be anything
        text = ""
    text = redact(_URL_LOGIN.sub("://***@", text))
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
    return text if len(text) <= TEXT_MAX_CHARS else text[: TEXT_MAX_CHARS - 1] + "…"


def _place_in_source(error: BaseException, place: Place, file: str, packages: Collection[Path]) -> Place:
    """Where a file cannot be read as Python: the traceback ends at the line that imports it."""
    if isinstance(error, SyntaxError) and error.filename and is_users(error.filename, packages):
        return Place(error.filename, error.lineno or _unreadable_line(error.filename) or 1)
    if not place.file and file and not getattr(error, "filename", None):
        return Place(file, _unreadable_line(file) or 1)
    return place


def _unreadable_line(file: str) -> int:
    """The first line with a null byte, or with bytes that are no UTF-8; 0 if there is none."""
    try:
        lines = Path(file).read_bytes().split(b"\n")
    except OSError:
        return 0
    for number, line in enumerate(lines, 1):
        try:
            if "\0" in line.decode():
                return number
        except UnicodeDecodeError:
            return number
    return 0


def _explained(error: BaseException) -> str:
    message = message_of(error)
    kind = type(error).__name__
    said = f"{kind}: {message}" if message else kind
    text = f"{said}; move what may fail out of the module's level, into a @resource or a handler"
    match error:
        case ConfigError():
            text = message
        case SyntaxError():
            text = _syntax(error, said)
        case ModuleNotFoundError():
            text = _no_module(error)
        case ImportError() | AttributeError() if "circular import" in message:
            text = f"{said}; two modules import each other: move what both need into a third"
        case ImportError():
            text = _no_name(error, message, said)
        case AttributeError() if hint := _attribute_meant(error):
            text = f"{said}{hint}"
        case NameError():
            text = _undefined(error, said)
        case SystemExit() | KeyboardInterrupt():
            text = (
                f"{said} at import ends no process here: take it out of the module's level,"
                ' or put it under if __name__ == "__main__":'
            )
    return text


def _syntax(error: SyntaxError, said: str) -> str:
    if "codec can't decode" in said or "null bytes" in said:
        return f"{said}; save the file as UTF-8"
    if isinstance(error, IndentationError):
        return f"{said}; mend the indentation"
    return f"{said}; Python cannot read the module until this line is mended"


def _no_module(error: ModuleNotFoundError) -> str:
    name = error.name or ""
    said = f"there is no module {name}" if name else message_of(error)
    if name and (hidden := search_path.hidden_module(name)):
        return f"{said}: {hidden[0]} cannot be imported under this name: rename it"
    top, _, rest = name.partition(".")
    if top == search_path.OWN_NAME:
        return f"{said}{did_you_mean(name, PUBLIC_MODULES[1:])}; handlers import from {', '.join(PUBLIC_MODULES)}"
    if rest and (found := sys.modules.get(name.rpartition(".")[0])) is not None:
        where = getattr(found, "__file__", None) or "a folder"
        return f"{said}: {name.rpartition('.')[0]} is {shown_path(str(where))}; correct the name"
    return (
        f"{said}{did_you_mean(name, _modules_here())}; correct the name, or install the package that has it"
    )


def _modules_here() -> Iterable[str]:
    try:
        return [
            path.stem for path in Path().iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
        ]
    except OSError:
        return []


def _no_name(error: ImportError, message: str, said: str) -> str:
    found = _CANNOT_IMPORT.search(message)
    if found is None:
        return said
    if error.name and (hidden := search_path.hidden_module(error.name)):
        return f"{said} ({hidden[0]} cannot be imported under this name: rename it)"
    name, source = found.groups()
    text = f"{source} has no {name}"
    if source.partition(".")[0] == search_path.OWN_NAME and (elsewhere := _public_module_of(name)):
        return f"{text}: write from {elsewhere} import {name}"
    module = sys.modules.get(source)
    return f"{text}{did_you_mean(name, _public_names(module)) or '; correct the name'}"


def _undefined(error: NameError, said: str) -> str:
    if error.name and (module := _public_module_of(error.name)):
        return f"{error.name} is not defined: write from {module} import {error.name}"
    names: list[str] = [name for module in PUBLIC_MODULES for name in _public_names(_imported(module))]
    hint = did_you_mean(error.name, names) if error.name else ""
    return f"{said}{hint or '; define or import it first'}"


def _attribute_meant(error: AttributeError) -> str:
    """`; did you mean X?` with what a module, or another object, has instead of a misspelled attribute."""
    try:
        known = [name for name in dir(error.obj) if not name.startswith("_")]
    except Exception:  # noqa: BLE001  a user's object, whose attributes may be anything
        return ""
    return did_you_mean(error.name, known) if error.name else ""


def _public_module_of(name: str) -> str | None:
    """The module of maskline's that handlers import a name from."""
    return next((module for module in PUBLIC_MODULES if name in _public_names(_imported(module))), None)


def _imported(name: str) -> ModuleType | None:
    if name == "maskline.testing":  # it loads a worker; its names matter only to those who have imported it
        return sys.modules.get(name)
    return sys.modules.get(name) or (
        importlib.import_module(name) if importlib.util.find_spec(name) else None
    )


def _public_names(module: ModuleType | None) -> list[str]:
    if module is None:
        return []
    names = getattr(module, "__all__", None) or dir(module)
    return [name for name in names if isinstance(name, str) and not name.startswith("_")]
