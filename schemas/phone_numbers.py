r"""Finds known phone numbers in any text, however they are spelled, and replaces them by their tokens. Pure.

`privacy.redact` replaces everything that looks like a number. Here the numbers are known, so they are found by their
digits even where they do not look like one: `0171/1234567`, `415_555_0123`, `14155550123.0`, `1.4155550123e+10`,
full-width digits, `%2B1415…`, colour codes between the digits. Linear in the length of the text.

| what | rule |
| --- | --- |
| digits | of any script, also percent-encoded, as `\u0031`, `\x31` or `&#49;`, and such escapes of escapes |
| bytes in Python's notation | may continue in the next line, as `pprint` wraps them |
| powers of ten | `1.415555012E+10` is read with all its zeros |
| between two digits | up to SEPARATORS_MAX that are neither letters nor digits, escapes of them, terminal codes |
| digits that must match | the last SURE_DIGITS, anywhere; if the national part has fewer, all of it |
| if it has fewer | no digit may follow immediately, and at most TRUNK_DIGITS_MAX may stand right before it |
| not searched | a UUID, an ISO date and time, the ID of a stream entry |
| replaced | all of the number's digits that are there, and before them `+`, `(` and a dialling prefix: 0, 00, 011 |

SURE_DIGITS are in every way to dial a number within its country, and match by chance once in a billion. Shorter
national parts (Denmark, Singapore) would match in timestamps and identifiers, which is why they must stand alone.
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
"""Between two digits. If a table or a box (rich) wraps a number, blanks end the line and begin the next."""
ESCAPED_TIMES_MAX: Final = 3
"""As in JSON in JSON in a query; deeper nesting is made on purpose."""

_COUNTRY_CODES_OF_TWO: Final = re.compile(r"2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]")
"""ITU-T E.164. Of the others, 1 and 7 have one digit, all the rest three."""

_RUN_ANY: Final = re.compile(rf"\d(?:[\W_]{{0,{SEPARATORS_MAX}}}\d){{{SHORT_DIGITS - 1},}}")
_RUN_ASCII: Final = re.compile(
    rf"[0-9](?:[^0-9A-Za-z]{{0,{SEPARATORS_MAX}}}[0-9]){{{SHORT_DIGITS - 1},}}", re.ASCII
)
"""The same for texts of ASCII alone, in half the time."""
_DIGIT: Final = re.compile(r"\d")
_NO_DIGIT: Final = re.compile(r"\D+")
_BEFORE: Final = re.compile(r"[+(]{0,2}(?:011|00|0)?\Z")
_BEFORE_MAX_CHARS: Final = 5
_AFTER: Final = re.compile(r"\.0+(?!\d)")
_JSON_NUMBER_CHARS: Final = "0123456789.+-eE"
"""The characters of a number in JSON, which becomes a string as a whole."""
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
"""At most 16 backslashes: a long row of them would be searched again from each."""
_MAY_ESCAPE: Final = ("%", "\\", "&", "\x1b", "e+", "E+", " b'", ' b"')
"""Every text with an escape contains one of these."""
_LETTERS_BLANK: Final = bytes(sign if sign in b"0123456789" else ord(" ") for sign in range(256))
_SEPARATORS: Final = bytes(sign for sign in range(128) if not chr(sign).isalnum())
_WINDOWS: Final = [slice(start, start + SHORT_DIGITS) for start in range(512)]
_HEX_BYTE: Final = re.compile(r"\\+x")


class NumberSpan(NamedTuple):
    """Where a known number stands in a text."""

    start: int
    end: int
    digits: str
    """All digits of the known number."""


class Unescaped(NamedTuple):
    """A text whose escapes are decoded, with the way back to the original."""

    text: str
    starts: list[int]
    """Where each piece begins in the decoded text, ascending."""
    spans: list[tuple[int, int, bool]]
    """Of each piece, in the original: start, end, and whether it is an escape, which cannot be cut."""


class PhoneNumber(NamedTuple):
    """A known number."""

    digits: str
    needed: int
    """How many of its last digits must match."""


class PhoneNumbers:
    """A set of phone numbers that are redacted. One thread may add while others search."""

    def __init__(self) -> None:
        self._numbers: dict[str, PhoneNumber] = {}
        """By their digits, in the order in which each was last added."""
        self._by_end: dict[str, list[PhoneNumber]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: str) -> None:
        """Add a number as Plivo sends it. One with fewer than DIGITS_MIN digits or more than DIGITS_MAX is left out."""
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
        """Remove all but the `count` numbers that were added last."""
        for digits in list(islice(self._numbers, max(0, len(self._numbers) - count))):
            self._numbers.pop(digits, None)
            end = digits[-SHORT_DIGITS:]
            # A new list, since another thread may be reading the old one.
            rest = [known for known in self._by_end.get(end, ()) if known.digits != digits]
            if rest:
                self._by_end[end] = rest
            else:
                self._by_end.pop(end, None)

    def redact(self, text: str) -> str:
        """The text with tokens in place of these numbers; the same object if it has none."""
        found = self.find(text)
        return _with_tokens(text, found) if found else text

    def find(self, text: str) -> list[NumberSpan]:
        """Where these numbers stand in a text, ascending, without overlaps."""
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
        """Whether a text may contain a number. Most contain none, and this decides so in a fifth of the time."""
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
    """The one of `known` that matches most digits before `end`, and how many; None if none matches enough.

    `digits` are a run's, `places` their positions in it; digits before `floor` belong to an earlier match.
    """
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
    """The digits of a number as Plivo sends it, in ASCII, without leading zeros.

    Of `sip:+14155550123@10.0.0.1` those before the host.
    """
    plain = number.lstrip("+0")
    if plain.isdigit() and plain.isascii():
        return plain
    return _NO_DIGIT.sub("", _with_ascii_digits(re.split("[@;,]", number, maxsplit=1)[0])).lstrip("0")


def _with_ascii_digits(text: str) -> str:
    """The text with ASCII digits in place of all others, raised and circled ones included. Its length stays."""
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
    """Whether these digits lie within a text that is sure to be no phone number (NO_NUMBER)."""
    hit = text[start:end]
    if "-" not in hit and ":" not in hit:
        return False
    near = NO_NUMBER.finditer(text, max(0, start - NO_NUMBER_MAX_CHARS), end + NO_NUMBER_MAX_CHARS)
    return any(match.start() <= start and end <= match.end() for match in near)


def _with_prefix_and_suffix(text: str, start: int, end: int, number: str) -> NumberSpan:
    before = _BEFORE.search(text, max(0, start - _BEFORE_MAX_CHARS), start)
    if before is not None:
        # A bracket belongs to the number only if it is closed within it.
        opened = 0 if ")" in text[start:end] else before[0].rfind("(") + 1
        start = before.start() + opened
    after = _AFTER.match(text, end)
    return NumberSpan(start, end if after is None else after.end(), number)


def _unescape(decoded: Unescaped) -> Unescaped:
    """Decode the escapes once more; `spans` still lead to the original."""
    text, pieces, starts, spans, length, last = decoded.text, list[str](), list[int](), [], 0, 0

    def append(piece: str, start: int, end: int, escape: bool) -> None:
        nonlocal length
        if piece:
            starts.append(length)
            spans.append((start, end, escape))
            pieces.append(piece)
            length += len(piece)

    def plain(start: int, end: int) -> None:
        """Copy text without an escape. Pieces of it may be escapes of an earlier round."""
        index = bisect_right(decoded.starts, start) - 1
        while start < end:
            began, (first, past, escape) = decoded.starts[index], decoded.spans[index]
            until = min(end, decoded.starts[index + 1] if index + 1 < len(decoded.starts) else len(text))
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
    return Unescaped("".join(pieces), starts, spans)


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
    """1.415555012E+10 as 14155550120: without the zeros a number would not be found."""
    digits = mantissa.replace(".", "")
    whole = digits[: power + 1].ljust(min(power, DIGITS_MAX) + 1, "0")
    return f"{whole}.{rest}" if (rest := digits[power + 1 :]) else whole


def _original_span(decoded: Unescaped, place: int) -> tuple[int, int]:
    """Start and end in the original of a character of the decoded text."""
    index = bisect_right(decoded.starts, place) - 1
    start, end, escape = decoded.spans[index]
    if escape:
        return start, end
    start += place - decoded.starts[index]
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
    """The text with tokens in place of the numbers found.

    A number in JSON that is outside its strings becomes a string, so that the text stays JSON.
    """
    whole = text.strip()
    json, in_string = whole[:1] + whole[-1:] in ("{}", "[]"), False
    pieces, last = [], 0
    for start, end, digits in found:
        if start < last:  # within a JSON number that the match before it replaced as a whole
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
