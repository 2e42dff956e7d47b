"""The limits of handlers: a rate and a number at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.gates.limits import BURST_S, HandlerLimits, TokenBucket


@given(
    st.floats(0.01, 2_000),
    st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_calls_never_exceed_rate_and_burst(rate: float, pauses: list[float]) -> None:
    bucket, now, calls = TokenBucket(rate, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        free = bucket.available(now)
        for _ in range(free):
            bucket.spend()
        calls += free
        assert bucket.available(now) == 0
        assert calls <= max(1.0, rate * BURST_S) + rate * now + 1e-6
        now += bucket.wait_s(now)
        assert bucket.available(now) >= 1


def test_rate_is_reached() -> None:
    bucket, now, calls = TokenBucket(50.0, 0.0), 0.0, 0
    while now < 10.0:
        now += bucket.wait_s(now)
        bucket.spend()
        calls += 1
    assert calls == pytest.approx(500, abs=6)


def test_call_that_was_not_allowed_is_made_up_for() -> None:
    limits = HandlerLimits(None, 1.0, 0.0)
    limits.begin()
    limits.begin()
    assert limits.available(1.0) == 0
    assert limits.wait_s(1.0) == pytest.approx(1.0)
    limits.end(called=False)
    assert limits.available(1.0) == 1


def test_one_that_runs_calls_again_as_the_rate_allows() -> None:
    limits = HandlerLimits(1, 1.0, 0.0)
    limits.begin()
    assert not limits.call_again(0.5)
    assert limits.call_again(1.0)
    assert not limits.call_again(1.0)


def test_no_more_at_once_than_concurrency() -> None:
    limits = HandlerLimits(2, None, 0.0)
    assert limits.available(0.0) == 2
    limits.begin()
    limits.begin()
    assert limits.available(0.0) == 0
    assert limits.wait_s(0.0) is None
    assert limits.end()
    assert not limits.end()
    assert limits.available(0.0) == 2
    assert limits.wait_s(0.0) == 0.0


def test_without_limits_everything_may_run() -> None:
    assert HandlerLimits(None, None, 0.0).available(0.0) is None
