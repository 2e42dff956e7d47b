"""The promise that an outage disturbs no order: a number is given up only if the node that held its callback was gone.

Pure. A callback that was answered 200 lies in the stream, or in the spool of the node that answered. A worker gives its
number up too early if the node could have said that it holds something, or had said so. So a number that was answered
before the gap was due is given up rightly only where that node was dead or cut off just then: it had not said yet what
it holds, and could not.

A gap is due a gap timeout after the first event that waited behind it was sent, or when a SessionTimeout was. Later, if
the worker was behind: that makes the check milder, not stricter. What was answered only after that has come too late.

A `late` event is explained by the event that named its number as missing, by another callback of that number, or by a
number that nobody believes.
"""

from collections import defaultdict

from evidence import Evidence
from history import Answer, Began, Said
from order_check import Lane, lane_of

from maskline.schemas.keys import partition_of
from maskline.schemas.spool_notices import NOTICE_LIFE_MS
from maskline.worker.ordering.decision import AHEAD_MAX

REACH_S = 4.0
"""After a fault, until a node can say what it holds: the longest wait between two tries to connect, twice."""


class GivenUpCheck:
    """Finds numbers that were given up too early."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self._first: dict[str, Began] = {}
        """The first call of each tag, by whatever handler."""
        for call in evidence.calls:
            self._first.setdefault(call.began.tag, call.began)
        self._answered: defaultdict[tuple[str, bool], list[Answer]] = defaultdict(list)
        """By session, and whether it is a recording."""
        self._sent: dict[str, float] = {}
        """When each tag was sent first: what got no answer may have been taken all the same."""
        self._ends: dict[str, float] = {}
        """When a session's SessionTimeout was sent first."""
        for asked in evidence.history.of(Answer):
            self._sent[asked.tag] = min(asked.began, self._sent.get(asked.tag, asked.began))
            if asked.event == "SessionTimeout":
                self._ends[asked.session] = min(asked.began, self._ends.get(asked.session, asked.began))
        for asked in evidence.answered.values():
            self._answered[asked.session, asked.event.startswith("SessionRecording")].append(asked)
        self._said: defaultdict[tuple[str, int], list[Said]] = defaultdict(list)
        for said in sorted(evidence.history.of(Said), key=lambda it: it.at):
            self._said[said.node, said.partition].append(said)

    def check(self) -> None:
        missing: defaultdict[Lane, set[int]] = defaultdict(set)
        for it in self._first.values():
            if it.missing:
                self._check_gap(it)
                missing[lane_of(it)].update(it.missing)
        for it in self._first.values():
            uncalled = self.evidence.uncalled[it.session, it.event.startswith("SessionRecording")]
            if it.order == "late" and it.number not in missing[lane_of(it)] | uncalled:
                self._check_late(it)

    def _check_gap(self, it: Began) -> None:
        others = self._answered[it.session, it.event.startswith("SessionRecording")]
        due = self._due(it, others)
        for number in it.missing:
            callbacks = [
                asked
                for asked in others
                if asked.number == number and asked.ended < it.at and not self._called(asked, it.at)
            ]
            if not callbacks:  # `order_check` judges those that were called before
                continue
            first = min(callbacks, key=lambda asked: asked.ended)
            if first.ended >= due:
                self.evidence.counts["given up, answered too late"] += 1
            elif self._gone(first.node, due, it.at) and not self._had_said(first, due):
                self.evidence.counts["given up, its node was dead or cut off"] += 1
            else:
                self.evidence.find(
                    "given_up",
                    f"{it.session} {it.number} names {number} as missing at {it.at:.3f}, due at {due:.3f}: it was "
                    f"answered by {first.node} at {first.ended:.3f}",
                )

    def _called(self, asked: Answer, before: float) -> bool:
        first = self._first.get(asked.tag)
        return first is not None and first.at < before

    def _due(self, it: Began, others: list[Answer]) -> float:
        """When its wait may have been over at the earliest."""
        waited = [
            self._sent[asked.tag]
            for asked in others
            if asked.number is not None
            and asked.number > it.missing[-1]
            and asked.tag in self._first
            and self._first[asked.tag].at >= it.at
        ]
        over = min(waited, default=it.at) + self.evidence.terms.gap_timeout_s
        return min(over, self._ends.get(it.session, over))

    def _gone(self, node: str, since: float, until: float) -> bool:
        """Whether a node was dead or cut off at some time between, or just before."""
        return any(
            fault.target == node and fault.began <= until and fault.ended + REACH_S >= since
            for fault in self.evidence.disturbances.faults
        )

    def _had_said(self, asked: Answer, due: float) -> bool:
        """Whether the node's last notice before the gap was due said that it held callbacks of the partition."""
        partition = partition_of(asked.session, self.evidence.terms.partitions)
        before = [said for said in self._said[asked.node, partition] if said.at < due]
        return bool(before) and before[-1].held and due < before[-1].at + NOTICE_LIFE_MS / 1000

    def _check_late(self, it: Began) -> None:
        others = self._answered[it.session, it.event.startswith("SessionRecording")]
        numbers = {asked.number for asked in others if asked.number is not None and asked.tag != it.tag}
        alone = all(abs(number - it.number) > AHEAD_MAX for number in numbers)
        if it.number not in numbers and not alone:
            self.evidence.find(
                "given_up", f"{it.session} {it.number} ({it.tag}) is late at {it.at:.3f}: nobody gave it up"
            )
