"""Tokens and redaction: no dialable number survives, and what is none comes through untouched."""

import re
import uuid
from datetime import UTC, datetime

import pytest
from example_counts import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maskline.schemas import privacy
from maskline.schemas.privacy import number_token, redact, set_token_key

many = settings(max_examples=examples(300), deadline=None)
TOKEN = re.compile(r"num_[0-9a-f]{10}")


@pytest.fixture(autouse=True, scope="module")
def _key_of_its_own():
    key = privacy._token_key
    set_token_key(b"a key for these tests only")
    yield
    set_token_key(key)


def test_same_number_same_token():
    spellings = ["+14155550123", "14155550123", "+1 415-555-0123", "1 (415) 555.0123", "tel:+14155550123"]
    assert len({number_token(spelling) for spelling in spellings}) == 1
    assert TOKEN.fullmatch(number_token("+14155550123"))
    others = ["+14155550124", "anonymous", "911", "912", "", "sip:a1", "sip:b1"]
    assert len({number_token(text) for text in ["+14155550123", *others]}) == 1 + len(others)


def test_token_depends_on_the_key():
    before = number_token("+14155550123")
    key = privacy._token_key
    try:
        set_token_key(b"another key of 16 bytes or more")
        assert number_token("+14155550123") != before
    finally:
        set_token_key(key)
    assert number_token("+14155550123") == before


def test_short_token_key_is_refused():
    with pytest.raises(ValueError, match="16 bytes"):
        set_token_key(b"short")


@pytest.mark.parametrize(
    "template",
    [
        "{}",
        "call from {} failed",
        "'{}'",
        "From={}&To=x",
        '{{"From":"{}"}}',
        "<sip:{}@example.com>",
        "tel{}",
        "x\\n{}",
        "at 2024-02-01 06:28:15 {}",
        "1700000000000-0 {}",
        "{},",
        "{}.",
        "b'{}'",
        "num_{}",
    ],
)
@pytest.mark.parametrize(
    "number",
    [
        "+14155550123",
        "14155550123",
        "+1 415 555 0123",
        "+1 (415) 555-0123",
        "1.415.555.0123",
        "1-415-555-0123",
        "+44 7700 900123",
        "+447700900123",
        "447700900123",
        "(0)7700 900123",
        "%2B14155550123",
        "%2B1%20415%20555%200123",
        "%2B1+415+555+0123",
        "1\xa0415\u2011555\u20110123",
        "+1 (415)  555 - 0123",
    ],
)
def test_numbers_are_redacted(template, number):
    shown = redact(template.format(number))
    assert "5550123" not in re.sub(r"\W", "", shown)
    assert "900123" not in re.sub(r"\W", "", shown)
    assert TOKEN.search(shown)


def test_a_number_has_its_token_in_any_text():
    token = number_token("14155550123")
    assert (
        redact("From=%2B14155550123 is +1 (415) 555-0123, 14155550123.")
        == f"From={token} is {token}, {token}."
    )
    assert redact("14155550123 447700900123") == f"{token} {number_token('447700900123')}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "session 0d6ab5e2-8a3c-4f0a-9b1e-012345678901 took 42 ms",
        "12345678-1234-1234-1234-123456789012",
        "entry 1700000000000-0",
        "entries 1700000000000-0 1700000000001-12",
        "5 1700000000000-0",
        "1700000000000",
        "2024-02-01 06:28:15 +0000 UTC",
        "2024-02-01T06:28:15.123456Z",
        "2024-02-01 06:28:15.123456",
        "2024-02-01",
        "2024-02-01T06:28:15+05:30",
        "20240201T062815Z",
        "attempt 5 2024-02-01T06:28:15Z",
        "1706768895.123456",
        "0.00350000",
        "amount 1234567.89",
        "-12.5",
        "60",
        "1234567",
        "3600 s",
        "0.30000000000000004",
        "1.2345678e-05",
        "192.168.100.200:51234",
        "127.0.0.1:6379",
        "<object at 0x7f1234567890>",
        'File "a.py", line 1234, in f',
        "0123456789abcdef0123456789abcdef",
        "12345678901234567890",
        "1234\n5678",
        "1, 2, 3, 4, 5, 6, 7, 8, 9",
        "num_1234567890",
        "https://media.example.com/v1/0d6ab5e2-8a3c-4f0a-9b1e-012345678901.mp3",
    ],
)
def test_other_texts_are_kept(text):
    assert redact(text) == text


E164 = st.one_of(
    st.from_regex(r"\+[1-9][0-9]{7,14}", fullmatch=True),
    # Without the plus: country code 1 has 11 digits, so a time since the epoch is none of these.
    st.from_regex(r"(?:1[2-9][0-9]{9}|[2-9][0-9]{7,14})", fullmatch=True),
)
AROUND = st.text(st.characters(codec="utf-8", exclude_categories=["Nd"]), max_size=12)


@many
@given(AROUND, E164, AROUND)
def test_no_number_survives(before, number, after):
    assume(not re.search(r"0x$|[0-9A-Fa-f]$", before))  # may be part of a hexadecimal identifier
    assume(not re.match(r"[0-9A-Fa-f]", after))
    shown = redact(before + number + after)
    assert number.lstrip("+") not in shown
    assert number_token(number) in shown


@many
@given(E164, st.data())
def test_no_grouped_number_survives(number, data):
    grouped = number[:2] + "".join(
        data.draw(st.sampled_from(["", "", " ", "-", ".", ") ", " (", " - ", "%20", "+", "\u00a0"])) + digit
        for digit in number[2:]
    )
    assume(not re.fullmatch(r"\d+\.\d+", grouped))
    assume(not re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", grouped))
    assume(not re.search(r"\d{4}-\d\d-\d\d|1\d{12}-\d", grouped))
    shown = redact(f"call {grouped}!")
    assert shown.startswith("call")
    assert sum(char.isdigit() for char in TOKEN.sub("", shown)) == 0


@many
@given(
    st.lists(
        st.one_of(
            st.uuids().map(str),
            st.uuids().map(lambda value: value.hex).filter(lambda text: not text.isdigit()),
            st.datetimes(datetime(1990, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC)).map(str),  # noqa: DTZ001
            st.datetimes(datetime(1990, 1, 1), datetime(2099, 1, 1)).map(datetime.isoformat),  # noqa: DTZ001
            st.integers(1_600_000_000_000, 1_999_999_999_999).flatmap(
                lambda ms: st.integers(0, 10**6).map(lambda sequence: f"{ms}-{sequence}")
            ),
            st.decimals(0, 10**6, places=5).map(str),
            st.integers(-(10**6), 10**7 - 1).map(str),
        ),
        max_size=6,
    )
)
def test_no_identifier_time_or_amount_is_touched(words):
    for text in (", ".join(words), "\n".join(words), " and ".join(words)):
        assert redact(text) == text


@many
@given(st.text(st.sampled_from("0123456789 +-.()%2B:TZabcdefnum_xé\n"), max_size=80))
def test_redacting_again_changes_nothing(text):
    shown = redact(text)
    assert len(TOKEN.findall(redact(shown))) >= len(TOKEN.findall(shown))
    assert redact(number_token(text)) == number_token(text)


def test_time_grows_with_the_length_only():
    # Inputs that make a careless expression try every split; with such a one this test would not end.
    for text in (
        "1" * 200_000,
        "1 " * 100_000,
        "1234567 (" * 20_000,
        "2024-02-01 " * 20_000,
        "%2B" * 60_000,
        "a1" * 100_000,
    ):
        redact(text)


def test_a_uuid_of_this_machine():
    text = str(uuid.UUID(int=12345678901234567890))
    assert redact(text) == text
