"""Finds calls in an async handler that surely block the event loop. Pure: it reads sources and objects, runs nothing.

A name means what it means in the module: `from time import sleep as nap` is found, and a function of the user's called
`sleep` is not. What counts is a call that the handler makes: `asyncio.to_thread(time.sleep, 1)` only passes the
function on, and a function defined inside runs where it is called. Functions of the user's that the handler calls are
searched as well, HELPERS_DEEP_MAX calls deep.
"""

import ast
import contextlib
import functools
import inspect
import linecache
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, UnionType
from typing import Any, Final, NamedTuple, Union, get_args, get_origin

from maskline.console.check.blocking_table import CLIENTS, FUNCTIONS, HARMLESS_METHODS
from maskline.worker.api.annotations import innermost, type_hints_of
from maskline.worker.api.places import Place, is_users
from maskline.worker.api.registry import is_async

HELPERS_DEEP_MAX: Final = 5
"""How many calls deep helper functions are followed."""

FUNCTIONS_MAX: Final = 200
"""How many functions are searched for one handler."""

_WRITTEN_IN_C: Final = {"posix": "os", "_sqlite3": "sqlite3", "_socket": "socket"}
"""Modules of Python's that have functions of another one, by whose name they are known."""

_Body = ast.FunctionDef | ast.AsyncFunctionDef


class BlockingCall(NamedTuple):
    """A call that blocks."""

    place: Place
    name: str
    """As the documentation of what is called names it."""
    instead: str
    """What to do instead."""


class _Named(NamedTuple):
    """A function or class that is known by its full name alone, as it was imported inside the function."""

    name: str


class _Instance(NamedTuple):
    """An object of a class, made or taken inside the function."""

    kind: Any


class _ClientMethod(NamedTuple):
    """A method of a client that blocks."""

    name: str
    instead: str


_UNKNOWN: Final = object()
"""What cannot be known without running the function."""


def blocking_calls(handler: Callable[..., Any]) -> list[BlockingCall]:
    """The blocking calls that an `async def` handler makes, by itself or by its helpers, by their places."""
    search = _Search()
    search.function(innermost(handler), 0)
    decorated, seen = handler, set[int]()
    while is_async(decorated) and hasattr(decorated, "__wrapped__") and id(decorated) not in seen:
        seen.add(id(decorated))
        search.function(decorated, 0)  # what a decorator does before and after
        decorated = decorated.__wrapped__
    return sorted(set(search.found))


class _Search:
    """The search of one handler."""

    def __init__(self) -> None:
        self.found: list[BlockingCall] = []
        self._seen: set[int] = set()

    def first_time(self, function: CodeType | ast.AST) -> bool:
        """Whether a function is to be searched; False for one that has been, or beyond FUNCTIONS_MAX."""
        if id(function) in self._seen or len(self._seen) >= FUNCTIONS_MAX:
            return False
        self._seen.add(id(function))
        return True

    def function(self, function: Any, depth: int) -> None:
        """Search a function's body."""
        code = getattr(function, "__code__", None)
        if code is None or not self.first_time(code):
            return
        body = _definition(code.co_filename, code.co_firstlineno, code.co_name)
        if body is None:
            return
        variables = _closure(function)
        hints = type_hints_of(function)
        for argument in _arguments(body):
            hint = hints.get(argument.arg)
            variables[argument.arg] = _instance_of(hint)
        _Scope(self, code.co_filename, function.__globals__, variables, depth).search(body)


class _Scope:
    """The search of one function's body, with what its names mean there."""

    def __init__(
        self, search: _Search, file: str, module: dict[str, Any], local: dict[str, Any], depth: int
    ) -> None:
        self._search = search
        self._file = file
        self._module = module
        self._local = local
        self._depth = depth

    def search(self, body: _Body) -> None:
        """Search the statements of a function."""
        nodes = [node for statement in _reached(body.body) for node in _executed(statement)]
        for node in nodes:
            self._assign(node)
        for node in nodes:
            if isinstance(node, ast.Call):
                self._call(node)

    def _assign(self, node: ast.AST) -> None:
        """Note what a name means inside the function."""
        match node:
            case ast.Import(names=names):
                for alias in names:
                    name = alias.name if alias.asname else alias.name.partition(".")[0]
                    self._local[alias.asname or name] = _Named(name)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for alias in names:
                    self._local[alias.asname or alias.name] = _Named(f"{module}.{alias.name}")
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=func)) if (
                name not in self._local
            ):
                self._local[name] = _result_of(self._meaning(func))
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name() | ast.Attribute() as value) if (
                name not in self._local
            ):
                self._local[name] = self._meaning(value)
            case ast.withitem(context_expr=ast.Call(func=func), optional_vars=ast.Name(id=name)):
                self._local[name] = _result_of(self._meaning(func))
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                self._local[name] = node
            case ast.Name(id=name, ctx=ast.Store()):
                self._local.setdefault(name, _UNKNOWN)

    def _call(self, node: ast.Call) -> None:
        meaning = self._meaning(node.func)
        if blocking := _blocking(meaning):
            self._search.found.append(BlockingCall(Place(self._file, node.lineno), *blocking))
            return
        if self._depth >= HELPERS_DEEP_MAX:
            return
        if isinstance(meaning, (ast.FunctionDef, ast.AsyncFunctionDef)):  # defined inside, and called here
            if self._search.first_time(meaning):
                local = dict(self._local) | {it.arg: _UNKNOWN for it in _arguments(meaning)}
                _Scope(self._search, self._file, self._module, local, self._depth + 1).search(meaning)
        elif type(meaning) is FunctionType and _runs_at_once(meaning):
            self._search.function(innermost(meaning), self._depth + 1)

    def _meaning(self, node: ast.expr) -> Any:
        """What an expression means, as far as it can be known without running anything."""
        match node:
            case ast.Name(id=name):
                if name in self._local:
                    return self._local[name]
                builtins: Any = self._module.get("__builtins__", {})
                known = builtins if isinstance(builtins, dict) else vars(builtins)
                return self._module.get(name, known.get(name, _UNKNOWN))
            case ast.Attribute(value=value, attr=name):
                return _attribute(self._meaning(value), name)
            case ast.Call(func=func):
                return _result_of(self._meaning(func))
        return _UNKNOWN


def _result_of(called: Any) -> Any:
    """What a call gives: an object of a class, or what a function of the user's is annotated to return."""
    if isinstance(called, (type, _Named)):
        return _Instance(called)
    if type(called) is FunctionType and not is_async(called):
        return _instance_of(type_hints_of(called).get("return"))
    return _UNKNOWN


def _instance_of(hint: Any) -> Any:
    """An object of an annotated class; `Class | None` is one as well."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    is_class = len(kinds) == 1 and isinstance(kinds[0], type) and get_origin(hint) in (None, Union, UnionType)
    return _Instance(kinds[0]) if is_class else _UNKNOWN


def _attribute(owner: Any, name: str) -> Any:
    """An attribute of a module, a class, or an object of a class that is known, read without running its code."""
    if isinstance(owner, _Named):
        return _Named(f"{owner.name}.{name}")
    if type(owner) is ModuleType:
        return vars(owner).get(name, _UNKNOWN)
    if isinstance(owner, ast.AST) or owner is _UNKNOWN:
        return _UNKNOWN
    if not isinstance(owner, type):
        kind = owner.kind if isinstance(owner, _Instance) else type(owner)
        client = next((known for known in _class_names(kind) if known in CLIENTS), None)
        if client is not None:
            return (
                _UNKNOWN if name in HARMLESS_METHODS else _ClientMethod(f"{client}.{name}", CLIENTS[client])
            )
        owner = kind if isinstance(owner, _Instance) else owner
    found = _UNKNOWN if isinstance(owner, _Named) else inspect.getattr_static(owner, name, _UNKNOWN)
    return found.__func__ if isinstance(found, (staticmethod, classmethod)) else found


def _blocking(meaning: Any) -> tuple[str, str] | None:
    """Name and advice, if what is called blocks."""
    if isinstance(meaning, _ClientMethod):
        return meaning
    if isinstance(meaning, type):
        client = next((known for known in _class_names(meaning) if known in CLIENTS), None)
        return (client, CLIENTS[client]) if client else None
    if isinstance(meaning, _Named):
        name = meaning.name
    elif isinstance(meaning, (FunctionType, BuiltinFunctionType)):
        name = _full_name(meaning)
    else:
        return None
    instead = FUNCTIONS.get(name) or CLIENTS.get(name)
    return (name, instead) if instead else None


def _class_names(kind: Any) -> list[str]:
    """The full names of a class and its bases."""
    return [kind.name] if isinstance(kind, _Named) else [_full_name(base) for base in type.mro(kind)]


def _full_name(value: Any) -> str:
    module = str(getattr(value, "__module__", ""))
    return f"{_WRITTEN_IN_C.get(module, module)}.{getattr(value, '__qualname__', '')}"


def _runs_at_once(function: Any) -> bool:
    """Whether a call of a user's function runs its body here: a generator's runs later."""
    return is_users(function.__code__.co_filename) and not inspect.isgeneratorfunction(innermost(function))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it that run with it: not the bodies of functions defined there, nor dead code."""
    yield node
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        return
    never = node.body if isinstance(node, ast.If) and _is_false(node.test) else None
    for _, value in ast.iter_fields(node):
        if value is never:
            continue
        children = _reached(value) if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, ast.AST):
                yield from _executed(child)


def _reached(block: Iterable[Any]) -> Iterator[Any]:
    """The statements of a block up to one that leaves it."""
    for statement in block:
        yield statement
        if isinstance(statement, (ast.Return, ast.Raise, ast.Break, ast.Continue)):
            return


def _is_false(test: ast.expr) -> bool:
    """Whether a condition never holds while the module runs."""
    match test:
        case ast.Constant(value=value):
            return not value
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name == "TYPE_CHECKING"
    return False


def _arguments(body: _Body) -> list[ast.arg]:
    taken = body.args
    extra = [it for it in (taken.vararg, taken.kwarg) if it is not None]
    return [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, *extra]


def _closure(function: FunctionType) -> dict[str, Any]:
    """The variables of outer functions that a function uses."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with contextlib.suppress(ValueError):  # not assigned yet
            found[name] = cell.cell_contents
    return found


@functools.lru_cache(maxsize=64)
def _definitions(source: str) -> dict[tuple[int, str], _Body]:
    """The functions that a source defines, by the line of each, or of its first decorator, and its name."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # it has changed since it was imported
        return {}
    return {
        (min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.name): node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def _definition(file: str, line: int, name: str) -> _Body | None:
    """The `def` that a function's code was made of. `line`: its own, or that of its first decorator."""
    return _definitions("".join(linecache.getlines(file))).get((line, name))
