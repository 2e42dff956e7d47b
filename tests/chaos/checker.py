"""Reads the whole history of a chaos run and checks each promise. Pure: facts in, findings out.

- lost: a callback was answered 200, and a handler that asked for it neither came to its end with it, nor is there a
  dead letter for it, nor does it wait behind one, nor has an operator discarded it.
- misordered, for each handler: two calls of a session at once; an event called before the handler was through with the
  one before it; numbers of a run not rising under one owner; `in_order` with an open number before it that it does not
  name as skipped; `after_gap` with missing numbers that were handled; numbers skipped that were not given up; a run
  that numbering, which runs on, never began. Besides, an old owner that starts a call after the new one did.
- given_up: a number was given up though its callback had been answered 200, and the node that held it could say so.
- doubled: a handler came to its end with a callback twice; one callback under two idempotency keys, two under one.
- attempts: the next try of an event has not the next number; an event was given up though time alone decides.
- held_up: while one event was slow or failing, none of the other sessions of its partition were served.
- left: entries of the stream that the group has not read or not acknowledged at the end; events that were set aside
  and wait for no operator; dead letters, where all were to be replayed in the end.
- unexplained, no promise but what all others rest on: a process that ended unasked, a call without an end whose process
  was not killed, a call for a callback that was never sent, an operator's command that failed.

What a fault excuses. The owner of a call is *disturbed* while its process is being killed or stopped, while its
connection is disturbed or Redis is away, and for one lease's life after that: so long it may take to be connected
again, and no longer can it believe in a lease that it has lost. Then, and only then:

- A handler may come to its end twice: if its first owner was disturbed between the start of the first call and the
  commit of the event, which is due a lease's life after the tries that follow each other in the worker; the second call
  bears a higher token. At a clean hand-over it never does.
- Tries that were not committed may be forgotten, and the next owner may begin with another event of the session: if the
  first owner was disturbed, and the later call bears a higher token.
- Two calls of a session may be under way at once: if the owner of the first was disturbed during that call, and the
  second bears a higher token. The new owner cannot call back a handler that is running.
- An old owner may start one call after the new owner did: if its process was stopped. It looked at its lease, was
  stopped, and went on where it was: one call for each stop, right after it. Or within RACE_S of the new owner's first.
- A number may be named as missing that had been handled: if a failover may have lost the commit that says so, and the
  second owner bears a higher token. The callback itself is not lost: it comes again from a spool.

- A number may be given up whose callback had been answered 200: if the node that answered was dead or cut off when the
  gap was due, and had not said before that it holds something (`given_up_check`).

Each of these is counted, as is what an operator had run again. `late` and `after_gap` are flags and no breach by
themselves; they are counted as well.
"""

from collections import Counter, defaultdict
from typing import NamedTuple

from attempts_check import AttemptsCheck
from evidence import Evidence, Finding
from given_up_check import GivenUpCheck
from history import Answer, DeadLetter, Discarded, Exit, History, Leftover, Operated, Waiting
from once_check import OnceCheck
from order_check import OrderCheck
from served_check import ServedCheck

PROMISES = ("lost", "misordered", "given_up", "doubled", "attempts", "held_up", "left", "unexplained")

EXAMPLES_MAX = 5
"""Shown of each promise; all are counted."""

OPERATOR_CODES = (0, 1, 130)
"""How a command may end that is right: with 1 where Redis was away, or what it replayed failed again; with 130 where it
took long, and was interrupted."""


class Verdict(NamedTuple):
    broken: dict[str, list[Finding]]
    """By promise; only those that were broken."""
    counts: Counter[str]

    @property
    def good(self) -> bool:
        return not self.broken


def check(history: History) -> Verdict:
    """Check every promise. Raises LookupError for a history without terms."""
    evidence = Evidence(history)
    rest = _Check(evidence)
    rest.check_lost()
    OrderCheck(evidence).check()
    GivenUpCheck(evidence).check()
    OnceCheck(evidence).check()
    AttemptsCheck(evidence).check()
    ServedCheck(evidence).check()
    rest.check_left()
    rest.check_unexplained()
    broken: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in evidence.found:
        broken[finding.promise].append(finding)
    evidence.counts["torn lines"] = history.torn
    return Verdict(dict(broken), evidence.counts)


class _Check:
    """The promises that take no file of their own."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    # Nothing taken is lost

    def check_lost(self) -> None:
        done = {
            (call.began.tag, call.began.handler) for call in self.evidence.calls if call.outcome == "done"
        }
        dead = {(letter.tag, letter.handler) for letter in self.evidence.history.of(DeadLetter)}
        everything = self.evidence.history.of(Answer)
        self.evidence.counts["requests"] = len(everything)
        self.evidence.counts["callbacks"] = len({asked.tag for asked in everything})
        self.evidence.counts["callbacks answered 200"] = len(self.evidence.answered)
        self.evidence.counts["repeats answered 200"] = sum(it.status == 200 for it in everything) - len(
            self.evidence.answered
        )
        self.evidence.counts["answered otherwise"] = sum(it.status not in (0, 200) for it in everything)
        self.evidence.counts["not answered"] = sum(it.status == 0 for it in everything)
        self.evidence.counts["dead letters"] = len(dead)
        parked = {(it.tag, it.handler) for it in self.evidence.history.of(Waiting) if it.parked}
        self.evidence.counts["behind dead letters"] = len(parked)
        discarded = {(it.tag, it.handler) for it in self.evidence.history.of(Discarded)}
        self.evidence.counts["discarded"] = len(discarded)
        ends = done | dead | discarded | parked
        for tag, asked in self.evidence.answered.items():
            for handler in self.evidence.wanted(asked.event):
                if ends.isdisjoint({(tag, handler), (tag, None)}):
                    self.evidence.find(
                        "lost",
                        f"{asked.session} {asked.event} {asked.number} ({tag}) for {handler}: answered 200 by "
                        f"{asked.node} at {asked.ended:.3f}, called {len(self.evidence.by_tag[tag])} times",
                    )

    # Nothing unhandled is trimmed, nothing is left

    def check_left(self) -> None:
        left: list[Leftover] = self.evidence.history.of(Leftover)
        unseen = set(range(self.evidence.terms.partitions)) - {it.partition for it in left}
        if unseen:
            self.evidence.find("left", f"partitions {sorted(unseen)} were not looked at in the end")
        for it in left:
            if it.pending != 0 or it.lag != 0:
                self.evidence.find(
                    "left", f"partition {it.partition}: {it.pending} pending, {it.lag} not read"
                )

        letters: list[DeadLetter] = self.evidence.history.of(DeadLetter)
        for letter in letters if self.evidence.terms.replays_all else ():
            if letter.handler is not None:
                self.evidence.find(
                    "left", f"{letter.tag} is a dead letter of {letter.handler}: {letter.code}"
                )
        for waiting in self.evidence.history.of(Waiting):
            if not waiting.parked:
                self.evidence.find("left", f"{waiting.tag} waits for {waiting.handler}, and for no operator")

    # No promise, but what all others rest on

    def check_unexplained(self) -> None:
        sent = {asked.tag for asked in self.evidence.history.of(Answer)}
        for it in self.evidence.history.of(Exit):
            if not it.asked or (it.asked == "term" and it.code != 0):
                asked = f"asked to stop ({it.asked})" if it.asked else "though nobody asked"
                self.evidence.find(
                    "unexplained", f"{it.target}, pid {it.pid}, ended with {it.code} at {it.at:.3f}, {asked}"
                )
        for it in self.evidence.history.of(Operated):
            self.evidence.counts["commands of operators"] += 1
            if it.code not in OPERATOR_CODES or "Traceback" in it.said:
                self.evidence.find("unexplained", f"{it.command} at {it.began:.3f}: {it.code}, {it.said}")
        killed = {it.pid for it in self.evidence.history.of(Exit) if it.asked == "kill"}
        for call in self.evidence.calls:
            self.evidence.counts["calls"] += 1
            if call.outcome == "cut":
                self.evidence.counts["calls cut"] += 1
                if call.began.pid not in killed:
                    self.evidence.find("unexplained", f"{call}: no end, and its process was not killed")
            if call.began.tag not in sent:
                self.evidence.find("unexplained", f"{call}: never sent")
