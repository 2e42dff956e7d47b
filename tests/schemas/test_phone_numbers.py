"""No spelling of a known number survives, and what is none of them comes through untouched."""

import html
import json
import re
import time
import unicodedata
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import quote, quote_plus, unquote_plus

import pytest
from example_counts import examples
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from maskline.schemas.phone_numbers import PhoneNumbers, digits_of
from maskline.schemas.privacy import number_token

many = settings(max_examples=examples(100), deadline=None)

SEPARATORS = [
    *" -./_()·,|\t\n", "\u00a0", "\u2009", "\u202f", "\u2011", "\u200b", ", ", "', '", ") ", " / ", "\n│   ",
    " │\n│" + " " * 100, "'\n  b'",
    "\x1b[0m", "\x1b[1;38;5;208m", "%20", "%C2%A0", "%2D", "\\u00a0", "\\n", "\\t", "\\x00", "&nbsp;", "&#8209;",
]  # fmt: skip
SCRIPTS = {
    "ASCII": "0123456789",
    "full-width": "０１２３４５６７８９",  # noqa: RUF001 - what is tested
    "Arabic": "٠١٢٣٤٥٦٧٨٩",
    "raised": "⁰¹²³⁴⁵⁶⁷⁸⁹",
    "circled": "⓪①②③④⑤⑥⑦⑧⑨",
    "Devanagari": "०१२३४५६७८९",
    "percent-encoded": [f"%3{digit}" for digit in range(10)],
    "JSON's escapes": [f"\\u003{digit}" for digit in range(10)],
    "Python's escapes": [f"\\x3{digit}" for digit in range(10)],
    "HTML's": [f"&#{48 + digit};" for digit in range(10)],
}
WRAPPINGS = {
    "as it is": str,
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "repr": repr,
    "repr of bytes": lambda text: repr(text.encode()),
    "ascii": ascii,
    "a query": quote_plus,
    "a path": lambda text: quote(text, safe=""),
    "a query in JSON": lambda text: json.dumps(quote_plus(text)),
    "HTML": html.escape,
}

numbers = st.integers(8, 15).flatmap(
    lambda length: st.text("0123456789", min_size=length - 1, max_size=length - 1).flatmap(
        lambda rest: st.sampled_from("123456789").map(lambda first: first + rest)
    )
)


@st.composite
def spelled(draw, digits):
    """The digits in some script, with some separators between them, wrapped in something."""
    script = SCRIPTS[draw(st.sampled_from([*SCRIPTS]))]
    separators = draw(st.lists(st.sampled_from(SEPARATORS), min_size=1, max_size=3))
    pieces = []
    for index, digit in enumerate(digits):
        if index and draw(st.booleans()):
            pieces.append(draw(st.sampled_from(separators)))
        pieces.append(script[int(digit)])
    prefix = draw(st.sampled_from(["", "+", "00", "(", "tel:", "%2B", "\\u002b", "0", "+ "]))
    wrap = WRAPPINGS[draw(st.sampled_from([*WRAPPINGS]))]
    return wrap(prefix + "".join(pieces))


def national(digits):
    """The number as it is dialled at home: the country code is what E.164 says, for the codes in these tests."""
    for code in ("1", "44", "49", "33", "353"):
        if digits.startswith(code):
            return digits[len(code) :]
    return digits


def leaks(text, digits):
    """An independent judge: whether the digits of a text, its escapes resolved, have the number's last ones."""
    for _ in range(4):
        texts = [text]
        text = re.sub(r"num_[0-9a-f]{10}", "|", text)
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        text = html.unescape(unquote_plus(text))
        text = re.sub(r"\\+[ux]([0-9a-fA-F]{2,4})", lambda match: chr(int(match[1], 16)), text)
        texts.append(text)
        for shown in texts:
            found = "".join(str(unicodedata.digit(sign)) for sign in shown if sign.isdigit())
            if national(digits)[-9:] in found:
                return True
    return False


def known(*texts):
    them = PhoneNumbers()
    for text in texts:
        them.add(text)
    return them


@given(numbers, st.data())
@many
def test_no_spelling_of_a_known_number_survives(number, data):
    text = data.draw(spelled(number), label="text")
    before, after = data.draw(
        st.sampled_from([("", ""), ("call from ", " failed"), ("to=", "&x=1"), ("x", "y")])
    )
    hidden = known("+" + number).redact(before + text + after)
    assert number_token(number) in hidden
    assert not leaks(hidden, number)
    assert hidden.startswith(before)
    assert hidden.endswith(after)


@given(
    st.sampled_from(["14155550123", "447700900123", "491711234567", "33639980123", "353209120123"]), st.data()
)
@many
def test_national_spelling_of_a_known_number_is_redacted(number, data):
    trunk = data.draw(st.sampled_from(["", "0", "1", "8"]))
    hidden = known(number).redact(f"call {data.draw(spelled(trunk + national(number)))} failed")
    assert number_token(number) in hidden
    assert not leaks(hidden, number)


@given(numbers, st.integers(0, 3))
@many
def test_known_number_of_any_type_is_redacted(number, decimals):
    value = int(number)
    for shown in (
        str(value), str(float(value)), repr([value, {"to": float(value)}]), f"{value:,}", f"{value:_}",
        f"{value:.{decimals}f}", f"{value:.{len(number) - 1}e}", f"{Decimal(value):E}", str(Decimal(number)),
        json.dumps({"to": value, "deep": [float(value), str(value)]}),
    ):  # fmt: skip
        hidden = known(number).redact(shown)
        assert number_token(number) in hidden, shown
        assert not leaks(hidden, number), shown


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("0171/1234567", "{}"),
        ("+49 171 1234567", "{}"),
        ("00491711234567", "{}"),
        ("(0171) 1234567.", "{}."),
        ("call (+491711234567)", "call ({})"),
        ("491711234567.0 s", "{} s"),
        ("491711234567 491711234567", "{} {}"),
        ('{"to": 491711234567, "s": "x 491711234567"}', '{"to": "{}", "s": "x {}"}'),
        ("[491711234567.0]", '["{}"]'),
        ("[2024-02-01] call 491711234567", "[2024-02-01] call {}"),
        # As rich wraps it in a box, and pprint wraps bytes.
        (f"│ call 0171{' ' * 88}│\n│{' ' * 40}1234567", "│ call {}"),
        ("b'From=%2B49171'\n b'1234567'", "b'From={}'"),
        ("id-491711234568", "id-491711234568"),
        ("49171 and 1234567", "49171 and 1234567"),
    ],
)
def test_what_becomes_of_it(text, hidden):
    assert known("+49 171 1234567").redact(text) == hidden.replace("{}", number_token("491711234567"))


@pytest.mark.parametrize("number", ["14155550120", "14155550100", "4512345600", "447700900100"])
def test_zeros_that_a_power_of_ten_stands_for_are_the_numbers(number):
    them, value, token = known(number), Decimal(number), number_token(number)
    shown = [str(value.normalize()), f"{value.normalize():e}", f"{float(number):.12e}", f"{int(number):.9e}"]
    for text in shown:
        assert them.redact(f"to {text}, and") == f"to {token}, and", text
        assert them.redact(json.dumps({"to": text})) == json.dumps({"to": token})
    assert them.redact("1.5e+3 1e+99 2.5E+10 1.41555501E+09") == "1.5e+3 1e+99 2.5E+10 1.41555501E+09"


def test_a_short_national_number_is_found_where_it_stands_alone_and_not_within_others():
    danish = known("+4512345678")
    for text in ("12345678", "12 34 56 78", "+45 12 34 56 78", "004512345678", "4512345678.0"):
        assert danish.redact(f"to {text}, and") == f"to {number_token('4512345678')}, and"
    for text in ("17123456789012", "123456789", "a12345678901", "1712345678123-0", "2012-34-567890"):
        assert danish.redact(text) is text


def test_json_stays_json():
    them = known("14155550123", "447700900123")
    record = {"a": 14155550123, "b": [447700900123.0, 'x\\" 14155550123'], "14155550123": {"c": 14155550123}}
    one, two = number_token("14155550123"), number_token("447700900123")
    hidden = json.loads(them.redact(json.dumps(record)))
    assert hidden == {"a": one, "b": [two, f'x\\" {one}'], one: {"c": one}}


@pytest.mark.parametrize(
    "figure", ["29491711234567784", "491711234567.5", "3049171.1234567e+3", "-491711234567"]
)
def test_json_stays_json_where_a_number_is_part_of_a_figure(figure):
    hidden = json.loads(
        known("491711234567").redact(f'{{"a": {figure}, "b": [{figure}, 491711234567], "c": 1}}')
    )
    assert hidden == {"a": number_token("491711234567"), "b": [number_token("491711234567")] * 2, "c": 1}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("f9bdc6ea-4155-5501-23bf-c1a36af5d38f", "14155550123"),
        ("1795993974230-7", "59939742307"),
        ("2026-11-29T22:50:18.653535Z", "12501865353"),
        ("2026-11-29 22:50:18.653535+01:00", "12922501865"),
    ],
)
def test_uuids_times_and_entry_ids_are_kept_whatever_their_digits(text, number):
    token = number_token(number)
    hidden = known(number).redact(f"at {text}, {number} '{text}' {number}-{text}")
    assert hidden == f"at {text}, {token} '{text}' {token}-{text}"


@pytest.mark.parametrize(
    "text",
    [
        "1795993974231-4155550123",
        "2026-11-29 22:50:18,4155550123",
        "2026-11-29 22:50:18,415-555-0123",
        "2026-11-29 415 555 0123",
        "00000000-0000-0000-0000-014155550123",
    ],
)
def test_a_number_beside_or_at_the_end_of_them_is_found(text):
    assert number_token("14155550123") in known("14155550123").redact(text)


YEARS = datetime.fromisoformat("2020-01-01"), datetime.fromisoformat("2035-01-01")
ORDINARY = st.one_of(
    st.uuids().map(str),
    st.datetimes(*YEARS).map(lambda at: at.replace(tzinfo=UTC).isoformat()),
    st.builds(lambda ms, at: f"{ms}-{at}", st.integers(10**12, 2 * 10**12), st.integers(0, 99)),
    st.floats(0, 10**6).map(str),
    st.integers(0, 10**19).map(str),
    st.binary(max_size=32).map(bytes.hex),
    st.text(max_size=20),
    st.ip_addresses().map(str),
)


@given(st.lists(ORDINARY, min_size=1, max_size=8), st.sampled_from([" ", ", ", ":", "%20", "\\n"]))
@example([str(uuid.UUID(int=0)), "2024-02-01 06:28:15.123456", "1700000000000-0"], " ")
@many
def test_a_line_without_the_numbers_is_the_same(parts, separator):
    line = separator.join(parts)
    them = {f"1{area}5550{last}" for area in range(200, 220) for last in range(100, 200)}
    found = "".join(str(int(sign)) for sign in unquote_plus(line) + "|" + line if sign.isdecimal())
    assume(not any(number[-9:] in found for number in them))
    assert known(*them).redact(line) is line


def test_numbers_that_end_alike_keep_their_own_tokens():
    them = known("14155550123", "44155550123", "4915555550123")
    for number in ("14155550123", "44155550123", "4915555550123"):
        assert them.redact(f"+{number}") == number_token(number)


@pytest.mark.parametrize("number", ["911", "anonymous", "", "1234567", "1" * 16, "sip:alice@10.20.30.40"])
def test_what_is_no_number_is_not_looked_for(number):
    assert len(known(number)) == 0


def test_digits_of_a_sip_address_are_those_before_the_host():
    assert digits_of("sip:+14155550123@10.0.0.1;user=phone") == "14155550123"


def test_numbers_added_last_are_kept():
    them = known(*(f"141555501{last:02}" for last in range(100)), "44155550199")
    them.add("14155550100")
    them.keep_latest(3)
    assert len(them) == 3
    hidden = them.redact("14155550100 44155550199 14155550199 14155550198")
    assert hidden == " ".join(
        [*(number_token(number) for number in ("14155550100", "44155550199", "14155550199")), "14155550198"]
    )
    them.keep_latest(0)
    assert them.redact("14155550100") == "14155550100"


@pytest.mark.parametrize(
    "part",
    ["x", "1234567890", "14155550123 ", "1-", "%31", "\\u0031", "%31x", "1" + " " * 16, '{"a": 14155550123}',
     "1" + " " * 256, "\\", "%", "&", "'\n", "\x1b[", "\x1b]"],
)  # fmt: skip
def test_time_grows_with_the_length_and_no_faster(part):
    them = known("14155550123")

    def took_s(size):
        text = part * (size // len(part))
        best = 60.0
        for _ in range(3):
            began = time.process_time()
            them.redact(text)
            best = min(best, time.process_time() - began)
        return best

    assert took_s(80_000) < 8 * 4 * max(took_s(10_000), 0.0001)
