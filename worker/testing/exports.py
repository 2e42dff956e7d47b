"""Exported sessions, as a harness replays them."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from maskline.schemas.errors import ConfigError
from maskline.schemas.session_export import ExportSettings, SessionExport, decode_export
from maskline.worker.testing.parts import WorkerSettings


def read_export(path: str | PathLike[str]) -> SessionExport:
    """The session in a file of `maskline session UUID --export FILE`. Raises ConfigError and OSError."""
    file = Path(path)
    try:
        return decode_export(file.read_bytes())
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def settings_of(exported: ExportSettings, given: Mapping[str, Any]) -> WorkerSettings:
    """The settings of an exported session, where a harness was not given others. `given`: by their names."""
    taken = msgspec.structs.asdict(exported)
    taken["ignored_parameters"] = frozenset(exported.ignored_parameters)
    return WorkerSettings(**{**taken, **given})
