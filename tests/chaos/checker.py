"""Reads the whole history of a chaos run and checks each promise. Pure: facts in, findings out.

- lost: a callback was answered 200, and a handler that asked for it neither came to its end with it, nor is there a
  dead letter for it.
- misordered: two calls of a session at once; numbers of a run not rising under one owner; `in_order` with an open
  number before it; `after_gap` with missing numbers that were handled; a run that numbering, which runs on, never
  began; an old owner that starts a call after the new one did.
- doubled: a handler came to its end with a callback twice; one callback under two idempotency keys, two under one.
- held_up: while one event was slow or failing, none of the other sessions of its partition were served.
- left: entries of the stream that the group has not read or not acknowledged at the end.
- unexplained, no promise but what all others rest on: a process that ended unasked, a call without an end whose process
  was not killed, a call for a callback that was never sent.

What a fault excuses. The owner of a call is *disturbed* while its process is being killed or stopped, while its
connection is disturbed or Redis is away, and for one lease's life after that: so long it may take to be connected
again, and no longer can it believe in a lease that it has lost. Then, and only then:

- A handler may come to its end twice: if its first owner was disturbed between the start of the first call and the
  commit of the event, which is due a lease's life after the last handler's end; the second call bears a higher token.
- Two calls of a session may be under way at once: if the owner of the first was disturbed during that call, and the
  second bears a higher token. The new owner cannot call back a handler that is running.
- An old owner may start one call after the new owner did: if its process was stopped. It looked at its lease, was
  stopped, and went on where it was: one call for each stop, right after it. Or within RACE_S of the new owner's first.

- A number may be named as missing that had been handled: if a failover may have lost the commit that says so, and the
  second owner bears a higher token. The callback itself is not lost: it comes again from a spool.

Besides, while HANDOVER_FORGETS: an event with several handlers, of which one has come to its end and another waits for
its next try when the partition is handed over (balance, a clean stop), comes to the first one again.

Each of these is counted. `late` and `after_gap` are flags and no breach; they are counted as well, and those that
name a number which had been answered 200 before: the order of answers is not the order in the stream.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from typing import NamedTuple

from disturbances import Call, Disturbances
from history import Answer, Began, DeadLetter, Ended, Exit, Fault, History, Leftover, Terms

from maskline.schemas.keys import partition_of

PROMISES = ("lost", "misordered", "doubled", "held_up", "left", "unexplained")

EXAMPLES_MAX = 5
"""Shown of each promise; all are counted."""

HANDOVER_FORGETS = True
"""maskline keeps in the owner's memory which handlers of an open event are done. Once that is handed over with the
partition, this is False, and a second time is then a breach."""

RACE_S = 0.1
"""Between an owner's look at its lease and the first line of the handler the system may let other processes run."""

FAILOVERS = ("fail_over", "come_back")
"""Faults after which the server may lack what it had confirmed: commits are not waited for by WAIT."""

SLOW_S = 1.0
"""An event that is under way for so long ought not to hold up others."""
SERVED_S = 0.5
"""How soon somebody of the partition is served, if nothing is wrong."""
SERVED_MIN = 5
"""Callbacks that must have come for the partition before it is asked whether any was served."""
SETTLE_S = 4.0
"""After a fault, until the partition is served as usual: the longest wait between two tries to connect, twice."""


class Finding(NamedTuple):
    promise: str
    detail: str


class Verdict(NamedTuple):
    broken: dict[str, list[Finding]]
    """By promise; only those that were broken."""
    counts: Counter[str]

    @property
    def good(self) -> bool:
        return not self.broken


def check(history: History) -> Verdict:
    """Check every promise. Raises LookupError for a history without terms."""
    return _Check(history).verdict()


def lane_of(began: Began) -> str:
    if began.number is None:
        return "unsequenced"
    return "recording" if began.event.startswith("SessionRecording") else "status"


class _Check:
    def __init__(self, history: History) -> None:
        self.history = history
        self.terms: Terms = history.terms
        self.disturbances = Disturbances(history.of(Fault), self.terms.lease_s)
        self.found: list[Finding] = []
        self.counts: Counter[str] = Counter()
        self.answered: dict[str, Answer] = {}
        for asked in history.of(Answer):
            if asked.status == 200 and asked.tag not in self.answered:
                self.answered[asked.tag] = asked
        self.calls = self._calls()
        self.by_tag: defaultdict[str, list[Call]] = defaultdict(list)
        self.by_session: defaultdict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            self.by_tag[call.began.tag].append(call)
            self.by_session[call.began.session].append(call)

    def verdict(self) -> Verdict:
        self._check_lost()
        self._check_misordered()
        self._check_doubled()
        self._check_held_up()
        self._check_left()
        self._check_unexplained()
        broken: defaultdict[str, list[Finding]] = defaultdict(list)
        for finding in self.found:
            broken[finding.promise].append(finding)
        self.counts["torn lines"] = self.history.torn
        return Verdict(dict(broken), self.counts)

    def _calls(self) -> list[Call]:
        ends = {ended.call: ended for ended in self.history.of(Ended)}
        killed = {it.pid: it.at for it in self.history.of(Exit)}
        calls = [Call(it, ends.get(it.call), killed.get(it.pid)) for it in self.history.of(Began)]
        return sorted(calls, key=lambda call: call.began.at)

    def _find(self, promise: str, detail: object) -> None:
        self.found.append(Finding(promise, str(detail)))

    def _wanted(self, event: str) -> list[str]:
        return [name for name, events in self.terms.handlers.items() if not events or event in events]

    # 1: nothing taken is lost

    def _check_lost(self) -> None:
        done = {(call.began.tag, call.began.handler) for call in self.calls if call.outcome == "done"}
        dead = {(letter.tag, letter.handler) for letter in self.history.of(DeadLetter)}
        everything = self.history.of(Answer)
        self.counts["requests"] = len(everything)
        self.counts["callbacks"] = len({asked.tag for asked in everything})
        self.counts["callbacks answered 200"] = len(self.answered)
        self.counts["repeats answered 200"] = sum(it.status == 200 for it in everything) - len(self.answered)
        self.counts["answered otherwise"] = sum(it.status not in (0, 200) for it in everything)
        self.counts["not answered"] = sum(it.status == 0 for it in everything)
        self.counts["dead letters"] = len(dead)
        for tag, asked in self.answered.items():
            for handler in self._wanted(asked.event):
                if not {(tag, handler), (tag, None)} & dead and (tag, handler) not in done:
                    self._find(
                        "lost",
                        f"{asked.session} {asked.event} {asked.number} ({tag}) for {handler}: answered 200 by "
                        f"{asked.node} at {asked.ended:.3f}, called {len(self.by_tag[tag])} times",
                    )

    # 2: order

    def _check_misordered(self) -> None:
        for calls in self.by_session.values():
            self._check_one_at_a_time(calls)
            for call in calls:
                if call.began.run:
                    self._find(
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
                if it.token < call.began.token and self.disturbances.overlap(it.pid, it.at, start):
                    self.counts["at once, of a disturbed owner"] += 1
                else:
                    self._find("misordered", f"at once: {before} | {call}")
            open_calls.append(call)

    def _check_rising(self, lane: list[Call]) -> None:
        """Under one owner the numbers never fall."""
        last: dict[int, Began] = {}
        for call in lane:
            it = call.began
            before = last.setdefault(it.token, it)
            if it.number < before.number or (it.number == before.number and it.tag != before.tag):
                self._find("misordered", f"{call}: after {before.number} ({before.tag}) under the same owner")
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
                    self._find(
                        "misordered", f"{call}: names {it.missing} as missing; handled: {sorted(handled)}"
                    )
            elif it.order != "in_order":
                self._find("misordered", f"{call}: has a number, and is {it.order}")
            elif number not in (0, self.terms.first_sequence) and number - 1 not in reached:
                self._find("misordered", f"{call}: in_order, and {number - 1} was not handled before")
            reached[number] = call

    def _rolled_back(self, handled: Call, later: Began) -> bool:
        """Whether a failover may have lost that an event was handled, before a later owner asked for it."""
        it = handled.began
        if later.token <= it.token:
            return False
        end = it.at if handled.end is None else handled.end
        lost = any(
            fault.kind in FAILOVERS and fault.began - self.terms.lease_s <= end <= fault.ended
            for fault in self.disturbances.redis
        )
        self.counts["after_gap, the missing handled before a failover"] += lost
        return lost

    def _check_tokens(self) -> None:
        """In a partition a call under an old token never starts after one under a newer token."""
        newest: dict[int, Began] = {}
        resumed: set[Fault] = set()
        for call in self.calls:
            it = call.began
            partition = partition_of(it.session, self.terms.partitions)
            first = newest.setdefault(partition, it)
            if it.token > first.token:
                newest[partition] = it
            elif it.token < first.token:
                stop = next(
                    (
                        fault
                        for fault in self.disturbances.stops(it.pid)
                        if fault not in resumed and fault.ended <= it.at <= fault.ended + self.terms.lease_s
                    ),
                    None,
                )
                if stop is not None:
                    resumed.add(stop)
                    self.counts["started by a stopped owner"] += 1
                elif it.at > first.at + RACE_S or not self.disturbances.overlap(it.pid, it.at, it.at):
                    self._find(
                        "misordered", f"{call}: {first.token} owned the partition since {first.at:.3f}"
                    )

    def _count_flags(self) -> None:
        numbers = {(it.session, it.number): it.ended for it in self.answered.values()}
        seen: set[str] = set()
        for call in self.calls:
            it = call.began
            if it.tag in seen:
                continue
            seen.add(it.tag)
            self.counts[it.order] += 1
            answered = [numbers.get((it.session, number)) for number in it.missing]
            if any(at is not None and at < it.at for at in answered):
                self.counts["after_gap, the missing answered before"] += 1

    # 3: once

    def _check_doubled(self) -> None:
        owners: dict[str, str] = {}
        for tag, calls in self.by_tag.items():
            keys = {call.began.key for call in calls}
            if len(keys) > 1:
                self._find("doubled", f"{tag}: one callback under the keys {sorted(keys)}")
            for key in keys:
                if owners.setdefault(key, tag) != tag:
                    self._find("doubled", f"{key}: the key of {tag} and {owners[key]}")
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
        until = call.began.at if settled_at is None else settled_at + self.terms.lease_s
        if call.began.token > first.token and self.disturbances.overlap(first.pid, first.at, until):
            self.counts["doubled in the crash window"] += 1
        elif call.began.token > first.token and settled_at is None and HANDOVER_FORGETS:
            self.counts["doubled by a handover between tries"] += 1
        else:
            self._find("doubled", f"{call} | first: {before}")

    def _committed_by(self, first: Began, calls: list[Call]) -> float | None:
        """When an owner was done with an event, so that it was to be committed; None if it never was."""
        ends: list[float] = []
        mine = [call for call in calls if call.began.token == first.token]
        for handler in self._wanted(first.event):
            final = [
                call.end
                for call in mine
                if call.began.handler == handler
                and call.end is not None
                and (
                    call.outcome == "done"
                    or (call.outcome == "failed" and call.began.attempt >= self.terms.attempts)
                )
            ]
            if not final:
                return None
            ends.append(max(final))
        return max(ends)

    # 4: a slow session holds up only itself

    def _check_held_up(self) -> None:
        waits, came = self._arrivals()
        for calls in self.by_tag.values():
            for token in {call.began.token for call in calls}:
                mine = [call for call in calls if call.began.token == token]
                start, it = mine[0].began.at, mine[0].began
                # A worker that is asked to stop lets handlers come to their end, and then gives the partition back.
                end = min(
                    max(call.end or start for call in mine),
                    self.disturbances.asked_to_stop.get(it.pid, float("inf")),
                )
                if end - start < SLOW_S or self.disturbances.overlap(it.pid, start - SETTLE_S, end):
                    continue
                partition = partition_of(it.session, self.terms.partitions)
                low = bisect_left(came[partition], start)
                high = bisect_right(came[partition], end - SERVED_S)
                others = [wait for wait in waits[partition][low:high] if wait[1] != it.session]
                if len(others) < SERVED_MIN:
                    continue
                self.counts["slow events looked at"] += 1
                if not any(start <= served < end for _, _, served in others):
                    self._find("held_up", f"{mine[0]}: none of {len(others)} others of partition {partition}")

    def _arrivals(self) -> tuple[dict[int, list[tuple[float, str, float]]], dict[int, list[float]]]:
        """By partition: when a callback was answered, its session, when it was first called; and the first alone."""
        # While an ingest node is disturbed, callbacks that it has answered may wait in its spool.
        ingest: defaultdict[str, list[Fault]] = defaultdict(list)
        for fault in self.history.of(Fault):
            ingest[fault.target].append(fault)
        waits: defaultdict[int, list[tuple[float, str, float]]] = defaultdict(list)
        for tag, asked in self.answered.items():
            at = asked.ended
            if any(fault.began <= at <= fault.ended + SETTLE_S for fault in ingest[asked.node]):
                continue
            calls = self.by_tag.get(tag)
            served = calls[0].began.at if calls else float("inf")
            waits[partition_of(asked.session, self.terms.partitions)].append((at, asked.session, served))
        for arrivals in waits.values():
            arrivals.sort()
        came: defaultdict[int, list[float]] = defaultdict(list)
        for partition, arrivals in waits.items():
            came[partition] = [arrival[0] for arrival in arrivals]
        return waits, came

    # 5: nothing unhandled is trimmed, nothing is left

    def _check_left(self) -> None:
        left: list[Leftover] = self.history.of(Leftover)
        unseen = set(range(self.terms.partitions)) - {it.partition for it in left}
        if unseen:
            self._find("left", f"partitions {sorted(unseen)} were not looked at in the end")
        for it in left:
            if it.pending != 0 or it.lag != 0:
                self._find("left", f"partition {it.partition}: {it.pending} pending, {it.lag} not read")

    def _check_unexplained(self) -> None:
        sent = {asked.tag for asked in self.history.of(Answer)}
        for it in self.history.of(Exit):
            if not it.asked or (it.asked == "term" and it.code != 0):
                asked = f"asked to stop ({it.asked})" if it.asked else "though nobody asked"
                self._find(
                    "unexplained", f"{it.target}, pid {it.pid}, ended with {it.code} at {it.at:.3f}, {asked}"
                )
        killed = {it.pid for it in self.history.of(Exit) if it.asked == "kill"}
        for call in self.calls:
            self.counts["calls"] += 1
            if call.outcome == "cut":
                self.counts["calls cut"] += 1
                if call.began.pid not in killed:
                    self._find("unexplained", f"{call}: no end, and its process was not killed")
            if call.began.tag not in sent:
                self._find("unexplained", f"{call}: never sent")
