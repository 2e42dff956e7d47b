"""The circuit breaker of one server: keeps requests from waiting for a Redis that does not take callbacks.

Pure: the clock is passed in.

| state | a failure of the whole server | a batch is taken in time | a batch is taken late | the back-off is over |
| --- | --- | --- | --- | --- |
| closed: all may publish | open | | | |
| open: nobody may | stays (it is the same failure) | | slow, where a timeout had opened it | one probe: half open |
| half open: one probe is under way | open, back-off doubled | closed | slow | |
| slow: the drainer publishes, requests do not wait | open | clearly, or the IN_TIME_MIN-th running: closed | stays | |

"Late" is a reply that took longer than a request waits; "clearly in time" is one that took CLEAR_SHARE of that at most.
A server that is slow for good takes everything, by way of the spool.

- A probe that Redis refuses for itself alone (its key holds something else than a stream) closes the breaker: the
  server works.
- A connection that was lost and is there again, its namespace checked, needs no probe.
- A connection after a timeout does: a server that connects and answers trifles may still not be able to write.
"""

from typing import Final, Literal

from maskline.ingest.outcome import AWAY, SERVER_FAILURES, TIMEOUT

BACKOFF_FIRST_S: Final = 0.25
BACKOFF_MAX_S: Final = 2.0
"""Callbacks go to Redis again within two seconds of its return, and a dead one is asked twice a second at most."""

IN_TIME_MIN: Final = 3
"""Replies in time, one after the other, that close a slow breaker. With one, a server whose latency is about what a
request waits would close and open it with every other reply, and each time what is under way goes to the stream twice.
"""
CLEAR_SHARE: Final = 0.5
"""Of the time that a request waits: a reply within it is clearly in time, and closes a slow breaker at once."""

State = Literal["closed", "open", "half_open", "slow"]
STATES: Final[tuple[State, ...]] = ("closed", "open", "half_open", "slow")
"""All states, as the metric `breakers` counts them."""


class CircuitBreaker:
    """The state of one server, derived from the outcomes of its batches. Times are seconds of a monotonic clock."""

    __slots__ = ("_backoff_s", "_in_time", "reason", "retry_at", "state")

    def __init__(self) -> None:
        self.state: State = "closed"
        self.reason = ""
        """The code of the failure that opened it, empty while closed."""
        self.retry_at = 0.0
        """When a probe may be made, by the caller's clock."""
        self._backoff_s = BACKOFF_FIRST_S
        self._in_time = 0

    def failed(self, code: str, now: float, share: float = 0.0) -> None:
        """Note that a batch was not taken: `code` of `ingest.outcome` says why, `share` as in `succeeded`."""
        if code not in SERVER_FAILURES:
            self.succeeded(share)
        elif self.state == "slow":
            self._backoff_s = BACKOFF_FIRST_S
            # A new connection does not make it any quicker.
            self._open(TIMEOUT if code == AWAY else code, now)
        elif self.state == "closed":
            self._backoff_s = BACKOFF_FIRST_S
            self._open(code, now)
        elif self.state == "half_open":
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)
            self._open(code, now)

    def succeeded(self, share: float = 0.0) -> None:
        """Note that a batch was taken, after this share of the time that a request waits.

        Batches from before the breaker opened count for nothing: they may have found the last free memory. Only where a
        timeout had opened it do they show that the server works, and is slow.
        """
        late = share > 1.0
        if self.state == "slow":
            self._in_time = 0 if late else self._in_time + 1
            if share <= CLEAR_SHARE or self._in_time >= IN_TIME_MIN:
                self._close()
        elif late and (self.state == "half_open" or self.reason == TIMEOUT):
            self.state = "slow"
            self.reason = TIMEOUT
            self._in_time = 0
        elif self.state == "half_open":
            self._close()

    def connected(self) -> None:
        """Note that a new connection was opened and checked."""
        if self.reason == AWAY:
            self._close()

    def try_probe(self, now: float) -> bool:
        """Grant a probe, if one is due. The caller then has to publish, and to report how that ended."""
        if not self.probe_due(now):
            return False
        self.state = "half_open"
        return True

    def probe_due(self, now: float) -> bool:
        """Whether `try_probe` would grant a probe."""
        return self.state == "open" and now >= self.retry_at

    def _open(self, code: str, now: float) -> None:
        self.state = "open"
        self.reason = code
        self.retry_at = now + self._backoff_s

    def _close(self) -> None:
        self.state = "closed"
        self.reason = ""
