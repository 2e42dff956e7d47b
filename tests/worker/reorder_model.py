"""The reorderer once more, as naively as it can be written, for the properties to compare with.

Nothing is kept but a diary of all releases and restarts, and the arrivals that wait. Every number that a
decision needs is worked out from the whole diary each time. Only bounds are shared with the real one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from maskline.worker.ordering.reorder import AHEAD_MAX, MISSING_MAX, Arrival, Policy
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


@dataclass
class Model:
    policy: Policy
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
        if arrival.ends_session:
            for recording in (False, True):
                while oldest := self.of_waiting(recording)[:1]:
                    self.give_up(oldest[0])
        if arrival.number is None:
            self.release(arrival, "unsequenced")
            return
        self.feed(arrival)
        if arrival.ends_session and arrival in self.waiting:
            self.give_up(arrival)
        if len(self.waiting) > self.policy.held_max:
            there = self.of_waiting(arrival.recording)
            self.give_up(([one for one in there if not self.is_believed(one)] or there)[0])

    def expire(self, watermark_ms: int) -> None:
        def expired() -> list[Arrival]:
            return [
                one for one in self.waiting if one.arrived_ms + self.policy.gap_timeout_ms <= watermark_ms
            ]

        while oldest := expired()[:1]:
            while oldest[0] in self.waiting:
                self.give_up(oldest[0])

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
        return [other for other in self.waiting if other.recording == recording]

    def feed_again(self) -> None:
        again, self.waiting = self.waiting, []
        for arrival in again:
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
