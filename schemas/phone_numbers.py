r"""Certain phone numbers in any text, however they are spelled: found by their digits, replaced by their tokens.

`privacy.redact` hides whatever looks like a number. This knows the numbers, so it also finds what does not look like
one: `0171/1234567`, `415_555_0123`, `14155550123.0`, `1.4155550123e+10`, full-width digits, `%2B1415…`, colour codes
between the digits. Linear in the length of the text.

| what | rule |
| --- | --- |
| digits | of any script, also percent-encoded, as `\u0031`, `\x31` or `&#49;`, and such escapes of escapes |
| bytes in Python's notation | may go on in the next line, as `pprint` wraps them |
| powers of ten | `1.415555012E+10` has the zeros that it stands for |
| between two digits | up to SEPARATORS_MAX that are neither letters nor digits, escapes of them, terminal codes |
| how many of them | the last SURE_DIGITS, wherever they stand; all of the national part, where it has fewer |
| fewer than that | no digit may follow at once, and TRUNK_DIGITS_MAX at most stand right before them |
| where not | within a UUID, an ISO date and time, the ID of a stream entry |
| how far to the left | as the number's own digits go, then `+`, `(`, and what is dialled first: 0, 00, 011 |

SURE_DIGITS hold for every way to dial a number within its country, and meet by chance once in a billion. Shorter
national parts (Denmark, Singapore) would be met in timestamps and identifiers, did they not have to stand alone.
"""

import html
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from maskline.schemas.privacy import DIGITS_MAX, DIGITS_MIN, NO_NUMBER, NO_NUMBER_MAX_CHARS, number_token

SURE_DIGITS: Final = 9
SHORT_DIGITS: Final = 7
TRUNK_DIGITS_MAX: Final = 2
SEPARATORS_MAX: Final = 256
"""Where a table or a box wraps a number (rich), the rest of the line is blanks, and the next begins with some."""
ESCAPED_TIMES_MAX: Final = 3
"""JSON in JSON in a query: deeper was made on purpose."""

_COUNTRY_CODES_OF_TWO: Final = re.compile(r"2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]")
"""ITU-T E.164: 1 and 7 stand alone, all others have three digits."""

_RUN_ANY: Final = re.compile(rf"\d(?:[\W_]{{0,{SEPARATORS_MAX}}}\d){{{SHORT_DIGITS - 1},}}")
_RUN_ASCII: Final = re.compile(
    rf"[0-9](?:[^0-9A-Za-z]{{0,{SEPARATORS_MAX}}}[0-9]){{{SHORT_DIGITS - 1},}}", re.ASCII
)
"""The same in a text that is all ASCII, in half the time."""
_DIGIT: Final = re.compile(r"\d")
_NO_DIGIT: Final = re.compile(r"\D+")
_BEFORE: Final = re.compile(r"[+(]{0,2}(?:011|00|0)?\Z")
_BEFORE_MAX_CHARS: Final = 5
_AFTER: Final = re.compile(r"\.0+(?!\d)")
_JSON_NUMBER_CHARS: Final = "0123456789.+-eE"
"""What one in JSON is made of; it becomes a string as a whole."""
_QUOTES: Final = re.compile(r'\\.|"', re.DOTALL)

_ESCAPE: Final = re.compile(
    r"(?P<bytes>(?:%[0-9A-Fa-f]{2})+|(?:\\{1,16}x[0-9A-Fa-f]{2})+)"
    r"|\\{1,16}u(?P<code>[0-9A-Fa-f]{4})"
    r"|(?P<entity>&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});)"
    r"|(?P<blank>\\{1,16}[nrtfbv])"
    r"|(?<![0-9.])(?P<mantissa>[0-9](?:\.[0-9]{1,20})?)[eE]\+(?P<power>[0-9]{1,2})(?![0-9])"
    rf"|['\"][\s+]{{1,{SEPARATORS_MAX}}}b['\"]"
    r"|\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,256}(?:\x07|\x1b\\))"
)
"""At most 16 backslashes: a long row of them would be looked through again from each."""
_MAY_ESCAPE: Final = ("%", "\\", "&", "\x1b", "e+", "E+", " b'", ' b"')
"""One of these is in a text that has an escape, or all but."""
_LETTERS_BLANK: Final = bytes(sign if sign in b"0123456789" else ord(" ") for sign in range(256))
_SEPARATORS: Final = bytes(sign for sign in range(128) if not chr(sign).isalnum())
_WINDOWS: Final = [slice(start, start + SHORT_DIGITS) for start in range(512)]
_HEX_BYTE: Final = re.compile(r"\\+x")


class NumberSpan(NamedTuple):
    """A number in a text."""

    start: int
    end: int
    digits: str
    """All of the number's."""


class Unescaped(NamedTuple):
    """A text with its escapes decoded once."""

    text: str
    at: list[int]
    """Where pieces begin in the decoded text, ascending, …"""
    spans: list[tuple[int, int, bool]]
    """… what each is in the original: from, to, and whether it is an escape and stands or falls as a whole."""


class PhoneNumber(NamedTuple):
    digits: str
    needed: int
    """How many of them, at the end, make it this number."""


class PhoneNumbers:
    """A set of numbers, the last ones that were added. One thread may add while others look."""

    def __init__(self) -> None:
        self._numbers: dict[str, PhoneNumber] = {}
        """By their digits, in the order in which they were last added."""
        self._by_end: dict[str, list[PhoneNumber]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: str) -> None:
        """Know this number from here on; what has too few digits for one, or too many, is left out."""
        digits = digits_of(number)
        if not DIGITS_MIN <= len(digits) <= DIGITS_MAX:
            return
        known = self._numbers.pop(digits, None)
        if known is None:
            national = len(digits) - _country_code_length(digits)
            known = PhoneNumber(digits, max(SHORT_DIGITS, min(SURE_DIGITS, national)))
            self._by_end.setdefault(digits[-SHORT_DIGITS:], []).append(known)
        self._numbers[digits] = known

    def keep_latest(self, count: int) -> None:
        """Forget all but the last ones."""
        for digits in list(islice(self._numbers, max(0, len(self._numbers) - count))):
            self._numbers.pop(digits, None)
            end = digits[-SHORT_DIGITS:]
            # Another list, since somebody may be looking through the one that was there.
            rest = [known for known in self._by_end.get(end, ()) if known.digits != digits]
            if rest:
                self._by_end[end] = rest
            else:
                self._by_end.pop(end, None)

    def redact(self, text: str) -> str:
        """The text with these numbers replaced by their tokens; the same object where it has none."""
        found = self.find(text)
        return _with_tokens(text, found) if found else text

    def find(self, text: str) -> list[NumberSpan]:
        """Where these numbers are, ascending, without overlaps."""
        if not self._by_end or len(text) < SHORT_DIGITS:
            return []
        found = list(self._find(text)) if self._may_contain(text) else []
        if any(sign in text for sign in _MAY_ESCAPE):
            decoded = Unescaped(text, [0], [(0, len(text), False)])
            for _ in range(ESCAPED_TIMES_MAX):
                if _ESCAPE.search(decoded.text) is None:
                    break
                decoded = _unescape(decoded)
                if self._may_contain(decoded.text):
                    found += [_in_original_text(decoded, there) for there in self._find(decoded.text)]
        return _merged(found) if len(found) > 1 else found

    def _may_contain(self, text: str) -> bool:
        """Whether a number may be in a text: mostly none is, and this says so in a fifth of the time."""
        if not text.isascii():
            return True
        ends = self._by_end.keys()
        for digits in text.encode().translate(_LETTERS_BLANK, _SEPARATORS).decode().split():
            count = len(digits) - SHORT_DIGITS + 1
            if count > len(_WINDOWS):
                return True
            if count > 0 and not ends.isdisjoint(map(digits.__getitem__, _WINDOWS[:count])):
                return True
        return False

    def _find(self, text: str) -> Iterator[NumberSpan]:
        by_end, text = self._by_end, _with_ascii_digits(text)
        for run in (_RUN_ASCII if text.isascii() else _RUN_ANY).finditer(text):
            digits = _NO_DIGIT.sub("", run[0])
            places: list[int] = []
            floor, end = 0, SHORT_DIGITS
            while end <= len(digits):
                if known := by_end.get(digits[end - SHORT_DIGITS : end]):
                    places = places or [match.start() for match in _DIGIT.finditer(run[0])]
                    if hit := _longest(known, digits, places, floor, end):
                        number, length = hit
                        first, last = run.start() + places[end - length], run.start() + places[end - 1] + 1
                        if not _within_no_number(text, first, last):
                            yield _with_prefix_and_suffix(text, first, last, number)
                            floor, end = end, end + SHORT_DIGITS
                            continue
                end += 1


def _longest(
    known: list[PhoneNumber], digits: str, places: list[int], floor: int, end: int
) -> tuple[str, int] | None:
    """Which of these numbers ends here, and how many of its digits are there."""
    best = None
    for number, needed in known:
        length = SHORT_DIGITS
        limit = min(len(number), end - floor)
        while length < limit and number[-length - 1] == digits[end - length - 1]:
            length += 1
        if length < needed or (best is not None and length <= best[1]):
            continue
        if length >= SURE_DIGITS or _stands_alone(places, floor, end - length, end):
            best = number, length
    return best


def digits_of(number: str) -> str:
    """The digits of a number as Plivo sends it, in ASCII: of `sip:+14155550123@10.0.0.1` those before the host."""
    plain = number.lstrip("+0")
    if plain.isdigit() and plain.isascii():
        return plain
    return _NO_DIGIT.sub("", _with_ascii_digits(re.split("[@;,]", number, maxsplit=1)[0])).lstrip("0")


def _with_ascii_digits(text: str) -> str:
    """The text with ASCII digits in place of all others, raised and circled ones too; of the same length."""
    if text.isascii():
        return text
    return text.translate({ord(sign): str(unicodedata.digit(sign)) for sign in set(text) if sign.isdigit()})


def _country_code_length(digits: str) -> int:
    if digits[0] in "17":
        return 1
    return 2 if _COUNTRY_CODES_OF_TWO.match(digits) else 3


def _stands_alone(places: list[int], floor: int, start: int, end: int) -> bool:
    if end < len(places) and places[end] == places[end - 1] + 1:
        return False
    before = start
    while before > floor and places[before] == places[before - 1] + 1:
        before -= 1
    return start - before <= TRUNK_DIGITS_MAX


def _within_no_number(text: str, start: int, end: int) -> bool:
    """Whether these digits are part of what is sure to be no number (NO_NUMBER)."""
    hit = text[start:end]
    if "-" not in hit and ":" not in hit:
        return False
    near = NO_NUMBER.finditer(text, max(0, start - NO_NUMBER_MAX_CHARS), end + NO_NUMBER_MAX_CHARS)
    return any(match.start() <= start and end <= match.end() for match in near)


def _with_prefix_and_suffix(text: str, start: int, end: int, number: str) -> NumberSpan:
    before = _BEFORE.search(text, max(0, start - _BEFORE_MAX_CHARS), start)
    if before is not None:
        # A bracket is part of the number only where it closes within.
        opened = 0 if ")" in text[start:end] else before[0].rfind("(") + 1
        start = before.start() + opened
    after = _AFTER.match(text, end)
    return NumberSpan(start, end if after is None else after.end(), number)


def _unescape(decoded: Unescaped) -> Unescaped:
    """Decode once more; the places stay those of the original."""
    text, pieces, at, spans, length, last = decoded.text, list[str](), list[int](), [], 0, 0

    def append(piece: str, start: int, end: int, escape: bool) -> None:
        nonlocal length
        if piece:
            at.append(length)
            spans.append((start, end, escape))
            pieces.append(piece)
            length += len(piece)

    def plain(start: int, end: int) -> None:
        """What is no escape in this round may be one of an earlier one, piece by piece."""
        index = bisect_right(decoded.at, start) - 1
        while start < end:
            began, (first, past, escape) = decoded.at[index], decoded.spans[index]
            until = min(end, decoded.at[index + 1] if index + 1 < len(decoded.at) else len(text))
            if escape:
                append(text[start:until], first, past, True)
            else:
                append(text[start:until], first + start - began, first + until - began, False)
            start, index = until, index + 1

    for match in _ESCAPE.finditer(text):
        plain(last, match.start())
        last = match.end()
        append(
            _unescaped_text(match),
            _original_span(decoded, match.start())[0],
            _original_span(decoded, last - 1)[1],
            True,
        )
    plain(last, len(text))
    return Unescaped("".join(pieces), at, spans)


def _unescaped_text(match: re.Match[str]) -> str:
    if match["bytes"]:
        raw = unquote_to_bytes(_HEX_BYTE.sub("%", match["bytes"]))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")
    if match["code"]:
        return chr(int(match["code"], 16))
    if match["entity"]:
        return html.unescape(match["entity"])
    if match["mantissa"]:
        return _without_exponent(match["mantissa"], int(match["power"]))
    return " " if match["blank"] else ""


def _without_exponent(mantissa: str, power: int) -> str:
    """1.415555012E+10 as 14155550120: without its zeros a number would not be found."""
    digits = mantissa.replace(".", "")
    whole = digits[: power + 1].ljust(min(power, DIGITS_MAX) + 1, "0")
    return f"{whole}.{rest}" if (rest := digits[power + 1 :]) else whole


def _original_span(decoded: Unescaped, place: int) -> tuple[int, int]:
    """What a character of the decoded text is in the original."""
    index = bisect_right(decoded.at, place) - 1
    start, end, escape = decoded.spans[index]
    if escape:
        return start, end
    start += place - decoded.at[index]
    return start, start + 1


def _in_original_text(decoded: Unescaped, found: NumberSpan) -> NumberSpan:
    start, end = _original_span(decoded, found.start)[0], _original_span(decoded, found.end - 1)[1]
    return NumberSpan(start, end, found.digits)


def _merged(found: Iterable[NumberSpan]) -> list[NumberSpan]:
    apart: list[NumberSpan] = []
    for there in sorted(found):
        if apart and there.start < apart[-1].end:
            apart[-1] = apart[-1]._replace(end=max(apart[-1].end, there.end))
        else:
            apart.append(there)
    return apart


def _with_tokens(text: str, found: Collection[NumberSpan]) -> str:
    """The text with tokens. A number of a JSON object, outside its strings, becomes a string: it must stay JSON."""
    whole = text.strip()
    json, in_string = whole[:1] + whole[-1:] in ("{}", "[]"), False
    pieces, last = [], 0
    for start, end, digits in found:
        if start < last:  # within a figure that the one before it has taken whole
            continue
        before, last = text[last:start], end
        token = number_token(digits)
        if json:
            in_string ^= _QUOTES.findall(before).count('"') % 2 == 1
            if not in_string:
                token = f'"{token}"'
                before = before.rstrip(_JSON_NUMBER_CHARS)
                while text[last : last + 1] in _JSON_NUMBER_CHARS and last < len(text):
                    last += 1
        pieces += [before, token]
    return "".join(pieces) + text[last:]
