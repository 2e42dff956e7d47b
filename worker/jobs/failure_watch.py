"""Says when a job has to stop itself, because what it runs fails again. Pure.

An outcome is a run's end, or its first failure that spends an attempt: a run may be tried on for a day
(`give_up_after_s=`) before it is given up, and a bug that is still there must show within seconds. What waits as its
handler is down or paused spends no attempt, so it stops no job.
"""

from collections import deque
from typing import Final

OUTCOMES_JUDGED: Final = 10
"""The last outcomes of a job by which a worker judges whether it has to stop."""

FAILURES_MIN: Final = 5
"""Failures among them from which on the job stops, if they are more than half: a bug that is still there shows after
a handful of events, and a single bad event stops nothing."""


class FailureWatch:
    """Watches the outcomes of one job, those in this worker."""

    def __init__(self) -> None:
        self._succeeded: deque[bool] = deque(maxlen=OUTCOMES_JUDGED)

    def ended(self, *, succeeded: bool) -> bool:
        """Take the next outcome in: a run was handled, or not. Returns whether the job has to stop."""
        self._succeeded.append(succeeded)
        failures = self._succeeded.count(False)
        return failures >= FAILURES_MIN and 2 * failures > len(self._succeeded)
