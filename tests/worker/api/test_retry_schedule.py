import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.api.retry_schedule import (
    BACKOFF_MAX_MS_DEFAULT,
    BACKOFF_MS_DEFAULT,
    RETRIES_DEFAULT,
    TIMEOUT_MS_DEFAULT,
    RetryPolicy,
)

policies = st.builds(
    RetryPolicy,
    retries=st.integers(0, 10**6),
    backoff_ms=st.integers(0, 10**7),
    backoff_max_ms=st.integers(0, 10**9),
)
jitters = st.floats(0, 1)


def test_defaults_are_those_of_the_contract():
    assert RetryPolicy() == (RETRIES_DEFAULT, BACKOFF_MS_DEFAULT, BACKOFF_MAX_MS_DEFAULT)
    assert RETRIES_DEFAULT == 8
    assert TIMEOUT_MS_DEFAULT >= 1


@pytest.mark.parametrize(
    ("attempt", "jitter", "expected"),
    [
        (1, 0, 50),
        (1, 1, 100),
        (2, 0, 100),
        (2, 1, 200),
        (3, 0.5, 300),
        (4, 1, 800),
        (5, 1, 1_000),
        (9, 0, 500),
    ],
)
def test_doubles_up_to_the_greatest(attempt, jitter, expected):
    policy = RetryPolicy(retries=10, backoff_ms=100, backoff_max_ms=1_000)
    assert policy.delay_ms(attempt, after_ms=None, jitter=jitter) == expected


@pytest.mark.parametrize("retries", [0, 1, 3, 8])
def test_retries_are_the_tries_after_the_first(retries):
    policy = RetryPolicy(retries=retries, backoff_ms=1, backoff_max_ms=1)
    attempts = 1
    while policy.delay_ms(attempts, after_ms=None, jitter=0.5) is not None:
        attempts += 1
    assert attempts == retries + 1


@given(policies, st.integers(1, 10**7), jitters)
def test_the_wait_lies_between_half_and_the_whole_of_a_bounded_backoff(policy, attempt, jitter):
    delay = policy.delay_ms(attempt, after_ms=None, jitter=jitter)
    if attempt > policy.retries:
        assert delay is None
        return
    whole = policy.backoff_max_ms
    if attempt <= 33:
        whole = min(policy.backoff_ms * 2 ** (attempt - 1), whole)
    elif policy.backoff_ms == 0:
        whole = 0
    assert delay is not None
    # Past the 33rd attempt the doubling has ended, far above any greatest wait that an operator would set.
    assert delay <= whole
    if attempt <= 33:
        assert whole / 2 <= delay


@given(policies, st.integers(1, 100), jitters)
def test_a_later_attempt_never_waits_less(policy, attempt, jitter):
    first = policy.delay_ms(attempt, after_ms=None, jitter=jitter)
    second = policy.delay_ms(attempt + 1, after_ms=None, jitter=jitter)
    if first is not None and second is not None:
        assert second >= first


@given(policies, st.integers(1, 10**6), jitters, st.integers(0, 10**400))
def test_what_the_handler_asks_for_is_taken_as_it_is_up_to_the_greatest(policy, attempt, jitter, after_ms):
    delay = policy.delay_ms(attempt, after_ms=after_ms, jitter=jitter)
    assert delay == (None if attempt > policy.retries else min(after_ms, policy.backoff_max_ms))
