"""The plan of a template: which parameter of a form becomes which attribute, computed once for a layout. Pure.

The callbacks of one event share a layout: the event's name, and the names of the parameters in their order. A template
(`schemas.fastdecode.native`) is made from the plan of its layout, and reads every form that has it.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal, NamedTuple

from maskline.schemas.bounded_cache import BoundedCache
from maskline.schemas.call_summary import Handled
from maskline.schemas.callback import RawCallback
from maskline.schemas.decode import NONE_IGNORED, Attribute, hash_of_names, schema_of
from maskline.schemas.events import Event, UnknownEvent
from maskline.schemas.parameters import looks_like, named_reading
from maskline.schemas.values import is_null

CACHED_VALUES_MAX: Final = 4_096
"""Of each kind of value. Sessions run side by side and Plivo's times have whole seconds, so most times were read a
moment ago; durations, charges and sequence numbers take few different values anyway."""
CACHED_VALUE_CHARS_MAX: Final = 64
"""Longer texts are left to the reference, so that the cache has a bound in bytes too."""

SESSION_UUID: Final = "SessionUUID"
EVENT_NAME: Final = "EventName"


class FormLayout(NamedTuple):
    """The layout of all forms that one template reads."""

    event_name: str
    names: tuple[str, ...]
    """The names of all parameters, in the order in which they are sent."""


EventAndFingerprint = tuple[Event, bytes]

DecodedValue = tuple[Handled, bytes, int, bool]
"""A decoded stream value: the event, its fingerprint, `received_at_ms` and `replayed`. A bare tuple: it is taken apart
at once."""

Conversion = Literal["session", "event_name", "text", "number", "cached"]
"""How a value becomes an attribute. `number` is a whole number, read in C if it is short and of digits alone, and else
looked up in the cache like `cached`."""


class PlannedAttribute(NamedTuple):
    """One attribute of the event, and where its value comes from."""

    attribute: str
    """Its name in the event."""
    position: int
    """Position of its parameter in the form, counted from 0."""
    conversion: Conversion
    cache: BoundedCache[str, Any]
    """For `number` and `cached`: from the text to the value; raises ValueError for what only the reference reads."""


class Plan(NamedTuple):
    """How the values of a form become an event and its fingerprint."""

    event_type: type[Event]
    attributes: tuple[PlannedAttribute, ...]
    """In the order of the event's fields, in which its constructor finds each at once."""
    extra: tuple[tuple[str, int], ...]
    """The parameters that are no attribute: name and position."""
    names_hash: blake2b
    """The part of the fingerprint that depends on the names alone (`schemas.decode.hash_of_names`)."""
    fingerprint_order: tuple[int, ...]
    """The positions of the parameters that count for the fingerprint, in the order of their names."""
    parameters_count: int
    """All parameters, ignored ones included."""


def form_of(callback: RawCallback) -> bytes | None:
    """The parameters of a callback as one encoded form; None where the body is no form."""
    body, query = callback.body, callback.query
    if callback.method != "GET" and body:
        if (named_reading(callback.content_type) or looks_like(body)) != "form":
            return None
        return body + b"&" + query if query else body
    return query


def plan_of(layout: FormLayout, ignored: frozenset[str] = NONE_IGNORED) -> Plan:
    """Plan how to read a layout that has a SessionUUID; `ignored` parameters are no part of the fingerprint."""
    schema = schema_of(layout.event_name)
    indexes = {name: index for index, name in enumerate(layout.names)}
    planned = {"session_uuid": PlannedAttribute("session_uuid", indexes[SESSION_UUID], "session", _NO_CACHE)}
    if schema.event_type is UnknownEvent:
        planned["event_name"] = PlannedAttribute("event_name", indexes[EVENT_NAME], "event_name", _NO_CACHE)
    extra: list[tuple[str, int]] = []
    for name, index in indexes.items():
        attribute = schema.attributes.get(name)
        if attribute is not None:
            planned[attribute.name] = _planned(attribute, index)
        elif name not in (SESSION_UUID, EVENT_NAME):
            extra.append((name, index))
    ordered = sorted(indexes.keys() - ignored)
    return Plan(
        event_type=schema.event_type,
        attributes=tuple(planned[field] for field in schema.event_type.__struct_fields__ if field in planned),
        extra=tuple(extra),
        names_hash=hash_of_names(ordered),
        fingerprint_order=tuple(indexes[name] for name in ordered),
        parameters_count=len(indexes),
    )


def _planned(attribute: Attribute, index: int) -> PlannedAttribute:
    if attribute.reader is None:
        return PlannedAttribute(attribute.name, index, "text", _NO_CACHE)
    conversion: Conversion = "number" if attribute.type is int else "cached"
    return PlannedAttribute(attribute.name, index, conversion, _cache_of(attribute.reader))


_NO_CACHE: Final[BoundedCache[str, Any]] = BoundedCache(str, 0)


@lru_cache
def _cache_of(read: Callable[[str], Any]) -> BoundedCache[str, Any]:
    """A cache of values that are read by `read`, or null. One for each reader, so that all templates share it."""

    def read_or_null(text: str) -> Any:
        if len(text) > CACHED_VALUE_CHARS_MAX:
            raise ValueError("too long to be cached")
        return None if is_null(text) else read(text)

    return BoundedCache(read_or_null, CACHED_VALUES_MAX)
