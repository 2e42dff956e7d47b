"""Puts made-up ones in place of what a text tells about people and accounts, in any encoding. Pure, but for the key.

| in a text | becomes |
| --- | --- |
| a phone number | a fictional one (`fictional_numbers`) |
| a party that is no number, as a word | the fictional number that stands for it |
| an account id, by its form or as known; an auth token that is known | a made-up one |
| an e-mail address | one at example.com |
| the address of a recording, and any address at plivo.com | one at example.com |

The same becomes the same. What is in base64, in hexadecimal digits, percent-encoded or in JSON, and those in each
other up to LAYERS_MAX times, is rewritten within, and encoded anew.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from maskline.console.session.fictional_numbers import ODD_NAMES, FictionalNumbers

LAYERS_MAX: Final = 3
"""As deep as known numbers are found in escapes; deeper nesting is made on purpose."""

SECRET_CHARS_MIN: Final = 8
"""Of a known account or token: a shorter one, as a test may have, would be found in ordinary words."""

PARTY_CHARS_MIN: Final = 3
"""Of a party that is no number and is looked for in other texts."""

TEXTS_REMEMBERED_MAX: Final = 4_096
"""And what becomes of them; of a KiB each at most, as a rule."""

PARTIES_MAX: Final = 1_000
"""Such parties of a session that are looked for; it has two."""

_ACCOUNT: Final = re.compile(r"(?<![0-9A-Za-z])(?:MA|SA)[0-9A-Z]{18}(?![0-9A-Za-z])")
"""The id of a main account or a subaccount of Plivo's."""

_EMAIL: Final = re.compile(r"(?P<who>[\w.%+\-]{1,64})@(?P<host>(?:[\w\-]{1,63}\.){1,8}[^\W\d_]{2,24})")
_PLIVO_URL: Final = re.compile(
    r"https?://(?:[\w.\-]{0,64}\.)?plivo\.com(?![\w.\-])[^\s\"'<>\\]*", re.IGNORECASE
)
_EXTENSION: Final = re.compile(r"\.(?:mp3|wav|ogg|m4a|flac)\Z", re.IGNORECASE)
_LETTERS: Final = re.compile(r"[^\W\d_]+")
_SCHEMES: Final = frozenset({"sip", "sips", "tel"})

_BASE64: Final = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{10,}={0,2}(?![\w+/=-])", re.ASCII)
_HEX: Final = re.compile(r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{2}){7,}(?![0-9A-Za-z])")

_Rewrite = Callable[[str], str]


class FictionalTexts:
    """What stands for what in one file. `secrets`: the accounts and tokens that are known, in any form."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.numbers = FictionalNumbers()
        known = sorted(re.escape(secret) for secret in secrets if len(secret) >= SECRET_CHARS_MIN)
        self._secrets = re.compile("|".join(known), re.IGNORECASE) if known else None
        self._addresses = set[str]()
        self._parties = set[str]()
        # Most texts stand in many callbacks of a session.
        remembered = lru_cache(TEXTS_REMEMBERED_MAX)
        self.add_all_of: Callable[[str], None] = remembered(self._add_all_of)
        """Add everything in a text that could be dialled."""
        self.in_text: _Rewrite = remembered(self._in_text)
        """The text with made-up ones in place of the real ones."""
        self.of_party: _Rewrite = remembered(self._of_party)
        """The value of a parameter that names a party: also where it is no number, and the words beside a number."""
        self.is_left_in: Callable[[str], bool] = remembered(self._is_left_in)
        """Whether something that is known is in a text, in any encoding."""

    def add_party(self, text: str) -> None:
        """Add the value of a parameter that names a party. All are to be added before any text is rewritten."""
        self.numbers.add(text)
        name = text.strip()
        if (
            len(name) >= PARTY_CHARS_MIN
            and name.lower() not in ODD_NAMES
            and not self.numbers.has_number(text)
            and len(self._parties) < PARTIES_MAX
        ):
            self._parties.add(name)

    def add_address(self, text: str) -> None:
        """Add the address of a recording."""
        if len(text.strip()) >= SECRET_CHARS_MIN:
            self._addresses.add(text.strip())

    def _add_all_of(self, text: str) -> None:
        for layer in layers(text):
            self.numbers.add_all_of(layer)

    def _in_text(self, text: str) -> str:
        return self._in_layers(text, self._plainly, LAYERS_MAX)

    def in_name(self, text: str) -> str:
        """As `in_text`, for the name of a parameter: a word that is also a party's stays."""
        return self._in_layers(text, self.of_secrets, LAYERS_MAX)

    def _of_party(self, text: str) -> str:
        if text.strip().lower() in ODD_NAMES:
            return text
        replaced = self.numbers.of_party(text)
        if self.numbers.in_text(text) != text:
            return _LETTERS.sub(self._name, replaced)
        return replaced

    def address(self, text: str) -> str:
        """The address of a recording."""
        if not text.strip():
            return text
        extension = "" if (match := _EXTENSION.search(text)) is None else match[0]
        return f"https://media.example.com/recording/{self._letters(f'address {text}')}{extension}"

    def secret(self, text: str) -> str:
        """The value of a parameter that authenticates somebody."""
        return f"fictional-{self._letters(f'secret {text}')}" if text.strip() else text

    def _is_left_in(self, text: str) -> bool:
        return any(
            self.numbers.known.find(layer) or (self._secrets is not None and self._secrets.search(layer))
            for layer in layers(text)
        )

    def of_secrets(self, text: str) -> str:
        """The text without numbers, known accounts and tokens, and addresses."""
        for address in self._addresses:
            if address in text:
                text = text.replace(address, self.address(address))
        if "plivo" in text.lower():
            text = _PLIVO_URL.sub(lambda match: self.address(match[0]), text)
        text = _ACCOUNT.sub(lambda match: self._account(match[0]), text)
        if self._secrets is not None:
            text = self._secrets.sub(lambda match: self.secret(match[0].lower()), text)
        if "@" in text:
            text = _EMAIL.sub(self._email, text)
        return self.numbers.in_text(text)

    def _plainly(self, text: str) -> str:
        for party in self._parties:
            if party in text:
                text = re.sub(rf"(?<!\w){re.escape(party)}(?!\w)", self.numbers.of(party), text)
        return self.of_secrets(text)

    def _in_layers(self, text: str, plainly: _Rewrite, left: int) -> str:
        text = plainly(text)
        if left == 0:
            return text

        def within(inner: str) -> str:
            return self._in_layers(inner, plainly, left - 1)

        if "%" in text and (changed := _recoded(text, _percent_decoded, within, _percent_encoded)):
            text = changed
        if "\\u" in text and (changed := _json_rewritten(text, within)):
            text = changed
        text = _HEX.sub(
            lambda match: _recoded(match[0], _hex_decoded, within, _hex_encoded) or match[0], text
        )
        return _BASE64.sub(lambda match: _base64_rewritten(match[0], within), text)

    def _email(self, match: re.Match[str]) -> str:
        who, host = match["who"], self._letters(f"host {match['host'].lower()}")
        if _LETTERS.search(who) is None:  # of a SIP address
            return f"{self.numbers.in_text(who)}@{host}.example.com"
        if match["host"].lower().endswith("example.com"):
            return match[0]
        return f"{self._letters(f'person {match[0].lower()}')}@example.com"

    def _name(self, match: re.Match[str]) -> str:
        return match[0] if match[0].lower() in _SCHEMES else self._letters(f"name {match[0]}")

    def _account(self, account: str) -> str:
        return f"{account[:2]}-fictional-{self._letters(f'account {account}')}"

    def _letters(self, text: str) -> str:
        """A digest in letters alone: nothing that looks like a phone number."""
        return self.numbers.digest(text).hex().translate(_DIGITS_AS_LETTERS)


_DIGITS_AS_LETTERS: Final = str.maketrans("0123456789", "ghijklmnop")


def layers(text: str, left: int = LAYERS_MAX) -> Iterator[str]:
    """The text, and the texts that are encoded in it."""
    yield text
    if left == 0:
        return
    inner = [_percent_decoded(text) if "%" in text else None]
    inner += [_hex_decoded(match[0]) for match in _HEX.finditer(text)]
    inner += [
        _base64_decoded(piece)
        for match in _BASE64.finditer(text)
        for piece in {match[0], *match[0].split("/")}
    ]
    inner += _json_texts(text) if "\\u" in text else []
    for one in inner:
        if one is not None and one != text:
            yield from layers(one, left - 1)


def _recoded(
    text: str, decoded: Callable[[str], str | None], rewrite: _Rewrite, encoded: _Rewrite
) -> str | None:
    """The text, decoded, rewritten and encoded anew; None if there is nothing to rewrite."""
    plain = decoded(text)
    if plain is None or plain == text or (changed := rewrite(plain)) == plain:
        return None
    return encoded(changed)


def _percent_decoded(text: str) -> str | None:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return None


def _percent_encoded(text: str) -> str:
    return quote(text, safe=":/?&=+,;")


def _hex_decoded(text: str) -> str | None:
    return _readable(bytes.fromhex(text))


def _hex_encoded(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").hex()


def _base64_decoded(text: str) -> str | None:
    bare = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return _readable(base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True))
    except (binascii.Error, ValueError):
        return None


def _base64_rewritten(text: str, rewrite: _Rewrite) -> str:
    """A run of the signs of base64, whose parts between slashes may each be one."""

    def encoded(plain: str) -> str:
        made = base64.b64encode(plain.encode("utf-8", "surrogatepass")).decode()
        if "-" in text or "_" in text:
            made = made.replace("+", "-").replace("/", "_")
        return made if text.endswith("=") or len(text) % 4 == 0 else made.rstrip("=")

    if (changed := _recoded(text, _base64_decoded, rewrite, encoded)) is not None:
        return changed
    if "/" not in text:
        return text
    return "/".join(_recoded(it, _base64_decoded, rewrite, encoded) or it for it in text.split("/"))


def _readable(raw: bytes) -> str | None:
    """The bytes as text, if a person could read it."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return text if all(sign.isprintable() or sign in "\r\n\t" for sign in text) else None


def _json_rewritten(text: str, rewrite: _Rewrite) -> str | None:
    """JSON whose texts have escapes, without them."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    changed = _rewritten_texts(value, rewrite)
    return None if changed == value else msgspec.json.encode(changed).decode()


def _rewritten_texts(value: Any, rewrite: _Rewrite) -> Any:
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, list):
        return [_rewritten_texts(it, rewrite) for it in value]
    if isinstance(value, dict):
        return {rewrite(name): _rewritten_texts(it, rewrite) for name, it in value.items()}
    return value


def _json_texts(text: str) -> list[str]:
    found = list[str]()

    def note(inner: str) -> str:
        found.append(inner)
        return inner

    _json_rewritten(text, note)
    return found
