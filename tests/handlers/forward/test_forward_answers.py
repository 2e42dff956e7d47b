from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.handlers.webhooks.answers import STATUSES, Answer, outcome_of, problem_text, wait_ms
from maskline.schemas.answer_text import ANSWER_CHARS_MAX
from maskline.worker.entries.failure_group import normalised_message

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PAGE = (Path(__file__).parents[3] / "docs" / "modules" / "forward.md").read_text()
OUTCOMES = {"done": "done", "again": "tried again", "give_up": "dead letter"}


def answer(status: int = 500, body: bytes = b"", location: str | None = None) -> Answer:
    return Answer(status, None, location, body)


@pytest.mark.parametrize(
    ("outcome", "statuses"),
    [
        ("done", [200, 201, 202, 204, 299]),
        ("give_up", [300, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 410, 413, 422]),
        ("again", [408, 429, 500, 502, 503, 504, 599]),
        ("again", [101, 402, 405, 406, 409, 411, 415, 418, 421, 423, 425, 428, 431, 451, 499, 600, 999]),
    ],
)
def test_what_follows_a_status(outcome, statuses):
    assert {outcome_of(status) for status in statuses} == {outcome}


def test_the_page_shows_the_same_table():
    for rule in STATUSES:
        assert f"| {rule.statuses} | {OUTCOMES[rule.outcome]} | {rule.why} |" in PAGE


def test_an_endpoint_says_when_to_come_back():
    assert wait_ms(Answer(429, "7", None, b""), NOW) == 7_000
    date = format_datetime(NOW + timedelta(seconds=90), usegmt=True)
    assert wait_ms(Answer(503, date, None, b""), NOW) == 90_000
    assert wait_ms(Answer(503, "soon", None, b""), NOW) is None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (answer(404), "shop answered 404"),
        (answer(500, b"  no\n\ttable\x00 'x' \"y\"\x1b[31m"), "shop answered 500: \"no table 'x' 'y' [31m\""),
        (answer(500, b"\xff\xfe"), 'shop answered 500: "\ufffd\ufffd"'),
        (answer(500, b"POST /hooks?key=k"), 'shop answered 500: "POST ***"'),
        (answer(401, b"Bearer abc is unknown"), 'shop answered 401: "*** is unknown"'),
        (answer(301, b"", "https://other.example.com/t?k=s"), "a redirect to other.example.com"),
        (answer(301, b"", "/login"), "a redirect to the same host"),
        (answer(301, b"", "http://[::1/"), "a redirect to the same host"),
        (answer(301, b"", "//evil.example\x1b/x"), "a redirect to the same host"),
    ],
)
def test_an_answer_in_one_line(given, text):
    shown = problem_text("shop", given, ("/hooks?key=k", "Bearer abc", "/hooks"))
    assert shown == text or (shown.startswith("shop answered 301, ") and shown.endswith(text))


def test_no_phone_number_stands_in_it():
    shown = problem_text("shop", answer(400, b"no rider with " + b"x" * 170 + b" +1 415-555-0123 here"), ())
    assert "415" not in shown
    assert "0123" not in shown


@given(st.binary(max_size=2_000))
def test_any_body_is_one_printable_line(body):
    shown = problem_text("shop", answer(500, body), ("secret",))
    assert shown.isprintable()
    assert len(shown) <= ANSWER_CHARS_MAX + len('shop answered 500: ""')


@given(st.text(max_size=50), st.text(max_size=50))
def test_letters_of_one_status_are_one_group(first, second):
    texts = [problem_text("shop", answer(422, f"about {body}.".encode()), ()) for body in (first, second)]
    assert len({normalised_message(text) for text in texts}) == 1
