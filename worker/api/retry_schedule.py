"""Computes when a failed handler is tried again, and until when: exponential backoff with full jitter, bounded. Pure.

- The wait doubles with every failure, from `backoff_ms` up to `backoff_max_ms`, and is a random part of that, so that
  events that failed together are not tried again together.
- Two limits end the tries, whichever comes first: `retries`, if the handler has it, counts them; `give_up_after_s`
  bounds their time since the first failure. The last wait is cut so that one try is made at that limit.
- The first tries follow each other in the worker that has the event (`is_inline`). Once a wait is longer than that
  allows, the event is set aside.
"""

from typing import Final, Literal, NamedTuple

RETRIES_DEFAULT: Final[int | None] = None
"""No count: an outage of a night must not use up the tries of a night."""

GIVE_UP_AFTER_S_DEFAULT: Final = 86_400
BACKOFF_MS_DEFAULT: Final = 500
BACKOFF_MAX_MS_DEFAULT: Final = 300_000
TIMEOUT_MS_DEFAULT: Final = 30_000

BACKOFF_MIN_MS: Final = 10
"""The shortest wait of a backoff, and any wait of a handler whose tries nobody counts: without it a draw near 0, a
`backoff_ms` of 0 or `Retry(after_ms=0)` would have it fail thousands of times a second."""

INLINE_WINDOW_MS: Final = 2_000
"""How long after its first failure an event is tried again in the worker's memory, so that a hiccup costs no trip to
Redis. Longer would keep more failing events in memory, and give more up to a crash."""

OnGiveUp = Literal["park", "skip"]
"""What becomes of a session's later events for a handler that has given one up: they wait for an operator, or go on."""


class RetryPolicy(NamedTuple):
    """The options of `@on` for retries: how often, how soon, for how long."""

    retries: int | None = RETRIES_DEFAULT
    """Tries after the first: 3 means four attempts. None: as many as the time allows."""
    backoff_ms: int = BACKOFF_MS_DEFAULT
    """The first wait, of which a random part is waited; doubled for every further one."""
    backoff_max_ms: int = BACKOFF_MAX_MS_DEFAULT
    """No wait is longer, not even one that a handler asked for."""
    give_up_after_s: float = GIVE_UP_AFTER_S_DEFAULT
    """How long after its first failure the last try is made."""

    def delay_ms(
        self, attempts: int, *, failing_for_ms: float, after_ms: int | None, jitter: float
    ) -> float | None:
        """How long to wait before the next try; None if there is none.

        `attempts`: how many have failed, 1 or more. `failing_for_ms`: the time since the first of them failed.
        `after_ms`: the wait that the handler requested by Retry, bounded as all. `jitter`: a random number, 0 … 1.
        """
        left_ms = self.give_up_after_s * 1000 - failing_for_ms
        if left_ms <= 0 or (self.retries is not None and attempts > self.retries):
            return None
        least_ms = BACKOFF_MIN_MS if self.retries is None else 0
        if after_ms is None:
            # The exponent is bounded so that a thousandth retry does not compute 2 ** 1000 first.
            whole_ms = min(self.backoff_ms << min(attempts - 1, 32), self.backoff_max_ms)
            wait_ms = max(whole_ms * jitter, least_ms, min(whole_ms, BACKOFF_MIN_MS))
        else:
            wait_ms = max(min(after_ms, self.backoff_max_ms), least_ms)
        return min(wait_ms, left_ms)


def is_inline(
    first_failed_ms: float, now_ms: float, delay_ms: float, *, window_ms: int = INLINE_WINDOW_MS
) -> bool:
    """Whether the try after a wait of `delay_ms` is made by the worker that has the event; else it is set aside.

    `first_failed_ms`, `now_ms`: when the event failed first, and the present, by the same clock. A clock that was set
    back does not lengthen the window.
    """
    return max(now_ms - first_failed_ms, 0) + delay_ms <= window_ms
