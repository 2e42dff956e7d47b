"""What a reader of a shape has to do, worked out once for the shape. Pure.

A shape is what the callbacks of one event have in common: its name, and the names of its parameters in their order.
Both readers, the one in Python (`schemas.fastdecode.python_readers`) and the one in C (`schemas.fastdecode.native`),
are made of a plan.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from typing import Any, Final, Literal, NamedTuple

from maskline.schemas.bounded_cache import BoundedCache
from maskline.schemas.callback import RawCallback
from maskline.schemas.decode import NONE_IGNORED, Attribute, hash_of_names, known_of
from maskline.schemas.events import Event, UnknownEvent
from maskline.schemas.parameters import looks_like, named_reading
from maskline.schemas.values import NULLS, is_null

REMEMBERED: Final = 4_096
"""Of each kind of value: sessions are under way side by side, and Plivo's times have whole seconds, so most of them
were read a moment ago. Durations, charges and places in a sequence are few anyway."""
REMEMBERED_CHARS_MAX: Final = 64

SESSION_UUID: Final = "SessionUUID"
EVENT_NAME: Final = "EventName"

NULL_TEXTS: Final = frozenset(
    "".join(letters) for null in NULLS for letters in product(*((one, one.upper()) for one in null))
)
"""What `is_null` finds after stripping, in every case."""


class Template(NamedTuple):
    """What callbacks have in common that one reader reads."""

    event_name: str
    names: tuple[str, ...]
    """All, in their order."""

    @property
    def event_name_at(self) -> int:
        return self.names.index(EVENT_NAME)


EventAndFingerprint = tuple[Event, bytes]

Decoded = tuple[Event, bytes, int, bool]
"""A callback: its event and fingerprint, `received_at_ms` and `replayed`. A bare tuple: it lives for a moment."""

Way = Literal["session", "event_name", "text", "number", "looked_up"]
"""`number` is looked up as well, by a reader that does not know better: most are short and of digits alone."""


class Taken(NamedTuple):
    """One attribute of the event."""

    attribute: str
    place: int
    """Of its parameter, the first being 0."""
    way: Way
    remembered: BoundedCache[str, Any]
    """For what is looked up: by the text, what it reads as; ValueError for what only the reference can read."""


class Plan(NamedTuple):
    """How an event and its fingerprint are made of a form's values."""

    event_type: type[Event]
    taken: tuple[Taken, ...]
    """In the order of the event's fields, where a constructor finds each at once."""
    extra: tuple[tuple[str, int], ...]
    """The parameters that are no attribute, with their places."""
    names_hash: blake2b
    """The half of the fingerprint that is the same for all."""
    order: tuple[int, ...]
    """The places of all parameters that count, in the order of their names: the fingerprint's."""
    size: int
    """Of the parameters, those that do not count included."""


def form_of(callback: RawCallback) -> bytes | None:
    """The parameters, encoded, as one form; None for those that came otherwise."""
    body, query = callback.body, callback.query
    if callback.method != "GET" and body:
        if (named_reading(callback.content_type) or looks_like(body)) != "form":
            return None
        return body + b"&" + query if query else body
    return query


def plan_of(shape: Template, ignored: frozenset[str] = NONE_IGNORED) -> Plan:
    """`ignored` parameters are no part of the fingerprint."""
    known = known_of(shape.event_name)
    places = {name: place for place, name in enumerate(shape.names)}
    taken = {"session_uuid": Taken("session_uuid", places[SESSION_UUID], "session", _NOTHING)}
    if known.event_type is UnknownEvent:
        taken["event_name"] = Taken("event_name", places[EVENT_NAME], "event_name", _NOTHING)
    extra: list[tuple[str, int]] = []
    for name, place in places.items():
        attribute = known.attributes.get(name)
        if attribute is not None:
            taken[attribute.name] = _taken(attribute, place)
        elif name not in (SESSION_UUID, EVENT_NAME):
            extra.append((name, place))
    ordered = sorted(places.keys() - ignored)
    return Plan(
        known.event_type,
        tuple(taken[field] for field in known.event_type.__struct_fields__ if field in taken),
        tuple(extra),
        hash_of_names(ordered),
        tuple(places[name] for name in ordered),
        len(places),
    )


def _taken(attribute: Attribute, place: int) -> Taken:
    if attribute.reader is None:
        return Taken(attribute.name, place, "text", _NOTHING)
    way: Way = "number" if attribute.type is int else "looked_up"
    return Taken(attribute.name, place, way, _remembering(attribute.reader))


_NOTHING: Final[BoundedCache[str, Any]] = BoundedCache(str, 0)


@lru_cache
def _remembering(read: Callable[[str], Any]) -> BoundedCache[str, Any]:
    """A reader of single values that knows nulls."""

    def made(text: str) -> Any:
        if len(text) > REMEMBERED_CHARS_MAX:
            raise ValueError("too long to be remembered")
        return None if is_null(text) else read(text)

    return BoundedCache(made, REMEMBERED)
