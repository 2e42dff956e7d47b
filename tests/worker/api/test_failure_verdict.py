import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.api.binding import BoundHandler
from maskline.worker.api.exceptions import HandlerHungError, HandlerTimeoutError, Reject, Retry
from maskline.worker.api.failure_verdict import judge, overtime, unstoppable
from maskline.worker.api.retry_schedule import RetryPolicy
from maskline.worker.error_text import MESSAGE_MAX_CHARS, storable_text

POLICY = RetryPolicy(retries=2, backoff_ms=100, backoff_max_ms=1_000)


class BrokenTextError(Exception):
    def __str__(self):
        raise RuntimeError("no text today")


class NoTextError(Exception):
    def __str__(self):
        return {}.get("text")  # none: str() raises


def handler(timeout_ms=250):
    return BoundHandler("settle", print, False, POLICY, timeout_ms / 1000)


@pytest.mark.parametrize(
    ("failure", "attempt", "expected"),
    [
        (ValueError("no fare"), 1, (100, "failed", "ValueError: no fare")),
        (ValueError("no fare"), 2, (200, "failed", "ValueError: no fare")),
        (
            ValueError("no fare"),
            3,
            (None, "retries_exhausted", "retries exhausted after 3 attempts: ValueError: no fare"),
        ),
        (SystemExit(3), 1, (100, "failed", "SystemExit: 3")),
        (asyncio.CancelledError(), 1, (100, "failed", "CancelledError")),
        (Retry(after_ms=7), 1, (7, "failed", "Retry: the handler asked for another try")),
        (Retry("busy", after_ms=7), 2, (7, "failed", "Retry: busy")),
        (Retry("busy"), 1, (100, "failed", "Retry: busy")),
        (Retry(after_ms=0), 1, (0, "failed", "Retry: the handler asked for another try")),
        (Retry(after_ms=10**9), 1, (1_000, "failed", "Retry: the handler asked for another try")),
        (Retry("busy"), 3, (None, "retries_exhausted", "retries exhausted after 3 attempts: Retry: busy")),
        (Reject("no such fare"), 1, (None, "rejected", "rejected: no such fare")),
        (HandlerTimeoutError("no end after 5 ms"), 1, (100, "failed", "timed out: no end after 5 ms")),
        (
            HandlerTimeoutError("no end after 5 ms"),
            3,
            (None, "timed_out", "retries exhausted after 3 attempts: timed out: no end after 5 ms"),
        ),
        (HandlerHungError("no end"), 1, (None, "timed_out", "timed out: no end")),
        # A handler's own TimeoutError is a failure like any other.
        (TimeoutError("slow"), 1, (100, "failed", "TimeoutError: slow")),
        # So they leave a TaskGroup.
        (
            ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [Reject("no")])]),
            1,
            (None, "rejected", "rejected: no"),
        ),
        (ExceptionGroup("g", [Retry(after_ms=9)]), 1, (9, "failed", "ExceptionGroup: g (1 sub-exception)")),
    ],
)  # fmt: skip
def test_verdict_follows_the_table(failure, attempt, expected):
    assert judge(failure, POLICY, attempt, jitter=1) == expected


def test_one_attempt_is_no_plural():
    verdict = judge(KeyError("x"), RetryPolicy(retries=0), 1, jitter=0)
    assert verdict.reason == "retries exhausted after 1 attempt: KeyError: 'x'"


@pytest.mark.parametrize(
    "failure", [BrokenTextError(), NoTextError(), ValueError("\udcff"), ValueError("a\n\nb\tc" * 9_000)]
)
def test_any_exception_becomes_one_line_of_bounded_length_that_can_be_stored(failure):
    verdict = judge(failure, RetryPolicy(retries=0), 1, jitter=0)
    verdict.reason.encode()
    assert "\n" not in verdict.reason
    assert type(failure).__name__ in verdict.reason
    assert len(verdict.reason) < MESSAGE_MAX_CHARS + 100


@given(st.text(st.characters(), max_size=3_000))
def test_reasons_are_one_storable_line_whatever_the_text(text):
    for failure in (ValueError(text), Reject(text), Retry(text)):
        reason = judge(failure, POLICY, 9, jitter=0).reason
        reason.encode()
        assert reason.splitlines() in ([], [reason])
        assert len(reason) < MESSAGE_MAX_CHARS + 100


@pytest.mark.parametrize("before", [0, *range(MESSAGE_MAX_CHARS - 40, MESSAGE_MAX_CHARS + 3)])
def test_no_phone_number_gets_into_a_reason_not_even_its_first_half(before):
    failure = LookupError("x" * before + " +44 7700 900123 is busy")
    reason = judge(failure, POLICY, 1, jitter=0).reason
    assert "7700" not in reason
    assert "+44" not in reason


@pytest.mark.parametrize("after_ms", [-1, float("nan"), -0.1])
def test_retry_refuses_a_negative_wait_where_it_is_raised(after_ms):
    with pytest.raises(ValueError, match="after_ms"):
        Retry(after_ms=after_ms)


def test_overtime_says_how_long_and_whether_it_may_go_on():
    assert isinstance(overtime(handler(), in_thread=False), HandlerTimeoutError)
    assert str(overtime(handler(), in_thread=False)) == "no end after 250 ms"
    for failure in (overtime(handler(), in_thread=True), unstoppable(handler())):
        assert isinstance(failure, HandlerHungError)
        assert judge(failure, POLICY, 1, jitter=0).delay_ms is None
        assert "250 ms" in str(failure)


def test_storable_text_keeps_all_that_can_be_kept():
    assert storable_text("naïve ✓ \U0001f600") == "naïve ✓ \U0001f600"
    assert storable_text("file-\udcff") == "file-\\udcff"
