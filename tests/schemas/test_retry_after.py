from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.schemas.retry_after import RETRY_AFTER_MS_MAX, RETRY_AFTER_MS_MIN, retry_after_ms

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "wait_ms"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("0", None),
        ("0.001", RETRY_AFTER_MS_MIN),
        ("120", 120_000),
        (" 1.5 ", 1_500),
        ("9999999999", RETRY_AFTER_MS_MAX),
        ("99999999999999999999", None),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30_000),
        ("Sun, 01 Mar 2026 13:00:30 +0100", 30_000),
        ("Sun, 01 Mar 2026 11:59:30 GMT", None),
        ("Sun, 01 Mar 2027 12:00:00 GMT", RETRY_AFTER_MS_MAX),
        ("Sun, 31 Feb 2026 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms(header: str | None, wait_ms: int | None) -> None:
    assert retry_after_ms(header, NOW) == wait_ms


@given(st.integers(1, 86_400))
def test_seconds_and_date_mean_the_same(wait_s: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=wait_s), usegmt=True)
    assert retry_after_ms(date, NOW) == retry_after_ms(str(wait_s), NOW) == wait_s * 1000


@given(st.text())
def test_no_text_raises(text: str) -> None:
    wait_ms = retry_after_ms(text, NOW)
    assert wait_ms is None or RETRY_AFTER_MS_MIN <= wait_ms <= RETRY_AFTER_MS_MAX
