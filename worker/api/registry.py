"""Declares handlers and resources: `@on` and `@resource`.

Both only mark functions, so a handler stays a plain function that a test can call. `worker.api.loading` collects the
marked ones, `worker.api.binding` makes the table of handlers by type of event.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple, TypeVar, overload

from maskline.schemas.errors import ConfigError
from maskline.schemas.events import Event
from maskline.worker.api.retry_schedule import (
    BACKOFF_MAX_MS_DEFAULT,
    BACKOFF_MS_DEFAULT,
    RETRIES_DEFAULT,
    TIMEOUT_MS_DEFAULT,
    RetryPolicy,
)

_HANDLER_MARK: Final = "__maskline_handlers__"
_RESOURCE_MARK: Final = "__maskline_resource__"

Function = TypeVar("Function", bound=Callable[..., Any])


class HandlerSpec(NamedTuple):
    """A handler as declared."""

    name: str
    """The handler's name in logs, metrics and dead letters."""
    function: Callable[..., Any]
    types: tuple[type[Event], ...]
    policy: RetryPolicy
    timeout_ms: int


class _On:
    """The decorator `on`: `@on(Type, …, retries=…)` for types of events, `@on.every` for all of them."""

    def __call__(
        self,
        *types: type[Event],
        retries: int = RETRIES_DEFAULT,
        backoff_ms: int = BACKOFF_MS_DEFAULT,
        backoff_max_ms: int = BACKOFF_MAX_MS_DEFAULT,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
        name: str | None = None,
    ) -> Callable[[Function], Function]:
        """Mark a function as the handler of one or more types of events, subclasses included.

        - `retries`: tries after the first; after them the event goes to the dead letters for this handler.
        - `backoff_ms`, `backoff_max_ms`: the wait before the first retry, doubled for each further one up to the
          greatest. Milliseconds.
        - `timeout_ms`: an attempt that takes longer has failed.
        - `name`: the handler's name in logs, metrics and dead letters; by default module and function.

        Raises ConfigError if a type is no event or an option makes no sense.
        """
        if not types:
            raise ConfigError("@on needs at least one type of event; use @on.every for all of them")
        given: tuple[Any, ...] = types
        for kind in given:
            if not (isinstance(kind, type) and issubclass(kind, Event)):
                raise ConfigError(f"@on takes types of events from `maskline.events`, not {kind!r}")
        options: tuple[tuple[str, Any, int], ...] = (
            ("retries", retries, 0),
            ("backoff_ms", backoff_ms, 0),
            ("backoff_max_ms", backoff_max_ms, 0),
            ("timeout_ms", timeout_ms, 1),
        )
        for option, value, least in options:
            if type(value) is not int or value < least:
                raise ConfigError(f"@on: {option} must be a whole number of at least {least}, not {value!r}")
        given_name: Any = name
        if given_name is not None and (type(given_name) is not str or not given_name.strip()):
            raise ConfigError(f"@on: name must be a text, not {name!r}")
        policy = RetryPolicy(retries, backoff_ms, backoff_max_ms)

        def mark(function: Function) -> Function:
            _check_function(function)
            spec = HandlerSpec(name or _full_name(function), function, types, policy, timeout_ms)
            setattr(function, _HANDLER_MARK, (*getattr(function, _HANDLER_MARK, ()), spec))
            return function

        return mark

    @overload
    def every(self, function: Function) -> Function: ...

    @overload
    def every(self, **options: Any) -> Callable[[Function], Function]: ...

    def every(self, function: Any = None, **options: Any) -> Any:
        """Mark a function as a handler of every event, unknown ones included: `@on.every` or `@on.every(retries=2)`."""
        mark = self(Event, **options)
        return mark if function is None else mark(function)


on: Final = _On()


def resource(function: Callable[[], AsyncIterator[Any]]) -> Callable[[], AsyncIterator[Any]]:
    """Mark an async generator function, or a function that returns an async context manager, as a shared resource.

    It is entered once when the worker starts, before any handler runs, and closed after the last one ended. A handler
    gets the yielded object by a parameter of the function's name, or by one annotated with its type.
    """
    setattr(function, _RESOURCE_MARK, True)
    return function


class ResourceSpec(NamedTuple):
    """A resource as declared."""

    name: str
    open: Callable[[], AbstractAsyncContextManager[Any]]
    yields: Any
    """The annotated type of what it yields, None where there is no annotation."""


class Handlers(NamedTuple):
    """Everything the loaded modules declare."""

    specs: tuple[HandlerSpec, ...]
    resources: tuple[ResourceSpec, ...]


def handler_specs(value: Any) -> list[HandlerSpec]:
    """The handlers that a value of a module's namespace declares; none if it is not a marked function."""
    # Only functions: a mock or a proxy in the namespace claims to have every attribute.
    marks: Sequence[HandlerSpec] = getattr(value, _HANDLER_MARK, ()) if inspect.isfunction(value) else ()
    # A decorator above @on has copied the mark, and the decorated function runs. The last mark is the uppermost, and
    # reads first.
    return [spec._replace(function=value) for spec in reversed(marks)]


def is_resource(value: Any) -> bool:
    """Whether a value of a module's namespace is a function that `@resource` has marked."""
    return inspect.isfunction(value) and hasattr(value, _RESOURCE_MARK)


def _full_name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _check_function(function: Any) -> None:
    """Raise ConfigError for a function that would never be found or never run."""
    if not inspect.isfunction(function):
        raise ConfigError(f"@on marks functions, not {function!r}: wrap it in a function")
    named = _full_name(function)
    scope = function.__qualname__.rpartition(".")[0]
    if scope and not scope.endswith("<locals>"):
        raise ConfigError(f"the handler {named} must be a function of its module, not a method")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"the handler {named} must not yield: nothing would run it")
