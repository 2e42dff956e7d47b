"""The promise of order in a chaos run: when each handler was called for which event of a session, under which flags.

Pure. In a session every handler has a sequence of its own: it may be behind another handler, but never calls an event
before it is through with the one before it.
"""

from collections import defaultdict

from disturbances import Call
from evidence import Evidence
from history import Began, Discarded, Fault

from maskline.schemas.keys import partition_of

RACE_S = 0.1
"""Between an owner's look at its lease and the first line of the handler the system may let other processes run."""

FAILOVERS = ("fail_over", "come_back")
"""Faults after which the server may lack what it had confirmed: commits are not waited for by WAIT."""

Lane = tuple[str, str, int]
"""Session, lane and run: what is numbered by itself."""


def lane_of(began: Began) -> Lane:
    """The numbering that a call's event belongs to."""
    if began.number is None:
        return began.session, "unsequenced", began.run
    name = "recording" if began.event.startswith("SessionRecording") else "status"
    return began.session, name, began.run


class OrderCheck:
    """Finds what is misordered."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self._discarded = {(it.tag, it.handler): it.at for it in evidence.history.of(Discarded)}
        self._missing: defaultdict[Lane, set[int]] = defaultdict(set)
        """The numbers that were given up, by what any handler was told."""
        self._numbers: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        """The numbers that were answered 200, by session and event."""
        self._given_up: defaultdict[tuple[str, str], set[int | None]] = defaultdict(set)
        """The numbers that each handler gave up, by session and handler; those of all lanes."""
        for call in evidence.calls:
            it = call.began
            self._missing[lane_of(it)].update(it.missing)
            if evidence.gave_up(call):
                self._given_up[it.session, it.handler].add(it.number)
        for asked in evidence.answered.values():
            if asked.number is not None:
                self._numbers[asked.session, asked.event].add(asked.number)

    def check(self) -> None:
        for calls in self.evidence.by_handler.values():
            self._check_one_at_a_time(calls)
            self._check_overtaking(calls)
            lanes: defaultdict[Lane, list[Call]] = defaultdict(list)
            done: set[str] = set()
            for call in calls:
                it = call.began
                if it.run:
                    self.evidence.find(
                        "misordered", f"{call}: run {it.run}, and numbering never started again"
                    )
                again = it.tag in done and self.evidence.rerun(call)
                if it.number is not None and it.order != "late" and not again:
                    lanes[lane_of(it)].append(call)
                if call.outcome == "done":
                    done.add(it.tag)
            for lane, those in lanes.items():
                self._check_rising(those)
                self._check_gaps(lane, those)
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

    def _check_overtaking(self, calls: list[Call]) -> None:
        """A handler that has begun with an event calls no other one of the session before it is through with it."""
        unfinished: Call | None = None
        for call in calls:
            before, unfinished = unfinished, None if self._through(call) else call
            if before is None or before.began.tag == call.began.tag:
                continue
            discarded_at = self._discarded.get((before.began.tag, before.began.handler), float("inf"))
            if discarded_at <= call.began.at:
                continue
            it = before.began
            if it.token < call.began.token and self.evidence.disturbances.overlap(
                it.pid, it.at, call.began.at
            ):
                self.evidence.counts["another first after a takeover"] += 1
            else:
                self.evidence.find("misordered", f"{call}: overtakes {before}")

    def _through(self, call: Call) -> bool:
        """Whether a handler is through with the event after this call, so that the next of the session may come."""
        skips = self.evidence.terms.handlers[call.began.handler].skips
        return call.outcome == "done" or (skips and self.evidence.gave_up(call))

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

    def _check_gaps(self, lane: Lane, calls: list[Call]) -> None:
        """What is in order has nothing open before it; what is missing did not come; what is skipped was given up."""
        called: dict[int, Call] = {}
        done: set[int] = set()
        for call in calls:
            it = call.began
            number = it.number
            seen = [one for one in it.missing if one in called and not self._unknown(called[one], it)]
            if seen:
                self.evidence.find("misordered", f"{call}: names {it.missing} as missing; handled: {seen}")
            if not self._given_up[it.session, it.handler].issuperset(it.skipped):
                self.evidence.find(
                    "misordered", f"{call}: names {it.skipped} as skipped, given up were others"
                )
            if it.order == "after_gap":
                if number - 1 not in it.missing:
                    self.evidence.find("misordered", f"{call}: after_gap, names {it.missing} as missing")
            elif it.order != "in_order":
                self.evidence.find("misordered", f"{call}: has a number, and is {it.order}")
            else:
                before = self._before(lane, it)
                if before is not None and before not in done and before not in it.skipped:
                    self.evidence.find("misordered", f"{call}: in_order, and {before} was not handled before")
            called[number] = call
            if call.outcome == "done":
                done.add(number)

    def _before(self, lane: Lane, it: Began) -> int | None:
        """The number that the handler must be through with before this one, which is in order; None for the first."""
        if it.number in (0, self.evidence.terms.first_sequence):
            return None
        events = self.evidence.terms.handlers[it.handler].events
        if not events:
            return it.number - 1
        # Of those that it does not subscribe to, the handlers that do are asked.
        wanted = {
            number
            for event in events
            if event.startswith("SessionRecording") == (lane[1] == "recording")
            for number in self._numbers[it.session, event]
            if number < it.number
        }
        uncalled = self.evidence.uncalled[it.session, lane[1] == "recording"]
        return max(wanted - self._missing[lane] - uncalled, default=None)

    def _unknown(self, handled: Call, later: Began) -> bool:
        """Whether a later owner may not know that an event was handled: a commit was lost, or never made."""
        it = handled.began
        if later.token <= it.token:
            return False
        end = it.at if handled.end is None else handled.end
        failed_over = any(
            fault.kind in FAILOVERS and fault.began - self.evidence.terms.lease_s <= end <= fault.ended
            for fault in self.evidence.disturbances.redis
        )
        self.evidence.counts["after_gap, the missing handled before a failover"] += failed_over
        return failed_over

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
        orders = {call.began.tag: call.began.order for call in reversed(self.evidence.calls)}
        self.evidence.counts.update(orders.values())
