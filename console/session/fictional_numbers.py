"""Puts fictional phone numbers in place of a session's own, in any text and spelling. Pure, but for the token key.

| what | rule |
| --- | --- |
| which numbers | those that are added: the session's; and whatever else looks like a dialable number |
| found | as `schemas.phone_numbers` finds known numbers: by their digits, in any spelling |
| replaced by | +44 7700 900XXX for a number of country code 44, +1 XXX 555 01XX for all others: they reach nobody |
| the same number | has the same fictional one wherever it stands; with the same token key in other files too |
| two numbers | of one file have two fictional ones, which differ in their last SURE_DIGITS digits |
| spelling | what stands between the digits stays, so that two spellings stay two: they make two callbacks |

Only where a fictional number is taken already does the next one that is free depend on the other numbers of the file.
There are a thousand British fictional numbers and some 72,000 others, so two numbers of two files may have the same.
"""

import hmac
import re
from itertools import count
from typing import Final

from maskline.schemas.errors import MasklineError
from maskline.schemas.phone_numbers import SURE_DIGITS, NumberSpan, PhoneNumbers, digits_of
from maskline.schemas.privacy import DIGITS_MAX, DIGITS_MIN, replace_dialable, token_key

NUMBERS_MAX: Final = 1_000
"""Numbers of one session; it has three. There are some 9,000 fictional ones that differ in their last nine digits."""

NATIONAL_DIGITS: Final = 10
"""Of both kinds of fictional numbers, without their country code."""

_AREA_CODES: Final = [code for code in range(200, 1000) if code // 10 % 10 != 9 and code % 100 != 11]
"""Those of the North American plan, without service codes and those kept for its expansion."""

ODD_NAMES: Final = frozenset(
    {"anonymous", "unknown", "unavailable", "restricted", "private", "null", "none", ""}
)
"""What stands in a number's place and is nobody's: a handler may look for it."""

_PREFIX: Final = re.compile(r"[^\w]*(?:011|0{1,2})?(?=\d)")
_SUFFIX: Final = re.compile(r"\.0+\Z")
_ESCAPED_PREFIX: Final = re.compile(r"(?:%(?:25){0,8}(?:2[Bb]|20|28))+")
"""A plus, blank or bracket before the number, percent-encoded once or more."""
_ESCAPED: Final = re.compile(r"[%\\&\x1b]|[eE]\+")


class TooManyNumbersError(MasklineError):
    """A session has more than NUMBERS_MAX numbers."""


class FictionalNumbers:
    """The fictional numbers of one file."""

    def __init__(self) -> None:
        self._known = PhoneNumbers()
        self._fictional: dict[str, str] = {}
        """By the digits of the real number, or by the text of one that has too few."""
        self._real_ends: set[str] = set()
        """The last SURE_DIGITS digits of the real numbers, which no fictional one may have."""
        self._fictional_ends: set[str] = set()
        """Those of the fictional ones."""

    @property
    def known(self) -> PhoneNumbers:
        """The real numbers, to see whether a text still has one."""
        return self._known

    def add(self, number: str) -> None:
        """Add a number of the session, as a callback has it. To be called for all of them before any is replaced."""
        digits = digits_of(number)
        if DIGITS_MIN <= len(digits) <= DIGITS_MAX:
            self._known.add(number)
            self._real_ends.add(digits[-SURE_DIGITS:])

    def add_all_of(self, text: str) -> None:
        """Add everything in a text that could be dialled."""

        def add(number: str) -> str:
            self.add(number)
            return ""

        replace_dialable(text, add)

    def has_number(self, text: str) -> bool:
        """Whether a text has a number that is known, or that could be dialled. Chooses no fictional one for it."""
        return bool(self._known.find(text)) or replace_dialable(text, lambda _number: "") != text

    def of(self, number: str) -> str:
        """The digits of the fictional number, with its country code. Raises TooManyNumbersError."""
        digits = digits_of(number)
        identity = digits if len(digits) >= DIGITS_MIN else number.strip()
        found = self._fictional.get(identity)
        if found is None:
            if len(self._fictional) >= NUMBERS_MAX:
                raise TooManyNumbersError(f"the session has more than {NUMBERS_MAX:,} phone numbers")
            found = self._fictional[identity] = self._choose(identity)
        return found

    def in_text(self, text: str) -> str:
        """The text with fictional numbers in place of all that are known, and of all else that could be dialled."""
        pieces, last = list[str](), 0
        for there in self._known.find(text):
            pieces += [text[last : there.start], self._spelled(text, there)]
            last = there.end
        replaced = "".join([*pieces, text[last:]])
        return replace_dialable(replaced, self._unless_fictional)

    def of_party(self, text: str) -> str:
        """The value of a parameter that names a party: as `in_text`, and one that is no number is replaced as well."""
        replaced = self.in_text(text)
        if replaced != text or text.strip().lower() in ODD_NAMES or self._is_fictional(text):
            return replaced
        return self.of(text)

    def _choose(self, identity: str) -> str:
        for attempt in count():
            drawn = int.from_bytes(self.digest(f"number {attempt} {identity}"), "big")
            # British numbers may be used up: there are a thousand.
            british = identity.startswith("44") and identity.isdigit() and attempt < NUMBERS_MAX
            if british:
                digits = f"447700900{drawn % 1000:03}"
            else:
                area, line = divmod(drawn % (100 * len(_AREA_CODES)), 100)
                digits = f"1{_AREA_CODES[area]}55501{line:02}"
            end = digits[-SURE_DIGITS:]
            if end not in self._real_ends and end not in self._fictional_ends:
                self._fictional_ends.add(end)
                return digits
        raise AssertionError

    @staticmethod
    def digest(text: str) -> bytes:
        """Eight bytes that follow from a text and the installation's token key."""
        return hmac.digest(token_key(), f"fictional {text}".encode("utf-8", "surrogatepass"), "sha256")[:8]

    def _spelled(self, text: str, there: NumberSpan) -> str:
        """The fictional number as the text spells the real one that it has `there`."""
        spelled, fictional = text[there.start : there.end], self.of(there.digits)
        escaped = "" if (match := _ESCAPED_PREFIX.match(spelled)) is None else match[0]
        spelled = spelled[len(escaped) :]
        if _ESCAPED.search(spelled):
            return escaped + fictional
        suffix = "" if (match := _SUFFIX.search(spelled)) is None else match[0]
        spelled = spelled.removesuffix(suffix)
        prefix = "" if (match := _PREFIX.match(spelled)) is None else match[0]
        rest = spelled[len(prefix) :]
        found = sum(sign.isdigit() for sign in rest)
        if found < len(there.digits):  # without the country code, or the beginning
            fictional = fictional[-SURE_DIGITS if found == SURE_DIGITS else -NATIONAL_DIGITS :]
        return escaped + prefix + _laid_over(rest, found, fictional) + suffix

    def _unless_fictional(self, number: str) -> str:
        return number if self._is_fictional(number) else self.of(number)

    def _is_fictional(self, number: str) -> bool:
        return digits_of(number)[-SURE_DIGITS:] in self._fictional_ends


def _laid_over(spelled: str, found: int, digits: str) -> str:
    """A spelling with `digits` in place of its own, of which it has `found`; what stands between them stays."""
    out, rest = list[str](), digits
    for sign in spelled:
        if not sign.isdigit():
            out.append(sign)
            continue
        found -= 1
        taken = len(rest) if found == 0 else 1
        out.append(rest[:taken])
        rest = rest[taken:]
    return "".join(out)
