"""What handlers do that works, but surely not as they were meant to: each a line with its place and what to do."""

from collections.abc import Iterable, Iterator
from threading import Thread
from typing import Any, get_args

from maskline.console.check.blocking_calls import blocking_calls
from maskline.schemas.call_summary import CallSummary
from maskline.schemas.errors import Mistake
from maskline.schemas.events import Event
from maskline.worker.api.annotations import signature_of, type_hints_of
from maskline.worker.api.binding import HANDLED_TYPES
from maskline.worker.api.context import Context
from maskline.worker.api.loading import Survey
from maskline.worker.api.places import Place, is_users, place_of, shown_path
from maskline.worker.api.registry import DeadHandlerSpec, HandlerSpec, is_async


def warnings_of(survey: Survey) -> list[Mistake]:
    """The warnings, in the order of the handlers; none where an object of the user's cannot be looked at."""
    found: list[Mistake] = []
    for marked in survey.nested:
        name = marked.function.__qualname__
        text = f"the handler {name} is marked inside a function, and no name of the module leads to it: it never runs"
        found.append(_warning(marked.place, text))
    takers: list[HandlerSpec | DeadHandlerSpec] = [*survey.handlers.specs, *survey.handlers.dead_specs]
    for taker in takers:
        for look in (_blocking, _parameters):
            try:
                found += look(taker)
            except Exception:  # noqa: BLE001, S112  modules hold objects that raise when they are looked at
                continue
    return list(dict.fromkeys(found))


def thread_warnings(threads: Iterable[Thread]) -> list[Mistake]:
    """The warnings of threads that an import has left running, each at its function where that is the user's."""
    found = []
    for thread in threads:
        place = place_of(getattr(thread, "_target", None) or thread.run)
        text = "a thread that the import starts holds up the worker's end: start it in a @resource, and end it there"
        found.append(_warning(place if is_users(place.file) else Place(), text))
    return list(dict.fromkeys(found))


def _warning(place: Place, text: str) -> Mistake:
    return Mistake(text, shown_path(place.file) if place.file else "", place.line)


def _blocking(taker: HandlerSpec | DeadHandlerSpec) -> Iterator[Mistake]:
    """An async handler that blocks holds up everything in its worker."""
    if not is_async(taker.function):
        return
    for call in blocking_calls(taker.function):
        yield _warning(
            call.place, f"{call.name} blocks the event loop in the async handler {taker.name}: {call.instead}"
        )


def _parameters(taker: HandlerSpec | DeadHandlerSpec) -> Iterator[Mistake]:
    """Annotations that contradict what the handler is called with."""
    if isinstance(taker, DeadHandlerSpec):
        return
    first, second = list(signature_of(taker.function).parameters.values())[:2]
    hints = type_hints_of(taker.function)
    if hints.get(first.name) is Context or second.name == "event":
        yield _warning(
            place_of(taker.function),
            f"the handler {taker.name} is called with the event first: write ({second.name}, {first.name})",
        )
        return
    accepted = _event_types(hints.get(first.name))
    handled = [kind for kind in HANDLED_TYPES if issubclass(kind, taker.types)]
    if accepted and (wrong := [kind.__name__ for kind in handled if not issubclass(kind, accepted)]):
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        yield _warning(
            place_of(taker.function),
            f"the handler {taker.name} is called with {wrong[0]}{more}, which its annotation of {first.name} leaves"
            " out: correct the annotation, or @on",
        )


def _event_types(hint: Any) -> tuple[type, ...]:
    """The types of events that an annotation takes; none if it takes other things as well, or is missing."""
    parts = get_args(hint) or (hint,)
    if all(isinstance(part, type) and issubclass(part, (Event, CallSummary)) for part in parts):
        return parts
    return ()
