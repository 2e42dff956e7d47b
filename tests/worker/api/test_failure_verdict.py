import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.api.binding import BoundHandler
from maskline.worker.api.exceptions import (
    HandlerCrashedError,
    HandlerHungError,
    HandlerTimeoutError,
    Reject,
    Retry,
)
from maskline.worker.api.failure_verdict import (
    FailedInSandboxError,
    FailureReport,
    cause_of_giving_up,
    failure_origin,
    failure_report,
    judge,
    overtime,
    unstoppable,
)
from maskline.worker.api.retry_schedule import RetryPolicy
from maskline.worker.error_text import MESSAGE_MAX_CHARS, NO_ORIGIN, Origin, storable_text

NOW_MS = 1_767_225_600_000
POLICY = RetryPolicy(retries=2, backoff_ms=100, backoff_max_ms=1_000)


class BrokenTextError(Exception):
    def __str__(self):
        raise RuntimeError("no text today")


class NoTextError(Exception):
    def __str__(self):
        return {}.get("text")  # none: str() raises


def verdict_on(failure, attempts, *, policy=POLICY, jitter=0, failing_for_ms=0):
    return judge(
        failure_report(failure),
        policy,
        attempts=attempts,
        first_failed_ms=NOW_MS - failing_for_ms,
        now_ms=NOW_MS,
        jitter=jitter,
    )


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
    assert verdict_on(failure, attempt, jitter=1) == expected


HOUR_S = 3_600


@pytest.mark.parametrize(
    ("give_up_after_s", "failing_for_s", "attempts", "said"),
    [
        (24 * HOUR_S, 24 * HOUR_S, 312, "given up after 24 h and 312 attempts"),
        (24 * HOUR_S, 24 * HOUR_S + 299, 312, "given up after 24 h and 312 attempts"),
        (72 * HOUR_S, 72 * HOUR_S, 900, "given up after 3 days and 900 attempts"),
        (90 * 60, 90 * 60, 20, "given up after 90 min and 20 attempts"),
        (30, 30.4, 5, "given up after 30 s and 5 attempts"),
        (0, 0, 1, "given up after 0 s and 1 attempt"),
    ],
)
def test_time_ends_the_tries_and_the_reason_says_how_long_it_was(
    give_up_after_s, failing_for_s, attempts, said
):
    policy = RetryPolicy(give_up_after_s=give_up_after_s)
    failing_for_ms = round(failing_for_s * 1000)
    verdict = verdict_on(ValueError("no fare"), attempts, policy=policy, failing_for_ms=failing_for_ms)
    assert verdict == (None, "retries_exhausted", f"{said}: ValueError: no fare")
    slow = verdict_on(HandlerTimeoutError("no end"), attempts, policy=policy, failing_for_ms=failing_for_ms)
    assert slow == (None, "timed_out", f"{said}: timed out: no end")
    if failing_for_s:
        again = verdict_on(ValueError(), attempts, policy=policy, failing_for_ms=failing_for_ms // 2)
        assert again.code == "failed"


def test_count_and_time_limit_together_whichever_comes_first():
    policy = RetryPolicy(retries=3, give_up_after_s=60)
    assert verdict_on(ValueError(), 3, policy=policy, failing_for_ms=59_999).code == "failed"
    by_count = verdict_on(ValueError(), 4, policy=policy, failing_for_ms=10)
    assert by_count.reason == "retries exhausted after 4 attempts: ValueError"
    by_time = verdict_on(ValueError(), 2, policy=policy, failing_for_ms=60_000)
    assert by_time.reason == "given up after 60 s and 2 attempts: ValueError"


def test_the_first_failure_and_a_clock_set_back_have_all_of_the_time_left():
    report, policy = failure_report(ValueError()), RetryPolicy(give_up_after_s=1)
    for first_failed_ms in (None, NOW_MS, NOW_MS + 3_600_000):
        verdict = judge(report, policy, attempts=1, first_failed_ms=first_failed_ms, now_ms=NOW_MS, jitter=1)
        assert verdict.delay_ms == 500


def test_a_failure_in_a_sandbox_is_judged_by_its_report_and_keeps_what_was_seen_there():
    report, origin = FailureReport("failed", "ValueError: no fare", 70), Origin("ValueError", "f.py:g", "no")
    failure = FailedInSandboxError(report, "File f.py", origin)
    assert verdict_on(failure, 1) == (70, "failed", "ValueError: no fare")
    verdict = verdict_on(failure, 3)
    assert verdict.code == "retries_exhausted"
    cause = cause_of_giving_up(verdict, failure, handler="settle", attempts=3)
    assert cause == ("retries_exhausted", verdict.reason, "settle", 3, "File f.py", origin)


def look_fare_up():
    raise LookupError("no fare 17")


def test_a_dead_letter_says_where_the_handler_failed():
    with pytest.raises(LookupError) as caught:
        look_fare_up()
    failure = caught.value
    cause = cause_of_giving_up(verdict_on(failure, 3), failure, handler="settle", attempts=3)
    assert cause.origin == Origin("LookupError", "test_failure_verdict.py:look_fare_up", "no fare 17")
    assert cause.traceback.endswith("LookupError: no fare 17")
    unreached = cause_of_giving_up(verdict_on(Reject("x"), 1), None, handler=None, attempts=0)
    assert unreached[2:] == (None, 0, None, NO_ORIGIN)


@pytest.mark.parametrize(
    "failure", [HandlerHungError("no end"), HandlerTimeoutError("no end"), HandlerCrashedError(2, "SIGKILL")]
)
def test_attempts_that_maskline_ended_have_no_place_of_failure(failure):
    assert failure_origin(failure) == NO_ORIGIN
    assert cause_of_giving_up(verdict_on(failure, 9), failure, handler="h", attempts=9).origin == NO_ORIGIN


def test_a_handler_that_crashes_its_worker_is_given_up():
    verdict = verdict_on(HandlerCrashedError(3), 1)
    assert (verdict.delay_ms, verdict.code) == (None, "crashed_worker")
    assert "3 times" in verdict.reason


def test_one_attempt_is_no_plural():
    verdict = verdict_on(KeyError("x"), 1, policy=RetryPolicy(retries=0))
    assert verdict.reason == "retries exhausted after 1 attempt: KeyError: 'x'"


@pytest.mark.parametrize(
    "failure", [BrokenTextError(), NoTextError(), ValueError("\udcff"), ValueError("a\n\nb\tc" * 9_000)]
)
def test_any_exception_becomes_one_line_of_bounded_length_that_can_be_stored(failure):
    verdict = verdict_on(failure, 1, policy=RetryPolicy(retries=0))
    verdict.reason.encode()
    assert "\n" not in verdict.reason
    assert type(failure).__name__ in verdict.reason
    assert len(verdict.reason) < MESSAGE_MAX_CHARS + 100


@given(st.text(st.characters(), max_size=3_000))
def test_reasons_are_one_storable_line_whatever_the_text(text):
    for failure in (ValueError(text), Reject(text), Retry(text)):
        reason = verdict_on(failure, 9).reason
        reason.encode()
        assert reason.splitlines() in ([], [reason])
        assert len(reason) < MESSAGE_MAX_CHARS + 100


@pytest.mark.parametrize("before", [0, *range(MESSAGE_MAX_CHARS - 40, MESSAGE_MAX_CHARS + 3)])
def test_no_phone_number_gets_into_a_reason_not_even_its_first_half(before):
    failure = LookupError("x" * before + " +44 7700 900123 is busy")
    reason = verdict_on(failure, 1).reason
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
        assert verdict_on(failure, 1).delay_ms is None
        assert "250 ms" in str(failure)


def test_storable_text_keeps_all_that_can_be_kept():
    assert storable_text("naïve ✓ \U0001f600") == "naïve ✓ \U0001f600"
    assert storable_text("file-\udcff") == "file-\\udcff"
