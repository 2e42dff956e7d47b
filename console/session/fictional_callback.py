"""Rewrites a callback so that no phone number, no account and no address of a recording is left in it. Pure.

| parameter | becomes |
| --- | --- |
| From, To, FirstParty, SecondParty, VirtualNumber | fictional, even if it is no number; `anonymous` and its like stay |
| RecordingURL, RecordingResourceURL | an address at example.com, the same for the same one |
| SessionUUID, EventName, RecordingUUID | as it is |
| times, amounts, durations, counters that can be read | as they are |
| any other | with fictional numbers in place of the session's, and of all that could be dialled; account ids likewise |

A field of a query or form that need not change keeps its bytes. What changes, and JSON in any case, is written anew,
with the same parameters in the same order.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from urllib.parse import quote_plus

import msgspec
from msgspec.structs import replace

from maskline.console.session.fictional_numbers import FictionalNumbers
from maskline.schemas.callback import RawCallback
from maskline.schemas.decode import parameter_pairs, schema_of
from maskline.schemas.parameters import Pairs, parse_parameters, unquote_plus
from maskline.schemas.privacy import NUMBER_ATTRIBUTES

PARTIES: Final = NUMBER_ATTRIBUTES | {"VirtualNumber"}
"""`VirtualNumber` is the mask, and can be dialled all the same."""

_ADDRESSES: Final = frozenset({"RecordingURL", "RecordingResourceURL"})
_KEPT: Final = frozenset({"SessionUUID", "EventName", "RecordingUUID"})
_READ_TYPES: Final = (int, Decimal, datetime)

_ACCOUNT: Final = re.compile(r"(?<![0-9A-Za-z])(?:MA|SA)[0-9A-Z]{18}(?![0-9A-Za-z])")
"""The id of a main account or a subaccount of Plivo's."""

_EXTENSION: Final = re.compile(r"\.[A-Za-z0-9]{1,5}\Z")

_encode_json: Final = msgspec.json.Encoder(decimal_format="number").encode


def add_numbers(numbers: FictionalNumbers, callback: RawCallback) -> None:
    """Add the phone numbers of a callback. Raises NotDecodableError."""
    for name, text in _pairs(callback):
        if name in PARTIES:
            numbers.add(text)
        elif not _stays(name, text) and name not in _ADDRESSES:
            numbers.add_all_of(text)


def rewrite(callback: RawCallback, numbers: FictionalNumbers) -> RawCallback:
    """The callback with everything fictional, and no account. Raises NotDecodableError, and TooManyNumbersError."""
    change = _Change(numbers).value
    parameters = parse_parameters(callback.method, callback.query, callback.content_type, callback.body)
    query, body = _rewrite_fields(callback.query, change), callback.body
    if parameters.json is not None:
        # Whatever has changed: the bytes may have a member twice, and only the last one of it was looked at.
        body = _encode_json(_rewrite_member("", parameters.json, change))
    elif parameters.body:
        body = _rewrite_fields(body, change)
    elif body:
        body = b""  # of a GET, which is not read
    content_type = numbers.in_text(callback.content_type)
    return replace(callback, query=query, body=body, content_type=content_type, auth_id="")


def texts_of(callback: RawCallback) -> Iterator[str]:
    """All names and texts of a callback's parameters. Raises NotDecodableError."""
    for pair in _pairs(callback):
        yield from pair


class _Change:
    """What becomes of the value of a parameter, by its name."""

    def __init__(self, numbers: FictionalNumbers) -> None:
        self._numbers = numbers

    def value(self, name: str, text: str) -> str:
        if _stays(name, text):
            return text
        if name in PARTIES:
            return self._numbers.of_party(text)
        if name in _ADDRESSES and text.strip():
            return self._address(text)
        return self._numbers.in_text(_ACCOUNT.sub(lambda match: self._account(match[0]), text))

    def _address(self, text: str) -> str:
        extension = "" if (match := _EXTENSION.search(text)) is None else match[0]
        return f"https://media.example.com/recording/{_letters(self._numbers.digest(f'address {text}'))}{extension}"

    def _account(self, account: str) -> str:
        return f"{account[:2]}-fictional-{_letters(self._numbers.digest(f'account {account}'))}"


def _letters(digest: bytes) -> str:
    """A digest in letters alone: nothing that looks like a phone number."""
    return digest.hex().translate(str.maketrans("0123456789", "ghijklmnop"))


def _stays(name: str, text: str) -> bool:
    """Whether a value is certainly no number: an identifier of the session's, or what reads as it is documented."""
    if name in _KEPT:
        return True
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
    return name if name in _DOCUMENTED or name in _KEPT else change("", name)


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
