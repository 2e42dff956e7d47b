"""The limits that a handler's options set, each for one worker process: `concurrency=` and `rate=`.

Pure: the clock is passed in, in seconds.
"""

from typing import Final

BURST_S: Final = 0.1
"""For so long the calls of a handler's rate may save up. More would hit what it calls in bursts."""


ROUNDING: Final = 1e-9
"""A call that is missing less than this may be made: after `wait_s` has passed, sums of times may be short of it."""


class TokenBucket:
    """Calls at a rate: `rate` a second, of which BURST_S worth, and at least one, may be made at once."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._burst = max(1.0, rate * BURST_S)
        self._tokens = self._burst
        self._at = now

    def available(self, now: float) -> int:
        """How many calls may be made now."""
        self._refill(now)
        return max(0, int(self._tokens + ROUNDING))

    def spend(self) -> None:
        """Count a call, also one that was not allowed: later ones wait for longer then."""
        self._tokens -= 1

    def give_back(self) -> None:
        """Count a call as not made."""
        self._tokens = min(self._burst, self._tokens + 1)

    def wait_s(self, now: float) -> float:
        """In how many seconds a call may be made; 0.0 if one may now."""
        return 0.0 if self.available(now) else (1.0 - self._tokens) / self._rate

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now


class HandlerLimits:
    """Both limits of one handler, None for one that it does not have. What runs is an event or a retry queue."""

    __slots__ = ("_bucket", "_concurrency", "running")

    def __init__(self, concurrency: int | None, rate: float | None, now: float) -> None:
        self._concurrency = concurrency
        self._bucket = None if rate is None else TokenBucket(rate, now)
        self.running = 0
        """What has begun and not ended."""

    def available(self, now: float) -> int | None:
        """How many may begin now; None if there is no limit."""
        bounds = []
        if self._concurrency is not None:
            bounds.append(max(0, self._concurrency - self.running))
        if self._bucket is not None:
            bounds.append(self._bucket.available(now))
        return min(bounds, default=None)

    def begin(self) -> None:
        """Count one that begins, with its first call, whether `available` allows it or not."""
        self.running += 1
        if self._bucket is not None:
            self._bucket.spend()

    def call_again(self, now: float) -> bool:
        """Count a further call of one that runs. False, and not counted, if the rate does not allow it now."""
        if self._bucket is None:
            return True
        if not self._bucket.available(now):
            return False
        self._bucket.spend()
        return True

    def end(self, *, called: bool = True) -> bool:
        """Count one that has ended. `called`: False if it made no call after all.

        Returns whether `concurrency` was reached until then.
        """
        was_full = self._concurrency is not None and self.running >= self._concurrency
        self.running = max(0, self.running - 1)
        if not called and self._bucket is not None:
            self._bucket.give_back()
        return was_full

    def wait_s(self, now: float) -> float | None:
        """In how many seconds one may begin by itself; None if another has to end first."""
        if self._concurrency is not None and self.running >= self._concurrency:
            return None
        return 0.0 if self._bucket is None else self._bucket.wait_s(now)
