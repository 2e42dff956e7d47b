"""Resources in a harness: overridden by the test, or replaced by the twin that their module brings."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final, Protocol

from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import ConfigError
from maskline.worker.api.registry import ResourceSpec

TWINS_ATTRIBUTE: Final = "__harness_resources__"
"""The attribute of a handler module by which it brings twins of its resources, for harnesses: by the resource's name, a
function that takes the harness and returns an async context manager."""


class HarnessStream(Protocol):
    """A harness, as the twin of a resource sees it."""

    @property
    def now_ms(self) -> int:
        """The harness's time, milliseconds since the epoch."""

    def emit(self, callback: RawCallback) -> None:
        """Append an entry to the stream: it is handled before the running `feed` returns."""

    def call_at(self, at_ms: int, function: Callable[[], None]) -> None:
        """Call a plain function once the harness's time is `at_ms`."""


def to_open(
    specs: Sequence[ResourceSpec], overridden: Iterable[str], harness: HarnessStream
) -> list[ResourceSpec]:
    """The resources that a harness opens: without the overridden ones, and twins where modules bring them."""
    return [_twin_or(spec, harness) for spec in specs if spec.name not in overridden]


def _twin_or(spec: ResourceSpec, harness: HarnessStream) -> ResourceSpec:
    module = sys.modules.get(spec.open.__module__)
    twins: Mapping[str, Callable[[HarnessStream], AbstractAsyncContextManager[Any]]]
    twins = getattr(module, TWINS_ATTRIBUTE, {})
    twin = twins.get(spec.name)
    return spec if twin is None else spec._replace(open=partial(twin, harness))


def check_overridden(overridden: Iterable[str], specs: Iterable[ResourceSpec]) -> None:
    """Raise ConfigError for a name that no resource has."""
    names = [spec.name for spec in specs]
    for name in overridden:
        if name not in names:
            raise ConfigError(f"no resource is called {name}; there are: {', '.join(names) or 'none'}")
