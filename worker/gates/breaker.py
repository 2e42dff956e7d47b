"""The circuit breaker of one handler: while what the handler calls is away, its events wait and spend no attempts.

Pure: the clock and the chance are passed in. It does for handlers what `ingest.publish.circuit_breaker` does for
servers. The two share no code: a server is judged by one batch and by how late its replies are, a handler by many
events of several sessions, and then by the backlog that it works off.

| state | what runs | leaves it |
| --- | --- | --- |
| up | every event | FAILURES_MAX failures running, in SESSIONS_MIN sessions: down. A pause that ends: recovering |
| down | one retry queue at a time, the probe | a success: recovering |
| recovering | as many retry queues at once as `limit` says | RECOVERED_AT, or no queue is due: up. As in up: down |

"Running" means without a success between. While down or recovering, every event of the handler goes through its
session's retry queue.

The limit of a recovery begins at 1. Each success adds 1 and each failure takes FAILURE_COST, so it grows while fewer
than a fifth of the attempts fail. It doubles once in GROWTH_MIN_S at most, or a quick handler would go from nothing to
everything within milliseconds; and once in GROWTH_MAX_S at least, so that a handler with many bad events recovers too.
"""

from math import log2
from typing import Final, Literal

FAILURES_MAX: Final = 20
SESSIONS_MIN: Final = 5
"""One session with bad data fails for ever, and must not stop the handler for the others."""

PROBE_FIRST_S: Final = 1.0
"""From going down to the first probe. Doubled for each probe that fails."""
PROBE_MAX_S: Final = 60.0
PROBE_JITTER: Final = 0.25
"""Share by which chance shortens the time between probes, so that workers do not probe in step."""

FAILURE_COST: Final = 4
RECOVERED_AT: Final = 128
"""Calls at once that end a recovery: half of what a worker runs by default."""
GROWTH_MIN_S: Final = 0.5
GROWTH_MAX_S: Final = 30.0
"""So a recovery takes between 3.5 seconds and 3.5 minutes, unless the handler goes down again."""

ROUNDING: Final = 1e-9
"""So that `limit` has grown once `next_growth_s` has passed."""

UNBOUNDED: Final = 1_000_000
"""The limit while up: what runs then is bounded elsewhere."""

State = Literal["up", "down", "recovering"]


class HandlerBreaker:
    """The state of one handler in one worker process, derived from how its attempts end.

    Times are seconds of a monotonic clock; `chance` is a number from 0 to 1.
    """

    __slots__ = (
        "_earned",
        "_interval_s",
        "_probe_failed",
        "_probing",
        "_sessions",
        "_since",
        "failures",
        "probe_at",
        "probes",
        "running",
        "state",
    )

    def __init__(self) -> None:
        self.state: State = "up"
        self.failures = 0
        """Failures since the last success."""
        self.probes = 0
        """Probes that have begun since it went down."""
        self.probe_at = 0.0
        """When the next probe may begin."""
        self.running = 0
        """Retry queues under way."""
        self._sessions: set[str] = set()
        """Sessions of the failures, SESSIONS_MIN at most."""
        self._interval_s = PROBE_FIRST_S
        self._probing = False
        self._probe_failed = False
        self._since = 0.0
        """When the recovery began."""
        self._earned = 1
        """The limit of the recovery by successes and failures alone."""

    @property
    def sessions(self) -> int:
        """Sessions of the failures since the last success, counted up to SESSIONS_MIN."""
        return len(self._sessions)

    def failed(self, session: str, now: float) -> None:
        """Note that an attempt on an event of `session` failed."""
        self.failures += 1
        if len(self._sessions) < SESSIONS_MIN:
            self._sessions.add(session)
        if self.state == "down":
            self._probe_failed = True
            return
        if self.failures >= FAILURES_MAX and len(self._sessions) >= SESSIONS_MIN:
            self._go_down(now, again=self.state == "recovering")
        elif self.state == "recovering":
            self._earned = max(1, self._earned - FAILURE_COST)

    def succeeded(self, now: float) -> None:
        """Note that an attempt succeeded."""
        self.failures = 0
        self._sessions.clear()
        if self.state == "down":
            self._begin_recovery(now)
        elif self.state == "recovering":
            self._earned = min(self._earned + 1, self._most(now))
            self.settle(now)

    def resumed(self, now: float) -> None:
        """Note that a pause has ended: what has gathered is worked off at a growing pace, or probed at once."""
        if self.state == "down":
            self._interval_s = PROBE_FIRST_S
            self.probe_at = now
        else:
            self._begin_recovery(now)

    def taken_over(self, now: float) -> None:
        """Begin down, with a probe at once: another worker process found the handler so."""
        self._go_down(now, again=False)
        self.probe_at = now

    def nothing_due(self) -> None:
        """Note that no retry queue of the handler waits to be tried now: a recovery is over."""
        if self.state == "recovering" and not self.running:
            self._go_up()

    def queue_began(self, now: float) -> None:
        """Note that a retry queue is being run: while down, it is the probe."""
        self.running += 1
        if self.state == "down" and not self._probing and now >= self.probe_at:
            self._probing, self._probe_failed = True, False
            self.probes += 1

    def queue_ended(self, now: float, chance: float) -> None:
        """Note that a retry queue is not run any more, however that ended."""
        self.running = max(0, self.running - 1)
        if self.state == "down" and self._probing and not self.running:
            if self._probe_failed:
                self._interval_s = min(self._interval_s * 2, PROBE_MAX_S)
            self._probing = False
            self._schedule_probe(now, chance)

    def settle(self, now: float) -> None:
        """End a recovery whose limit has reached RECOVERED_AT."""
        if self.state == "recovering" and self.limit(now) >= RECOVERED_AT:
            self._go_up()

    def limit(self, now: float) -> int:
        """How many retry queues may be under way at once."""
        if self.state == "up":
            return UNBOUNDED
        if self.state == "down":
            # Queues that began before it went down end first, so that only one call at a time is made.
            return 1 if self._probing or (not self.running and now >= self.probe_at) else 0
        return min(max(self._earned, _doublings(now - self._since, GROWTH_MAX_S)), RECOVERED_AT)

    def next_growth_s(self, now: float) -> float | None:
        """In how many seconds `limit` grows if nothing happens meanwhile; None if it does not."""
        if self.state == "down" and not self.running:
            return max(0.0, self.probe_at - now)
        if self.state == "recovering":
            return max(0.0, self._since + log2(self.limit(now) + 1) * GROWTH_MAX_S - now)
        return None

    def _most(self, now: float) -> int:
        return _doublings(now - self._since, GROWTH_MIN_S)

    def _go_down(self, now: float, *, again: bool) -> None:
        self._interval_s = min(self._interval_s * 2, PROBE_MAX_S) if again else PROBE_FIRST_S
        self.state = "down"
        self.probes = 0
        self._probing = False
        self.probe_at = now + self._interval_s

    def _schedule_probe(self, now: float, chance: float) -> None:
        self.probe_at = now + max(PROBE_FIRST_S, self._interval_s * (1 - PROBE_JITTER * chance))

    def _begin_recovery(self, now: float) -> None:
        self.state = "recovering"
        self._probing = False
        self._since = now
        self._earned = 1

    def _go_up(self) -> None:
        self.state = "up"
        self.failures = 0
        self._sessions.clear()


def _doublings(elapsed_s: float, each_s: float) -> int:
    """1, doubled every `each_s`; RECOVERED_AT at most."""
    steps = min(max(0.0, elapsed_s) / each_s, log2(RECOVERED_AT))
    return min(RECOVERED_AT, int(2**steps + ROUNDING))
