"""Loads handlers: imports the modules of MASKLINE_HANDLERS and collects what they declare.

A module is named by its dotted name, or by the path of a `.py` file. Anything wrong with a module is a ConfigError, one
line that names the module.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

from maskline.runtime.startup import search_path
from maskline.schemas.errors import ConfigError
from maskline.worker.api.annotations import signature_of, type_hints_of
from maskline.worker.api.binding import HANDLED_TYPES, resources_by_parameter
from maskline.worker.api.registry import (
    DeadHandlerSpec,
    Handlers,
    HandlerSpec,
    ResourceSpec,
    dead_handler_spec,
    handler_specs,
    is_resource,
)
from maskline.worker.api.source_loader import SourceLoader


def load_handlers(names: Iterable[str | ModuleType]) -> Handlers:
    """Import handler modules, by dotted name or by the path of a `.py` file, and collect what they declare.

    Raises ConfigError, one line, if a module cannot be imported or declares nothing, if two handlers or two resources
    share a name, or if no resource fills a handler's parameter.
    """
    specs: list[HandlerSpec] = []
    dead_specs: list[DeadHandlerSpec] = []
    resources: dict[str, Callable[..., Any]] = {}
    for name in names:
        module = _import(name) if isinstance(name, str) else name
        found = False
        for value in list(vars(module).values()):
            for spec in handler_specs(value):
                found = True
                if spec not in specs:
                    _check_name(spec, specs)
                    specs.append(spec)
            if (dead_spec := dead_handler_spec(value)) is not None:
                found = True
                if dead_spec not in dead_specs:
                    dead_specs.append(dead_spec)
            if is_resource(value):
                found = True
                if resources.setdefault(value.__name__, value) is not value:
                    raise ConfigError(f"two resources are called {value.__name__}: rename one of them")
        if not found:
            raise ConfigError(
                f"MASKLINE_HANDLERS: {module.__name__} declares no handler (a function marked with @on)"
            )
    if not specs:
        raise ConfigError("MASKLINE_HANDLERS: there is no handler (a function marked with @on)")
    _check_dead_names(dead_specs, specs)
    opened = tuple(_resource_spec(function) for function in resources.values())
    handlers = Handlers(tuple(specs), opened, tuple(dead_specs))
    taking: list[HandlerSpec | DeadHandlerSpec] = [*handlers.specs, *handlers.dead_specs]
    for taker in taking:
        resources_by_parameter(taker, handlers.resources)
    return handlers


def _check_name(spec: HandlerSpec, others: Iterable[HandlerSpec]) -> None:
    """Check a name. One function may have it under several @on, if no event belongs to two of them.

    So a name means one handler for every event, and what waits for that handler in a session waits under its name.
    """
    for other in others:
        if other.name != spec.name:
            continue
        if other.function is not spec.function:
            raise ConfigError(f"two handlers are called {spec.name}: give one of them another name=")
        for kind in HANDLED_TYPES:
            if issubclass(kind, spec.types) and issubclass(kind, other.types):
                raise ConfigError(
                    f"the handler {spec.name} is marked twice for {kind.__name__}: give one mark another name="
                )
        for option in ("concurrency", "rate"):  # bounds of all that runs under the name
            if getattr(other.options, option) != getattr(spec.options, option):
                raise ConfigError(
                    f"the handler {spec.name} is marked twice with another {option}=: give one mark another name="
                )


def _check_dead_names(dead_specs: Iterable[DeadHandlerSpec], specs: Iterable[HandlerSpec]) -> None:
    """Check that the handlers of dead letters have names of their own: logs tell handlers apart by name alone."""
    names = {spec.name for spec in specs}
    for spec in dead_specs:
        if spec.name in names:
            raise ConfigError(f"two handlers are called {spec.name}: give one of them another name=")
        names.add(spec.name)


def _import(name: str) -> ModuleType:
    # A user's own module, and those that it imports, are in the directory where the worker is started.
    search_path.add_working_directory()
    try:
        return _import_path(Path(name)) if name.endswith(".py") else _import_dotted(name)
    except ConfigError as error:
        raise ConfigError(f"MASKLINE_HANDLERS: {name}: {error}") from error
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise ConfigError(
            f"MASKLINE_HANDLERS: {name} cannot be imported: {type(error).__name__}: {text}{_hidden_module(error)}"
        ) from error


def _import_dotted(name: str) -> ModuleType:
    if hidden := search_path.hidden_module(name):
        file, other = hidden
        raise ConfigError(
            f"{file} cannot be imported under this name, {other} has it: rename it, or give its path"
        )
    return importlib.import_module(name)


def _hidden_module(error: BaseException) -> str:
    """A hint to add if a module imports one of the user's, and finds another of that name."""
    hidden = search_path.hidden_module(error.name) if isinstance(error, ImportError) and error.name else None
    return f" ({hidden[0]} cannot be imported under this name: rename it)" if hidden else ""


def _import_path(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("there is no such file")
    path = path.resolve()
    # A file imported by its dotted name as well, or named twice, is one module; else every event would be handled
    # twice.
    for known in list(sys.modules.values()):
        if getattr(known, "__file__", None) == str(path) and known.__name__ != "__main__":
            return known
    # A file called queue.py must not take the place of the module queue, nor yarl.py that of the library.
    name, count = path.stem, 0
    while name in sys.modules or (count == 0 and name in search_path.NEEDED):
        count += 1
        name = f"handlers_file_{path.stem}" + (f"_{count}" if count > 1 else "")
    loaded = importlib.util.spec_from_file_location(name, path, loader=SourceLoader(name, str(path)))
    assert loaded is not None  # noqa: S101  it has a loader
    assert loaded.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(loaded)
    sys.modules[name] = module
    try:
        loaded.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _resource_spec(function: Callable[..., Any]) -> ResourceSpec:
    name = function.__name__
    if signature_of(function).parameters:
        raise ConfigError(f"the resource {name} must take no parameters")
    opener = asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function
    if not (inspect.isasyncgenfunction(function) or hasattr(function, "__wrapped__")):
        raise ConfigError(f"the resource {name} must be an async generator function that yields once")
    hint = type_hints_of(function).get("return")
    yields = get_args(hint)[0] if get_origin(hint) is not None and get_args(hint) else None
    return ResourceSpec(name, opener, yields)
