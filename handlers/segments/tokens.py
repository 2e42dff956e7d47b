"""Replaces the phone numbers of a raw callback by tokens, so that it still decodes and is put in order as before. Pure.

The values of From, To, FirstParty and SecondParty become tokens, wherever they stand: in the query, a form or JSON,
also within other parameters and in any spelling there. Everything else keeps its bytes in forms and queries, and its
value in JSON. So a replay decides the same on order and duplicates: what was equal is equal, and what was not is not,
as a number that is spelled otherwise than `+14155550123` has a token that says how (`spelled_token`).

Of a callback that cannot be decoded it is not known where its numbers are: everything that looks like one is replaced.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote_plus

import msgspec

from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import NotDecodableError
from maskline.schemas.parameters import Parameters, parse_parameters, unquote_plus
from maskline.schemas.phone_numbers import SHORT_DIGITS, PhoneNumbers
from maskline.schemas.privacy import NUMBER_ATTRIBUTES, number_token, redact

NO_VALUES: Final = frozenset({"", "null", "none"})
"""Values that stand for none, in lower case: they stay."""

SPELLING_CHARS: Final = 6
"""Of a spelling's own token. A number has a few spellings, not millions."""

_NUMBER_NAMES: Final = frozenset(name.encode() for name in NUMBER_ATTRIBUTES)
_NO_DIGITS: Final = bytes(sign for sign in range(256) if sign not in b"0123456789")

_PLAIN: Final = re.compile(r"\+[0-9]{8,}\Z")
_DIGIT: Final = re.compile(r"\d")

_json: Final = msgspec.json.Encoder(decimal_format="number")


def with_tokens(callback: RawCallback) -> RawCallback:
    """The callback with tokens in place of its phone numbers."""
    try:
        parameters = parse_parameters(callback.method, callback.query, callback.content_type, callback.body)
    except NotDecodableError:
        return _hidden(callback)
    numbers = PhoneNumbers()
    for value in _numbers_of(parameters):
        numbers.add(value)
    query = _form(callback.query, numbers)
    if callback.method == "GET":
        body = _hidden_bytes(callback.body)  # which is no part of the parameters
    elif parameters.json is not None:
        body = _json.encode(_json_value(parameters.json, numbers, top=True))
    else:
        body = _form(callback.body, numbers)
    return msgspec.structs.replace(callback, query=query, body=body)


def spelled_token(text: str) -> str:
    """The token of a number as it is spelled: that of the logs, and a suffix unless it is spelled `+14155550123`."""
    token = number_token(text)
    if _PLAIN.match(text):
        return token
    spelling = number_token(f"spelled |{_DIGIT.sub('d', text)}|").removeprefix("num_")
    return f"{token}.{spelling[:SPELLING_CHARS]}"


def _numbers_of(parameters: Parameters) -> Iterator[str]:
    given: Iterable[tuple[str, Any]] = [*parameters.query, *parameters.body, *(parameters.json or {}).items()]
    return (str(value) for name, value in given if name in NUMBER_ATTRIBUTES and _is_number(value))


def _is_number(value: Any) -> bool:
    """Whether the value of a number's attribute is one: a text, or digits that JSON has as a number."""
    return isinstance(value, (str, int)) and str(value).strip().lower() not in NO_VALUES


def _form(encoded: bytes, numbers: PhoneNumbers) -> bytes:
    """A query or a form; the fields without a number keep their bytes."""
    return b"&".join(
        field if _surely_without(field) else _field(field, numbers) for field in encoded.split(b"&")
    )


def _surely_without(field: bytes) -> bool:
    """Whether a field has no number, as most: its name is plain, and too few digits are in it, even for one that is
    escaped, since each escape has a digit or makes none.
    """
    if len(field.translate(None, _NO_DIGITS)) >= SHORT_DIGITS or not field.isascii():
        return False
    name = field.partition(b"=")[0]
    return name.isalnum() and name not in _NUMBER_NAMES


def _field(field: bytes, numbers: PhoneNumbers) -> bytes:
    name, equals, value = field.decode().partition("=")
    shown_name, shown_value = unquote_plus(name), unquote_plus(value)
    if shown_name in NUMBER_ATTRIBUTES and _is_number(shown_value):
        return f"{name}={quote_plus(spelled_token(shown_value))}".encode()
    new_name, new_value = numbers.redact(shown_name), numbers.redact(shown_value)
    if (new_name, new_value) == (shown_name, shown_value):
        return field
    return f"{quote_plus(new_name)}{equals}{quote_plus(new_value)}".encode()


def _json_value(value: Any, numbers: PhoneNumbers, *, top: bool = False) -> Any:
    if isinstance(value, dict):
        return {
            numbers.redact(name): spelled_token(str(one))
            if top and name in NUMBER_ATTRIBUTES and _is_number(one)
            else _json_value(one, numbers)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [_json_value(one, numbers) for one in value]
    if isinstance(value, str):
        return numbers.redact(value)
    if isinstance(value, bool) or value is None:
        return value
    shown = numbers.redact(str(value))  # a number of JSON's that is a phone number
    return value if shown == str(value) else shown


def _hidden(callback: RawCallback) -> RawCallback:
    return msgspec.structs.replace(
        callback, query=_hidden_bytes(callback.query), body=_hidden_bytes(callback.body)
    )


def _hidden_bytes(given: bytes) -> bytes:
    return redact(given.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
