"""Readers made for the shapes that callbacks really have: the fast way to what `schemas.decode` says they mean.

Plivo writes the callbacks of one event the same way each time: the same names in the same order, a number here, a
time there. A shape is that: the event, its names, and the kind of each value (`_Kind`). Once a shape was seen a few
times it is compiled to one regular expression over the form as it came, still encoded, and one function that makes
event and fingerprint of its groups. Whatever does not fit exactly goes the reference's way: a reader may refuse
anything, but reads nothing otherwise than the reference would (tests/schemas/test_shapes.py, over both).

Where the time went before was unescaping, and looking at each value for what it might be. A kind says so beforehand:
a word is what it is, a phone number wants its `+` back, digits are digits. Measured on 16 parameters, in µs:

| | reference | here |
| --- | --- | --- |
| finding the shape, values out of the form | 10.6 | 2.2 |
| the event | 6.6 | 2.3 |
| the fingerprint | 2.6 | 1.1 |

| bound | on |
| --- | --- |
| FIELDS_MAX | parameters of a shape |
| SHAPES_PER_EVENT, EVENTS_MAX | compiled shapes; the one used longest ago goes |
| SEEN_MAX | shapes that are counted and not compiled yet |
"""

import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple

from schemas.callback import RawCallback
from schemas.decode import (
    SESSION_UUID_CHARS_MAX,
    Known,
    decode_event,
    hash_of_names,
    known_of,
    pack_texts,
)
from schemas.errors import NotDecodableError
from schemas.events import Event, UnknownEvent
from schemas.parameters import FORM_TYPE, parse_pairs
from schemas.values import NULLS, read_time

FIELDS_MAX: Final = 64
SHAPES_PER_EVENT: Final = 8
EVENTS_MAX: Final = 64
SEEN_MAX: Final = 1_024

LEARN_AFTER: Final = 4
"""A shape is compiled when it was seen so often, and, should it have been dropped, at twice, four times, … as often:
compiling costs as much as some twenty callbacks."""

TIMES_REMEMBERED: Final = 4_096
"""Sessions are under way side by side, and Plivo's times have whole seconds: most were read a moment ago."""

EVENT_NAME: Final = "EventName"
_EVENT_NAME_FIELD: Final = "EventName="

# What stands for itself in a form: printable ASCII but for the blank, `%`, `&` and `+`.
_PLAIN: Final = "[!-$'-*,-~]"


@lru_cache(TIMES_REMEMBERED)
def _time(encoded: str) -> tuple[datetime, str]:
    """A time and its text. Raises ValueError where the reference would find it unreadable."""
    try:
        ((_, text),) = parse_pairs(b"=" + encoded.encode())
    except NotDecodableError:
        raise ValueError("not UTF-8") from None
    return read_time(text), text


class _Kind(NamedTuple):
    """How a value is written, and what becomes of it: Python, with the names filled in for each field."""

    pattern: str
    """A regular expression with one group, {g}."""
    value: str
    """An expression of {g}, or of what `before` sets."""
    before: str = ""
    """A statement that sets {t}, the text, where that is not {g} itself; and {v} where it has the value at hand."""


# No value of five characters and more is a null unless blanks are around it, and these kinds have none there.
_WORD: Final = _Kind(f"({_PLAIN}{{5,}})", "{g}")
_SHORT: Final = _Kind(f"({_PLAIN}{{1,4}})", "None if {g}.lower() in NULLS else {g}")
_NULL: Final = _Kind("((?i:null|none)?)", "None")
_PHONE: Final = _Kind("%2[Bb]([0-9]{5,})", "{t}", "{t} = '+' + {g}")
_WORDS: Final = _Kind(rf"({_PLAIN}+(?:\+{_PLAIN}+)+)", "{t}", "{t} = {g}.replace('+', ' ')")
_INTEGER: Final = _Kind("([0-9]{1,15})", "int({g})")
_DECIMAL: Final = _Kind(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)", "Decimal({g})")
_TIME: Final = _Kind("([0-9][0-9A-Za-z%:.+-]{8,127})", "{v}", "{v}, {t} = time({g})")
_SESSION: Final = _Kind(f"({_PLAIN}{{5,{SESSION_UUID_CHARS_MAX}}})", "{g}")

# Of an attribute's type, those that are tried in this order.
_KINDS: Final[dict[type, tuple[_Kind, ...]]] = {
    str: (_NULL, _WORD, _PHONE, _WORDS, _SHORT),
    int: (_NULL, _INTEGER),
    Decimal: (_NULL, _DECIMAL),
    datetime: (_NULL, _TIME),
}
_MATCH: Final = {
    kind: re.compile(kind.pattern).fullmatch
    for kind in {*(kind for kinds in _KINDS.values() for kind in kinds), _SESSION}
}

Decoded = tuple[Event, bytes]
_Reader = Callable[[str], Decoded | None]


class Shape(NamedTuple):
    """What callbacks have in common that one reader reads."""

    event_name: str
    fields: tuple[tuple[str, _Kind | None], ...]
    """Names and kinds in their order; no kind for the event's name."""


def shape_of(encoded: str) -> Shape | None:
    """The shape of a form; None where it has none that can be compiled."""
    fields = [field.partition("=") for field in encoded.split("&")]
    names = [name for name, _, _ in fields]
    texts = {name: text for name, _, text in fields}
    event_name = texts.get(EVENT_NAME, "")
    plain = all(map(_NAME.fullmatch, (event_name, *names)))
    if len(fields) > FIELDS_MAX or len(texts) < len(fields) or not plain or len(event_name) <= 4:
        return None
    known = known_of(event_name)
    kinds: list[tuple[str, _Kind | None]] = []
    for name, equals, text in fields:
        if name == EVENT_NAME:
            kinds.append((name, None))
            continue
        kind = _kind_of(known, name, text) if equals else None
        if kind is None:
            return None
        kinds.append((name, kind))
    return Shape(event_name, tuple(kinds)) if "SessionUUID" in texts else None


_NAME: Final = re.compile("[A-Za-z0-9_]{1,64}")


def _kind_of(known: Known, name: str, text: str) -> _Kind | None:
    if name == "SessionUUID":
        candidates: tuple[_Kind, ...] = (_SESSION,)
    else:
        candidates = _KINDS[known.attributes[name].type if name in known.attributes else str]
    return next((kind for kind in candidates if _MATCH[kind](text)), None)


def compile_shape(shape: Shape) -> _Reader:
    """Make the function that reads what fits the shape.

    It returns None for what does not, or raises ValueError.
    """
    pattern = "&".join(
        f"{name}={shape.event_name if kind is None else kind.pattern}" for name, kind in shape.fields
    )
    known = known_of(shape.event_name)
    groups: list[str] = []
    before: list[str] = []
    arguments: list[str] = []
    extra: list[str] = []
    texts: dict[str, str] = {}
    for at, (name, kind) in enumerate(shape.fields):
        if kind is None:
            texts[name] = repr(shape.event_name)
            continue
        names = {"g": f"g{at}", "t": f"t{at}", "v": f"v{at}"}
        groups.append(names["g"])
        if kind.before:
            before.append(kind.before.format(**names))
        texts[name] = names["t"] if kind.before else names["g"]
        if name == "SessionUUID":
            arguments.append(f"session_uuid={names['g']}")
        elif name not in known.attributes:
            extra.append(f"{name!r}: {texts[name]}")
        elif kind is not _NULL:
            arguments.append(f"{known.attributes[name].name}={kind.value.format(**names)}")
    if known.event_type is UnknownEvent:
        arguments.append(f"event_name={shape.event_name!r}")
    arguments.append(f"extra={{{', '.join(extra)}}}")
    ordered = sorted(texts)
    source = "\n    ".join(
        (
            "def read(encoded):",
            "match = fullmatch(encoded)",
            "if match is None:",
            "    return None",
            f"{', '.join(groups)}, = match.groups()",
            *before,
            "hashed = names_hash.copy()",
            f"hashed.update(pack_texts(({', '.join(texts[name] for name in ordered)},)))",
            f"return Type({', '.join(arguments)}), hashed.digest()",
        )
    )
    namespace: dict[str, Any] = {
        "Decimal": Decimal, "NULLS": NULLS, "Type": known.event_type, "fullmatch": re.compile(pattern).fullmatch,
        "names_hash": hash_of_names(ordered), "pack_texts": pack_texts, "time": _time,
    }  # fmt: skip
    # Of what was sent, the source has names and the event's name alone, which are letters, digits and underscores.
    exec(source, namespace)  # noqa: S102
    read: _Reader = namespace["read"]
    return read


class Shapes:
    """The shapes that this process has met."""

    def __init__(self) -> None:
        self._readers: dict[str, list[tuple[Shape, _Reader]]] = {}
        """By the event's name, the one used last first."""
        self._seen: dict[Shape, int] = {}

    def decode(self, callback: RawCallback) -> Decoded:
        """As `schemas.decode.decode_event`: the event and the fingerprint. Raises UndecodableEntryError."""
        encoded = _form(callback)
        if encoded is None:
            return decode_event(callback)
        start = encoded.find(_EVENT_NAME_FIELD) + len(_EVENT_NAME_FIELD)
        end = encoded.find("&", start)
        event_name = encoded[start:] if end < 0 else encoded[start:end]
        readers = self._readers.get(event_name, [])
        for at, (_, read) in enumerate(readers):
            try:
                decoded = read(encoded)
            except ValueError:  # a 31st of February: the reference knows what to do about it
                continue
            if decoded is not None:
                if at:
                    readers.insert(0, readers.pop(at))
                return decoded
        result = decode_event(callback)
        self._learn(encoded)
        return result

    def _learn(self, encoded: str) -> None:
        shape = shape_of(encoded)
        if shape is None:
            return
        seen = self._seen.get(shape, 0) + 1
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen[shape] = seen
        if seen < LEARN_AFTER or seen & (seen - 1):
            return
        if len(self._readers) >= EVENTS_MAX:
            self._readers.clear()
        readers = self._readers.setdefault(shape.event_name, [])
        if all(shape != known for known, _ in readers):
            readers.insert(0, (shape, compile_shape(shape)))
            del readers[SHAPES_PER_EVENT:]


def _form(callback: RawCallback) -> str | None:
    """The parameters, encoded, as one form; None for those that came otherwise, or are not ASCII."""
    body, query = callback.body, callback.query
    if callback.method == "POST" and body:
        if callback.content_type not in (FORM_TYPE, ""):
            return None
        encoded = body + b"&" + query if query else body
    else:
        encoded = query
    return str(encoded, "ascii") if encoded.isascii() else None
