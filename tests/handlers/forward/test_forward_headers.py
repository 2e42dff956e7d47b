import re
from datetime import UTC, datetime
from pathlib import Path

from forward_kit import SECRET
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from maskline.handlers.webhooks.headers import VALUE_CHARS_MAX, header_text
from maskline.schemas.forward_message import HEADERS

SAFE = re.compile(r"[A-Za-z0-9:_%-]*\Z")


@given(st.text(max_size=300))
def test_any_text_may_stand_in_a_header(text):
    shown = header_text(text)
    assert SAFE.match(shown)
    assert len(shown) <= VALUE_CHARS_MAX


@given(st.text(max_size=300), st.text(max_size=300))
def test_other_texts_have_other_values(first, second):
    assert (header_text(first) == header_text(second)) == (first == second)


def test_what_plivo_sends_stands_as_it_is():
    key = "5e551011-0000-4000-8000-000000000000:12:0123456789abcdef"
    assert header_text(key) == key
    assert header_text("a.b c\r\nX: ü\ud800") == "a%2Eb%20c%0D%0AX:%20%C3%BC%ED%A0%80"
    assert header_text("x" * 257).startswith("sha256:")


@given(st.text(max_size=100), st.text(st.characters(exclude_categories=["Cs"])))
def test_the_library_verifies_any_id_and_body(key, body):
    now = datetime.now(UTC)
    message_id = header_text(key + "x")
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign(message_id, now, body),
    }
    Webhook(SECRET).verify(body, headers, json_parse=False)


def test_the_page_shows_the_same_table():
    page = (Path(__file__).parents[3] / "docs" / "modules" / "forward.md").read_text()
    for name, meaning in HEADERS.items():
        assert f"| `{name}` | {meaning} |" in page
