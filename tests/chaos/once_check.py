"""The promise that a callback reaches a handler once: what came to its end twice, and what excuses it. Pure."""

from disturbances import Call
from evidence import Evidence
from history import Began

INLINE_S = 2.0
"""How long after a handler's first failure its tries follow each other in the worker at most: the other handlers of
the event, which are done, are committed after that."""


class OnceCheck:
    """Finds what is doubled."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    def check(self) -> None:
        owners: dict[str, str] = {}
        for tag, calls in self.evidence.by_tag.items():
            keys = {call.began.key for call in calls}
            if len(keys) > 1:
                self.evidence.find("doubled", f"{tag}: one callback under the keys {sorted(keys)}")
            for key in keys:
                if owners.setdefault(key, tag) != tag:
                    self.evidence.find("doubled", f"{key}: the key of {tag} and {owners[key]}")
            last: dict[str, Call] = {}
            for call in calls:
                if call.outcome != "done":
                    continue
                before = last.get(call.began.handler)
                if before is not None:
                    self._second(before, call, calls)
                last[call.began.handler] = call

    def _second(self, before: Call, call: Call, calls: list[Call]) -> None:
        first = before.began
        until = self._committed_by(first, calls) + self.evidence.terms.lease_s
        if call.began.token > first.token and self.evidence.disturbances.overlap(first.pid, first.at, until):
            self.evidence.counts["doubled in the crash window"] += 1
        elif self.evidence.rerun(call):
            self.evidence.counts["run again by an operator"] += 1
        else:
            self.evidence.find("doubled", f"{call} | first: {before}")

    def _committed_by(self, first: Began, calls: list[Call]) -> float:
        """When an owner was done with an event, so far that what its handlers had done was to be committed.

        The other handlers run beside it, and their first tries follow each other; then the event is set aside.
        """
        at = first.at
        for call in calls:
            it = call.began
            if it.token == first.token and it.at <= first.at + INLINE_S and call.end is not None:
                tries_on = call.outcome == "failed" and not self.evidence.gave_up(call)
                at = max(at, call.end + (INLINE_S if tries_on else 0.0))
        return at
