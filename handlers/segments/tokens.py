"""Replaces the phone numbers of a raw callback by tokens, so that it still decodes and is put in order as before. Pure.

| in | becomes a token |
| --- | --- |
| From, To, FirstParty, SecondParty | the whole value; in JSON also deeper down, and each text and number in it |
| parameters that Plivo documents | the numbers of those four, in any spelling |
| other parameters | the same, and everything else that looks like a phone number |
| what cannot be decoded | the same |

Everything else keeps its bytes in forms and queries, and its value in JSON. So a replay decides the same on order and
duplicates: what was equal is equal, and what was not is not, as a number that is spelled otherwise than `+14155550123`
has a token that says how (`spelled_token`).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote_plus, unquote

import msgspec

from maskline.schemas.callback import RawCallback
from maskline.schemas.errors import NotDecodableError
from maskline.schemas.events import ATTRIBUTES
from maskline.schemas.parameters import Parameters, parse_parameters, unquote_plus
from maskline.schemas.phone_numbers import SHORT_DIGITS, PhoneNumbers
from maskline.schemas.privacy import NUMBER_ATTRIBUTES, number_token, redact, replace_dialable

NO_VALUES: Final = frozenset({"", "null", "none"})
"""Values that stand for none, in lower case: they stay."""

SPELLING_CHARS: Final = 6
"""Of a spelling's own token. A number has a few spellings, not millions."""

_DOCUMENTED: Final = frozenset(ATTRIBUTES.values())
_NUMBER_NAMES: Final = frozenset(name.encode() for name in NUMBER_ATTRIBUTES)
_NO_DIGITS: Final = bytes(sign for sign in range(256) if sign not in b"0123456789")

_PLAIN: Final = re.compile(r"\+[0-9]{8,}\Z")
_DIGIT: Final = re.compile(r"\d")

_NAMED: Final = re.compile(
    rf"(?:{'|'.join(sorted(NUMBER_ATTRIBUTES))})[\"']?\s*[=:]\s*[\"']?([^&\"';,}}\r\n]{{1,128}})"
)
_ESCAPED: Final = re.compile(r"(?:%|\\u00|\\x)(2[Bb]|3[0-9])")
"""A plus or a digit."""

_json: Final = msgspec.json.Encoder(decimal_format="number")


def with_tokens(callback: RawCallback) -> RawCallback:
    """The callback with tokens in place of its phone numbers."""
    content_type = redact(callback.content_type)
    try:
        parameters = parse_parameters(callback.method, callback.query, callback.content_type, callback.body)
    except NotDecodableError:
        query, body = _hidden(callback.query), _hidden(callback.body)
    else:
        tokens = _Tokens(_numbers_of(parameters))
        query = tokens.in_form(callback.query)
        if callback.method == "GET":
            body = _hidden(callback.body)  # which is no part of the parameters
        elif parameters.json is not None:
            body = _json.encode(
                {
                    tokens.in_other(name): tokens.in_json(one, tokens.of(name))
                    for name, one in parameters.json.items()
                }
            )
        else:
            body = tokens.in_form(callback.body)
    return msgspec.structs.replace(callback, query=query, body=body, content_type=content_type)


def spelled_token(text: str) -> str:
    """The token of a number as it is spelled: that of the logs, and a suffix unless it is spelled `+14155550123`."""
    token = number_token(text)
    if _PLAIN.match(text):
        return token
    spelling = number_token(f"spelled |{_DIGIT.sub('d', text)}|").removeprefix("num_")
    return f"{token}.{spelling[:SPELLING_CHARS]}"


def _numbers_of(parameters: Parameters) -> Iterator[str]:
    given: Iterable[tuple[str, Any]] = [*parameters.query, *parameters.body, *(parameters.json or {}).items()]
    return (str(value) for name, value in given if name in NUMBER_ATTRIBUTES and _is_scalar(value))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, int, float, Decimal)) and not isinstance(value, bool)


class _Tokens:
    """Puts tokens in place of numbers in what one callback has. `numbers`: those of its four attributes."""

    def __init__(self, numbers: Iterable[str]) -> None:
        self._numbers = PhoneNumbers()
        for number in numbers:
            self._numbers.add(number)

    def of(self, name: str) -> Callable[[str], str]:
        """How the values of a parameter are treated."""
        if name in NUMBER_ATTRIBUTES:
            return self.of_number
        return self._numbers.redact if name in _DOCUMENTED else self.in_other

    def of_number(self, text: str) -> str:
        """The value of one of the four."""
        return text if text.strip().lower() in NO_VALUES else spelled_token(text)

    def in_other(self, text: str) -> str:
        """A text of which nothing is known."""
        return replace_dialable(self._numbers.redact(text), spelled_token)

    def in_form(self, encoded: bytes) -> bytes:
        """A query or a form; the fields without a number keep their bytes."""
        return b"&".join(
            field if _surely_without(field) else self._in_field(field) for field in encoded.split(b"&")
        )

    def _in_field(self, field: bytes) -> bytes:
        name, equals, value = field.decode().partition("=")
        shown_name, shown_value = unquote_plus(name), unquote_plus(value)
        new_name, new_value = self.in_other(shown_name), self.of(shown_name)(shown_value)
        name = name if new_name == shown_name else quote_plus(new_name)
        value = value if new_value == shown_value else quote_plus(new_value)
        return f"{name}{equals}{value}".encode()

    def in_json(self, value: Any, hide: Callable[[str], str]) -> Any:
        """A value of JSON, and what is in it; `hide` as `of` has it for its name."""
        if isinstance(value, dict):
            return {
                self.in_other(name): self.in_json(
                    one, self.of_number if self.of_number in (hide, self.of(name)) else self.in_other
                )
                for name, one in value.items()
            }
        if isinstance(value, list):
            return [self.in_json(one, hide) for one in value]
        if not _is_scalar(value):
            return value
        hidden = hide(str(value))
        return value if hidden == str(value) else hidden  # a number of JSON's that is a phone number


def _surely_without(field: bytes) -> bool:
    """Whether a field has no number, as most: its name is plain, and too few digits are in it, even for one that is
    escaped, since each escape has a digit or makes none.
    """
    if len(field.translate(None, _NO_DIGITS)) >= SHORT_DIGITS or not field.isascii():
        return False
    name = field.partition(b"=")[0]
    return name.isalnum() and name not in _NUMBER_NAMES


def _hidden(given: bytes) -> bytes:
    """What cannot be decoded, or is no part of the parameters, without anything that looks like a number."""
    text = given.decode("utf-8", "surrogateescape").replace("\0", "")  # UTF-16 has one beside each digit
    text = _ESCAPED.sub(lambda escape: chr(int(escape[1], 16)), text)
    numbers = PhoneNumbers()
    for value in _NAMED.findall(text):
        numbers.add(unquote(value))
    return redact(numbers.redact(text)).encode("utf-8", "surrogateescape")
