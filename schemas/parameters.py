"""A request's parameters: the query's pairs and the body's, decoded.

Ingest needs them to verify and to route, the worker to decode: both read them here, so that what was signed
is what is handled. Form bodies and queries read as `urllib.parse.parse_qsl(keep_blank_values=True)` does (in
a third of the time: both hot paths come through here), except that bytes that are no UTF-8 are refused rather
than replaced.
"""

from decimal import Decimal
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from schemas.errors import NotDecodableError

Pairs = list[tuple[str, str]]

FORM_TYPE: Final = "application/x-www-form-urlencoded"
JSON_TYPE: Final = "application/json"

PAIRS_MAX: Final = 1_000
"""Parameters in one request. Plivo documents 23; the bound keeps a body of `&a&a…` from costing much."""


class Parameters(NamedTuple):
    query: Pairs
    body: Pairs
    """A form body's pairs; empty for JSON."""
    json: dict[str, Any] | None
    """A JSON body's top-level members; None for a form."""

    def __repr__(self) -> str:
        """Never the values: they hold phone numbers."""
        return f"Parameters({len(self.query)} of the query, {len(self.json or self.body)} of the body)"

    def first(self, name: str) -> Any:
        """The first value of a parameter, the body's before the query's; None where there is none."""
        if self.json is not None and name in self.json:
            return self.json[name]
        for pairs in (self.body, self.query):
            for key, value in pairs:
                if key == name:
                    return value
        return None


def parse_pairs(encoded: bytes) -> Pairs:
    """The pairs of a query or a form body, in order, blank values kept.

    Raises NotDecodableError for bytes that are no UTF-8 after percent-decoding, and for more than PAIRS_MAX
    pairs.
    """
    if not encoded:
        return []
    if encoded.count(b"&") >= PAIRS_MAX:
        raise NotDecodableError(f"more than {PAIRS_MAX} parameters")
    pairs: Pairs = []
    try:
        for field in encoded.decode().split("&"):
            if not field:
                continue
            name, _, value = field.partition("=")
            if "%" in field or "+" in field:
                name, value = unquote_plus(name), unquote_plus(value)
            pairs.append((name, value))
    except UnicodeDecodeError:
        raise NotDecodableError("the parameters are not UTF-8") from None
    return pairs


_ASCII_ESCAPES: Final = {
    high + low: chr(int(high + low, 16)) for high in "01234567" for low in "0123456789abcdefABCDEF"
}
"""The two digits of an escape to its character, for those that are one whole character of UTF-8."""


def unquote_plus(quoted: str) -> str:
    """Percent-decoding with `+` for a blank; an escape without two hexadecimal digits stands for itself.

    Raises UnicodeDecodeError for what is no UTF-8.
    """
    text = quoted.replace("+", " ")
    if "%" not in text:
        return text
    head, *escaped = text.split("%")
    try:
        return head + "".join([_ASCII_ESCAPES[part[:2]] + part[2:] for part in escaped])
    except KeyError:
        return unquote_to_bytes(text).decode()


# Decimal, not float: an amount stays what was written, digit by digit.
_json_decoder = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)


def parse_json(body: bytes) -> dict[str, Any]:
    """The top-level members of a JSON object. Raises NotDecodableError for anything else."""
    try:
        return _json_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ArithmeticError) as error:
        raise NotDecodableError(f"the JSON body cannot be read: {error}") from None


def media_type(content_type: str) -> str:
    """The type alone, in lower case: `Application/JSON; charset=utf-8` is `application/json`."""
    return content_type.partition(";")[0].strip().lower()


def parse_parameters(method: str, query: bytes, content_type: str, body: bytes) -> Parameters:
    """All parameters of a request; a GET's body is no part of them, as Plivo's signature does not cover it.

    A POST body without a Content-Type is read as a form. Raises NotDecodableError for a body of another type
    than form or JSON, for broken JSON, for what is no UTF-8, and for too many parameters.
    """
    pairs = parse_pairs(query)
    if method == "GET" or not body:
        return Parameters(pairs, [], None)
    kind = media_type(content_type)
    if kind in (FORM_TYPE, ""):
        return Parameters(pairs, parse_pairs(body), None)
    if kind == JSON_TYPE or (kind.startswith("application/") and kind.endswith("+json")):
        return Parameters(pairs, [], parse_json(body))
    raise NotDecodableError("the body is neither a form nor JSON")
