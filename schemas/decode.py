"""Decodes a raw callback to an event: the reference for every faster way to the same result.

Rules: no parameter is lost. A parameter becomes the attribute of its name. A parameter that is no attribute of the
event, or cannot be read, is kept as text in `extra`, and `problems` names the unreadable ones. Only a callback that
lacks what every event needs (readable parameters, a SessionUUID, an EventName) is refused, with a code for the dead
letters.

| parameter | becomes |
| --- | --- |
| known, null | attribute None |
| known, readable | attribute |
| known, unreadable | attribute None, text in `extra`, name in `problems` |
| known, repeated with one value (and nulls) | attribute |
| known, repeated with differing values | attribute None, list of texts in `extra`, name in `problems` |
| SessionUUID, EventName, repeated with differing values | the first; list in `extra`, name in `problems` |
| unknown | text in `extra`, a list where it is repeated with differing texts |

Strategy: form, query and JSON become a list of text pairs first (`parameter_pairs`); `event_from_pairs` alone
interprets the pairs, by tables that are built once at import.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from types import NoneType
from typing import Any, Final, NamedTuple, get_args, get_type_hints

import msgspec

from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import NotDecodableError, UndecodableEntryError
from maskline.schemas.events import ATTRIBUTES, EVENT_TYPES, Event, UnknownEvent
from maskline.schemas.parameters import Pairs, Parameters, parse_parameters
from maskline.schemas.values import NULL_CHARS_MAX, NULLS, is_null, read_decimal, read_int, read_time

SESSION_UUID_CHARS_MAX: Final = 128
"""Plivo's have 36. The bound is there because the SessionUUID is part of a Redis key and of every log line."""

SEQUENCE_NUMBER_MAX: Final = 2**53 - 1
"""The largest that Lua and JSON readers count exactly."""

FINGERPRINT_BYTES: Final = 8
"""Fingerprints are compared only among callbacks of one session and number, where 64 bits are plenty."""


class DecodedCallback(NamedTuple):
    """An event and the fingerprint by which repeats of its callback are recognised."""

    event: Event
    fingerprint: bytes
    """FINGERPRINT_BYTES bytes, equal for equal parameters, in any order and in a form, a query or JSON."""


NONE_IGNORED: Final[frozenset[str]] = frozenset()


def decode_event(callback: RawCallback, ignored: frozenset[str] = NONE_IGNORED) -> DecodedCallback:
    """Decode a callback; `ignored` parameters, by Plivo's names, are no part of its fingerprint.

    Raises UndecodableEntryError and nothing else, for any bytes.
    """
    try:
        pairs = parameter_pairs(
            parse_parameters(callback.method, callback.query, callback.content_type, callback.body)
        )
    except NotDecodableError as error:
        raise UndecodableEntryError("not_decodable", str(error)) from None
    counted = [pair for pair in pairs if pair[0] not in ignored] if ignored else pairs
    return DecodedCallback(event_from_pairs(pairs), fingerprint_of(counted))


def parameter_pairs(parameters: Parameters) -> Pairs:
    """All parameters as pairs of name and text, the body's before the query's.

    A JSON string stays as it is; null becomes `null`, a boolean `true` or `false`, a number and anything nested compact
    JSON. Raises NotDecodableError for JSON that is nested too deeply to be written.
    """
    if parameters.json is None:
        return parameters.body + parameters.query if parameters.query else parameters.body
    pairs = [
        (name, value if isinstance(value, str) else _json_text(value))
        for name, value in parameters.json.items()
    ]
    return pairs + parameters.query


_json_encode: Final = msgspec.json.Encoder(decimal_format="number").encode


def _json_text(value: Any) -> str:
    if isinstance(value, Decimal):
        return str(value)
    try:
        return _json_encode(value).decode()
    except RecursionError:
        raise NotDecodableError("the JSON body is nested too deeply") from None


pack_texts: Final = msgspec.msgpack.Encoder().encode
"""A list of texts to bytes. Their lengths are part of it, so that no two lists give the same bytes."""


def fingerprint_of(pairs: Pairs) -> bytes:
    """FINGERPRINT_BYTES bytes over all parameters: the sorted names, then the texts in the order of the names."""
    ordered = sorted(pairs)
    hashed = hash_of_names([name for name, _ in ordered])
    hashed.update(pack_texts([text for _, text in ordered]))
    return hashed.digest()


def hash_of_names(names: Sequence[str]) -> blake2b:
    """A fingerprint's hash before the texts are added, the same for all callbacks with these sorted names.

    The names go in as the salt, which costs no block of its own.
    """
    salt = blake2b(pack_texts(names), digest_size=blake2b.SALT_SIZE).digest()
    return blake2b(digest_size=FINGERPRINT_BYTES, salt=salt)


def _read_sequence_number(text: str) -> int:
    number = read_int(text)
    if not 0 <= number <= SEQUENCE_NUMBER_MAX:
        raise ValueError("not a place in a sequence")
    return number


_Reader = Callable[[str], Any]

# By the type of the attribute. A str is taken as it is, so it needs no reader.
_READERS: Final[dict[type, _Reader]] = {int: read_int, Decimal: read_decimal, datetime: read_time}


class Attribute(NamedTuple):
    """An attribute of an event, and the reader of its parameter's text."""

    name: str
    """Our name, in snake case."""
    type: type
    """`str`, `int`, `Decimal` or `datetime`."""
    reader: _Reader | None
    """From text to value, raises ValueError; None where the text is the value."""


def _attribute_of(name: str, annotation: Any) -> Attribute:
    (kind,) = (option for option in get_args(annotation) if option is not NoneType)
    return Attribute(name, kind, _read_sequence_number if name == "sequence_number" else _READERS.get(kind))


class EventSchema(NamedTuple):
    """A type of event and its attributes by Plivo's names, all but SessionUUID and EventName."""

    event_type: type[Event]
    attributes: dict[str, Attribute]


def _schema(event_type: type[Event]) -> EventSchema:
    hints = get_type_hints(event_type)
    return EventSchema(
        event_type,
        {
            plivo_name: _attribute_of(attribute, hints[attribute])
            for attribute, plivo_name in ATTRIBUTES.items()
            if attribute in hints and attribute != "session_uuid"
        },
    )


_SCHEMAS: Final = {name: _schema(event_type) for name, event_type in EVENT_TYPES.items()}
_SCHEMA_OF_UNKNOWN: Final = _schema(UnknownEvent)


def schema_of(event_name: str) -> EventSchema:
    """The schema of an event by its EventName; that of UnknownEvent for a name that is not documented."""
    return _SCHEMAS.get(event_name, _SCHEMA_OF_UNKNOWN)


def event_from_pairs(pairs: Pairs) -> Event:
    """The event that a list of parameters stands for. The list is not changed.

    Raises UndecodableEntryError with the code `no_session_uuid`, `session_uuid_too_long` or `no_event_name`.
    """
    texts = dict(pairs)
    extra: dict[str, str | list[str]] = {}
    problems: list[str] = []
    if len(texts) != len(pairs):
        _resolve_repeated(pairs, texts, extra, problems)
    session_uuid, event_name = _pop_identity(texts)
    event_type, attributes = schema_of(event_name)
    values: dict[str, Any] = {"session_uuid": session_uuid, "extra": extra}
    if event_type is UnknownEvent:
        values["event_name"] = event_name
    for name, text in texts.items():
        known_attribute = attributes.get(name)
        if known_attribute is None:
            extra[name] = text
            continue
        stripped = text.strip()  # is_null, inlined: a call for each value would cost more
        if len(stripped) <= NULL_CHARS_MAX and stripped.lower() in NULLS:
            continue
        attribute, _, reader = known_attribute
        if reader is None:
            values[attribute] = text
            continue
        try:
            values[attribute] = reader(text)
        except ValueError:
            extra[name] = text
            problems.append(name)
    if problems:
        values["problems"] = tuple(problems)
    return event_type(**values)


def _pop_identity(texts: dict[str, str]) -> tuple[str, str]:
    """Take SessionUUID and EventName out of `texts`, and return them."""
    session_uuid = texts.pop("SessionUUID", "")
    if is_null(session_uuid):
        raise UndecodableEntryError("no_session_uuid", "the callback names no SessionUUID")
    if len(session_uuid) > SESSION_UUID_CHARS_MAX:
        raise UndecodableEntryError(
            "session_uuid_too_long",
            f"the SessionUUID has {len(session_uuid)} characters, {SESSION_UUID_CHARS_MAX} at most",
        )
    event_name = texts.pop("EventName", "")
    if is_null(event_name):
        raise UndecodableEntryError("no_event_name", "the callback names no EventName")
    return session_uuid, event_name


def _resolve_repeated(
    pairs: Pairs, texts: dict[str, str], extra: dict[str, str | list[str]], problems: list[str]
) -> None:
    """Leave in `texts` one text of each repeated name, or none if its texts went to `extra` as a list."""
    distinct: dict[str, list[str]] = {}
    for name, text in pairs:
        candidates = distinct.setdefault(name, [])
        if text not in candidates:
            candidates.append(text)
    differing = {name: candidates for name, candidates in distinct.items() if len(candidates) > 1}

    for name in ("SessionUUID", "EventName"):
        candidates = differing.pop(name, [])
        values = [text for text in candidates if not is_null(text)]
        if values:
            texts[name] = values[0]
        if len(values) > 1:
            extra[name] = candidates
            problems.append(name)

    attributes = schema_of(texts.get("EventName", "")).attributes
    for name, candidates in differing.items():
        values = [text for text in candidates if not is_null(text)]
        if name in attributes and len(values) == 1:
            texts[name] = values[0]
        elif name not in attributes or values:
            extra[name] = candidates
            del texts[name]
            if name in attributes:
                problems.append(name)
