"""The promise of order in a chaos run: who called which event of a session when, and under which flags. Pure."""

from collections import defaultdict

from disturbances import Call
from evidence import Evidence
from history import Began, Fault

from maskline.schemas.keys import partition_of

RACE_S = 0.1
"""Between an owner's look at its lease and the first line of the handler the system may let other processes run."""

FAILOVERS = ("fail_over", "come_back")
"""Faults after which the server may lack what it had confirmed: commits are not waited for by WAIT."""


def lane_of(began: Began) -> str:
    if began.number is None:
        return "unsequenced"
    return "recording" if began.event.startswith("SessionRecording") else "status"


class OrderCheck:
    """Finds what is misordered."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    def check(self) -> None:
        for calls in self.evidence.by_session.values():
            self._check_one_at_a_time(calls)
            for call in calls:
                if call.began.run:
                    self.evidence.find(
                        "misordered", f"{call}: run {call.began.run}, and numbering never started again"
                    )
            lanes: defaultdict[tuple[str, int], list[Call]] = defaultdict(list)
            for call in calls:
                if call.began.number is not None and call.began.order != "late":
                    lanes[lane_of(call.began), call.began.run].append(call)
            for lane in lanes.values():
                self._check_rising(lane)
                self._check_gaps(lane)
        self._check_tokens()
        self._count_flags()

    def _check_one_at_a_time(self, calls: list[Call]) -> None:
        open_calls: list[Call] = []
        for call in calls:
            start = call.began.at
            open_calls = [it for it in open_calls if it.end is not None and it.end > start]
            for before in open_calls:
                it = before.began
                if it.token < call.began.token and self.evidence.disturbances.overlap(it.pid, it.at, start):
                    self.evidence.counts["at once, of a disturbed owner"] += 1
                else:
                    self.evidence.find("misordered", f"at once: {before} | {call}")
            open_calls.append(call)

    def _check_rising(self, lane: list[Call]) -> None:
        """Under one owner the numbers never fall."""
        last: dict[int, Began] = {}
        for call in lane:
            it = call.began
            before = last.setdefault(it.token, it)
            if it.number < before.number or (it.number == before.number and it.tag != before.tag):
                self.evidence.find(
                    "misordered", f"{call}: after {before.number} ({before.tag}) under the same owner"
                )
            last[it.token] = it

    def _check_gaps(self, lane: list[Call]) -> None:
        """What is said to be in order has nothing open before it; what is said to be missing was not handled."""
        reached: dict[int, Call] = {}
        for call in lane:
            it = call.began
            number = it.number
            if it.order == "after_gap":
                handled = {
                    one for one in it.missing if one in reached and not self._rolled_back(reached[one], it)
                }
                if not it.missing or handled or number - 1 not in it.missing:
                    self.evidence.find(
                        "misordered", f"{call}: names {it.missing} as missing; handled: {sorted(handled)}"
                    )
            elif it.order != "in_order":
                self.evidence.find("misordered", f"{call}: has a number, and is {it.order}")
            elif number not in (0, self.evidence.terms.first_sequence) and number - 1 not in reached:
                self.evidence.find("misordered", f"{call}: in_order, and {number - 1} was not handled before")
            reached[number] = call

    def _rolled_back(self, handled: Call, later: Began) -> bool:
        """Whether a failover may have lost that an event was handled, before a later owner asked for it."""
        it = handled.began
        if later.token <= it.token:
            return False
        end = it.at if handled.end is None else handled.end
        lost = any(
            fault.kind in FAILOVERS and fault.began - self.evidence.terms.lease_s <= end <= fault.ended
            for fault in self.evidence.disturbances.redis
        )
        self.evidence.counts["after_gap, the missing handled before a failover"] += lost
        return lost

    def _check_tokens(self) -> None:
        """In a partition a call under an old token never starts after one under a newer token."""
        newest: dict[int, Began] = {}
        resumed: set[Fault] = set()
        for call in self.evidence.calls:
            it = call.began
            partition = partition_of(it.session, self.evidence.terms.partitions)
            first = newest.setdefault(partition, it)
            if it.token > first.token:
                newest[partition] = it
            elif it.token < first.token:
                stop = next(
                    (
                        fault
                        for fault in self.evidence.disturbances.stops(it.pid)
                        if fault not in resumed
                        and fault.ended <= it.at <= fault.ended + self.evidence.terms.lease_s
                    ),
                    None,
                )
                if stop is not None:
                    resumed.add(stop)
                    self.evidence.counts["started by a stopped owner"] += 1
                elif it.at > first.at + RACE_S or not self.evidence.disturbances.overlap(
                    it.pid, it.at, it.at
                ):
                    self.evidence.find(
                        "misordered", f"{call}: {first.token} owned the partition since {first.at:.3f}"
                    )

    def _count_flags(self) -> None:
        numbers = {(it.session, it.number): it.ended for it in self.evidence.answered.values()}
        seen: set[str] = set()
        for call in self.evidence.calls:
            it = call.began
            if it.tag in seen:
                continue
            seen.add(it.tag)
            self.evidence.counts[it.order] += 1
            answered = [numbers.get((it.session, number)) for number in it.missing]
            if any(at is not None and at < it.at for at in answered):
                self.evidence.counts["after_gap, the missing answered before"] += 1
