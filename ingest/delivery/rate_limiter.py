"""Limits the drainer's rate, and sizes its pages. Pure: the clock is passed in.

- MASKLINE_SPOOL_DRAIN_PER_S bounds the rate, so that a Redis that has just come back is not overrun.
- Callbacks that arrive while Redis takes them, and only queue behind others, are granted on top of the rate: otherwise
  the spool would never get empty under steady traffic.
- A slow server gets larger pages, so that each round trip moves as much as the rate asks for.
"""

from typing import Final

PAGE_ROWS_MAX: Final = 256
"""The most rows of a page: they are published twice if the process dies in between. At 1 kB each they take well under a
hundredth of a second of the network."""
PAGES_PER_S: Final = 10
"""At a low rate pages are smaller, so that the rate is even within a second."""
QUICK_PAGE_S: Final = 0.05
"""PAGE_ROWS_MAX rows in this time are what the default rate asks for."""
SLOW_PAGE_ROWS_MAX: Final = 2048
"""Rows of a page for a slow server, where each page costs a round trip; PAGE_BYTES_MAX bounds it as well."""


class RateLimiter:
    """The drain rate, as a token bucket, and the rows granted on top of it.

    `per_s`: rows a second that the drainer may publish.
    """

    __slots__ = ("_at", "_granted", "_rows_max", "_share", "_tokens", "per_s")

    def __init__(self, per_s: int) -> None:
        self.per_s = per_s
        self.page_took(0.0)
        self._tokens = 0.0
        self._granted = 0
        self._at = 0.0

    @property
    def page_rows(self) -> int:
        """How many rows the next page may have once `wait_s` returns 0."""
        return max(1, min(self._rows_max, self._granted + (self._share if self._tokens >= 0 else 0)))

    def page_took(self, took_s: float) -> None:
        """Size the next pages by how long the last one was under way, in seconds: a slow page makes them larger."""
        self._rows_max = min(SLOW_PAGE_ROWS_MAX, int(PAGE_ROWS_MAX * max(1.0, took_s / QUICK_PAGE_S)))
        self._share = max(1, min(self._rows_max, int(self.per_s * max(1 / PAGES_PER_S, took_s))))

    def grant(self, count: int) -> None:
        """Let the drainer move `count` rows beyond the rate."""
        self._granted += count

    def take(self, count: int) -> None:
        """Account for `count` moved rows. Rows beyond the budget become a debt that `wait_s` waits for."""
        granted = min(count, self._granted)
        self._granted -= granted
        self._tokens -= count - granted

    def wait_s(self, now: float) -> float:
        """How many seconds to wait before the next page. `now`: seconds of a monotonic clock."""
        earned = (now - self._at) * self.per_s
        self._tokens = min(self._tokens + earned, float(self._share))
        self._at = now
        return 0.0 if self._tokens >= 0 or self._granted else -self._tokens / self.per_s
