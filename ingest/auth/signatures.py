"""Plivo's request signatures: which text is signed, and whether one of the listed signatures fits it. Pure.

A signature is the Base64 of HMAC-SHA256, keyed with the Auth Token, over a text made of the URL as dialled, the
parameters and a nonce. `plivo.utils` is the reference, and the tests compare this module with it:

| scheme | text |
| --- | --- |
| V3, GET | `base_url` `?` query as sorted `key=value` joined by `&` `.` nonce |
| V3, POST | `base_url` `?` query as above `.` body as sorted `keyvalue` `.` nonce |
| V2 | `base_url` nonce |

where `base_url` is `scheme://host[:port]/path`. The `?` is left out where there are neither query nor body parameters,
the first `.` unless there are both. Ma-V3 and Ma-V2 are the same with the main account's token.

Where the reference does not define the text:

- A query with non-ASCII characters: the SDK reads the decoded bytes as Latin-1 (where Python's `parse_qs` gives it
  bytes; elsewhere it raises). UTF-8 order and code point order are the same, so that reading is the same text with its
  bytes read as Latin-1 once more. A signature of either reading is good.
- A JSON list of members that cannot be compared, a number too long to be written: the SDK raises. Nothing can have been
  signed that way, so no signature fits.
- Blanks around the signatures in the header are dropped, as HTTP allows them where proxies join header lines.
"""

from binascii import b2a_base64
from collections.abc import Iterable, Sequence
from decimal import Decimal
from hashlib import sha256
from hmac import compare_digest
from itertools import chain
from typing import Any, Final

from maskline.schemas.parameters import Pairs, Parameters

SIGNATURES_MAX: Final = 10
"""Signatures read from the lines of one header. Plivo lists one or two; each costs a comparison per token."""

NONCES_MAX: Final = 4
"""Nonces tried for one request: each costs as much as a request with one."""

_BLOCK_BYTES: Final = 64
_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))


class Token:
    """An Auth Token as a keyed HMAC-SHA256: two hash states that every signature copies.

    Copying them costs half of what `hmac.new` or `hmac.digest` cost.
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

    def matches(self, texts: Iterable[bytes], signatures: Sequence[bytes]) -> bool:
        """Whether any of the signatures is that of any of the texts. Each comparison takes constant time."""
        for text in texts:
            expected = self.sign(text)
            for signature in signatures:
                if compare_digest(expected, signature):
                    return True
        return False


def split_signatures(lines: Iterable[str]) -> list[bytes]:
    """The signatures in a header's lines, each a comma-separated list; the first SIGNATURES_MAX of them."""
    signatures: list[bytes] = []
    for line in lines:
        for member in line.split(",", SIGNATURES_MAX)[:SIGNATURES_MAX]:
            stripped = member.strip()
            if stripped:
                signatures.append(_encode(stripped))
    return signatures[:SIGNATURES_MAX]


def split_nonces(lines: Sequence[str]) -> list[str]:
    """The nonces that a request may be signed with: each line of the header, and its members; at most NONCES_MAX.

    There is one, except where a proxy doubled the line or joined it with itself.
    """
    nonces = dict.fromkeys(lines)
    for line in lines:
        if "," in line:
            nonces |= dict.fromkeys(member.strip() for member in line.split(",", NONCES_MAX)[:NONCES_MAX])
    return [nonce for nonce in nonces if nonce][:NONCES_MAX]


def v3_parameter_texts(method: str, parameters: Parameters) -> tuple[str, ...]:
    """The texts that may stand between `base_url` and nonce in what a V3 signature covers.

    One; two for a non-ASCII query; none where these parameters cannot be signed.
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
    text = f"{separator}{query}{body}."
    if query.isascii():
        return (text,)
    return (text, f"{separator}{query.encode().decode('latin-1')}{body}.")


def v3_signed_texts(base_url: str, parameter_texts: Iterable[str], nonce: str) -> tuple[bytes, ...]:
    """The texts that a V3 signature may cover; `parameter_texts` are from `v3_parameter_texts`."""
    nonce = _nonce_as_latin_1(nonce)
    return tuple(_encode(f"{base_url}{text}{nonce}") for text in parameter_texts)


def v2_signed_text(base_url: str, nonce: str) -> bytes:
    """The text that a V2 signature covers. The parameters are not in it."""
    return _encode(base_url + nonce)


def sign_v3(token: str, method: str, url: str, parameters: Parameters, nonce: str) -> str:
    """Sign a request as Plivo does. Returns the value of `X-Plivo-Signature-V3` to send with that nonce.

    The query is taken from `parameters`; `url` may have it or not. Raises ValueError for parameters that Plivo's SDK
    cannot sign.
    """
    texts = v3_signed_texts(url.partition("?")[0], v3_parameter_texts(method.upper(), parameters), nonce)
    if not texts:
        raise ValueError("these parameters cannot be signed")
    return Token(token).sign(texts[0]).decode()


def sign_v2(token: str, url: str, nonce: str) -> str:
    """Sign a request by the older scheme. Returns the value of `X-Plivo-Signature-V2` to send with that nonce."""
    return Token(token).sign(v2_signed_text(url.partition("?")[0], nonce)).decode()


def _pairs_text(pairs: Pairs) -> str:
    return "".join(chain.from_iterable(sorted(pairs)))


def _members_text(members: dict[str, Any]) -> str:
    """A JSON object as the SDK writes it: keys sorted; a list as its sorted members, each after the key."""
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
    """The SDK's `string_format`: numbers and booleans as Python writes them, lists member by member."""
    if isinstance(value, (int, Decimal)):
        return str(_as_loaded(value))
    if isinstance(value, list):
        return [_formatted(member) for member in value]
    return _as_loaded(value)


def _as_loaded(value: Any) -> Any:
    """The value as the SDK gets it: `json.loads` reads as float what `schemas.parameters` reads as Decimal."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return [_as_loaded(member) for member in value]
    if isinstance(value, dict):
        return {name: _as_loaded(member) for name, member in value.items()}
    return value


def _nonce_as_latin_1(nonce: str) -> str:
    """The SDK reads the nonce's bytes as Latin-1. Plivo's nonces are ASCII, where that changes nothing."""
    return nonce if nonce.isascii() else _encode(nonce).decode("latin-1")


def _encode(text: str) -> bytes:
    """Text of headers or target back to its bytes; bytes that are no UTF-8 are surrogates in the text."""
    return text.encode("utf-8", "surrogateescape")
