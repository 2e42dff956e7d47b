"""When a failed handler is tried again, until when, and where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.api.retry_schedule import (
    BACKOFF_MAX_MS_DEFAULT,
    BACKOFF_MIN_MS,
    BACKOFF_MS_DEFAULT,
    GIVE_UP_AFTER_S_DEFAULT,
    INLINE_WINDOW_MS,
    RETRIES_DEFAULT,
    TIMEOUT_MS_DEFAULT,
    RetryPolicy,
    is_inline,
)

FOREVER_S = 10**12

policies = st.builds(
    RetryPolicy,
    retries=st.none() | st.integers(0, 10**6),
    backoff_ms=st.integers(0, 10**7),
    backoff_max_ms=st.integers(0, 10**9),
    give_up_after_s=st.just(FOREVER_S),
)
limited_policies = st.builds(
    RetryPolicy,
    retries=st.none() | st.integers(0, 100),
    backoff_ms=st.integers(0, 10**5),
    backoff_max_ms=st.integers(0, 10**6),
    give_up_after_s=st.floats(0, 10**5),
)
jitters = st.floats(0, 1)
asked = st.none() | st.integers(0, 10**400)


def delay(policy, attempts, *, failing_for_ms=0, after_ms=None, jitter=1.0):
    return policy.delay_ms(attempts, failing_for_ms=failing_for_ms, after_ms=after_ms, jitter=jitter)


def test_defaults_are_those_of_the_contract():
    assert RetryPolicy() == (
        RETRIES_DEFAULT,
        BACKOFF_MS_DEFAULT,
        BACKOFF_MAX_MS_DEFAULT,
        GIVE_UP_AFTER_S_DEFAULT,
    )
    assert RetryPolicy() == (None, 500, 300_000, 86_400)
    assert TIMEOUT_MS_DEFAULT >= 1


@pytest.mark.parametrize(
    ("attempts", "jitter", "expected"),
    [
        (1, 0.5, 50),
        (1, 1, 100),
        (2, 0.25, 50),
        (2, 1, 200),
        (3, 0.5, 200),
        (4, 1, 800),
        (5, 1, 1_000),
        (9, 0.5, 500),
        (1, 0, BACKOFF_MIN_MS),
        (9, 0, BACKOFF_MIN_MS),
    ],
)
def test_doubles_up_to_the_greatest_and_waits_a_random_part_of_it(attempts, jitter, expected):
    policy = RetryPolicy(retries=10, backoff_ms=100, backoff_max_ms=1_000)
    assert delay(policy, attempts, jitter=jitter) == expected


@pytest.mark.parametrize("retries", [0, 1, 3, 8])
def test_retries_are_the_tries_after_the_first(retries):
    policy = RetryPolicy(retries=retries, backoff_ms=1, backoff_max_ms=1)
    attempts = 1
    while delay(policy, attempts) is not None:
        attempts += 1
    assert attempts == retries + 1


@given(policies, st.integers(1, 10**7), jitters)
def test_the_wait_is_the_drawn_part_of_a_bounded_backoff(policy, attempts, jitter):
    waited_ms = delay(policy, attempts, jitter=jitter)
    if policy.retries is not None and attempts > policy.retries:
        assert waited_ms is None
        return
    # Past the 33rd attempt the doubling has ended, far above any greatest wait that an operator would set.
    whole_ms = min(policy.backoff_ms * 2 ** min(attempts - 1, 32), policy.backoff_max_ms)
    least_ms = BACKOFF_MIN_MS if policy.retries is None else min(whole_ms, BACKOFF_MIN_MS)
    assert waited_ms == max(whole_ms * jitter, least_ms)


@given(policies, st.integers(1, 100), jitters)
def test_a_later_attempt_never_waits_less_at_the_same_draw(policy, attempts, jitter):
    first = delay(policy, attempts, jitter=jitter)
    second = delay(policy, attempts + 1, jitter=jitter)
    if first is not None and second is not None:
        assert second >= first


@given(policies, st.integers(1, 10**6), jitters, st.integers(0, 10**400))
def test_what_the_handler_asks_for_is_taken_as_it_is_up_to_the_greatest(policy, attempts, jitter, after_ms):
    waited_ms = delay(policy, attempts, after_ms=after_ms, jitter=jitter)
    if policy.retries is None:
        assert waited_ms == max(min(after_ms, policy.backoff_max_ms), BACKOFF_MIN_MS)
    else:
        expected = None if attempts > policy.retries else min(after_ms, policy.backoff_max_ms)
        assert waited_ms == expected


@given(limited_policies, asked, st.lists(jitters, min_size=1, max_size=9))
def test_tries_end_with_one_at_the_time_limit_and_none_begins_after_it(policy, after_ms, draws):
    """A handler that fails at once, each time: its tries are at `now_ms`."""
    limit_ms = policy.give_up_after_s * 1000
    now_ms, attempts, by_time = 0.0, 1, False
    for draw in draws * 40:
        wait_ms = delay(policy, attempts, failing_for_ms=now_ms, after_ms=after_ms, jitter=draw)
        if wait_ms is None:
            by_time = policy.retries is None or attempts <= policy.retries
            break
        assert wait_ms >= 0
        if policy.retries is None:
            assert wait_ms >= BACKOFF_MIN_MS or now_ms + wait_ms >= limit_ms - 1e-3
        now_ms += wait_ms
        attempts += 1
        assert now_ms <= limit_ms + 1e-3
    if by_time:
        assert now_ms == pytest.approx(limit_ms)
    if policy.retries is not None:
        assert attempts <= policy.retries + 1


def test_a_night_of_failures_spends_a_bounded_number_of_tries():
    """With the defaults and the longest draws; the docs say so."""
    now_ms, attempts = 0.0, 1
    while (wait_ms := delay(RetryPolicy(), attempts, failing_for_ms=now_ms)) is not None:
        now_ms += wait_ms
        attempts += 1
    assert now_ms == 86_400_000
    assert 290 < attempts < 310


@pytest.mark.parametrize(
    ("failing_for_ms", "delay_ms", "expected"),
    [
        (0, 0, True),
        (0, INLINE_WINDOW_MS, True),
        (0, INLINE_WINDOW_MS + 1, False),
        (INLINE_WINDOW_MS - 10, 10, True),
        (INLINE_WINDOW_MS - 10, 11, False),
        (INLINE_WINDOW_MS + 1, 0, False),
        (-3_600_000, INLINE_WINDOW_MS, True),
        (-3_600_000, INLINE_WINDOW_MS + 1, False),
    ],
)
def test_tries_that_begin_within_the_window_stay_in_the_worker(failing_for_ms, delay_ms, expected):
    first_failed_ms = 1_767_225_600_000
    assert is_inline(first_failed_ms, first_failed_ms + failing_for_ms, delay_ms) is expected
