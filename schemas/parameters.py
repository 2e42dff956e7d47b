"""A request's parameters: the query's pairs and the body's, decoded.

Ingest needs them to verify and to route, the worker to decode: both read them here, so that what was signed
is what is handled. Form bodies and queries read as `urllib.parse.parse_qsl(keep_blank_values=True)` does (in
a third of the time: both hot paths come through here), except that bytes that are no UTF-8 are refused rather
than replaced.

A body is read as a form or as JSON. Which of the two a request meant is ingest's to find out, by the signature
(`ingest.auth.verifier`); it stores a Content-Type that names what it found (`type_naming`), and by that type the body
is read ever after. A type that names neither, which ingest stores no more, leaves it to what the body looks like.
"""

import json
import re
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from maskline.schemas.errors import NotDecodableError

Pairs = list[tuple[str, str]]

FORM_TYPE: Final = "application/x-www-form-urlencoded"
JSON_TYPE: Final = "application/json"

Reading = Literal["form", "json"]
"""As what a body is read."""

_TYPES: Final[dict[Reading, str]] = {"form": FORM_TYPE, "json": JSON_TYPE}

_PLAINLY: Final[dict[Reading, re.Pattern[str]]] = {
    "form": re.compile(f"(?:{FORM_TYPE})?"),
    "json": re.compile(r"application/(?:json|[^,]*\+json)"),
}
"""Types that every version of maskline has read so: what lies in a stream may be read by any."""

SENT_AS_MAX_CHARS: Final = 200
"""How much is kept of a Content-Type that does not say what the body is."""

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
    """The top-level members of a JSON object, in UTF-8 or, as `json.loads` tells them apart, UTF-16 or UTF-32, each
    with or without a byte order mark. Raises NotDecodableError for anything else.
    """
    try:
        encoding = json.detect_encoding(body)
        return _json_decoder.decode(body if encoding == "utf-8" else body.decode(encoding))
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ArithmeticError) as error:
        raise NotDecodableError(f"the JSON body cannot be read: {error}") from None


def media_type(content_type: str) -> str:
    """The type alone, in lower case: `Application/JSON; charset=utf-8` is `application/json`."""
    return content_type.partition(";")[0].strip().lower()


def named_reading(content_type: str) -> Reading | None:
    """What a Content-Type says the body is; None where it says neither, or both. No type at all says a form.

    It may be several, as a proxy joins doubled header lines: those count that say something.
    """
    if content_type == FORM_TYPE or not media_type(content_type):
        return "form"
    named = {_reading_of(media_type(part)) for part in content_type.split(",")} - {None}
    return named.pop() if len(named) == 1 else None


def _reading_of(kind: str) -> Reading | None:
    if kind == FORM_TYPE:
        return "form"
    return "json" if kind.endswith(("/json", "+json")) else None


_BEFORE_JSON: Final = b"\xef\xbb\xbf\xfe\xff\0 \t\r\n"
"""White space and byte order marks, of UTF-16 and UTF-32 too."""
_FORM_BEGINS: Final = re.compile(rb"&*[A-Za-z0-9_.~%+*\[\]-]{1,256}=")
"""A name as forms write it: neither XML, nor a multipart body, nor a text begins so."""


def looks_like(body: bytes) -> Reading | None:
    """What a body looks like by its beginning; None where it looks like neither a form nor a JSON object."""
    if looks_like_json(body):
        return "json"
    return "form" if _FORM_BEGINS.match(body) else None


def looks_like_json(body: bytes) -> bool:
    """Whether it begins as a JSON object does, and no form: its writers escape a brace."""
    return body[:64].lstrip(_BEFORE_JSON)[:1] == b"{"


def type_naming(reading: Reading, content_type: str) -> str:
    """A Content-Type that says how the body is read: the one it was sent with, if that does.

    Otherwise that stands in a parameter of one that does.
    """
    if content_type == _TYPES[reading]:
        return content_type
    content_type = in_ascii(content_type)
    if _PLAINLY[reading].fullmatch(media_type(content_type)):
        return content_type
    sent_as = content_type[:SENT_AS_MAX_CHARS].replace("\\", "").replace('"', "'")
    return f'{_TYPES[reading]}; sent-as="{sent_as}"'


def in_ascii(content_type: str) -> str:
    """A Content-Type as it can be stored."""
    return content_type if content_type.isascii() else content_type.encode("ascii", "replace").decode()


def parse_body(reading: Reading, query: Pairs, body: bytes) -> Parameters:
    """The parameters of a request whose body is read so. Raises NotDecodableError."""
    if reading == "json":
        return Parameters(query, [], parse_json(body))
    return Parameters(query, parse_pairs(body), None)


def parse_parameters(method: str, query: bytes, content_type: str, body: bytes) -> Parameters:
    """All parameters of a request; a GET's body is no part of them, as Plivo's signature does not cover it.

    Raises NotDecodableError for a body that neither its type nor its look makes a form or JSON, for broken JSON, for
    what is no UTF-8, and for too many parameters.
    """
    pairs = parse_pairs(query)
    if method == "GET" or not body:
        return Parameters(pairs, [], None)
    reading = named_reading(content_type) or looks_like(body)
    if reading is None:
        raise NotDecodableError("the body is neither a form nor JSON")
    return parse_body(reading, pairs, body)
