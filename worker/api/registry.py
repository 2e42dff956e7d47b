"""Handlers and resources: how modules declare them, and how a worker finds them.

`@on` and `@resource` only mark functions, so a handler stays a plain function that a test can call. Loading a module
collects what is marked in its namespace; a table then says, for every type of event, which handlers want it.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple, TypeVar, get_args, get_origin, get_type_hints, overload

import msgspec

from maskline.runtime import search_path
from maskline.schemas.errors import ConfigError
from maskline.schemas.events import EVENT_TYPES, Event, UnknownEvent
from maskline.worker.api.retry import (
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
        - `name`: what logs, metrics and dead letters call it; the module and function by default.

        Raises ConfigError where a type is no event or an option makes no sense.
        """
        if not types:
            raise ConfigError("@on needs at least one type of event; use @on.every for all of them")
        given: tuple[Any, ...] = types
        for kind in given:
            if not (isinstance(kind, type) and issubclass(kind, Event)):
                raise ConfigError(f"@on takes types of events from `schemas`, not {kind!r}")
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
    """Mark an async generator function, or an async context manager's, as a resource that handlers share.

    It is entered once when the worker starts, before any handler runs, and closed after the last one ended. A handler
    takes what it yields by a parameter of the function's name, or by a parameter annotated with the type it yields.
    """
    setattr(function, _RESOURCE_MARK, True)
    return function


class ResourceSpec(NamedTuple):
    name: str
    open: Callable[[], AbstractAsyncContextManager[Any]]
    yields: Any
    """The annotated type of what it yields, None where there is no annotation."""


class Handlers(NamedTuple):
    """Everything the loaded modules declare."""

    specs: tuple[HandlerSpec, ...]
    resources: tuple[ResourceSpec, ...]


class BoundHandler(msgspec.Struct, frozen=True, eq=False):
    """A handler with its resources in place, ready to be called with an event and a context."""

    name: str
    call: Callable[..., Awaitable[Any]] | Callable[..., Any]
    in_thread: bool
    policy: RetryPolicy
    timeout_s: float


Table = dict[type[Event], tuple[BoundHandler, ...]]


def _full_name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _check_function(function: Any) -> None:
    """Refuse what would never be found or never run."""
    if not inspect.isfunction(function):
        raise ConfigError(f"@on marks functions, not {function!r}: wrap it in a function")
    named = _full_name(function)
    scope = function.__qualname__.rpartition(".")[0]
    if scope and not scope.endswith("<locals>"):
        raise ConfigError(f"the handler {named} must be a function of its module, not a method")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"the handler {named} must not yield: nothing would run it")


def load_handlers(names: Iterable[str | ModuleType]) -> Handlers:
    """Import handler modules, by dotted name or by the path of a `.py` file, and collect what they declare.

    Raises ConfigError, one line, where a module cannot be imported, declares nothing, two handlers or two resources
    share a name, or a handler asks for a parameter that no resource fills.
    """
    specs: list[HandlerSpec] = []
    resources: dict[str, Callable[..., Any]] = {}
    for name in names:
        module = _import(name) if isinstance(name, str) else name
        found = False
        for value in list(vars(module).values()):
            for spec in _marked(value):
                found = True
                if spec not in specs:
                    _check_name(spec, specs)
                    specs.append(spec)
            if inspect.isfunction(value) and hasattr(value, _RESOURCE_MARK):
                found = True
                if resources.setdefault(value.__name__, value) is not value:
                    raise ConfigError(f"two resources are called {value.__name__}: rename one of them")
        if not found:
            raise ConfigError(
                f"MASKLINE_HANDLERS: {module.__name__} declares no handler (a function marked with @on)"
            )
    if not specs:
        raise ConfigError("MASKLINE_HANDLERS: there is no handler (a function marked with @on)")
    handlers = Handlers(tuple(specs), tuple(_resource_spec(function) for function in resources.values()))
    for spec in handlers.specs:
        _wanted(spec, handlers.resources)
    return handlers


def bind(handlers: Handlers, opened: dict[str, Any]) -> Table:
    """The handlers of every type of event, in the order of their declaration, with the opened resources in place."""
    bound: list[tuple[HandlerSpec, BoundHandler]] = []
    for spec in handlers.specs:
        call = spec.function
        if wanted := _wanted(spec, handlers.resources):
            call = functools.partial(call, **{parameter: opened[name] for parameter, name in wanted.items()})
        in_thread = not _is_async(spec.function)
        bound.append((spec, BoundHandler(spec.name, call, in_thread, spec.policy, spec.timeout_ms / 1000)))
    return {
        kind: tuple(handler for spec, handler in bound if issubclass(kind, spec.types)) for kind in _KINDS
    }


def only(handlers: Handlers, name: str) -> Handlers:
    """One handler by its name, and the resources that it takes."""
    specs = tuple(spec for spec in handlers.specs if spec.name == name)
    wanted = {resource for spec in specs for resource in _wanted(spec, handlers.resources).values()}
    return Handlers(specs, tuple(spec for spec in handlers.resources if spec.name in wanted))


_KINDS: Final[tuple[type[Event], ...]] = (*EVENT_TYPES.values(), UnknownEvent)


def _marked(value: Any) -> list[HandlerSpec]:
    # Only functions: a mock or a proxy in the namespace claims to have every attribute.
    marks: Sequence[HandlerSpec] = getattr(value, _HANDLER_MARK, ()) if inspect.isfunction(value) else ()
    # A decorator above @on has copied the mark: what the module calls the handler is what runs. The last mark is the
    # uppermost, and reads first.
    return [spec._replace(function=value) for spec in reversed(marks)]


def _check_name(spec: HandlerSpec, others: Iterable[HandlerSpec]) -> None:
    """One name may stand for one function under several @on, as long as none of its events is meant by two."""
    for other in others:
        if other.name != spec.name:
            continue
        if other.function is not spec.function:
            raise ConfigError(f"two handlers are called {spec.name}: give one of them another name=")
        for kind in _KINDS:
            if issubclass(kind, spec.types) and issubclass(kind, other.types):
                raise ConfigError(
                    f"the handler {spec.name} is marked twice for {kind.__name__}: give one mark another name="
                )


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(function)


def _import(name: str) -> ModuleType:
    # A user's own module stands where the worker is started, and what it imports beside it.
    search_path.add_working_directory()
    try:
        return _import_path(Path(name)) if name.endswith(".py") else _import_dotted(name)
    except ConfigError as error:
        raise ConfigError(f"MASKLINE_HANDLERS: {name}: {error}") from error
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise ConfigError(
            f"MASKLINE_HANDLERS: {name} cannot be imported: {type(error).__name__}: {text}{_clash(error)}"
        ) from error


def _import_dotted(name: str) -> ModuleType:
    if hidden := search_path.hidden(name):
        file, other = hidden
        raise ConfigError(
            f"{file} cannot be imported under this name, {other} has it: rename it, or give its path"
        )
    return importlib.import_module(name)


def _clash(error: BaseException) -> str:
    """What to add where a module looks for one of the user's, and finds another of that name."""
    hidden = search_path.hidden(error.name) if isinstance(error, ImportError) and error.name else None
    return f" ({hidden[0]} cannot be imported under this name: rename it)" if hidden else ""


def _import_path(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError("there is no such file")
    path = path.resolve()
    # Imported by its dotted name as well, or named twice: one module, or every event would be handled twice.
    for known in list(sys.modules.values()):
        if getattr(known, "__file__", None) == str(path) and known.__name__ != "__main__":
            return known
    # A file called queue.py must not take the place of the module queue, nor yarl.py that of the library.
    name, count = path.stem, 0
    while name in sys.modules or (count == 0 and name in search_path.NEEDED):
        count += 1
        name = f"handlers_file_{path.stem}" + (f"_{count}" if count > 1 else "")
    loaded = importlib.util.spec_from_file_location(name, path)
    assert loaded is not None  # noqa: S101  a .py file always has a loader
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
    if _signature(function).parameters:
        raise ConfigError(f"the resource {name} must take no parameters")
    opener = asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function
    if not (inspect.isasyncgenfunction(function) or hasattr(function, "__wrapped__")):
        raise ConfigError(f"the resource {name} must be an async generator function that yields once")
    hint = _hints(function).get("return")
    yields = get_args(hint)[0] if get_origin(hint) is not None and get_args(hint) else None
    return ResourceSpec(name, opener, yields)


def _wanted(spec: HandlerSpec, resources: Sequence[ResourceSpec]) -> dict[str, str]:
    """The handler's parameters after event and context, by the resource that fills each."""
    parameters = list(_signature(spec.function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        raise ConfigError(
            f"the handler {spec.name} must take an event and a context: def handler(event, ctx)"
        )
    names = {entry.name for entry in resources}
    hints = _hints(spec.function)
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


# From Python 3.14 on annotations are evaluated when they are looked at, each time all of a function's, and a name that
# only a type checker imports raises NameError (PEP 649). As FORWARDREF they come one by one, unresolved where need be.
_FORWARD_REFERENCES: Final[dict[str, Any]] = (
    {}
    if sys.version_info < (3, 14)
    else {"format": importlib.import_module("annotationlib").Format.FORWARDREF}
)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(
        function, **{f"annotation_{name}": it for name, it in _FORWARD_REFERENCES.items()}
    )


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    if not _FORWARD_REFERENCES:
        return inspect.get_annotations(function)
    annotations: dict[str, Any] = importlib.import_module("annotationlib").get_annotations(
        function, **_FORWARD_REFERENCES
    )
    return annotations


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # noqa: BLE001  annotations that only a type checker can resolve are no reason not to run
        return _resolvable_hints(function)


def _resolvable_hints(function: Callable[..., Any]) -> dict[str, Any]:
    innermost = inspect.unwrap(function)
    hints: dict[str, Any] = {}
    for name, annotation in _annotations(innermost).items():

        def alone() -> None: ...

        alone.__annotations__ = {name: annotation}
        with contextlib.suppress(Exception):
            hints |= get_type_hints(alone, globalns=getattr(innermost, "__globals__", {}))
    return hints
