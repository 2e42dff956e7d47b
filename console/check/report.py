"""What `maskline check` prints: who handles what, in calling order, as lines of a terminal or as JSON."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from maskline.console.output import counted, printable
from maskline.schemas.errors import Mistake
from maskline.schemas.events import Event
from maskline.worker.api.binding import HANDLED_TYPES, parameter_fillings
from maskline.worker.api.entry_points import InstalledHandlers
from maskline.worker.api.handler_options import HandlerOptions
from maskline.worker.api.loading import Survey
from maskline.worker.api.modules import name_of
from maskline.worker.api.places import Place, place_of, shown_path
from maskline.worker.api.registry import DeadHandlerSpec, HandlerSpec, ResourceSpec, is_async
from maskline.worker.api.retry_schedule import TIMEOUT_MS_DEFAULT

WIDTH_CHARS: Final = 80
EVENTS_LISTED_MAX: Final = 6
"""Of more events than this that have the same handlers, the rest is a number."""

_DEFAULTS: Final = HandlerOptions()
_EVENTS: Final = tuple(kind for kind in HANDLED_TYPES if issubclass(kind, Event))


def as_json(
    survey: Survey, warnings: Sequence[Mistake], installed: Sequence[InstalledHandlers]
) -> dict[str, Any]:
    """Everything as one object."""
    handlers = survey.handlers
    takers: list[HandlerSpec | DeadHandlerSpec] = [*handlers.specs, *handlers.dead_specs]
    loaded = {name_of(module) for module in survey.modules}
    return {
        "modules": [name_of(module) for module in survey.modules],
        "events": {
            kind.__name__: [spec.name for spec in _of(kind, handlers.specs)] for kind in HANDLED_TYPES
        },
        "handlers": [_handler(it, handlers.resources) for it in takers if isinstance(it, HandlerSpec)],
        "dead_handlers": [
            _handler(it, handlers.resources) for it in takers if isinstance(it, DeadHandlerSpec)
        ],
        "resources": [
            {"name": it.name, "yields": _type_name(it.yields), **_placed(_resource_place(it))}
            for it in handlers.resources
        ],
        "installed": [entry._asdict() | {"loaded": entry.module in loaded} for entry in installed],
        "mistakes": [mistake._asdict() for mistake in survey.mistakes],
        "warnings": [warning._asdict() for warning in warnings],
    }


def as_lines(survey: Survey, installed: Sequence[InstalledHandlers]) -> Iterator[str]:
    """Everything but the mistakes, as lines for a terminal."""
    handlers = survey.handlers
    for kinds, specs in _groups(handlers.specs):
        yield from _heading(kinds, "" if specs else "without a handler: ")
        for number, spec in enumerate(specs, 1):
            yield from _taker(f"  {number}. ", spec, handlers.resources)
    if handlers.dead_specs:
        yield "dead letters"
        for dead in handlers.dead_specs:
            yield from _taker("  - ", dead, handlers.resources)
    if handlers.resources:
        yield "resources"
        for resource in handlers.resources:
            yields = f" -> {_type_name(resource.yields)}" if resource.yields is not None else ""
            yield from _line(f"  {resource.name}{yields}", _resource_place(resource))
    if installed:
        loaded = {name_of(module) for module in survey.modules}
        yield "installed packages bring"
        for entry in installed:
            state = "" if entry.module in loaded else "  (not loaded)"
            yield printable(f"  {entry.name}: {entry.module}, of {entry.package} {entry.version}{state}")


def verdict(survey: Survey, warnings: Sequence[Mistake]) -> str:
    """The last line: what was checked, and how it came out."""
    handlers = len({spec.name for spec in survey.handlers.specs}) + len(survey.handlers.dead_specs)
    found = [counted(len(survey.mistakes), "mistake")] if survey.mistakes else []
    found += [counted(len(warnings), "warning")] if warnings else []
    checked = f"{counted(len(survey.modules), 'module')}, {counted(handlers, 'handler')}"
    return f"{checked}: {', '.join(found) or 'no mistakes'}"


def _groups(specs: Sequence[HandlerSpec]) -> list[tuple[list[type], list[HandlerSpec]]]:
    """Types of events with the same handlers, and those in calling order; the events without a handler last."""
    groups: dict[tuple[int, ...], tuple[list[type], list[HandlerSpec]]] = {}
    for kind in HANDLED_TYPES:
        taking = _of(kind, specs)
        groups.setdefault(tuple(map(id, taking)), ([], taking))[0].append(kind)
    nobodys = groups.pop((), None)
    # The rest of all events reads best behind the few that have a handler of their own.
    return sorted(groups.values(), key=lambda group: len(group[0])) + ([nobodys] if nobodys and specs else [])


def _of(kind: type, specs: Iterable[HandlerSpec]) -> list[HandlerSpec]:
    return [spec for spec in specs if issubclass(kind, spec.types)]


def _heading(kinds: Sequence[type], start: str) -> Iterator[str]:
    events = [kind for kind in kinds if kind in _EVENTS]
    if len(events) == len(_EVENTS):
        names = ["every event", *(kind.__name__ for kind in kinds if kind not in _EVENTS)]
    elif len(kinds) > EVENTS_LISTED_MAX:
        names = [f"the other {len(kinds)} events"]
    else:
        names = [kind.__name__ for kind in kinds]
    yield from _wrapped(names, start, "  ")


def _taker(
    start: str, spec: HandlerSpec | DeadHandlerSpec, resources: Sequence[ResourceSpec]
) -> Iterator[str]:
    yield from _line(start + spec.name, place_of(spec.function))
    facts = [f"{name}={value!r}" for name, value in _options(spec).items()]
    taken = parameter_fillings(spec, resources).resources
    facts += [f"takes {parameter}" if parameter == name else f"takes {name} as {parameter}"
              for parameter, name in taken.items()]  # fmt: skip
    if not is_async(spec.function):
        facts.append("in a thread")
    if facts:
        yield from _wrapped(facts, " " * len(start), " " * len(start))


def _wrapped(items: Sequence[str], start: str, indent: str) -> Iterator[str]:
    """Items with commas between them, in lines. The first begins with `start`, the others with `indent`."""
    line, empty = start, True
    for item in map(printable, items):
        if not empty and len(line) + len(item) + 2 > WIDTH_CHARS:
            yield f"{line},"
            line, empty = indent, True
        line += item if empty else f", {item}"
        empty = False
    yield line


def _line(left: str, place: Place) -> Iterator[str]:
    """Two columns, or two lines where the first is too long for that."""
    left, shown = printable(left), printable(place.shown)
    if len(left) + 2 + len(shown) <= WIDTH_CHARS:
        yield f"{left}  {shown}".rstrip()
    else:
        indent = " " * (len(left) - len(left.lstrip()))
        yield left
        yield f"{indent}  {shown}"


def _options(spec: HandlerSpec | DeadHandlerSpec) -> dict[str, Any]:
    """The options that are not the default."""
    if isinstance(spec, DeadHandlerSpec):
        return {"timeout_ms": spec.timeout_ms} if spec.timeout_ms != TIMEOUT_MS_DEFAULT else {}
    given = spec.options._asdict()
    return {name: value for name, value in given.items() if value != getattr(_DEFAULTS, name)}


def _handler(spec: HandlerSpec | DeadHandlerSpec, resources: Sequence[ResourceSpec]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": spec.name}
    if isinstance(spec, HandlerSpec):
        row["events"] = [kind.__name__ for kind in HANDLED_TYPES if issubclass(kind, spec.types)]
    return row | {
        "options": _options(spec),
        "resources": parameter_fillings(spec, resources).resources,
        "in_thread": not is_async(spec.function),
        **_placed(place_of(spec.function)),
    }


def _resource_place(resource: ResourceSpec) -> Place:
    return place_of(resource.function) if resource.function is not None else Place()


def _placed(place: Place) -> dict[str, Any]:
    return {"file": shown_path(place.file) if place.file else "", "line": place.line}


def _type_name(kind: Any) -> str | None:
    return None if kind is None else printable(str(getattr(kind, "__name__", kind)))
