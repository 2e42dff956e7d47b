"""The settings of a process: read from its environment, a TOML file and arguments, and checked.

Each is defined in `definitions`, the kinds of their values in `value_types`; `sources` finds what the operator has set.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from maskline.schemas.settings.definitions import ADMIN_PORTS, SETTINGS, Settings
from maskline.schemas.settings.sources import Setting, gather

__all__ = [
    "ADMIN_PORTS",
    "SETTINGS",
    "Setting",
    "Settings",
    "SettingsWithSources",
    "load_settings",
    "read_settings",
]


class SettingsWithSources(NamedTuple):
    """The settings, and where each came from."""

    settings: Settings
    sources: dict[str, str]
    """By field: `default`, `environment`, `file` (TOML), `argument`, or the name of the `NAME_FILE` it was read
    from."""


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """The settings that `environ` (default: os.environ) and its TOML file hold.

    `overrides` come from command line arguments, by field name: text or value, None if not given. Raises ConfigError
    with one line that names the setting.
    """
    return read_settings(environ, **overrides).settings


def read_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> SettingsWithSources:
    """As `load_settings`, with the source of each setting."""
    found = gather(SETTINGS, os.environ if environ is None else environ, overrides)
    sources = {
        setting.field: found[setting.field].source if setting.field in found else "default"
        for setting in SETTINGS
    }
    return SettingsWithSources(Settings(**{field: value for field, (value, _) in found.items()}), sources)
