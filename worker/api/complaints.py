"""Where `@on` and `@resource` take their mistakes.

Used anywhere, they raise ConfigError. While `worker.api.loading` imports a module they note the mistake with its line
instead and go on, so that a user sees all mistakes of all modules at once. `Notes` also has every function that was
marked meanwhile: one that no name of its module leads to would never run.
"""

import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from maskline.schemas.errors import ConfigError, Mistake
from maskline.worker.api.places import Place, caller, shown_path


class Marked(NamedTuple):
    """A function that `@on` has marked."""

    function: Callable[..., Any]
    place: Place
    """The line of the decorator."""


class Notes:
    """What was noted while modules were imported."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.files: set[str] = set()
        """The files that the mistakes stand in, as their modules name them."""
        self.marked: list[Marked] = []
        self.unusable_resources: set[str] = set()
        """The names of what `@resource` could not mark: a handler that takes one has no mistake of its own."""


_notes: contextvars.ContextVar[Notes | None] = contextvars.ContextVar("maskline_notes", default=None)


@contextmanager
def taking_notes() -> Iterator[Notes]:
    """Have mistakes noted instead of raised, in this context."""
    notes = Notes()
    before = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(before)


def complain(text: str) -> None:
    """Note a mistake in the line that called maskline; raise ConfigError where nobody takes notes."""
    notes = _notes.get()
    if notes is None:
        raise ConfigError(text)
    place = caller()
    notes.files.add(place.file)
    notes.mistakes.append(Mistake(text, shown_path(place.file) if place.file else "", place.line))


def complain_of_resource(text: str, name: str) -> None:
    """As `complain`, of what `@resource` stands on. `name`: what handlers would take it by."""
    if (notes := _notes.get()) is not None:
        notes.unusable_resources.add(name)
    complain(text)


def note_marked(function: Callable[..., Any]) -> None:
    """Note a function that was marked, if somebody takes notes."""
    if (notes := _notes.get()) is not None:
        notes.marked.append(Marked(function, caller()))
