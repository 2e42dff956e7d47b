"""Forms cut into names and values at once: how both hot paths read them, by the layout that their names make. Pure.

Plivo writes the callbacks of one event with the same names in the same order. Whoever knows what to do with one such
form knows it for all: ingest where each value stands in the signed text, the worker which attribute it is.

`split_form` decodes a form as a whole, which is a third of decoding each value, and cuts it at every separator. What
that gives is right if each name is followed by `=` and each value by `&`, none of them escaped: `separators`, seen in
the form as it came, tells. Anything else is read pair by pair (`schemas.parameters`), with the same result.

yarl's unquoter is borrowed without a promise of its makers: `yarl._quoting._Unquoter`, the C code behind `URL.query`,
which makes a mapping besides. It is tried when the process starts, and replaced by `unquote_plus` where it is not there
or does something else. A body of 270 bytes with four escapes takes it 0.5 µs instead of 2.0.
"""

from collections.abc import Callable, Sequence
from typing import Final

from maskline.schemas.errors import NotDecodableError
from maskline.schemas.parameters import parse_pairs, unquote_plus

NAMES_MAX: Final = 64
NAMES_MAX_CHARS: Final = 2_048
"""Of one layout. Whoever remembers layouts bounds their number; these bound the memory of each."""

_NO_TEXT: Final = ("%ff", "%C3", "%C3a%A9", "%ED%A0%80", "%C0%AF", "%4", "%zz", "%")
_ALL_BUT_SEPARATORS: Final = bytes(byte for byte in range(256) if byte not in b"&=")
_NOTHING: Final[list[str]] = []


def find_unquoter() -> Callable[[str], str] | None:
    """The unquoter of yarl, if it unquotes; of what is no UTF-8 or no escape it must leave the `%`."""
    try:
        from yarl._quoting import _Unquoter  # noqa: PLC0415 - where it is not there, we are told so here

        unquoter: Callable[[str], str] = _Unquoter(plus=True)
        texts = [unquoter(text) for text in ("a+b%2B%2b=%C3%A9&%3a", "é+", *_NO_TEXT)]
    except Exception:  # noqa: BLE001 - not there, or it wants something else
        return None
    return unquoter if texts == ["a b++=é&:", "é ", *_NO_TEXT] else None


unquote: Final = find_unquoter() or unquote_plus
"""Percent-decodes, `+` being a blank. What is no UTF-8 keeps its `%`, or raises UnicodeDecodeError."""


def split_form(encoded: bytes) -> list[str]:
    """Names and values in turn, decoded; nothing where they cannot be had so simply."""
    try:
        text = unquote(encoded.decode())
    except UnicodeDecodeError:
        return _NOTHING
    if "%" in text:  # no escape, no UTF-8, or a per cent sign: as it may be
        return _NOTHING
    return text.replace("=", "&").split("&")


def separators(encoded: bytes) -> bytes:
    """What is left of a form without everything else: `=&=&=`."""
    return encoded.translate(None, _ALL_BUT_SEPARATORS)


def separators_between(names: Sequence[str]) -> bytes:
    """What must be left of a form with these names, for `split_form` to be right."""
    return ("=&" * len(names))[:-1].encode()


def layout_of(encoded: bytes, parts: Sequence[str]) -> list[str] | None:
    """The names of a form that was cut into `parts`; None where it is not to be read by its layout."""
    names = [*parts[::2]]
    if len({*names}) < len(names) or len(names) > NAMES_MAX or sum(map(len, names)) > NAMES_MAX_CHARS:
        return None
    try:
        pairs = parse_pairs(encoded)
    except NotDecodableError:
        return None
    return names if pairs and pairs == [*zip(names, parts[1::2], strict=False)] else None
