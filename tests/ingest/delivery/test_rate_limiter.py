"""The drain rate against every sequence of pages and grants."""

from hypothesis import given
from hypothesis import strategies as st

from maskline.ingest.delivery.rate_limiter import PAGE_ROWS_MAX, SLOW_PAGE_ROWS_MAX, RateLimiter


@given(
    st.integers(1, 10_000),
    st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 300), st.integers(0, 300)), max_size=40),
)
def test_rate_holds_whatever_is_granted(per_s, steps):
    rate_limiter, now, moved, granted = RateLimiter(per_s), 1000.0, 0, 0
    rate_limiter.wait_s(now)
    for passes, count, grant in steps:
        now += passes
        rate_limiter.grant(grant)
        granted += grant
        if rate_limiter.wait_s(now) == 0:
            rows = min(count, rate_limiter.page_rows)
            rate_limiter.take(rows)
            moved += rows
        # Two pages beyond the rate: one that was saved up, and one begun with nothing left.
        assert moved <= granted + (now - 1000.0) * per_s + 2 * min(PAGE_ROWS_MAX, max(1, per_s // 10)) + 1
    wait_s = rate_limiter.wait_s(now)
    assert rate_limiter.wait_s(now + wait_s + 0.001) == 0.0
    assert 1 <= rate_limiter.page_rows <= PAGE_ROWS_MAX


@given(st.integers(1, 10_000), st.floats(0.06, 5.0))
def test_rate_holds_and_is_reached_with_slow_pages(per_s, took_s):
    rate_limiter, now, moved = RateLimiter(per_s), 1000.0, 0
    rate_limiter.wait_s(now)
    largest = 0
    for _ in range(20):
        now += took_s
        rate_limiter.page_took(took_s)
        now += rate_limiter.wait_s(now)
        assert rate_limiter.wait_s(now + 0.001) == 0.0
        rows = rate_limiter.page_rows
        assert rows <= SLOW_PAGE_ROWS_MAX
        rate_limiter.take(rows)
        moved, largest = moved + rows, max(largest, rows)
        assert moved <= (now + 0.001 - 1000.0) * per_s + 2 * largest
    # As much as the rate allows, or as the largest pages.
    assert largest >= min(SLOW_PAGE_ROWS_MAX, int(PAGE_ROWS_MAX * took_s / 0.05), int(per_s * took_s))
