"""Computes when a failed handler is tried again: exponential backoff with jitter, bounded. Pure."""

from typing import Final, NamedTuple

RETRIES_DEFAULT: Final = 8
BACKOFF_MS_DEFAULT: Final = 500
BACKOFF_MAX_MS_DEFAULT: Final = 60_000
TIMEOUT_MS_DEFAULT: Final = 30_000


class RetryPolicy(NamedTuple):
    """The options of `@on` for retries: how often and how soon."""

    retries: int = RETRIES_DEFAULT
    """Tries after the first: 3 means four attempts."""
    backoff_ms: int = BACKOFF_MS_DEFAULT
    """The first wait; doubled for every further one."""
    backoff_max_ms: int = BACKOFF_MAX_MS_DEFAULT
    """No wait is longer, not even one that a handler asked for."""

    def delay_ms(self, attempt: int, *, after_ms: int | None, jitter: float) -> float | None:
        """How long to wait after attempt number `attempt` (1, 2, …) failed; None if that was the last.

        `after_ms`: the wait that the handler requested by Retry, bounded as all. Without it the wait is half of the
        backoff, and `jitter` (0 … 1, random) of the other half, so that events that failed together are not retried
        together.
        """
        if attempt > self.retries:
            return None
        if after_ms is not None:
            return min(after_ms, self.backoff_max_ms)
        # The exponent is bounded so that a thousandth retry does not compute 2 ** 1000 first.
        whole: int = min(self.backoff_ms << min(attempt - 1, 32), self.backoff_max_ms)
        return whole * (0.5 + jitter / 2)
