"""Binds handlers to their resources, and makes the table of handlers by type of event."""

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from maskline.schemas.call_summary import CallSummary, Handled
from maskline.schemas.emission import OtherGroupsSummary
from maskline.schemas.errors import ConfigError
from maskline.schemas.events import EVENT_TYPES, UnknownEvent
from maskline.worker.api.annotations import innermost, signature_of, type_hints_of
from maskline.worker.api.registry import (
    DeadHandlerSpec,
    Handlers,
    HandlerSpec,
    ResourceSpec,
    is_async,
    is_resource,
)
from maskline.worker.api.retry_schedule import OnGiveUp, RetryPolicy
from maskline.worker.api.spelling import did_you_mean

HANDLED_TYPES: Final[tuple[type[Handled], ...]] = (*EVENT_TYPES.values(), UnknownEvent, CallSummary)
"""The concrete types of what handlers are called with; a handler may be declared for a base of several."""


class BoundHandler(msgspec.Struct, frozen=True, eq=False):
    """A handler with its resources in place, ready to be called with an event and a context."""

    name: str
    call: Callable[..., Awaitable[Any]] | Callable[..., Any]
    in_thread: bool
    """A plain `def`: it runs in a thread."""
    policy: RetryPolicy
    timeout_s: float
    on_give_up: OnGiveUp = "park"
    concurrency: int | None = None
    """How many attempts run at once in this process; None: no bound."""
    rate: float | None = None
    """How many attempts begin in a second in this process; None: no bound."""
    limited: bool = False
    """It has a `concurrency` or a `rate`. Follows from them."""
    special: bool = False
    """An attempt needs more than a call: it runs in a thread, or is limited. Follows from both."""

    def __post_init__(self) -> None:
        limited = self.concurrency is not None or self.rate is not None
        msgspec.structs.force_setattr(self, "limited", limited)
        msgspec.structs.force_setattr(self, "special", self.in_thread or limited)


class BoundDeadHandler(msgspec.Struct, frozen=True, eq=False):
    """A handler of dead letters with its resources in place, ready to be called with a letter and a context."""

    name: str
    call: Callable[..., Awaitable[Any]]
    timeout_s: float


Table = dict[type[Handled], tuple[BoundHandler, ...]]
"""The handlers of every type of event, in the order of their declaration."""


def bind(handlers: Handlers, opened: dict[str, Any]) -> Table:
    """Make the table of handlers. `opened`: what the resources yield, by their names."""
    bound: list[tuple[HandlerSpec, BoundHandler]] = []
    for spec in handlers.specs:
        options = spec.options
        handler = BoundHandler(
            spec.name,
            _with_resources(spec, handlers.resources, opened),
            not is_async(spec.function),
            options.policy,
            options.timeout_ms / 1000,
            options.on_give_up,
            options.concurrency,
            options.rate,
        )
        bound.append((spec, handler))
    table: Table = {
        kind: tuple(handler for spec, handler in bound if issubclass(kind, spec.types))
        for kind in HANDLED_TYPES
    }
    table[OtherGroupsSummary] = ()
    return table


def bind_dead(handlers: Handlers, opened: dict[str, Any]) -> tuple[BoundDeadHandler, ...]:
    """The handlers of dead letters, in the order of their declaration. `opened`: as for `bind`."""
    return tuple(
        BoundDeadHandler(spec.name, _with_resources(spec, handlers.resources, opened), spec.timeout_ms / 1000)
        for spec in handlers.dead_specs
    )


def event_names(table: Table) -> dict[str, list[str]]:
    """By handler's name: the names of the types of events that it takes."""
    names: dict[str, list[str]] = {}
    for kind, handlers in table.items():
        for handler in handlers:
            names.setdefault(handler.name, []).append(kind.__name__)
    return names


def _with_resources(
    spec: HandlerSpec | DeadHandlerSpec, resources: Sequence[ResourceSpec], opened: dict[str, Any]
) -> Callable[..., Any]:
    wanted = resources_by_parameter(spec, resources)
    if not wanted:
        return spec.function
    return functools.partial(spec.function, **{parameter: opened[name] for parameter, name in wanted.items()})


def only(handlers: Handlers, name: str) -> Handlers:
    """One handler by its name, and the resources that it takes; no handler where none has the name."""
    specs = tuple(spec for spec in handlers.specs if spec.name == name)
    wanted = {
        resource for spec in specs for resource in resources_by_parameter(spec, handlers.resources).values()
    }
    return Handlers(specs, tuple(spec for spec in handlers.resources if spec.name in wanted))


class WrongParameter(NamedTuple):
    """A parameter of a handler that cannot be what it is."""

    text: str
    unfilled: str = ""
    """Its name, if no resource fills it: of those that are known."""


class Fillings(NamedTuple):
    """What fills a handler's parameters after the first two."""

    resources: dict[str, str]
    """The names of resources by those of the parameters."""
    mistakes: list[WrongParameter]


def resources_by_parameter(
    spec: HandlerSpec | DeadHandlerSpec, resources: Sequence[ResourceSpec]
) -> dict[str, str]:
    """The names of the resources that fill a handler's parameters, by those of the parameters.

    Raises ConfigError where no resource, or several, fill a parameter without a default.
    """
    fillings = parameter_fillings(spec, resources)
    if fillings.mistakes:
        raise ConfigError(fillings.mistakes[0].text)
    return fillings.resources


def parameter_fillings(spec: HandlerSpec | DeadHandlerSpec, resources: Sequence[ResourceSpec]) -> Fillings:
    """What fills a handler's parameters after the first two, and what is wrong with the others.

    A resource fills a parameter of its name, else one annotated with the type that it alone yields.
    """
    try:
        parameters = list(signature_of(spec.function).parameters.values())
    except (ValueError, TypeError) as error:  # a decorator has left something odd
        return Fillings(
            {}, [WrongParameter(f"the handler {spec.name}: its parameters cannot be read: {error}")]
        )
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    wanted: dict[str, str] = {}
    mistakes: list[WrongParameter] = []
    if len(positional) < 2:
        first = "an event" if isinstance(spec, HandlerSpec) else "a letter"
        text = (
            f"the handler {spec.name} must take {first} and a context: def handler({first.split()[1]}, ctx)"
        )
        return Fillings(wanted, [WrongParameter(text)])
    names = {entry.name for entry in resources}
    hints = type_hints_of(spec.function)
    for parameter in parameters:
        if parameter in positional[:2] or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = hints.get(parameter.name)
        by_type = [entry.name for entry in resources if hint is not None and entry.yields == hint]
        start = f"the handler {spec.name}: "
        if parameter.kind is parameter.POSITIONAL_ONLY:
            mistakes.append(WrongParameter(f"{start}{parameter.name} must not be positional-only"))
        elif parameter.name in names:
            wanted[parameter.name] = parameter.name
        elif len(by_type) == 1:
            wanted[parameter.name] = by_type[0]
        elif parameter.default is not parameter.empty:
            continue
        elif by_type:
            text = f"several resources fill its parameter {parameter.name}: call it {' or '.join(by_type)}"
            mistakes.append(WrongParameter(start + text))
        else:
            hint_of_name = (
                _resource_elsewhere(spec.function, parameter.name)
                or did_you_mean(parameter.name, names)
                or "; write a @resource of this name"
            )
            text = f"no resource fills its parameter {parameter.name}{hint_of_name}"
            mistakes.append(WrongParameter(start + text, unfilled=parameter.name))
    return Fillings(wanted, mistakes)


def _resource_elsewhere(function: Callable[..., Any], name: str) -> str:
    """What to do where the handler's own module has a resource of this name, and another one names the handler alone:
    the `__init__.py` of a package, as a rule.
    """
    own = getattr(innermost(function), "__globals__", {})
    if not is_resource(own.get(name)):
        return ""
    module = own.get("__name__", "")
    return (
        f", as {module}.{name} was not loaded: import it beside the handler, or name {module} as a module too"
    )
