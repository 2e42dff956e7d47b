"""Reads MASKLINE_FORWARD_CONFIG: a TOML file with a table `[[endpoint]]` for each endpoint that webhooks are sent to.

The first mistake that is found is a ConfigError: one line with the file, the endpoint and the key, and no value of a
secret or a header. Paths in the file are relative to its folder.
"""

import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from maskline.handlers.webhooks.endpoint import Endpoint, MistakeError, make_endpoint
from maskline.handlers.webhooks.table import EndpointTable
from maskline.schemas.errors import ConfigError

ENDPOINTS_MAX: Final = 64
"""Each is a handler, and the handlers of an event run one after another."""


def read_endpoints(path: Path) -> tuple[Endpoint, ...]:
    """The endpoints of a file, checked, with the secrets and the certificates that it names.

    Raises ConfigError.
    """
    tables = _tables(path)
    endpoints: list[Endpoint] = []
    for position, table in enumerate(tables, 1):
        where = f"{path}: endpoint {position}"
        if isinstance(table, dict) and isinstance(table.get("name"), str):
            where += f" ({table['name'][:64]!r})"
        try:
            endpoints.append(make_endpoint(msgspec.convert(table, EndpointTable), path.parent))
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {_validation_text(error)}") from None
        except MistakeError as mistake:
            raise ConfigError(f"{where}: {mistake}") from None
        if any(other.name == endpoints[-1].name for other in endpoints[:-1]):
            raise ConfigError(f"{where}: name: another endpoint has this name")
    return tuple(endpoints)


def _tables(path: Path) -> list[Any]:
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"MASKLINE_FORWARD_CONFIG: {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no TOML: {error}") from None
    for key in document.keys() - {"endpoint"}:
        raise ConfigError(f"{path}: unknown key {key}: the file has tables [[endpoint]] and nothing else")
    tables = document.get("endpoint", [])
    if not isinstance(tables, list):
        raise ConfigError(f"{path}: endpoint: write [[endpoint]], in two pairs of brackets")
    if not 1 <= len(tables) <= ENDPOINTS_MAX:
        raise ConfigError(f"{path}: it must have 1 to {ENDPOINTS_MAX} tables [[endpoint]], not {len(tables)}")
    return tables


def _validation_text(error: msgspec.ValidationError) -> str:
    """What msgspec has found: the key first, as in the file, and no value."""
    text, _, place = str(error).partition(" - at `$")
    key = place.removesuffix("`").lstrip(".").replace("[...]", "")
    return f"{key}: {text}" if key else text
