"""Which dead letters are one bug: those that differ only in what differs from event to event."""

import string
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.entries.failure_group import (
    MESSAGE_MAX_CHARS,
    group_key,
    normalised_message,
)

WORDS = [
    "no",
    "fare",
    "for",
    "the session",
    "timed out",
    "connection refused",
    "it can't be read:",
    "<Order at",
]

words = st.sampled_from(WORDS)
inner = st.text(st.characters(exclude_characters="'\"`", categories=["L", "N", "P", "Zs"]), max_size=12)
varying = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda value: f"{value:.3f}"),
    st.uuids().map(str),
    st.binary(min_size=4, max_size=16).map(bytes.hex),
    st.integers(0).map(hex),
    st.datetimes().map(lambda moment: moment.isoformat()),
    st.datetimes().map(str),
    st.text("0123456789abcdef", min_size=8, max_size=16).map(lambda token: f"num_{token}"),
    st.builds("{}-{}".format, st.sampled_from(["ORD", "pi", "cus"]), st.integers(0)),
    st.builds("'{}'".format, inner),
    st.builds('"{}"'.format, inner),
    st.just("someone@example.com"),
    st.lists(st.integers(), min_size=1, max_size=9).map(str),
    st.lists(st.builds("'{}'".format, inner), min_size=1, max_size=4).map(
        lambda names: f"({', '.join(names)})"
    ),
)


@st.composite
def messages_of_one_bug(draw):
    """Two messages with the same words, and other values at the same places."""
    words_of_it = draw(st.lists(words, min_size=1, max_size=6))
    at = draw(st.lists(st.booleans(), min_size=len(words_of_it), max_size=len(words_of_it)))
    kinds = [draw(st.sampled_from(range(2))) for _ in words_of_it]

    def one():
        parts = []
        for word, has_value, kind in zip(words_of_it, at, kinds, strict=True):
            parts.append(word)
            if has_value:
                parts.append(draw(varying) if kind else str(draw(st.integers())))
        return " ".join(parts)

    return one(), one()


def key(
    message, *, handler="settle", code="retries_exhausted", error_type="LookupError", frame="fares.py:find"
):
    return group_key(handler, code, error_type, frame, message)


@given(messages_of_one_bug())
def test_same_bug_with_other_values_is_the_same_group(pair):
    first, second = pair
    # A list has brackets or none, so the places are compared without them.
    assert unbracketed(first) == unbracketed(second)


def unbracketed(message):
    return "".join(normalised_message(message).translate(str.maketrans("", "", "[]()")).split())


@pytest.mark.parametrize(
    ("message", "normalised"),
    [
        ("", ""),
        ("no fare", "no fare"),
        ("no fare 17", "no fare #"),
        ("no fare for 'abc def' at 12:00:01.5", "no fare for # at #"),
        ("order A12-b34 of num_ab12cd34 is gone", "order # of # is gone"),
        ("it can't be read, don't try", "it can't be read, don't try"),
        ("503, message='Service Unavailable', url='http://x/y'", "#, message=#, url=#"),
        ("<Order object at 0x7f3a> is locked", "<Order object at #> is locked"),
        ("[Errno 111] Connect call failed ('192.0.2.7', 8080)", "[Errno #] Connect call failed (#)"),
        ("ids [1, 2, 3] unknown", "ids [#] unknown"),
        ("token deadbeefcafe is old", "token # is old"),
        ("to someone@example.com failed", "to # failed"),
        ("cut in 'the middle of a text…", "cut in #"),
        ("2026-01-01T10:00:00.123456+00:00 too late", "# too late"),
    ],
)
def test_messages_keep_their_words(message, normalised):
    assert normalised_message(message) == normalised


@given(st.text(max_size=300))
def test_any_text_is_normalised_to_one_short_line_without_digits(message):
    once = normalised_message(message)
    assert len(once) <= MESSAGE_MAX_CHARS
    assert once.splitlines() in ([], [once])
    assert not any(char.isdigit() for char in once if char.isascii())


@given(st.text(max_size=30), st.text(max_size=30))
def test_keys_are_short_words_and_no_phone_numbers(message, handler):
    made = key(message, handler=handler)
    assert len(made) == 8
    assert set(made) <= set(string.ascii_lowercase + "234567")
    assert made == key(message, handler=handler)


def test_another_handler_code_exception_or_function_is_another_group():
    keys = {
        key("no fare"),
        key("no fare", handler="bill"),
        key("no fare", code="rejected"),
        key("no fare", error_type="KeyError"),
        key("no fare", error_type=None),
        key("no fare", frame="fares.py:settle"),
        key("no fare", frame=None),
        key("no tariff"),
        # Parts do not run into each other.
        key("no fare", handler="settleretries_exhausted", code=""),
    }
    assert len(keys) == 9


def test_ten_thousand_letters_of_three_bugs_are_three_groups():
    bugs = [
        ("KeyError", "fares.py:find", "'{}'"),
        ("ClientResponseError", "fares.py:post", "503, message='Busy', url='http://billing/{}'"),
        ("ValueError", "fares.py:post", "amount {} of session {} is negative"),
    ]
    keys = set()
    for number in range(10_000):
        error_type, frame, message = bugs[number % 3]
        made = message.replace("{}", str(uuid.UUID(int=number * 2**90)))
        keys.add(key(made, error_type=error_type, frame=frame))
    assert len(keys) == 3


@pytest.mark.parametrize("quotes", ["''", '""', "``", "\u2018\u2019", "\u201c\u201d"])
def test_quoted_text_is_known_by_any_quotes(quotes):
    opens, closes = quotes
    assert normalised_message(f"no {opens}tariff of today{closes} found") == "no # found"


def test_what_follows_in_a_long_message_and_where_it_was_cut_make_no_difference():
    answer = "the billing service answered: '" + "x" * 2_000
    assert normalised_message(answer[:1_000] + "…") == normalised_message(answer[:900] + "'")
    assert normalised_message("word " * 100) == normalised_message("word " * 1_000)
