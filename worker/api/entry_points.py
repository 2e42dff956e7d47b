"""Handler modules that installed packages bring, by the entry points of the group `maskline.handlers`.

A package names its module there, and MASKLINE_HANDLERS loads it by that name. Nothing is loaded because it is
installed.
"""

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Final, NamedTuple

GROUP: Final = "maskline.handlers"


class InstalledHandlers(NamedTuple):
    """A handler module of an installed package."""

    name: str
    """What MASKLINE_HANDLERS calls it."""
    module: str
    """Its dotted name."""
    package: str
    version: str


def installed_handlers() -> Sequence[InstalledHandlers]:
    """All of them, by name. It reads the metadata of every installed package, some 10 ms."""
    found = {
        InstalledHandlers(
            entry.name,
            entry.value,
            entry.dist.name if entry.dist else "",
            entry.dist.version if entry.dist else "",
        )
        for entry in entry_points(group=GROUP)
    }
    return sorted(found)
