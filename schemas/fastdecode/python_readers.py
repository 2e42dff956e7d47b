"""Readers of shapes in Python: a function for each, written and compiled when its shape is learned.

It takes a form's names and values as `schemas.fastdecode.forms` cuts them out, and makes event and fingerprint of
them: no name is looked up, no value is asked what it might be. `schemas.fastdecode.native` does the same in C, where
it could be built.

Measured on 13 parameters, in µs:

| | reference | here |
| --- | --- | --- |
| values out of the form | 7.7 | 1.5 |
| the event | 5.0 | 1.0 |
| the fingerprint | 1.9 | 0.5 |
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any, Final

import msgspec

from maskline.schemas.callback import decode_callback
from maskline.schemas.decode import SESSION_UUID_CHARS_MAX, pack_texts
from maskline.schemas.fastdecode.forms import cut_form, separators, separators_between
from maskline.schemas.fastdecode.plan import (
    NULL_TEXTS,
    Decoded,
    EventAndFingerprint,
    Plan,
    Taken,
    Template,
    form_of,
)
from maskline.schemas.parameters import FORM_TYPE

CODES_MAX: Final = 1_024

_Reader = Callable[[Sequence[str]], EventAndFingerprint]


class _Layout(msgspec.Struct, frozen=True):
    """What forms with the same names have in common."""

    separators: bytes
    event_name: int
    """Where the event's name stands in the parts of a form."""
    readers: dict[str, _Reader]
    """By the event's name."""


class Readers:
    """As `schemas.fastdecode.templates.Readers`, for the shapes of its `add`."""

    def __init__(self) -> None:
        self._layouts: dict[str, _Layout] = {}
        """By the names, as `&` joins them."""

    def __len__(self) -> int:
        return sum(len(layout.readers) for layout in self._layouts.values())

    def read(self, encoded: bytes) -> Decoded | None:
        callback = decode_callback(encoded)
        form: bytes | None = callback.body
        if callback.query or not form or callback.content_type != FORM_TYPE or callback.method != "POST":
            form = form_of(callback)  # nearly never
        made = self.read_form(form) if form else None
        return None if made is None else (*made, callback.received_at_ms, callback.replayed)

    def read_form(self, form: bytes) -> EventAndFingerprint | None:
        parts = cut_form(form)
        layout = self._layouts.get("&".join(parts[::2]))
        if layout is None or separators(form) != layout.separators:
            return None
        read = layout.readers.get(parts[layout.event_name])
        return None if read is None else read(parts)

    def add(self, _form: bytes, shape: Template, plan: Plan) -> None:
        names = "&".join(shape.names)
        layout = self._layouts.get(names)
        if layout is None:
            event_name = 2 * shape.event_name_at + 1
            layout = self._layouts[names] = _Layout(separators_between(shape.names), event_name, {})
        layout.readers[shape.event_name] = compile_plan(plan)

    def clear(self) -> None:
        self._layouts.clear()


def compile_plan(plan: Plan) -> _Reader:
    """Make the function that reads what has this shape."""
    places = [f"v{place}" for place in range(plan.size)]
    namespace: dict[str, Any] = {
        "NULL_TEXTS": NULL_TEXTS, "Type": plan.event_type, "names_hash": plan.names_hash, "pack_texts": pack_texts,
    }  # fmt: skip
    arguments = [f"{taken.attribute}={_value(taken, places[taken.place], namespace)}" for taken in plan.taken]
    extra = ", ".join(f"{name!r}: {places[place]}" for name, place in plan.extra)
    (session,) = (places[taken.place] for taken in plan.taken if taken.way == "session")
    source = "\n    ".join(
        (
            "def read(parts):",
            f"_, {', _, '.join(places)} = parts",
            f"if len({session}) > {SESSION_UUID_CHARS_MAX} or {session}.strip() in NULL_TEXTS:",
            "    raise ValueError('no session')",
            "hashed = names_hash.copy()",
            f"hashed.update(pack_texts(({', '.join(places[place] for place in plan.order)},)))",
            f"return Type({', '.join(arguments)}, extra={{{extra}}}), hashed.digest()",
        )
    )
    # Of what was sent, the source has names that no attribute has: as literals.
    exec(_compiled(source), namespace)  # noqa: S102
    read: _Reader = namespace["read"]
    return read


@lru_cache(CODES_MAX)
def _compiled(source: str) -> CodeType:
    """The source of most events with the same names is the same, and compiling is what costs."""
    return compile(source, "<shape>", "exec")


def _value(taken: Taken, place: str, namespace: dict[str, Any]) -> str:
    """The expression of an attribute's value."""
    match taken.way:
        case "text":
            return f"None if {place}.strip() in NULL_TEXTS else {place}"
        case "number" | "looked_up":
            namespace[f"read_{taken.attribute}"] = taken.remembered
            return f"read_{taken.attribute}[{place}]"
        case _:
            return place
