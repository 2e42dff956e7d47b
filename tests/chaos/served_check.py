"""The promise that a slow or failing event holds up only its own session: who was served beside it. Pure."""

from bisect import bisect_left, bisect_right
from collections import defaultdict

from evidence import Evidence
from history import Fault, Said

from maskline.schemas.keys import partition_of

SLOW_S = 1.0
"""An event that is under way for so long ought not to hold up others."""
TRIES_S = 5.0
"""How long after its first call an event may be under way in its worker: later it waits in Redis."""
SERVED_S = 0.5
"""How soon somebody of the partition is served, if nothing is wrong."""
SERVED_MIN = 5
"""Callbacks that must have come for the partition before it is asked whether any was served."""
SETTLE_S = 4.0
"""After a fault, until the partition is served as usual: the longest wait between two tries to connect, twice."""


class ServedCheck:
    """Finds what is held up."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    def check(self) -> None:
        waits, came = self._arrivals()
        for calls in self.evidence.by_tag.values():
            for token in {call.began.token for call in calls}:
                mine = [call for call in calls if call.began.token == token]
                start, it = mine[0].began.at, mine[0].began
                mine = [call for call in mine if call.began.at <= start + TRIES_S]
                # A worker that is asked to stop lets handlers come to their end, and then gives the partition back.
                end = min(
                    max(call.end or start for call in mine),
                    self.evidence.disturbances.asked_to_stop.get(it.pid, float("inf")),
                )
                if end - start < SLOW_S or self.evidence.disturbances.overlap(it.pid, start - SETTLE_S, end):
                    continue
                partition = partition_of(it.session, self.evidence.terms.partitions)
                low = bisect_left(came[partition], start)
                high = bisect_right(came[partition], end - SERVED_S)
                others = [wait for wait in waits[partition][low:high] if wait[1] != it.session]
                if len(others) < SERVED_MIN:
                    continue
                self.evidence.counts["slow events looked at"] += 1
                if not any(start <= served < end for _, _, served in others):
                    self.evidence.find(
                        "held_up", f"{mine[0]}: none of {len(others)} others of partition {partition}"
                    )

    def _arrivals(self) -> tuple[dict[int, list[tuple[float, str, float]]], dict[int, list[float]]]:
        """By partition: when a callback was answered, its session, when it was first called; and the first alone."""
        # While an ingest node is disturbed, callbacks that it has answered may wait in its spool.
        ingest: defaultdict[str, list[Fault]] = defaultdict(list)
        for fault in self.evidence.history.of(Fault):
            ingest[fault.target].append(fault)
        # A spool that is drained is a backlog of the partition, and what is answered meanwhile comes behind it.
        drained: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        holding: dict[tuple[str, int], float] = {}
        for said in sorted(self.evidence.history.of(Said), key=lambda it: it.at):
            began = holding.pop((said.node, said.partition), said.at)
            drained[said.partition].append((began, said.at))
            if said.held:
                holding[said.node, said.partition] = began
        waits: defaultdict[int, list[tuple[float, str, float]]] = defaultdict(list)
        for tag, asked in self.evidence.answered.items():
            at = asked.ended
            if any(fault.began <= at <= fault.ended + SETTLE_S for fault in ingest[asked.node]):
                continue
            partition = partition_of(asked.session, self.evidence.terms.partitions)
            if any(began <= at <= ended for began, ended in drained[partition]):
                continue
            calls = self.evidence.by_tag.get(tag)
            served = calls[0].began.at if calls else float("inf")
            waits[partition].append((at, asked.session, served))
        for arrivals in waits.values():
            arrivals.sort()
        came: defaultdict[int, list[float]] = defaultdict(list)
        for partition, arrivals in waits.items():
            came[partition] = [arrival[0] for arrival in arrivals]
        return waits, came
