"""Random histories of a small model: as the model makes them they are good; broken in one way, that is what is found.

The model: a partition with several sessions and one owner after the other. Callbacks are answered, some never come, a
few handlers fail; owners are killed, stopped or leave, and what an owner had not committed comes to the next one again.
"""

import random
from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest
from checker import check
from checker_kit import ATTEMPTS, ENDING, LEASE_S, RINGING, HistoryBuilder
from history import Answer, Began, DeadLetter, Ended, Exit, Fact, Fault, History, Leftover
from hypothesis import given
from hypothesis import strategies as st

CALL_S = 0.01


class World:
    """Writes a good history into `book`."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.builder = HistoryBuilder()
        self.now = 0.0
        self.token, self.pid = 1, 100
        self.queues = {f"s{index}": self.events(f"s{index}") for index in range(self.rng.randint(1, 4))}
        self.reached = dict.fromkeys(self.queues, 0)

    def events(self, session: str) -> list[tuple[str, int | None, tuple[int, ...]]]:
        """Tag, number and the numbers missing before it, in the order of handling; the last ends the session."""
        events: list[tuple[str, int | None, tuple[int, ...]]] = []
        missing: list[int] = []
        for number in range(1, self.rng.randint(2, 8)):
            if self.rng.random() < 0.15:
                missing.append(number)
                continue
            events.append((f"{session}.{number}", number, tuple(missing)))
            missing = []
            if self.rng.random() < 0.2:
                events.append((f"{session}.{number}u", None, ()))
        events.append((f"{session}.end", None, ()))
        for tag, number, _ in events:
            self.builder.sent(tag, number, session=session, event=ENDING if tag.endswith(".end") else RINGING)
            if self.rng.random() < 0.2:
                self.builder.sent(tag, number, session=session, status=self.rng.choice((0, 200, 503)))
        return events

    def play(self) -> HistoryBuilder:
        while any(self.queues.values()):
            session = self.rng.choice([name for name, queue in self.queues.items() if queue])
            tag, number, missing = self.queues[session][0]
            committed = self.handle(tag, number, missing)
            if committed:
                self.queues[session].pop(0)
            elif self.rng.random() < 0.2:
                continue  # another session is first with the new owner
        return self.builder

    def handle(self, tag: str, number: int | None, missing: tuple[int, ...]) -> bool:
        """One event by its owner; False where the owner changes before it was committed."""
        fate = self.rng.choice(["well"] * 8 + ["cut", "uncommitted", "stopped"])
        handlers = ["every", "ends"] if tag.endswith(".end") else ["every"]
        fails = self.rng.random() < 0.1
        order = "unsequenced" if number is None else "after_gap" if missing else "in_order"
        for handler in handlers:
            for attempt in range(1, ATTEMPTS + 1 if fails else 2):
                self.now += CALL_S * 2
                last = handler == handlers[-1] and (not fails or attempt == ATTEMPTS)
                took = None if fate == "cut" and last else CALL_S
                self.builder.call(
                    tag,
                    self.now,
                    took=took,
                    handler=handler,
                    token=self.token,
                    pid=self.pid,
                    attempt=attempt,
                    order=order,
                    missing=missing,
                    outcome="failed" if fails else "done",
                )
        self.now += CALL_S * 2
        if fate == "well":
            for handler in handlers if fails else ():
                self.builder.letter(tag, handler)
            if self.rng.random() < 0.05:
                self.now += 3 * LEASE_S  # all of it was committed long ago
                self.builder.exited(self.pid, self.now, code=0, asked="term")
                self.next_owner()
            return True
        if fate == "stopped":
            self.builder.fault("stop", "worker-0", self.now - CALL_S, self.now + 2 * LEASE_S, pid=self.pid)
        else:
            self.builder.killed(self.pid, self.now - CALL_S * 1.5)
        self.next_owner()
        return False

    def next_owner(self) -> None:
        self.now += 1.5 * LEASE_S
        self.token += self.rng.randint(1, 3)
        self.pid += 1


def facts_of(seed: int) -> list[Fact]:
    builder = World(seed).play()
    return [*builder.facts, *builder.left]


def broken(facts: list[Fact]) -> set[str]:
    return set(check(History(facts)).broken)


def done_calls(facts: list[Fact]) -> list[tuple[Began, Ended]]:
    ends = {fact.call: fact for fact in facts if isinstance(fact, Ended)}
    return [
        (fact, ends[fact.call])
        for fact in facts
        if isinstance(fact, Began) and fact.call in ends and ends[fact.call].outcome == "done"
    ]


def again(began: Began, ended: Ended, *, later_s: float, **changes: object) -> list[Fact]:
    """The same call once more."""
    moved = {"call": began.call + "-again", "at": began.at + later_s} | changes
    return [
        msgspec.structs.replace(began, **moved),
        Ended(began.call + "-again", "done", ended.at + later_s),
    ]


# What breaks one promise. Each takes the facts and a random choice, and returns other facts, or None where the history
# has nothing to break in that way.

CircuitBreaker = Callable[[list[Fact], random.Random], list[Fact] | None]


def lose(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    """The end of a session never comes to its handlers."""
    tag = rng.choice(
        sorted({fact.tag for fact in facts if isinstance(fact, Answer) and fact.event == ENDING})
    )
    calls = {fact.call for fact in facts if isinstance(fact, Began) and fact.tag == tag}
    return [
        fact
        for fact in facts
        if not (isinstance(fact, Began | Ended) and fact.call in calls)
        and not (isinstance(fact, DeadLetter) and fact.tag == tag)
    ]


def lose_for_one(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    """One of the two handlers of a session's end never comes to its own."""
    tag = rng.choice(
        sorted({fact.tag for fact in facts if isinstance(fact, Answer) and fact.event == ENDING})
    )
    calls = {
        fact.call for fact in facts if isinstance(fact, Began) and (fact.tag, fact.handler) == (tag, "ends")
    }
    return [
        fact
        for fact in facts
        if not (isinstance(fact, Began | Ended) and fact.call in calls)
        and not (isinstance(fact, DeadLetter) and (fact.tag, fact.handler) == (tag, "ends"))
    ]


def double(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    """A session's end comes again under the same owner."""
    calls = [pair for pair in done_calls(facts) if pair[0].event == ENDING and pair[0].handler == "ends"]
    return [*facts, *again(*rng.choice(calls), later_s=CALL_S)] if calls else None


def double_when_all_is_quiet(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    """A session's end comes again long after everything, under a new owner, though nothing has happened to the old."""
    disturbed = {fact.pid for fact in facts if isinstance(fact, Exit) and fact.asked == "kill"}
    disturbed |= {fact.pid for fact in facts if isinstance(fact, Fault)}
    calls = [pair for pair in done_calls(facts) if pair[0].handler == "ends" and pair[0].pid not in disturbed]
    if not calls:
        return None
    return [*facts, *again(*rng.choice(calls), later_s=1_000.0, token=10_000, pid=10_000)]


def swap(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    """Two numbers that follow each other under one owner change places."""
    pairs = done_calls(facts)
    numbered = [
        (one, other)
        for one, other in pairwise(pairs)
        if one[0].session == other[0].session
        and one[0].token == other[0].token
        and one[0].order == other[0].order == "in_order"
    ]
    if not numbered:
        return None
    (one, one_end), (other, other_end) = rng.choice(numbered)
    moved = {
        id(one): msgspec.structs.replace(one, at=other.at),
        id(other): msgspec.structs.replace(other, at=one.at),
        id(one_end): msgspec.structs.replace(one_end, at=other_end.at),
        id(other_end): msgspec.structs.replace(other_end, at=one_end.at),
    }
    return [moved.get(id(fact), fact) for fact in facts]


def overlap(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    """A call of a session is still under way when another begins, both of one owner."""
    pairs = done_calls(facts)
    following = [
        (one, other)
        for one, other in pairwise(pairs)
        if one[0].session == other[0].session and one[0].token == other[0].token
    ]
    if not following:
        return None
    (_, one_end), (_, other_end) = rng.choice(following)
    late = Ended(one_end.call, "done", other_end.at - CALL_S / 2)
    return [late if fact is one_end else fact for fact in facts]


def leave_out_a_flag(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    """What comes after a gap says that it is in order."""
    flagged = {fact.tag for fact in facts if isinstance(fact, Began) and fact.order == "after_gap"}
    if not flagged:
        return None
    tag = rng.choice(sorted(flagged))
    return [
        msgspec.structs.replace(fact, order="in_order", missing=[])
        if isinstance(fact, Began) and fact.tag == tag
        else fact
        for fact in facts
    ]


def begin_a_run(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    """From some event of a session on, the handlers are told that its numbering has started again."""
    first = rng.choice([fact for fact in facts if isinstance(fact, Began)])
    return [
        msgspec.structs.replace(fact, run=1)
        if isinstance(fact, Began) and fact.session == first.session and fact.at >= first.at
        else fact
        for fact in facts
    ]


def another_key(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    """One callback bears the key of another."""
    tags = sorted({fact.tag for fact in facts if isinstance(fact, Began)})
    if len(tags) < 2:
        return None
    one, other = rng.sample(tags, 2)
    return [
        msgspec.structs.replace(fact, key=f"key of {other}")
        if isinstance(fact, Began) and fact.tag == one
        else fact
        for fact in facts
    ]


def leave(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    left = rng.choice(
        [Leftover(0, rng.randint(1, 9), 0), Leftover(0, 0, rng.randint(1, 9)), Leftover(0, None, None)]
    )
    return [left if isinstance(fact, Leftover) else fact for fact in facts]


def die(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    return [*facts, Exit("worker-1", 9_999, rng.choice((1, -11)), "", 0.0)]


def invent(facts: list[Fact], rng: random.Random) -> list[Fact] | None:
    call = Began("9-9", 9, "every", "invented", "nobody", None, RINGING, "unsequenced", [], 0, 1, "k", 1, 0.0)
    return [*facts, call, Ended("9-9", "done", CALL_S)]


BREAKERS: dict[CircuitBreaker, str] = {
    lose: "lost",
    lose_for_one: "lost",
    double: "doubled",
    double_when_all_is_quiet: "doubled",
    another_key: "doubled",
    swap: "misordered",
    overlap: "misordered",
    leave_out_a_flag: "misordered",
    begin_a_run: "misordered",
    leave: "left",
    die: "unexplained",
    invent: "unexplained",
}

seeds = st.integers(0, 2**32)


@given(seeds)
def test_histories_of_the_model_pass(seed: int):
    assert check(History(facts_of(seed))).broken == {}


@pytest.mark.parametrize("breaker", BREAKERS, ids=lambda breaker: breaker.__name__)
@given(seed=seeds)
def test_checker_finds_what_was_broken_and_nothing_else(breaker: CircuitBreaker, seed: int):
    facts = breaker(facts_of(seed), random.Random(seed))
    if facts is not None:
        assert broken(facts) == {BREAKERS[breaker]}


def test_model_and_breakers_reach_every_rule():
    """None of the tests above passes because there was nothing to see."""
    seen = dict.fromkeys(BREAKERS, 0)
    excused = {"doubled in the crash window": 0, "calls cut": 0, "after_gap": 0, "dead letters": 0}
    for seed in range(60):
        facts = facts_of(seed)
        counts = check(History(facts)).counts
        for name in excused:
            excused[name] += counts[name]
        for breaker in BREAKERS:
            seen[breaker] += breaker(facts, random.Random(seed)) is not None
    assert min(seen.values()) > 10, seen
    assert min(excused.values()) > 10, excused
