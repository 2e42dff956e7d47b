"""Binds handlers to their resources, and makes the table of handlers by type of event."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from maskline.schemas.errors import ConfigError
from maskline.schemas.events import EVENT_TYPES, Event, UnknownEvent
from maskline.worker.api.annotations import signature_of, type_hints_of
from maskline.worker.api.registry import Handlers, HandlerSpec, ResourceSpec
from maskline.worker.api.retry_schedule import RetryPolicy

HANDLED_TYPES: Final[tuple[type[Event], ...]] = (*EVENT_TYPES.values(), UnknownEvent)
"""The concrete types of events; a handler may be declared for a base of several."""


class BoundHandler(msgspec.Struct, frozen=True, eq=False):
    """A handler with its resources in place, ready to be called with an event and a context."""

    name: str
    call: Callable[..., Awaitable[Any]] | Callable[..., Any]
    in_thread: bool
    """A plain `def`: it runs in a thread."""
    policy: RetryPolicy
    timeout_s: float


Table = dict[type[Event], tuple[BoundHandler, ...]]
"""The handlers of every type of event, in the order of their declaration."""


def bind(handlers: Handlers, opened: dict[str, Any]) -> Table:
    """Make the table of handlers. `opened`: what the resources yield, by their names."""
    bound: list[tuple[HandlerSpec, BoundHandler]] = []
    for spec in handlers.specs:
        call = spec.function
        if wanted := resources_by_parameter(spec, handlers.resources):
            call = functools.partial(call, **{parameter: opened[name] for parameter, name in wanted.items()})
        in_thread = not _is_async(spec.function)
        bound.append((spec, BoundHandler(spec.name, call, in_thread, spec.policy, spec.timeout_ms / 1000)))
    return {
        kind: tuple(handler for spec, handler in bound if issubclass(kind, spec.types))
        for kind in HANDLED_TYPES
    }


def only(handlers: Handlers, name: str) -> Handlers:
    """One handler by its name, and the resources that it takes; no handler where none has the name."""
    specs = tuple(spec for spec in handlers.specs if spec.name == name)
    wanted = {
        resource for spec in specs for resource in resources_by_parameter(spec, handlers.resources).values()
    }
    return Handlers(specs, tuple(spec for spec in handlers.resources if spec.name in wanted))


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(function)


def resources_by_parameter(spec: HandlerSpec, resources: Sequence[ResourceSpec]) -> dict[str, str]:
    """The handler's parameters after event and context: by their names, the names of the resources that fill them.

    A resource fills a parameter of its name, else one annotated with the type that it alone yields. Raises ConfigError
    where no resource, or several, fill a parameter without a default.
    """
    parameters = list(signature_of(spec.function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        raise ConfigError(
            f"the handler {spec.name} must take an event and a context: def handler(event, ctx)"
        )
    names = {entry.name for entry in resources}
    hints = type_hints_of(spec.function)
    wanted: dict[str, str] = {}
    for parameter in parameters:
        if parameter in positional[:2] or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = hints.get(parameter.name)
        by_type = [entry.name for entry in resources if hint is not None and entry.yields == hint]
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"the handler {spec.name}: {parameter.name} must not be positional-only")
        if parameter.name in names:
            wanted[parameter.name] = parameter.name
        elif len(by_type) == 1:
            wanted[parameter.name] = by_type[0]
        elif parameter.default is parameter.empty:
            problem = "no resource fills" if not by_type else "several resources fill"
            raise ConfigError(f"the handler {spec.name}: {problem} its parameter {parameter.name}")
    return wanted
