"""Parameters as signed and handled: as `parse_qsl` reads them, strict about UTF-8, bounded, JSON exact."""

from decimal import Decimal
from urllib.parse import parse_qsl, urlencode

import pytest
from example_counts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from maskline.schemas.errors import NotDecodableError
from maskline.schemas.parameters import (
    PAIRS_MAX,
    media_type,
    named_reading,
    parse_json,
    parse_pairs,
    parse_parameters,
)

many = settings(max_examples=examples(300), deadline=None)
FORM = "application/x-www-form-urlencoded"


@many
@given(st.lists(st.tuples(st.text(max_size=10), st.text(max_size=20)), max_size=20))
def test_encoded_pairs_parse_to_themselves(pairs):
    assert parse_pairs(urlencode(pairs).encode()) == pairs


PIECES = [
    "&",
    "=",
    "+",
    "%",
    "%41",
    "%4",
    "%zz",
    "%C3%A9",
    "%c3",
    "%a9",
    "%00",
    "%2b",
    "%26",
    "é",
    "a",
    "b=1",
    ";",
    "\x00",
    "🙂",
]


@many
@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join).map(str.encode) | st.binary(max_size=30))
def test_reads_as_parse_qsl_does(encoded):
    try:
        expected = parse_qsl(encoded.decode(), keep_blank_values=True, encoding="utf-8", errors="strict")
    except UnicodeDecodeError:
        with pytest.raises(NotDecodableError):
            parse_pairs(encoded)
    else:
        assert parse_pairs(encoded) == expected


def test_more_than_the_bound_of_pairs_is_refused():
    assert len(parse_pairs(b"&".join([b"a=1"] * PAIRS_MAX))) == PAIRS_MAX
    with pytest.raises(NotDecodableError, match="1000"):
        parse_pairs(b"&" * PAIRS_MAX)


def test_get_has_a_query_only_and_post_both():
    assert parse_parameters("GET", b"a=1", FORM, b"b=2") == ([("a", "1")], [], None)
    assert parse_parameters("POST", b"a=1", FORM, b"b=2") == ([("a", "1")], [("b", "2")], None)
    assert parse_parameters("POST", b"a=1", "", b"b=2") == ([("a", "1")], [("b", "2")], None)
    assert parse_parameters("POST", b"", "application/json", b"") == ([], [], None)
    assert parse_parameters("POST", b"a=1", "Application/JSON;charset=utf-8", b'{"b":2}').json == {"b": 2}
    assert parse_parameters("POST", b"", "application/cloudevents+json", b"{}").json == {}


@pytest.mark.parametrize(
    ("content_type", "reading"),
    [
        ("", "form"), (FORM.upper(), "form"), (f"{FORM}; charset=latin-1", "form"), (f"{FORM}, {FORM}", "form"),
        (f"{FORM},", "form"), (f"text/plain, {FORM};x", "form"), ("TEXT/JSON;x=y", "json"),
        ("application/x+json", "json"), ("text/json+json", "json"), ("application/json, text/json", "json"),
        ("application/json", "json"), (f"{FORM}, application/json", None), ("text/plain", None),
        ("*/*", None), ("json", None), (",", None),
        (";", "form"), (" ; charset=utf-8", "form"),
    ],
)  # fmt: skip
def test_content_type_names_a_reading(content_type, reading):
    assert named_reading(content_type) == reading


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "application", "*/*"]
)
def test_a_type_that_says_neither_leaves_it_to_the_look(content_type):
    assert parse_parameters("POST", b"", content_type, b"a=1") == ([], [("a", "1")], None)
    assert parse_parameters("POST", b"", content_type, b'\xef\xbb\xbf {"a":1}').json == {"a": 1}
    for body in (b"x", b"<a b='c'/>", b"--x\r\na: b=c", b"[1]", b"\xff\xfe"):
        with pytest.raises(NotDecodableError, match="neither"):
            parse_parameters("POST", b"", content_type, body)


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_json_as_editors_and_windows_write_it(encoding):
    assert parse_json('{"é":"😀 0.10","b":0.10}'.encode(encoding)) == {"é": "😀 0.10", "b": Decimal("0.10")}


def test_json_numbers_keep_their_digits():
    assert parse_json(b'{"a":0.10,"b":12345678901234567890123,"c":1e400}') == {
        "a": Decimal("0.10"),
        "b": 12345678901234567890123,
        "c": Decimal("1e400"),
    }
    assert str(parse_json(b'{"a":0.10}')["a"]) == "0.10"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"1",
        b"null",
        b"{",
        b'{"a":NaN}',
        b'{"a":1}x',
        b'{"\xff":1}',
        b'{"a":"\\ud800 "}',
        b'{"a":' + b"[" * 99999,
        b'{"a":1e99999999999999999999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf[]",
        b"\xef\xbb\xbf",
        b'{\x00"\x00a',
    ],
)
def test_broken_json_is_refused(body):
    with pytest.raises(NotDecodableError):
        parse_json(body)


def test_first_is_of_the_body_then_of_the_query():
    form = parse_parameters("POST", b"a=q&b=q", FORM, b"a=1&a=2")
    assert (form.first("a"), form.first("b"), form.first("c")) == ("1", "q", None)
    json = parse_parameters("POST", b"a=q&b=q", "application/json", b'{"a":null}')
    assert (json.first("a"), json.first("b")) == (None, "q")


def test_repr_shows_no_value():
    for content_type, body in ((FORM, b"From=14155550123"), ("application/json", b'{"From":"14155550123"}')):
        assert repr(parse_parameters("POST", b"To=14155550124", content_type, body)) == (
            "Parameters(1 of the query, 1 of the body)"
        )


def test_media_type():
    assert media_type(" Application/JSON ; charset=utf-8") == "application/json"
    assert media_type("") == ""
