"""The reorderer once more, as naively as it can be written, for the properties to compare with.

Nothing is kept but a diary of all releases and restarts, and the arrivals that wait. Every number that a
decision needs is worked out from the whole diary each time. Only bounds are shared with the real one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from maskline.worker.ordering.decision import AHEAD_MAX
from maskline.worker.ordering.reorder import MISSING_MAX, Arrival, Policy
from maskline.worker.ordering.state import RELEASED_REMEMBERED


@dataclass(frozen=True)
class Released:
    arrival: Arrival
    order: str
    missing: tuple[int, ...]
    run: int
    counted_us: int | None


@dataclass(frozen=True)
class Restarted:
    recording: bool


@dataclass(frozen=True)
class Spooled:
    """Between two times a node is known to hold spooled callbacks."""

    since_ms: int
    until_ms: int
    gaps_only: bool


@dataclass
class Model:
    policy: Policy
    spooled: tuple[Spooled, ...] = ()
    ending: Arrival | None = None
    diary: list[Released | Restarted] = field(default_factory=list)
    waiting: list[Arrival] = field(default_factory=list)
    duplicates: list[Arrival] = field(default_factory=list)
    ending_us: dict[bool, int | None] = field(default_factory=lambda: {False: None, True: None})

    # What the diary says.

    def releases(self) -> list[Released]:
        return [entry for entry in self.diary if isinstance(entry, Released)]

    def of_lane(self, recording: bool) -> list[Released]:
        return [
            entry
            for entry in self.releases()
            if entry.arrival.number is not None and entry.arrival.recording == recording
        ]

    def restarts(self, recording: bool) -> list[int]:
        """Where in the diary the lane's numbering started again."""
        return [at for at, entry in enumerate(self.diary) if entry == Restarted(recording)]

    def run(self, recording: bool) -> int:
        return len(self.restarts(recording))

    def in_run(self, recording: bool) -> list[Released]:
        """What the present run has released in its turn."""
        run = self.run(recording)
        return [entry for entry in self.of_lane(recording) if entry.run == run and entry.order != "late"]

    def next(self, recording: bool) -> int | None:
        return max((number(entry.arrival) + 1 for entry in self.in_run(recording)), default=None)

    def top_us(self, recording: bool, entries: Iterable[Released | Restarted] | None = None) -> int | None:
        return max(
            (
                entry.counted_us
                for entry in (self.diary if entries is None else entries)
                if isinstance(entry, Released)
                and entry.arrival.number is not None
                and entry.arrival.recording == recording
                and entry.counted_us is not None
            ),
            default=None,
        )

    def floor_us(self, recording: bool) -> int | None:
        restarts = self.restarts(recording)
        if not restarts:
            return None
        opened = self.in_run(recording)
        if opened and opened[0].arrival.timestamp_us is not None:
            return opened[0].arrival.timestamp_us
        return self.top_us(recording, self.diary[: restarts[-1]])

    def is_duplicate(self, arrival: Arrival) -> bool:
        if arrival.number is None:
            seen = [entry.arrival for entry in self.releases() if entry.arrival.number is None]
        else:
            seen = [entry.arrival for entry in self.of_lane(arrival.recording)]
        candidates = seen[-RELEASED_REMEMBERED:] + self.waiting
        return any(
            other.number == arrival.number
            and other.fingerprint == arrival.fingerprint
            and (arrival.number is None or other.recording == arrival.recording)
            for other in candidates
        )

    # What it decides.

    def arrive(self, arrival: Arrival) -> None:
        self.expire(arrival.arrived_ms)
        if self.is_duplicate(arrival):
            self.duplicates.append(arrival)
            return
        if arrival.ends_session and self.ends_ms(arrival) <= arrival.arrived_ms:
            self.end_session(arrival)
            return
        if arrival.ends_session:
            self.waiting.append(arrival)
        elif arrival.number is None:
            self.release(arrival, "unsequenced")
        else:
            self.feed(arrival)
        if len(self.waiting) > self.policy.held_max:
            there = self.of_waiting(arrival.recording) or self.of_waiting(not arrival.recording)
            if there:
                self.give_up(([one for one in there if not self.is_believed(one)] or there)[0])
            else:
                self.end_session(self.waiting.pop(0))

    def end_session(self, ending: Arrival) -> None:
        for recording in (False, True):
            while oldest := self.of_waiting(recording)[:1]:
                self.give_up(oldest[0])
        if ending.number is None:
            self.release(ending, "unsequenced")
            return
        self.ending = ending
        self.feed(ending)
        if ending in self.waiting:
            self.give_up(ending)
        self.ending = None

    def expire(self, watermark_ms: int) -> None:
        while expired := [one for one in self.waiting if self.ends_ms(one) <= watermark_ms]:
            first = min(expired, key=self.due_ms)
            if first.ends_session:
                self.waiting.remove(first)
                self.end_session(first)
            while first in self.waiting:
                self.give_up(first)

    def due_ms(self, one: Arrival) -> int:
        return one.arrived_ms + (0 if one.ends_session else self.policy.gap_timeout_ms)

    def ends_ms(self, one: Arrival) -> int:
        """The first time since it is due that is in none of the intervals, or the bound."""
        due_ms = self.due_ms(one)
        holds = [it for it in self.spooled if not (it.gaps_only and one.ends_session)]
        free = [
            at
            for at in (due_ms, *(it.until_ms + 1 for it in holds))
            if at >= due_ms and not any(it.since_ms <= at <= it.until_ms for it in holds)
        ]
        return min(*free, due_ms + self.policy.gap_spool_ms)

    def give_up(self, one: Arrival) -> None:
        opening = next((number(entry.arrival) for entry in self.in_run(one.recording)), None)
        if (
            opening == 0 != number(one) == self.policy.first_sequence < self.due(one.recording)
            and one.may_open
        ):
            at = self.waiting.index(one)
            self.waiting, later = self.waiting[:at], self.waiting[at + 1 :]
            self.restart(one)
            for other in later:
                self.feed(other)
            return
        self.let_go_of_one(self.of_waiting(one.recording) if self.is_believed(one) else [one])
        self.feed_again()

    def let_go_of_one(self, candidates: list[Arrival]) -> None:
        """The lowest number that the run may go on with; where there is none, the first to come, late."""
        believed = sorted(filter(self.is_believed, candidates), key=number)
        one = (believed or candidates)[0]
        due = self.due(one.recording)
        self.waiting.remove(one)
        if believed:
            self.release(one, "after_gap", tuple(range(due, min(number(one), due + MISSING_MAX))))
        else:
            self.release(one, "late")

    def is_believed(self, one: Arrival) -> bool:
        ahead = number(one) - self.due(one.recording)
        beside = self.of_waiting(one.recording) + [
            entry.arrival for entry in self.of_lane(one.recording)[-RELEASED_REMEMBERED:]
        ]
        distances = [abs(number(other) - number(one)) for other in beside]
        return 0 <= ahead <= AHEAD_MAX or (ahead > 0 and any(1 <= it <= AHEAD_MAX for it in distances))

    def due(self, recording: bool) -> int:
        following = self.next(recording)
        return self.policy.first_sequence if following is None else following

    def of_waiting(self, recording: bool) -> list[Arrival]:
        return [
            other
            for other in self.waiting
            if other.recording == recording and (not other.ends_session or other is self.ending)
        ]

    def feed_again(self) -> None:
        again, self.waiting = self.waiting, []
        for arrival in again:
            if arrival.ends_session and arrival is not self.ending:
                self.waiting.append(arrival)
            else:
                self.feed(arrival)

    def feed(self, arrival: Arrival) -> None:
        verdict = self.verdict(arrival)
        if verdict == "wait":
            self.waiting.append(arrival)
        elif verdict == "restart":
            self.restart(arrival)
        else:
            self.release(arrival, verdict)
            self.feed_again()

    def restart(self, opening: Arrival) -> None:
        recording, us = opening.recording, opening.timestamp_us
        assert us is not None
        old = [
            other
            for other in self.of_waiting(recording)
            if number(other) > self.due(recording)
            and not (other.timestamp_us is not None and other.timestamp_us > us)
        ]
        if old:
            self.ending_us[recording] = us
            self.let_go_of_one(old)
            self.feed_again()
            self.feed(opening)
        else:
            self.ending_us[recording] = None
            self.diary.append(Restarted(recording))
            self.release(opening, "in_order")
            self.feed_again()

    def verdict(self, arrival: Arrival) -> str:
        recording, us, n = arrival.recording, arrival.timestamp_us, number(arrival)
        first, following = self.policy.first_sequence, self.next(recording)
        floor, top, ending = self.floor_us(recording), self.top_us(recording), self.ending_us[recording]
        zeros = [
            entry for entry in self.of_lane(recording)[-RELEASED_REMEMBERED:] if entry.arrival.number == 0
        ]
        opening = next((number(entry.arrival) for entry in self.in_run(recording)), None)
        rows: list[tuple[bool, str]] = [
            # It belongs to a run that ended, or to the one that begins.
            (us is not None and floor is not None and us < floor, "late"),
            (us is not None and ending is not None and us > ending, "wait"),
            # The run has released nothing yet.
            (following is None and n in (0, first), "in_order"),
            (following is None and n < first, "late"),
            (following is None, "wait"),
            # Its turn, or not yet.
            (n == following, "in_order"),
            (following is not None and n > following, "wait"),
            # Its turn is over.
            (us is None or top is None or us <= top, "late"),
            (0 < n < first, "late"),
            (n > first, "wait"),
            (us == ending, "restart" if arrival.may_open else "wait"),
            (n == 0 != first and opening == first and not zeros, "late"),
            (n == first != 0 and opening == 0, "wait"),
            (arrival.may_open, "restart"),
        ]
        return next((verdict for holds, verdict in rows if holds), "wait")

    def release(self, arrival: Arrival, order: str, missing: tuple[int, ...] = ()) -> None:
        counted, ending = arrival.timestamp_us, self.ending_us[arrival.recording]
        if counted is not None and ending is not None:
            counted = min(counted, ending - 1)
        self.diary.append(Released(arrival, order, missing, self.run(arrival.recording), counted))


def number(arrival: Arrival) -> int:
    assert arrival.number is not None
    return arrival.number
