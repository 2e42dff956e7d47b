"""Forms by their layout: the text that a V3 signature covers and the session, without parsing pair by pair. Pure.

Plivo writes the callbacks of one event with the same names in the same order. What sorting those names did to one
form it does to every other, so the order is remembered by the names. A layout is only remembered for a form that bore
a valid signature: nobody else can fill the memory, or have it emptied.

Whatever is out of the ordinary is not read here (None), and goes through `schemas.parameters` and
`ingest.signatures`. What is read, is read as these would (tests/ingest/test_forms.py). Measured on Plivo-like forms
of 270 bytes: 3.2 µs instead of 9.0 for parameters and text.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from ingest.borrowed import unquote
from schemas.errors import NotDecodableError
from schemas.parameters import parse_pairs
from schemas.values import is_null

LAYOUTS_MAX: Final = 1_024
"""Of two dozen events, each with this or that attribute left out. When they are too many, all are learned anew."""
NAMES_MAX: Final = 64
NAMES_MAX_CHARS: Final = 2_048
"""Of one layout: with the bounds above, the memory has some 4 MB at most."""

SESSION_UUID: Final = "SessionUUID"

_ALL_BUT_SEPARATORS: Final = bytes(byte for byte in range(256) if byte not in b"&=")


class Form(NamedTuple):
    """What there is to know of a form before it is stored."""

    signed: str
    """Names and values in the order in which they are signed."""
    session_uuid: str


class _Layout(NamedTuple):
    separators: bytes
    """What is left of the form without everything else: `=&=&=`. So a name ends where we think it does."""
    in_order: Callable[[Sequence[str]], tuple[str, ...]]
    """Names and values of a form, in the order of the names."""
    session: int
    """Where the session's value is."""


class Forms:
    """The layouts known to one process."""

    __slots__ = ("_layouts",)

    def __init__(self) -> None:
        self._layouts: dict[str, _Layout] = {}

    def __len__(self) -> int:
        return len(self._layouts)

    def read(self, body: bytes) -> Form | None:
        """Read a form whose layout is known and whose session is there."""
        parts = _split(body)
        layout = self._layouts.get("&".join(parts[::2]))
        if layout is None or body.translate(None, _ALL_BUT_SEPARATORS) != layout.separators:
            return None
        session_uuid = parts[layout.session]
        if is_null(session_uuid):
            return None
        return Form("".join(layout.in_order(parts)), session_uuid)

    def learn(self, body: bytes) -> None:
        """Remember the layout of a form whose signature was good, if it can be."""
        parts = _split(body)
        names = parts[::2]
        distinct = {*names}
        if (
            len(distinct) < len(names) or len(names) > NAMES_MAX or SESSION_UUID not in distinct
            or sum(map(len, names)) > NAMES_MAX_CHARS
        ):  # fmt: skip
            return
        try:
            pairs = parse_pairs(body)
        except NotDecodableError:  # of a GET, whose body counts for nothing
            return
        if pairs != [*zip(names, parts[1::2], strict=False)]:
            return
        if len(self._layouts) >= LAYOUTS_MAX:
            self._layouts.clear()
        order = sorted(range(len(names)), key=names.__getitem__)
        getter: Any = itemgetter(*(index for place in order for index in (2 * place, 2 * place + 1)))
        self._layouts["&".join(names)] = _Layout(
            ("=&" * len(names))[:-1].encode(), getter, 2 * names.index(SESSION_UUID) + 1
        )


_NOTHING: Final[list[str]] = []


def _split(body: bytes) -> list[str]:
    """Names and values in turn, decoded; nothing where they cannot be had so simply.

    Decoding all of it at once is a third of decoding each value. Where a separator was escaped, this shows one more
    than there is, and `separators` tells.
    """
    try:
        text = unquote(body.decode())
    except UnicodeDecodeError:
        return _NOTHING
    if "%" in text:  # no escape, no UTF-8, or a per cent sign: as it may be
        return _NOTHING
    return text.replace("=", "&").split("&")
