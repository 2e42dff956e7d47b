"""Reads parameters and annotations of functions, even where some names in them exist for type checkers only."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, Final, get_type_hints

# From Python 3.14 on annotations are evaluated when they are read, each time all of a function's, and a name that only
# a type checker imports raises NameError (PEP 649). As FORWARDREF they come one by one, unresolved where need be.
_FORWARD_REFERENCES: Final[dict[str, Any]] = (
    {}
    if sys.version_info < (3, 14)
    else {"format": importlib.import_module("annotationlib").Format.FORWARDREF}
)


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The function's signature; annotations are not evaluated."""
    return inspect.signature(
        function, **{f"annotation_{name}": it for name, it in _FORWARD_REFERENCES.items()}
    )


def innermost(function: Any) -> Any:
    """The function below all decorators that use functools.wraps; the function itself where they are a circle."""
    try:
        return inspect.unwrap(function)
    except ValueError:
        return function


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    if not _FORWARD_REFERENCES:
        return inspect.get_annotations(function)
    annotations: dict[str, Any] = importlib.import_module("annotationlib").get_annotations(
        function, **_FORWARD_REFERENCES
    )
    return annotations


def type_hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The function's annotations by parameter, evaluated; those that cannot be are left out."""
    if hasattr(innermost(function), "__wrapped__"):  # a circle, in which get_type_hints would run for ever
        return {}
    try:
        return get_type_hints(function)
    except Exception:  # noqa: BLE001  annotations that only a type checker can resolve are no reason not to run
        return _resolvable_hints(function)


def _resolvable_hints(function: Callable[..., Any]) -> dict[str, Any]:
    inner = innermost(function)
    hints: dict[str, Any] = {}
    for name, annotation in _annotations(inner).items():

        def alone() -> None: ...

        alone.__annotations__ = {name: annotation}
        with contextlib.suppress(Exception):
            hints |= get_type_hints(alone, globalns=getattr(inner, "__globals__", {}))
    return hints
