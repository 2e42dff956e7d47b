"""The promise that a callback reaches a handler once: what came to its end twice, and what excuses it. Pure."""

from disturbances import Call
from evidence import Evidence
from history import Began

HANDOVER_FORGETS = True
"""maskline keeps in the owner's memory which handlers of an open event are done. Once that is handed over with the
partition, this is False, and a second time is then a breach."""


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
        settled_at = self._committed_by(first, calls)
        until = call.began.at if settled_at is None else settled_at + self.evidence.terms.lease_s
        if call.began.token > first.token and self.evidence.disturbances.overlap(first.pid, first.at, until):
            self.evidence.counts["doubled in the crash window"] += 1
        elif call.began.token > first.token and settled_at is None and HANDOVER_FORGETS:
            self.evidence.counts["doubled by a handover between tries"] += 1
        else:
            self.evidence.find("doubled", f"{call} | first: {before}")

    def _committed_by(self, first: Began, calls: list[Call]) -> float | None:
        """When an owner was done with an event, so that it was to be committed; None if it never was."""
        ends: list[float] = []
        mine = [call for call in calls if call.began.token == first.token]
        for handler in self.evidence.wanted(first.event):
            final = [
                call.end
                for call in mine
                if call.began.handler == handler
                and call.end is not None
                and (
                    call.outcome == "done"
                    or (call.outcome == "failed" and call.began.attempt >= self.evidence.terms.attempts)
                )
            ]
            if not final:
                return None
            ends.append(max(final))
        return max(ends)
