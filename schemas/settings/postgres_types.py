"""Kinds of values that the settings of `handlers.postgres` have."""

import re
from typing import Final

from maskline.schemas.settings.url_types import hide_password
from maskline.schemas.settings.value_types import Kind

_SCHEMA_NAME: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}\Z")


def _read_schema_name(text: str) -> str:
    if not _SCHEMA_NAME.match(text):
        raise ValueError
    return text


SCHEMA_NAME: Final = Kind(
    "the name of a PostgreSQL schema: 1 to 63 small letters, digits or '_', no digit first",
    _read_schema_name,
)


def _read_postgres_url(text: str) -> str:
    scheme, separator, _ = text.partition("://")
    if not separator or scheme not in {"postgres", "postgresql"}:
        raise ValueError
    if not text.isprintable() or " " in text:
        raise ValueError("it has a space or a control character in it")
    return text


POSTGRES_URL: Final = Kind(
    "a PostgreSQL URL (postgresql://user@host:port,host:port/database)",
    _read_postgres_url,
    show=hide_password,
    secret=True,
)
