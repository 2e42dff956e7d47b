"""Reads the parameters of a request from its query and its body.

Ingest needs them to verify and to route, the worker to decode. Both read them here, so that the signed parameters are
the ones handled. Forms and queries are read as `urllib.parse.parse_qsl(keep_blank_values=True)` does, in a third of the
time as both hot paths come through here, except that bytes that are not UTF-8 are refused rather than replaced.

A body is read as a form or as JSON. Ingest finds out by the signature which of the two was meant
(`ingest.auth.verifier`), and stores a Content-Type that names it (`type_naming`): the body is read by that type from
then on. A type that names neither, which earlier versions stored, leaves it to the beginning of the body.
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
"""How a body is read."""

_TYPES: Final[dict[Reading, str]] = {"form": FORM_TYPE, "json": JSON_TYPE}

_PLAINLY: Final[dict[Reading, re.Pattern[str]]] = {
    "form": re.compile(f"(?:{FORM_TYPE})?"),
    "json": re.compile(r"application/(?:json|[^,]*\+json)"),
}
"""Types that every version of maskline reads this way, since any version may read what is in a stream."""

SENT_AS_MAX_CHARS: Final = 200
"""How much is kept of a Content-Type that does not name the reading."""

PAIRS_MAX: Final = 1_000
"""Parameters in one request. Plivo documents 23; the bound keeps a body of `&a&a…` from costing much."""


class Parameters(NamedTuple):
    """All parameters of a request, decoded."""

    query: Pairs
    body: Pairs
    """The pairs of a form body; empty for JSON."""
    json: dict[str, Any] | None
    """The top-level members of a JSON body; None for a form."""

    def __repr__(self) -> str:
        """Counts alone: the values hold phone numbers."""
        return f"Parameters({len(self.query)} of the query, {len(self.json or self.body)} of the body)"

    def first(self, name: str) -> Any:
        """The first value of a parameter, the body's before the query's; None if there is none."""
        if self.json is not None and name in self.json:
            return self.json[name]
        for pairs in (self.body, self.query):
            for key, value in pairs:
                if key == name:
                    return value
        return None


def parse_pairs(encoded: bytes) -> Pairs:
    """The pairs of a query or a form body, in order, blank values kept.

    Raises NotDecodableError for bytes that are not UTF-8 after percent-decoding, and for more than PAIRS_MAX pairs.
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
"""By the two digits of an escape: its character, if the byte is a whole character of UTF-8."""


def unquote_plus(quoted: str) -> str:
    """Percent-decoding with `+` for a blank; an escape without two hexadecimal digits stands for itself.

    Raises UnicodeDecodeError for bytes that are not UTF-8.
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
    """The top-level members of a JSON object, its decimals as Decimal. Raises NotDecodableError for anything else.

    The text may be UTF-8, UTF-16 or UTF-32, detected as `json.loads` does, with or without a byte order mark.
    """
    try:
        encoding = json.detect_encoding(body)
        return _json_decoder.decode(body if encoding == "utf-8" else body.decode(encoding))
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ArithmeticError) as error:
        raise NotDecodableError(f"the JSON body cannot be read: {error}") from None


def media_type(content_type: str) -> str:
    """A Content-Type without its parameters, in lower case: `Application/JSON; charset=utf-8` is `application/json`."""
    return content_type.partition(";")[0].strip().lower()


def named_reading(content_type: str) -> Reading | None:
    """The reading that a Content-Type names; None if it names neither or both. An empty type names a form.

    It may be a list of types, as a proxy joins repeated header lines; types that name no reading do not count.
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
"""White space and byte order marks, those of UTF-16 and UTF-32 included."""
_FORM_BEGINS: Final = re.compile(rb"&*[A-Za-z0-9_.~%+*\[\]-]{1,256}=")
"""A parameter's name as forms write it: neither XML nor a multipart body nor plain text begins this way."""


def looks_like(body: bytes) -> Reading | None:
    """The reading that the beginning of a body suggests; None if it is neither a form's nor a JSON object's."""
    if looks_like_json(body):
        return "json"
    return "form" if _FORM_BEGINS.match(body) else None


def looks_like_json(body: bytes) -> bool:
    """Whether a body begins as a JSON object does. No form does: a form's writers escape a brace."""
    return body[:64].lstrip(_BEFORE_JSON)[:1] == b"{"


def type_naming(reading: Reading, content_type: str) -> str:
    """A Content-Type that names `reading`: `content_type`, the one that was sent, if it does.

    Otherwise the one that was sent becomes the parameter `sent-as` of one that does.
    """
    if content_type == _TYPES[reading]:
        return content_type
    content_type = in_ascii(content_type)
    if _PLAINLY[reading].fullmatch(media_type(content_type)):
        return content_type
    sent_as = content_type[:SENT_AS_MAX_CHARS].replace("\\", "").replace('"', "'")
    return f'{_TYPES[reading]}; sent-as="{sent_as}"'


def in_ascii(content_type: str) -> str:
    """A Content-Type with `?` in place of what is not ASCII, as it can be stored."""
    return content_type if content_type.isascii() else content_type.encode("ascii", "replace").decode()


def parse_body(reading: Reading, query: Pairs, body: bytes) -> Parameters:
    """The parameters of a request whose body is read as `reading` says. Raises NotDecodableError."""
    if reading == "json":
        return Parameters(query, [], parse_json(body))
    return Parameters(query, parse_pairs(body), None)


def parse_parameters(method: str, query: bytes, content_type: str, body: bytes) -> Parameters:
    """All parameters of a request. A GET's body does not count, as Plivo's signature does not cover it.

    Raises NotDecodableError for a body that is neither a form nor JSON by its type or by its beginning, for broken
    JSON, for bytes that are not UTF-8, and for too many parameters.
    """
    pairs = parse_pairs(query)
    if method == "GET" or not body:
        return Parameters(pairs, [], None)
    reading = named_reading(content_type) or looks_like(body)
    if reading is None:
        raise NotDecodableError("the body is neither a form nor JSON")
    return parse_body(reading, pairs, body)
