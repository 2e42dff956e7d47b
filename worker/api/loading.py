"""Loads handlers: imports the modules of MASKLINE_HANDLERS and collects what they declare.

`survey` finds all mistakes of all modules, each one line with its file and line; `load_handlers` raises them. So a
worker's start and `maskline check` say the same.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any, NamedTuple, get_args, get_origin

from maskline.schemas.errors import HandlerModulesError, Mistake
from maskline.worker.api.annotations import signature_of, type_hints_of
from maskline.worker.api.binding import HANDLED_TYPES, parameter_fillings
from maskline.worker.api.complaints import Marked
from maskline.worker.api.modules import Imported, file_of, forget, import_named, modules_below, name_of
from maskline.worker.api.places import Place, place_of, shown_path
from maskline.worker.api.registry import (
    DeadHandlerSpec,
    Handlers,
    HandlerSpec,
    ResourceSpec,
    dead_handler_spec,
    handler_specs,
    is_resource,
    marked_functions,
)


class Survey(NamedTuple):
    """What handler modules declare, and what is wrong with them."""

    handlers: Handlers
    mistakes: tuple[Mistake, ...]
    modules: tuple[ModuleType, ...]
    """Those that could be imported."""
    nested: tuple[Marked, ...]
    """Functions inside others that were marked, and that no name of a module leads to: they never run."""


def load_handlers(names: Iterable[str | ModuleType]) -> Handlers:
    """Import handler modules and collect what they declare.

    `names`: as MASKLINE_HANDLERS has them (dotted, the path of a `.py` file, or the name of an installed package's
    entry point), or modules. Raises HandlerModulesError with all mistakes of all modules: one that cannot be imported
    or declares nothing, handlers or resources that share a name, parameters that no resource fills.
    """
    found = survey(names)
    if found.mistakes:
        raise HandlerModulesError(found.mistakes)
    return found.handlers


def survey(names: Iterable[str | ModuleType], source: str = "MASKLINE_HANDLERS") -> Survey:
    """Import handler modules, collect what they declare, and find their mistakes.

    `source`: where the names stand, for mistakes in them.
    """
    collecting = _Collecting(source)
    for name in names:
        collecting.add(name)
    return collecting.finish()


class _Collecting:
    """What has been found so far."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._mistakes: list[Mistake] = []
        self._modules: list[ModuleType] = []
        self._imported: list[Imported] = []
        self._marked: list[Marked] = []
        self._specs: list[HandlerSpec] = []
        self._dead_specs: list[DeadHandlerSpec] = []
        self._resources: dict[str, Callable[..., Any]] = {}
        self._unusable_resources: set[str] = set()
        self._unread: list[str] = []
        """The sources of modules that could not be imported: which resources they declare is not known."""

    def add(self, name: str | ModuleType) -> None:
        """Import a module and collect what it declares."""
        wrong = False
        if isinstance(name, ModuleType):
            module = name
        else:
            imported = import_named(name, self._source)
            self._imported.append(imported)
            self._mistakes += imported.notes.mistakes
            self._marked += imported.notes.marked
            self._unusable_resources |= imported.notes.unusable_resources
            if imported.module is None:
                self._unread.append(imported.source)
                return
            wrong = bool(imported.notes.mistakes)
            module = imported.module
        self._modules.append(module)
        if not self._collect(module) and not wrong:
            self._mistakes.append(_declares_nothing(module, self._source))

    def finish(self) -> Survey:
        """All that was found."""
        if not self._specs and not self._mistakes:
            self._mistakes.append(
                Mistake(
                    f"{self._source}: there is no handler; mark a function with @on, or name a module that has one"
                )
            )
        nested = self._check_marked()
        self._check_dead_names()
        resources = tuple(map(self._resource_spec, self._resources.values()))
        handlers = Handlers(tuple(self._specs), resources, tuple(self._dead_specs))
        takers: list[HandlerSpec | DeadHandlerSpec] = [*handlers.specs, *handlers.dead_specs]
        for taker in takers:
            for wrong in parameter_fillings(taker, resources).mistakes:
                if not self._may_be_declared(wrong.unfilled):
                    self._complain(wrong.text, taker.function)
        if self._mistakes:
            for imported in self._imported:
                forget(imported.module, imported.new)
        mistakes = tuple(dict.fromkeys(self._mistakes))  # a function under two @on has its mistakes twice
        return Survey(handlers, mistakes, tuple(self._modules), nested)

    def _collect(self, module: ModuleType) -> bool:
        found = False
        for value in list(vars(module).values()):
            for spec in handler_specs(value):
                found = True
                if spec not in self._specs:
                    self._check_name(spec)
                    self._specs.append(spec)
            if (dead_spec := dead_handler_spec(value)) is not None:
                found = True
                if dead_spec not in self._dead_specs:
                    self._dead_specs.append(dead_spec)
            if is_resource(value):
                found = True
                other = self._resources.setdefault(value.__name__, value)
                if other is not value:
                    self._complain(
                        f"two resources are called {value.__name__}: rename one of them{_and_at(place_of(other))}",
                        value,
                    )
        return found

    def _may_be_declared(self, resource: str) -> bool:
        """Whether a resource is missing only as long as another mistake stands: its name is in the source of a module
        that cannot be imported, or `@resource` could not mark it.
        """
        word = re.compile(rf"\b{re.escape(resource)}\b")
        return bool(resource) and (
            resource in self._unusable_resources
            or any(not source or word.search(source) for source in self._unread)
        )

    def _complain(self, text: str, function: Callable[..., Any]) -> None:
        place = place_of(function)
        self._mistakes.append(Mistake(text, shown_path(place.file) if place.file else "", place.line))

    def _check_name(self, spec: HandlerSpec) -> None:
        """Check a name. One function may have it under several @on, if no event belongs to two of them.

        So a name means one handler for every event, and what waits for that handler in a session waits under its name.
        """
        for other in self._specs:
            if other.name != spec.name:
                continue
            if other.function is not spec.function:
                self._complain_of_name(spec, other)
                return
            for kind in HANDLED_TYPES:
                if issubclass(kind, spec.types) and issubclass(kind, other.types):
                    self._complain(
                        f"the handler {spec.name} is marked twice for {kind.__name__}: give one mark another name=",
                        spec.function,
                    )
                    return
            for option in ("concurrency", "rate"):  # bounds of all that runs under the name
                if getattr(other.options, option) != getattr(spec.options, option):
                    self._complain(
                        f"the handler {spec.name} is marked twice with another {option}=:"
                        " give one mark another name=",
                        spec.function,
                    )

    def _check_dead_names(self) -> None:
        """Check that the handlers of dead letters have names of their own: logs tell handlers apart by name alone."""
        named: dict[str, HandlerSpec | DeadHandlerSpec] = {spec.name: spec for spec in self._specs}
        for spec in self._dead_specs:
            if (other := named.setdefault(spec.name, spec)) is not spec:
                self._complain_of_name(spec, other)

    def _complain_of_name(
        self, spec: HandlerSpec | DeadHandlerSpec, other: HandlerSpec | DeadHandlerSpec
    ) -> None:
        self._complain(
            f"two handlers are called {spec.name}: give one of them another name={_and_at(place_of(other.function))}",
            spec.function,
        )

    def _check_marked(self) -> tuple[Marked, ...]:
        """Complain of functions that were marked and that no name of their module leads to; return those in others."""
        modules = {name_of(module) for module in self._modules}
        reached = {
            id(function)
            for module in self._modules
            for value in list(vars(module).values())
            for function in marked_functions(value)
        }
        marked: dict[int, Marked] = {id(it.function): it for it in self._marked}
        lost = [it for key, it in marked.items() if key not in reached and it.function.__module__ in modules]
        nested = tuple(it for it in lost if "<locals>" in it.function.__qualname__)
        for it in lost:
            if it in nested:
                continue
            name = it.function.__qualname__
            later = [
                other.function
                for other in marked.values()
                if other.function is not it.function and _full_name(other.function) == _full_name(it.function)
            ]
            if later:
                at = _and_at(place_of(it.function))
                self._complain(
                    f"two handlers are called {name}, and the first would never run: rename one{at}",
                    later[-1],
                )
            else:
                self._complain(
                    f"the handler {name} would never run, as its name means something else at the module's end:"
                    " rename it, or let a decorator above @on use functools.wraps",
                    it.function,
                )
        return nested

    def _resource_spec(self, function: Callable[..., Any]) -> ResourceSpec:
        name = function.__name__
        is_generator = inspect.isasyncgenfunction(function)
        if _has_parameters(function):
            self._complain(f"the resource {name} must take no parameters: read settings inside", function)
        if not (is_generator or hasattr(function, "__wrapped__")):
            does = "is no async def" if not inspect.iscoroutinefunction(function) else "yields nothing"
            self._complain(
                f"the resource {name} must be an async generator function that yields once, but {does}",
                function,
            )
        hint = type_hints_of(function).get("return")
        yields = get_args(hint)[0] if get_origin(hint) is not None and get_args(hint) else None
        return ResourceSpec(
            name, asynccontextmanager(function) if is_generator else function, yields, function
        )


def _declares_nothing(module: ModuleType, source: str) -> Mistake:
    below = modules_below(module)
    if below:
        return Mistake(
            f"{source}: {name_of(module)} declares no handler: name a module in it, as {', '.join(below[:3])}"
        )
    text = f"{name_of(module)} declares no handler: mark a function with @on"
    file = file_of(module)
    return Mistake(text, shown_path(file), 1) if file else Mistake(f"{source}: {text}")


def _has_parameters(function: Callable[..., Any]) -> bool:
    try:
        return bool(signature_of(function).parameters)
    except (ValueError, TypeError):  # a decorator has left something odd
        return True


def _and_at(place: Place) -> str:
    return f" (the other: {place.shown})" if place.file else ""


def _full_name(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__
