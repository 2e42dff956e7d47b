"""Plivo's request signatures: what is signed, and whether one of the listed values fits.

A signature is the Base64 of HMAC-SHA256, keyed with the Auth Token, over a text made of the URL as dialled,
the parameters and a nonce. `plivo.utils` is the reference, and the tests hold this module to it:

| scheme | text |
| --- | --- |
| V3, GET | `base` `?` query as sorted `key=value` joined by `&` `.` nonce |
| V3, POST | `base` `?` query as above `.` body as sorted `keyvalue` `.` nonce |
| V2 | `base` nonce |

where `base` is `scheme://host[:port]/path`. The `?` falls away where there are neither query nor body
parameters, the first `.` unless there are both. Ma-V3 and Ma-V2 are the same with the main account's token.

Where the reference leaves its own ground:

- A query with non-ASCII characters: the SDK reads the decoded bytes as Latin-1 (where Python's `parse_qs`
  gives it bytes; elsewhere it raises). UTF-8 order and code point order are the same, so that reading is the
  same text, its bytes taken as Latin-1 once more. Both readings are good.
- A JSON list of members that cannot be compared, a number too long to be written: the SDK raises. Nothing can
  have been signed that way, so no signature fits.
- Blanks around the values of the header are dropped, as HTTP allows them where proxies join header lines.
"""

from binascii import b2a_base64
from collections.abc import Iterable, Sequence
from decimal import Decimal
from hashlib import sha256
from hmac import compare_digest
from itertools import chain
from typing import Any, Final

from maskline.schemas.parameters import Pairs, Parameters

LISTED_MAX: Final = 10
"""Values looked at in one signature header. Plivo lists one or two; each costs a comparison per token."""

NONCES_MAX: Final = 4
"""Nonces tried of one request: each costs what a request with one costs."""

_BLOCK_BYTES: Final = 64
_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))


class Token:
    """An Auth Token as a ready-keyed HMAC: two hash states that every signature copies.

    Copying them costs half of what `hmac.new` or `hmac.digest` do.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, token: str) -> None:
        key = token.encode()
        if len(key) > _BLOCK_BYTES:
            key = sha256(key).digest()
        key = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = sha256(key.translate(_INNER_PAD))
        self._outer = sha256(key.translate(_OUTER_PAD))

    def sign(self, text: bytes) -> bytes:
        """The Base64 of the text's HMAC."""
        inner = self._inner.copy()
        inner.update(text)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return b2a_base64(outer.digest(), newline=False)

    def signed(self, texts: Iterable[bytes], values: Sequence[bytes]) -> bool:
        """Whether any value is the signature of any of the texts. Each comparison takes constant time."""
        for text in texts:
            expected = self.sign(text)
            for value in values:
                if compare_digest(expected, value):
                    return True
        return False


def listed_values(headers: Iterable[str]) -> list[bytes]:
    """The signatures that stand in a header's lines, comma-separated, at most LISTED_MAX of them."""
    values: list[bytes] = []
    for header in headers:
        for value in header.split(",", LISTED_MAX)[:LISTED_MAX]:
            stripped = value.strip()
            if stripped:
                values.append(_encode(stripped))
    return values[:LISTED_MAX]


def listed_nonces(headers: Sequence[str]) -> list[str]:
    """The nonces that a request may be signed with, at most NONCES_MAX: each line of the header, and its members.

    One, but where a proxy doubled the line, or joined it with itself.
    """
    nonces = dict.fromkeys(headers)
    for header in headers:
        if "," in header:
            nonces |= dict.fromkeys(member.strip() for member in header.split(",", NONCES_MAX)[:NONCES_MAX])
    return [nonce for nonce in nonces if nonce][:NONCES_MAX]


def v3_middles(method: str, parameters: Parameters) -> tuple[str, ...]:
    """What stands between base and nonce in the texts a V3 signature may be of, for any of these.

    Two for a non-ASCII query, none where nothing can be signed.
    """
    query = "&".join(map("=".join, sorted(parameters.query)))
    body = ""
    separator = "?" if query else ""
    if method != "GET" and (parameters.body or parameters.json):
        try:
            body = _pairs_text(parameters.body) if parameters.json is None else _members_text(parameters.json)
        except (TypeError, ValueError, RecursionError):
            return ()
        separator = "?"
        body = f".{body}" if query else body
    middle = f"{separator}{query}{body}."
    if query.isascii():
        return (middle,)
    return (middle, f"{separator}{query.encode().decode('latin-1')}{body}.")


def v3_texts(base: str, middles: Iterable[str], nonce: str) -> tuple[bytes, ...]:
    """The texts a V3 signature may be of."""
    nonce = _nonce_as_read(nonce)
    return tuple(_encode(f"{base}{middle}{nonce}") for middle in middles)


def v2_text(base: str, nonce: str) -> bytes:
    """The text a V2 signature is of. It does not cover the parameters."""
    return _encode(base + nonce)


def sign_v3(token: str, method: str, url: str, parameters: Parameters, nonce: str) -> str:
    """Sign a request as Plivo does: the value for `X-Plivo-Signature-V3` beside that nonce.

    The query is taken from `parameters`; `url` may carry it or not. Raises ValueError for parameters that
    Plivo's SDK could not sign.
    """
    texts = v3_texts(url.partition("?")[0], v3_middles(method.upper(), parameters), nonce)
    if not texts:
        raise ValueError("these parameters cannot be signed")
    return Token(token).sign(texts[0]).decode()


def sign_v2(token: str, url: str, nonce: str) -> str:
    """Sign a request by the older scheme: the value for `X-Plivo-Signature-V2` beside that nonce."""
    return Token(token).sign(v2_text(url.partition("?")[0], nonce)).decode()


def _pairs_text(pairs: Pairs) -> str:
    return "".join(chain.from_iterable(sorted(pairs)))


def _members_text(members: dict[str, Any]) -> str:
    """A JSON object as the SDK writes it: keys sorted, a list as its sorted members, each behind the key."""
    written: list[str] = []
    for key in sorted(members):
        value = members[key]
        if isinstance(value, list):
            written += [f"{key}{member}" for member in sorted(_formatted(value))]
        elif isinstance(value, dict):
            written += (key, _members_text(value))
        else:
            written += (key, f"{_formatted(value)}")
    return "".join(written)


def _formatted(value: Any) -> Any:
    """The SDK's `string_format`: numbers and booleans as Python writes them, lists by member."""
    if isinstance(value, (int, Decimal)):
        return str(_as_loaded(value))
    if isinstance(value, list):
        return [_formatted(member) for member in value]
    return _as_loaded(value)


def _as_loaded(value: Any) -> Any:
    """What the SDK is given: `json.loads` reads as float what `schemas.parameters` keeps exactly."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return [_as_loaded(member) for member in value]
    if isinstance(value, dict):
        return {name: _as_loaded(member) for name, member in value.items()}
    return value


def _nonce_as_read(nonce: str) -> str:
    """The SDK reads the nonce's bytes as Latin-1. Plivo's nonces are ASCII, where that changes nothing."""
    return nonce if nonce.isascii() else _encode(nonce).decode("latin-1")


def _encode(text: str) -> bytes:
    """Text of headers and target back to its bytes; those that are no UTF-8 stand there as surrogates."""
    return text.encode("utf-8", "surrogateescape")
