"""Declares handlers, handlers of dead letters, and resources: `@on`, `@on.dead` and `@resource`.

Both only mark functions, so a handler stays a plain function that a test can call. `worker.api.loading` collects the
marked ones, `worker.api.binding` makes the table of handlers by type of event. Mistakes go to `worker.api.complaints`:
raised as ConfigError, or noted while a module is loaded.
"""

import functools
import inspect
import reprlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from types import FunctionType
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar, overload

from maskline.schemas.call_summary import CallSummary, Handled
from maskline.schemas.events import EVENT_TYPES, Event
from maskline.worker.api.annotations import innermost
from maskline.worker.api.complaints import complain, complain_of_resource, note_marked
from maskline.worker.api.handler_options import HandlerOptions, name_mistake
from maskline.worker.api.retry_schedule import (
    BACKOFF_MAX_MS_DEFAULT,
    BACKOFF_MS_DEFAULT,
    GIVE_UP_AFTER_S_DEFAULT,
    RETRIES_DEFAULT,
    TIMEOUT_MS_DEFAULT,
    OnGiveUp,
)
from maskline.worker.api.spelling import did_you_mean

_HANDLER_MARK: Final = "__maskline_handlers__"
_DEAD_MARK: Final = "__maskline_dead_handler__"
_RESOURCE_MARK: Final = "__maskline_resource__"

Function = TypeVar("Function", bound=Callable[..., Any])
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


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


def _naming_unknown_options(method: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Have a method of `on` complain of options that it does not have, with the name that may have been meant."""
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    known = [name for name, it in inspect.signature(method).parameters.items() if it.kind is keyword_only]
    decorator = "@on" if method.__name__ == "__call__" else f"@on.{method.__name__}"

    @functools.wraps(method)
    def called(*arguments: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        for name in [name for name in options if name not in known]:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            complain(f"{decorator} has no option {name}={hint}")
            del options[name]
        return method(*arguments, **options)

    return called


class _On:
    """The decorator `on`: `@on(Type, …, retries=…)` for types of events, `@on.every` for all of them, `@on.dead` for
    dead letters.
    """

    @_naming_unknown_options
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
        given: tuple[Any, ...] = types
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
        mistakes = [*options.mistakes("@on")]
        if mistakes:
            options = HandlerOptions()
        if name is not None and (wrong := name_mistake(name, "@on")):
            mistakes.append(wrong)
            name = None
        for mistake in (*_type_mistakes(given), *mistakes):
            complain(mistake)
        # Where mistakes are noted and not raised, the handler counts without them: so what else is wrong is found too.
        events = tuple(kind for kind in types if _is_handled(kind))

        def mark(function: Function) -> Function:
            if events and _may_be_marked(function, "@on", name):
                spec = HandlerSpec(name or _full_name(function), function, events, options)
                setattr(function, _HANDLER_MARK, (*getattr(function, _HANDLER_MARK, ()), spec))
                note_marked(function)
            return function

        if len(given) == 1 and type(given[0]) is FunctionType:
            return given[0]  # @on without brackets, which was noted: the name in the module stays a function
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

    @_naming_unknown_options
    def dead(
        self, function: Any = None, *, timeout_ms: int = TIMEOUT_MS_DEFAULT, name: str | None = None
    ) -> Any:
        """Mark an `async def` function as a handler of dead letters: `@on.dead` or `@on.dead(timeout_ms=5_000)`.

        It is called once for each dead letter, with a `maskline.events.DeadLetterView` and a context. If it fails or
        takes longer than `timeout_ms`, that is logged, and nothing else.

        Raises ConfigError if an option makes no sense.
        """
        mistakes = [*HandlerOptions(timeout_ms=timeout_ms).mistakes("@on.dead")]
        if name is not None and (wrong := name_mistake(name, "@on.dead")):
            mistakes.append(wrong)
        for mistake in mistakes:
            complain(mistake)

        def mark(function: Function) -> Function:
            if mistakes or not _may_be_marked(function, "@on.dead", name):
                return function
            if not is_async(function):
                complain(f"the handler {_full_name(function)} of dead letters must be an async def")
                return function
            setattr(function, _DEAD_MARK, DeadHandlerSpec(name or _full_name(function), function, timeout_ms))
            note_marked(function)
            return function

        return mark if function is None else mark(function)


on: Final = _On()


def resource(function: Callable[[], AsyncIterator[Any]]) -> Callable[[], AsyncIterator[Any]]:
    """Mark an async generator function, or a function that returns an async context manager, as a shared resource.

    It is entered once when the worker starts, before any handler runs, and closed after the last one ended. A handler
    gets the yielded object by a parameter of the function's name, or by one annotated with its type.

    Raises ConfigError if it is no function.
    """
    if type(function) is not FunctionType:
        complain_of_resource(
            f"@resource marks functions, not {_described(function)}: write an async def that yields once",
            str(getattr(function, "__name__", "")),
        )
        return function
    setattr(function, _RESOURCE_MARK, True)
    return function


class ResourceSpec(NamedTuple):
    """A resource as declared."""

    name: str
    open: Callable[[], AbstractAsyncContextManager[Any]]
    yields: Any
    """The annotated type of what it yields, None where there is no annotation."""
    function: Callable[..., Any] | None = None
    """As it was marked."""


class Handlers(NamedTuple):
    """Everything the loaded modules declare."""

    specs: tuple[HandlerSpec, ...]
    resources: tuple[ResourceSpec, ...]
    dead_specs: tuple[DeadHandlerSpec, ...] = ()


def handler_specs(value: Any) -> list[HandlerSpec]:
    """The handlers that a value of a module's namespace declares; none if it is not a marked function."""
    # Only functions: a mock or a proxy in the namespace claims to have every attribute, and some raise at isinstance().
    marks: Sequence[HandlerSpec] = getattr(value, _HANDLER_MARK, ()) if type(value) is FunctionType else ()
    # A decorator above @on has copied the mark, and the decorated function runs. The last mark is the uppermost, and
    # reads first.
    return [spec._replace(function=value) for spec in reversed(marks)]


def marked_functions(value: Any) -> list[Callable[..., Any]]:
    """The functions that `@on` and `@on.dead` have marked, of a value that is one, or that a decorator has made of one.

    A decorator that uses functools.wraps copies the marks.
    """
    if type(value) is not FunctionType:
        return []
    marks: list[HandlerSpec | DeadHandlerSpec] = [*getattr(value, _HANDLER_MARK, ())]
    marks += filter(None, [getattr(value, _DEAD_MARK, None)])
    return [mark.function for mark in marks]


def dead_handler_spec(value: Any) -> DeadHandlerSpec | None:
    """The handler of dead letters that a value of a module's namespace declares; None if it declares none."""
    spec: DeadHandlerSpec | None = getattr(value, _DEAD_MARK, None) if type(value) is FunctionType else None
    return None if spec is None else spec._replace(function=value)  # as above


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a function is an `async def`, or decorates one."""
    return inspect.iscoroutinefunction(innermost(function)) or inspect.iscoroutinefunction(function)


def is_resource(value: Any) -> bool:
    """Whether a value of a module's namespace is a function that `@resource` has marked."""
    return type(value) is FunctionType and hasattr(value, _RESOURCE_MARK)


def _full_name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _is_handled(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, (Event, CallSummary))


def _type_mistakes(types: Sequence[Any]) -> Iterator[str]:
    """One line for each argument of `@on` that is no type of events."""
    if not types:
        yield "@on needs at least one type of event; use @on.every for all of them"
    for kind in types:
        if _is_handled(kind):
            continue
        if type(kind) is FunctionType:
            yield "@on stands without its events: write @on(SessionTimeout), or @on.every for all of them"
        elif isinstance(kind, str):
            known = (*EVENT_TYPES, "Event", "StatusEvent", "RecordingEvent", CallSummary.__name__)
            meant = kind if kind in known else ""
            hint = did_you_mean(kind, known) if not meant else ""
            yield (
                f"@on takes types of events from `maskline.events`, not the text {_shown(kind)}: "
                f"import {meant or 'the class'} and name it without quotes{hint}"
            )
        elif isinstance(kind, (list, tuple, set)) and kind and all(map(_is_handled, kind)):
            names = ", ".join(one.__name__ for one in kind)
            yield f"@on takes its types of events one by one: write @on({names})"
        elif isinstance(kind, (Event, CallSummary)):
            yield f"@on takes types of events from `maskline.events`, not an event: write {type(kind).__name__}"
        else:
            yield (
                f"@on takes types of events from `maskline.events`, not {_shown(kind)}:"
                " name classes such as SessionTimeout, or use @on.every for all of them"
            )


def _may_be_marked(function: Any, decorator: str, name: str | None) -> bool:
    """Whether a function would be found and run as a handler; complains where not."""
    if type(function) is not FunctionType:
        complain(f"{decorator} marks functions, not {_described(function)}: wrap it in a function")
        return False
    named = _full_name(function)
    scope = function.__qualname__.rpartition(".")[0]
    wrong = name_mistake(name or named, decorator)
    if scope and not scope.endswith("<locals>"):
        wrong = (
            f"the handler {named} must be a function of its module, not a method: move it out of the class"
        )
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        wrong = f"the handler {named} must not yield: nothing would run it; return instead"
    if wrong is not None:
        complain(wrong)
    return wrong is None


def _described(value: Any) -> str:
    """What stands in a function's place, for an error line."""
    return (
        f"the class {value.__name__}" if isinstance(value, type) else f"an object of {type(value).__name__}"
    )


def _shown(value: Any) -> str:
    """A value for an error line: short, whatever it is."""
    return " ".join(reprlib.repr(value).split())
