"""Declares handlers, handlers of dead letters, and resources: `@on`, `@on.dead` and `@resource`.

Both only mark functions, so a handler stays a plain function that a test can call. `worker.api.loading` collects the
marked ones, `worker.api.binding` makes the table of handlers by type of event.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple, TypeVar, overload

from maskline.schemas.call_summary import CallSummary, Handled
from maskline.schemas.errors import ConfigError
from maskline.schemas.events import Event
from maskline.worker.api.handler_options import HandlerOptions, check_name
from maskline.worker.api.retry_schedule import (
    BACKOFF_MAX_MS_DEFAULT,
    BACKOFF_MS_DEFAULT,
    GIVE_UP_AFTER_S_DEFAULT,
    RETRIES_DEFAULT,
    TIMEOUT_MS_DEFAULT,
    OnGiveUp,
)

_HANDLER_MARK: Final = "__maskline_handlers__"
_DEAD_MARK: Final = "__maskline_dead_handler__"
_RESOURCE_MARK: Final = "__maskline_resource__"

Function = TypeVar("Function", bound=Callable[..., Any])


class HandlerSpec(NamedTuple):
    """A handler as declared."""

    name: str
    """The handler's name in logs, metrics, dead letters and the keys of what waits for it."""
    function: Callable[..., Any]
    types: tuple[type[Handled], ...]
    options: HandlerOptions


class DeadHandlerSpec(NamedTuple):
    """A handler of dead letters as declared."""

    name: str
    """The handler's name in logs."""
    function: Callable[..., Any]
    timeout_ms: int


class _On:
    """The decorator `on`: `@on(Type, …, retries=…)` for types of events, `@on.every` for all of them, `@on.dead` for
    dead letters.
    """

    def __call__(
        self,
        *types: type[Handled],
        retries: int | None = RETRIES_DEFAULT,
        give_up_after_s: float = GIVE_UP_AFTER_S_DEFAULT,
        backoff_ms: int = BACKOFF_MS_DEFAULT,
        backoff_max_ms: int = BACKOFF_MAX_MS_DEFAULT,
        timeout_ms: int = TIMEOUT_MS_DEFAULT,
        on_give_up: OnGiveUp = "park",
        concurrency: int | None = None,
        rate: float | None = None,
        name: str | None = None,
    ) -> Callable[[Function], Function]:
        """Mark a function as the handler of one or more types of events, subclasses included, or of CallSummary.

        - `retries`: tries after the first. None: as many as the time allows.
        - `give_up_after_s`: the last try is made so long after the first failure. Seconds. After it, or after
          `retries`, the event goes to the dead letters for this handler.
        - `backoff_ms`, `backoff_max_ms`: the wait before the first retry, doubled for each further one up to the
          greatest; of it a random part is waited. Milliseconds.
        - `timeout_ms`: an attempt that takes longer has failed.
        - `on_give_up`: `park`: the session's later events wait for this handler until an operator has replayed or
          discarded the dead letter. `skip`: they go on, and `ctx.skipped` names what was never handled.
        - `concurrency`: how many attempts of the handler run at once in a worker process. None: no bound of its own.
        - `rate`: how many of its attempts begin in a second in a worker process. None: no bound.
        - `name`: the handler's name in logs, metrics and dead letters; by default module and function.

        Raises ConfigError if a type is no event or an option makes no sense.
        """
        if not types:
            raise ConfigError("@on needs at least one type of event; use @on.every for all of them")
        given: tuple[Any, ...] = types
        for kind in given:
            if not (isinstance(kind, type) and issubclass(kind, (Event, CallSummary))):
                raise ConfigError(f"@on takes types of events from `maskline.events`, not {kind!r}")
        options = HandlerOptions(
            retries=retries,
            give_up_after_s=give_up_after_s,
            backoff_ms=backoff_ms,
            backoff_max_ms=backoff_max_ms,
            timeout_ms=timeout_ms,
            on_give_up=on_give_up,
            concurrency=concurrency,
            rate=rate,
        )
        options.check("@on")
        if name is not None:
            check_name(name, "@on")

        def mark(function: Function) -> Function:
            _check_function(function)
            spec = HandlerSpec(name or _full_name(function), function, types, options)
            check_name(spec.name, "@on")
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

    @overload
    def dead(self, function: Function) -> Function: ...

    @overload
    def dead(
        self, *, timeout_ms: int = TIMEOUT_MS_DEFAULT, name: str | None = None
    ) -> Callable[[Function], Function]: ...

    def dead(
        self, function: Any = None, *, timeout_ms: int = TIMEOUT_MS_DEFAULT, name: str | None = None
    ) -> Any:
        """Mark an `async def` function as a handler of dead letters: `@on.dead` or `@on.dead(timeout_ms=5_000)`.

        It is called once for each dead letter, with a `maskline.events.DeadLetterView` and a context. If it fails or
        takes longer than `timeout_ms`, that is logged, and nothing else.

        Raises ConfigError if an option makes no sense.
        """
        HandlerOptions(timeout_ms=timeout_ms).check("@on.dead")
        if name is not None:
            check_name(name, "@on.dead")

        def mark(function: Function) -> Function:
            _check_function(function, "@on.dead")
            if not is_async(function):
                raise ConfigError(f"the handler {_full_name(function)} of dead letters must be an async def")
            spec = DeadHandlerSpec(name or _full_name(function), function, timeout_ms)
            check_name(spec.name, "@on.dead")
            setattr(function, _DEAD_MARK, spec)
            return function

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
    dead_specs: tuple[DeadHandlerSpec, ...] = ()


def handler_specs(value: Any) -> list[HandlerSpec]:
    """The handlers that a value of a module's namespace declares; none if it is not a marked function."""
    # Only functions: a mock or a proxy in the namespace claims to have every attribute.
    marks: Sequence[HandlerSpec] = getattr(value, _HANDLER_MARK, ()) if inspect.isfunction(value) else ()
    # A decorator above @on has copied the mark, and the decorated function runs. The last mark is the uppermost, and
    # reads first.
    return [spec._replace(function=value) for spec in reversed(marks)]


def dead_handler_spec(value: Any) -> DeadHandlerSpec | None:
    """The handler of dead letters that a value of a module's namespace declares; None if it declares none."""
    spec: DeadHandlerSpec | None = getattr(value, _DEAD_MARK, None) if inspect.isfunction(value) else None
    return None if spec is None else spec._replace(function=value)  # as above


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a function is an `async def`, or decorates one."""
    return inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(function)


def is_resource(value: Any) -> bool:
    """Whether a value of a module's namespace is a function that `@resource` has marked."""
    return inspect.isfunction(value) and hasattr(value, _RESOURCE_MARK)


def _full_name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _check_function(function: Any, decorator: str = "@on") -> None:
    """Raise ConfigError for a function that would never be found or never run."""
    if not inspect.isfunction(function):
        raise ConfigError(f"{decorator} marks functions, not {function!r}: wrap it in a function")
    named = _full_name(function)
    scope = function.__qualname__.rpartition(".")[0]
    if scope and not scope.endswith("<locals>"):
        raise ConfigError(f"the handler {named} must be a function of its module, not a method")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"the handler {named} must not yield: nothing would run it")
