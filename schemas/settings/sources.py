"""Reads settings from their sources: arguments, environment, TOML file, files of single values.

Arguments win over the environment, the environment over the TOML file of MASKLINE_CONFIG. In the last two, `NAME_FILE`
names a file that holds the value. An empty value counts as not set. Anything unknown or wrong raises a ConfigError of
one line that names it: a setting that is silently not applied costs more than a refused start.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from maskline.schemas.errors import ConfigError
from maskline.schemas.settings.url_types import hide_secrets
from maskline.schemas.settings.value_types import PATH, Kind

PREFIX: Final = "MASKLINE_"
FILE_SUFFIX: Final = "_FILE"
CONFIG_NAME: Final = "MASKLINE_CONFIG"
FILE_MAX_BYTES: Final = 1 << 20
"""A file of settings has a few lines. The bound keeps a wrong path (/dev/zero) from filling the memory."""
SHOWN_MAX_CHARS: Final = 60
"""Characters of a wrong value that an error line repeats."""
PATH_SHOWN_MAX_CHARS: Final = 255
"""Characters of a path that it repeats, from the end, which says most."""

# Variables that Kubernetes sets in containers for a Service called `maskline…`, unless enableServiceLinks is false.
_SERVICE_LINK: Final = re.compile(
    r"_SERVICE_(HOST|PORT)(_\w+)?\Z|_PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?\Z|_PORT\Z"
)
_SERVICE_LINK_HINT: Final = "Kubernetes sets it for a Service of that name: set enableServiceLinks: false"


class Setting(NamedTuple):
    """One row of the table of settings: `field` in Settings, `name` in the environment."""

    field: str
    name: str
    default: Any
    kind: Kind
    meaning: str
    default_text: str

    def show(self, value: Any) -> str:
        """The value as it would be written, secrets hidden; empty if it is not set."""
        return "" if value is None or value == "" else self.kind.show(value)


class SourcedValue(NamedTuple):
    """The value of a setting, and where it came from."""

    value: Any
    source: str
    """`argument`, `environment`, `file` (TOML), or the name of the `NAME_FILE` it was read from."""


class FileText(str):
    """The text of a setting that was read from the file of a `NAME_FILE`, and can be read again."""

    __slots__ = ("_file", "_setting")
    _setting: Setting
    _file: Path

    def __new__(cls, text: str, setting: Setting, file: Path) -> Self:
        """`text` was read from `file`, for `setting`."""
        file_text = super().__new__(cls, text)
        file_text._file, file_text._setting = file, setting
        return file_text

    def read_again(self) -> "FileText":
        """The present text of the file. Raises ConfigError as `gather` does."""
        value: FileText = _read_value_file(self._setting, self._file, "")
        return value


class _Source(NamedTuple):
    """A place that holds settings."""

    kind: str
    """As SourcedValue.source."""
    where: str
    """Appended to error lines, so that the operator looks in the right place."""
    values: Mapping[str, Any]


def gather(
    settings: Iterable[Setting], environ: Mapping[str, str], arguments: Mapping[str, Any]
) -> dict[str, SourcedValue]:
    """The settings that are set, by field; `arguments` are by field too, None if not given. Raises ConfigError."""
    names = {setting.name: setting for setting in settings}
    given = {PREFIX + field.upper(): value for field, value in arguments.items() if value is not None}
    own = {name: value for name, value in environ.items() if name.startswith(PREFIX) and value.strip()}
    sources = [_Source("argument", "", given), _Source("environment", "", own)]
    if config := given.get(CONFIG_NAME) or own.get(CONFIG_NAME):
        sources.append(_toml_source(Path(config)))
    found: dict[str, SourcedValue] = {}
    for source in sources:
        for setting, entry in _read_source(names, source):
            # Every source is read, even for settings that an earlier one has: a mistake there is still a mistake.
            found.setdefault(setting.field, entry)
    return found


def _read_source(names: Mapping[str, Setting], source: _Source) -> Iterator[tuple[Setting, SourcedValue]]:
    for name, value in source.values.items():
        base = name.removesuffix(FILE_SUFFIX)
        if name in names:
            yield names[name], SourcedValue(_checked(names[name], value, source.where), source.kind)
        elif base in names and base != CONFIG_NAME:  # MASKLINE_CONFIG names a file itself
            if base in source.values:
                raise ConfigError(f"{base} and {name} are both set{source.where}: leave one away")
            yield names[base], SourcedValue(_read_value_file(names[base], value, source.where), name)
        else:
            raise ConfigError(f"{_unknown(name, names)}{source.where}")


def _read_value_file(setting: Setting, path: Any, where: str) -> Any:
    name = setting.name + FILE_SUFFIX
    file, text = _value_file(name, path, where, secret=setting.kind.secret)
    value = _checked(setting, text, f" (in the file of {name})")
    return FileText(value, setting, file) if isinstance(value, str) else value


def _checked(setting: Setting, value: Any, where: str) -> Any:
    kind = setting.kind
    if isinstance(value, (Path, tuple)):
        return value  # an argument that the command line parser has read
    try:
        return kind.read(_as_text(kind, value))
    except ValueError as error:
        hint = f": {error}" if str(error) else ""
    if setting.name == PREFIX + "PORT" and str(value).startswith("tcp://"):
        hint = f" ({_SERVICE_LINK_HINT})"
    shown = "" if kind.secret else f", not {_short(value)}"
    raise ConfigError(f"{setting.name} must be {kind.allowed}{shown}{hint}{where}")


def _as_text(kind: Kind, value: Any) -> str:
    """A TOML value as it would be written in the environment. Raises ValueError for a value of another type."""
    if isinstance(value, str):
        return value
    if kind.native is list and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    # bool is an int in Python, but `MASKLINE_PORT = true` is a mistake.
    if type(value) is kind.native and kind.native is not list:
        return str(value)
    raise ValueError


def _toml_source(path: Path) -> _Source:
    shown = _short(path, PATH_SHOWN_MAX_CHARS)
    try:
        values = tomllib.loads(_file_text(path))
    except OSError as error:
        raise ConfigError(f"{CONFIG_NAME}: cannot read {shown}: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        reason = " ".join(str(error).split())
        raise ConfigError(f"{CONFIG_NAME}: {shown} is no TOML file: {reason}") from None
    if CONFIG_NAME in values:
        raise ConfigError(f"{CONFIG_NAME} cannot stand in the file that it names ({shown})")
    kept = {name: value for name, value in values.items() if not isinstance(value, str) or value.strip()}
    return _Source("file", f" (in {shown})", kept)


def _value_file(name: str, path: Any, where: str, *, secret: bool) -> tuple[Path, str]:
    shown = _short(path, PATH_SHOWN_MAX_CHARS)
    if secret and not re.match(r"[~.]{0,2}/", str(path)):
        shown = "what it names"  # the path may be the secret itself, under the wrong name
    try:
        file = path if isinstance(path, Path) else Path(PATH.read(_as_text(PATH, path)))
        text = _file_text(file).rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {shown}: {error.strerror}{where}") from None
    except ValueError:
        raise ConfigError(f"{name} must be the path of a file with text in it, not {shown}{where}") from None
    if not text.strip():
        raise ConfigError(f"{name}: {shown} is empty{where}")
    return file, text


def _file_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(FILE_MAX_BYTES + 1)
    if len(data) > FILE_MAX_BYTES:
        raise ValueError(f"larger than {FILE_MAX_BYTES} bytes")
    return data.decode("utf-8-sig")


def _unknown(name: str, names: Mapping[str, Setting]) -> str:
    shown = _short(name)[1:-1]
    if name.startswith(PREFIX) and _SERVICE_LINK.search(name):
        return f"{shown} is no setting ({_SERVICE_LINK_HINT})"
    # Compared without the prefix, which would make any two names look alike.
    bare = [known.removeprefix(PREFIX) for known in names]
    files = [known + FILE_SUFFIX for known in bare if PREFIX + known != CONFIG_NAME]
    wanted = name[:SHOWN_MAX_CHARS].upper().removeprefix(PREFIX)
    stem = wanted.removesuffix(FILE_SUFFIX)
    # MASKLINE_CONFIG_FILE is MASKLINE_CONFIG, not the longer name of another setting.
    near = [stem] if stem in bare else difflib.get_close_matches(wanted, bare + files, n=1)
    return f"{shown} is no setting" + (
        f", did you mean {PREFIX}{near[0]}?" if near else ": `maskline settings` lists them all"
    )


def _short(value: Any, chars_max: int = SHOWN_MAX_CHARS) -> str:
    """A value or a path for an error line: one line, printable, bounded, without passwords."""
    text = hide_secrets(str(value))
    return ascii(text if len(text) <= chars_max else text[:chars_max] + "...")
