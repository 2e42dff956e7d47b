"""Rewrites a callback so that no phone number, no account and no address of a recording is left in it. Pure.

| parameter | becomes |
| --- | --- |
| From, To, FirstParty, SecondParty, VirtualNumber | fictional, even if it is no number; `anonymous` and its like stay |
| RecordingURL, RecordingResourceURL, others named like a recording's address | an address at example.com |
| one whose name says that it authenticates: `auth_token`, `password`, `api_key`, … | a made-up text |
| SessionUUID | as it is, but for what is known for certain: numbers, accounts |
| EventName as documented | as it is |
| times, amounts, durations, counters that can be read | as they are |
| any other, and its name | as `fictional_text` rewrites a text |

Names are compared without regard to case and underscores: `from` in a JSON object is a party too. A field of a query or
form that need not change keeps its bytes. What changes, and JSON in any case, is written anew, with the same parameters
in the same order.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal
from urllib.parse import quote_plus

import msgspec
from msgspec.structs import replace

from maskline.console.session.fictional_text import FictionalTexts
from maskline.schemas.callback import RawCallback
from maskline.schemas.decode import parameter_pairs, schema_of
from maskline.schemas.events import EVENT_TYPES
from maskline.schemas.parameters import Pairs, parse_parameters, unquote_plus
from maskline.schemas.privacy import NUMBER_ATTRIBUTES

PARTIES: Final = NUMBER_ATTRIBUTES | {"VirtualNumber"}
"""`VirtualNumber` is the mask, and can be dialled all the same."""

_READ_TYPES: Final = (int, Decimal, datetime)

_PARTY_NAMES: Final = frozenset(name.lower() for name in PARTIES) | {"fromnumber", "tonumber"}
_ADDRESS_NAME: Final = re.compile(r"record\w*(?:url|uri|link|file)|mediaur[li]")
_SECRET_NAME: Final = re.compile(
    r"token|secret|passw|authorization|signature|apikey|privatekey|credential|authid|accountid"
)
"""Of names in small letters, without underscores and hyphens."""

_encode_json: Final = msgspec.json.Encoder(decimal_format="number").encode


def add_numbers(texts: FictionalTexts, callback: RawCallback) -> None:
    """Add the phone numbers and other known texts of a callback. Raises NotDecodableError."""

    def add(name: str, text: str) -> str:
        match _kind_of(name, text):
            case "party":
                texts.add_party(text)
            case "address":
                texts.add_address(text)
            case "text" | "name":
                texts.add_all_of(text)
            case _:
                pass
        return text

    parameters = parse_parameters(callback.method, callback.query, callback.content_type, callback.body)
    for name, text in [*parameters.query, *parameters.body]:
        add(_change_name(name, add), text)
    if parameters.json is not None:
        _rewrite_member("", parameters.json, add)


def rewrite(callback: RawCallback, texts: FictionalTexts) -> RawCallback:
    """The callback with everything fictional, and no account. Raises NotDecodableError, and TooManyNumbersError."""
    change = _Change(texts).value
    parameters = parse_parameters(callback.method, callback.query, callback.content_type, callback.body)
    query, body = _rewrite_fields(callback.query, change), callback.body
    if parameters.json is not None:
        # Whatever has changed: the bytes may have a member twice, and only the last one of it was looked at.
        body = _encode_json(_rewrite_member("", parameters.json, change))
    elif parameters.body:
        body = _rewrite_fields(body, change)
    elif body:
        body = b""  # of a GET, which is not read
    content_type = texts.in_text(callback.content_type)
    return replace(callback, query=query, body=body, content_type=content_type, auth_id="")


def texts_of(callback: RawCallback) -> Iterator[tuple[str, str]]:
    """The names of a callback's parameters, each with a text that it has: its name, or a value.

    Raises NotDecodableError.
    """
    for name, text in _pairs(callback):
        yield name, name
        yield name, text


def rewrite_session(session_uuid: str, texts: FictionalTexts) -> str:
    """The SessionUUID as it stands in rewritten callbacks."""
    return _Change(texts).value("SessionUUID", session_uuid)


class _Change:
    """What becomes of the value of a parameter, by its name."""

    def __init__(self, texts: FictionalTexts) -> None:
        self._changes: dict[_Kind, Callable[[str], str]] = {
            "stays": str,
            "party": texts.of_party,
            "address": texts.address,
            "secret": texts.secret,
            "session": lambda text: texts.in_name(text) if texts.is_left_in(text) else text,
            "name": texts.in_name,
            "text": texts.in_text,
        }

    def value(self, name: str, text: str) -> str:
        return self._changes[_kind_of(name, text)](text)


_Kind = Literal["stays", "party", "address", "secret", "session", "name", "text"]

_NAME: Final = "\0"
"""Stands for the name of a value that is itself the name of a parameter."""


def _kind_of(name: str, text: str) -> _Kind:
    """What a value is, by the name of its parameter."""
    plain = name.lower().replace("_", "").replace("-", "")
    kind: _Kind = "text"
    if name == _NAME:
        kind = "name"
    elif name == "SessionUUID":
        kind = "session"
    elif plain in _PARTY_NAMES:
        kind = "party"
    elif _stays(name, text) or (name == "EventName" and text in EVENT_TYPES):
        kind = "stays"
    elif _ADDRESS_NAME.fullmatch(plain):
        kind = "address"
    elif name not in _DOCUMENTED and _SECRET_NAME.search(plain):
        kind = "secret"
    return kind


def _stays(name: str, text: str) -> bool:
    """Whether a value is certainly no number, as it reads as it is documented."""
    attribute = _DOCUMENTED.get(name)
    if attribute is None or attribute.type not in _READ_TYPES or attribute.reader is None:
        return False
    try:
        attribute.reader(text)
    except ValueError:
        return False
    return True


_DOCUMENTED: Final = schema_of("").attributes  # an unknown event may have every attribute


def _pairs(callback: RawCallback) -> Pairs:
    return parameter_pairs(
        parse_parameters(callback.method, callback.query, callback.content_type, callback.body)
    )


_ChangeValue = Callable[[str, str], str]


def _change_name(name: str, change: _ChangeValue) -> str:
    """The name of a parameter, in which a number may stand as well."""
    return name if name in _DOCUMENTED or name in ("SessionUUID", "EventName") else change(_NAME, name)


def _rewrite_fields(encoded: bytes, change: _ChangeValue) -> bytes:
    """A query or a form; a field that need not change keeps its bytes."""
    return b"&".join(_rewritten(encoded.split(b"&"), change))


def _rewritten(fields: Iterable[bytes], change: _ChangeValue) -> Iterator[bytes]:
    for field in fields:
        name, equals, value = (unquote_plus(part) for part in field.decode().partition("="))
        new_name, new_value = _change_name(name, change), change(name, value)
        if (new_name, new_value) == (name, value):
            yield field
        else:
            yield f"{quote_plus(new_name)}{equals}{quote_plus(new_value)}".encode()


def _rewrite_member(name: str, value: Any, change: _ChangeValue) -> Any:
    """A member of a JSON object, of the same type where that can be."""
    if isinstance(value, dict):
        return {_change_name(key, change): _rewrite_member(key, it, change) for key, it in value.items()}
    if isinstance(value, list):
        return [_rewrite_member(name, it, change) for it in value]
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        return value
    text = str(value)
    new = change(name, text)
    try:
        return value if new == text else type(value)(new)
    except (ValueError, InvalidOperation):
        return new
