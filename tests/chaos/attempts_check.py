"""The promise that tries are counted: by whoever owns the partition, and none while a handler is held. Pure."""

from itertools import pairwise

from disturbances import Call
from evidence import Evidence
from history import DeadLetter
from order_check import FAILOVERS

REACH_S = 10.0
"""After a failover, until an event whose tries it forgot and brought back is tried again."""


class AttemptsCheck:
    """Finds tries that were not counted or counted twice, and what was given up though time alone decides."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    def check(self) -> None:
        for calls in self.evidence.by_handler.values():
            tags = {call.began.tag for call in calls}
            for tag in tags:
                counted = 0
                for before, call in pairwise([one for one in calls if one.began.tag == tag]):
                    counted = max(counted, before.began.attempt)
                    self._check_next(before, call, counted)
        self._check_given_up()

    def _check_next(self, before: Call, call: Call, counted: int) -> None:
        """Check the number of a call by the one before it. `counted`: the most tries that any owner has counted."""
        it, number = before.began, call.began.attempt
        if before.outcome == "done":
            return  # another time altogether
        if self.evidence.gave_up(before) and call.began.replayed:
            expected = {1}
        elif before.outcome == "failed" and not self.evidence.terms.handlers[it.handler].held:
            expected = {it.attempt + 1}
        elif before.outcome == "failed":
            expected = {it.attempt, it.attempt + 1}  # a failure while it was held spends no attempt
        else:
            expected = {it.attempt, it.attempt + 1}  # cut off by its time limit, or by a stop
        if number in expected:
            return
        if number <= max(expected) and self._disturbed(before, call):
            self.evidence.counts["tries forgotten in a crash"] += 1
        elif number <= counted + 1 and self._came_back(call):
            self.evidence.counts["tries of a history that came back"] += 1
        else:
            self.evidence.find("attempts", f"{call}: after {before}")

    def _disturbed(self, before: Call, call: Call) -> bool:
        it = before.began
        return it.token < call.began.token and self.evidence.disturbances.overlap(
            it.pid, it.at, call.began.at
        )

    def _came_back(self, call: Call) -> bool:
        """Whether a server that had lost commits may have given way again to the one that has them."""
        return any(
            fault.kind in FAILOVERS and fault.began <= call.began.at <= fault.ended + REACH_S
            for fault in self.evidence.disturbances.redis
        )

    def _check_given_up(self) -> None:
        rejected = {
            (call.began.tag, call.began.handler) for call in self.evidence.calls if call.outcome == "rejected"
        }
        letters: list[DeadLetter] = self.evidence.history.of(DeadLetter)
        for letter in letters:
            terms = self.evidence.terms.handlers.get(letter.handler or "")
            if terms is not None and terms.attempts is None and (letter.tag, letter.handler) not in rejected:
                self.evidence.find("attempts", f"{letter.tag}: {letter.handler} gave it up ({letter.code})")
