"""Has the user's modules, and those of maskline's that use them, imported anew; puts the old ones back if that fails.

All of them, and not the changed one alone: a module that imports a name from a changed one would keep the old object.
Functions of the old modules go on running with the old modules' globals, for as long as anything refers to them.

Bytecode that is cached counts for nothing (`worker.api.source_loader`). Metrics of prometheus_client's default registry
are made room for, as a module that registers its own would fail the second time.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from prometheus_client import REGISTRY

from maskline.console.reload.own_modules import OwnModules
from maskline.worker.api.source_loader import SourceLoader


class SourceFinder:
    """A finder for `sys.meta_path`: it finds the user's modules as Python does, and has their sources compiled."""

    def __init__(self, own: OwnModules) -> None:
        self._own = own

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of the user's; None for any other, which the next finder finds."""
        spec = PathFinder.find_spec(name, path, target)
        loader = None if spec is None else spec.loader
        if spec is None or type(loader) is not SourceFileLoader:
            return None
        if not self._own.owns(name, Path(loader.path).resolve()):
            return None
        spec.loader = SourceLoader(loader.name, loader.path)
        return spec


@contextmanager
def sources_compiled(own: OwnModules) -> Iterator[None]:
    """Within it, modules of the user's are loaded from their sources alone."""
    finder = SourceFinder(own)
    at = next((place for place, other in enumerate(sys.meta_path) if other is PathFinder), len(sys.meta_path))
    sys.meta_path.insert(at, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class SetAside:
    """The user's modules and metrics, taken out from the moment that this is made, so that they are imported anew.

    Call `put_back` if that fails, else `drop`. `library_metrics`: those that are not the user's, as `default_metrics`
    found them before anything of the user's was imported.
    """

    def __init__(self, own: OwnModules, library_metrics: Sequence[Any]) -> None:
        self._own = own
        self._library_metrics = library_metrics
        self._modules = own.imported_anew()
        self._metrics = self._take_metrics()
        for name in self._modules:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()  # or a new file would not be found for a second

    def put_back(self) -> None:
        """Have the old modules and metrics in place again, and nothing of what was imported since."""
        for name in self._own.imported_anew():
            sys.modules.pop(name, None)
        self._take_metrics()
        for name, module in self._modules.items():
            sys.modules[name] = module
            package, _, tail = name.rpartition(".")
            if package in sys.modules:
                setattr(sys.modules[package], tail, module)  # as the import of a submodule does
        self._register_metrics()

    def drop(self) -> None:
        """Keep what was imported since. Of the old metrics those stay whose names no new one has: a library's may be
        among them, which is not imported again.
        """
        self._register_metrics()

    def _take_metrics(self) -> list[Any]:
        taken = [metric for metric in default_metrics() if metric not in self._library_metrics]
        for metric in taken:
            REGISTRY.unregister(metric)
        return taken

    def _register_metrics(self) -> None:
        for metric in self._metrics:
            with suppress(ValueError):  # a new one has its name
                REGISTRY.register(metric)


def default_metrics() -> list[Any]:
    """The collectors of prometheus_client's default registry."""
    # The registry has no public way to list them. Without it, a module that registers metrics cannot be reloaded.
    return list(getattr(REGISTRY, "_collector_to_names", ()))
