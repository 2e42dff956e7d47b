"""A thousand tenancies over shared leases, in rounds: nothing is lost or late, only very much happens at once.

In a round every worker makes one trip. In lockstep all of them see the same and then all of them act; staggered, each
acts before the next one looks.
"""

from collections import Counter
from random import Random

from maskline.worker.leases.planner import LeasePlan, LeasePlanner, RenewalReply

LEASE_S = 5.0


class Crowd:
    def __init__(self, partitions: int, random: Random, *, lockstep: bool) -> None:
        self.partitions = partitions
        self.random = random
        self.lockstep = lockstep
        self.leases: dict[int, str] = {}
        self.workers: dict[str, LeasePlanner] = {}
        self.rounds = 0
        self.moves = 0
        self.looked = 0
        self.tokens = 0

    def join(self, count: int) -> None:
        for _ in range(count):
            name = f"{self.random.getrandbits(64):016x}"
            self.workers[name] = LeasePlanner(name, self.partitions, LEASE_S)

    def kill(self, count: int) -> None:
        """Their leases have run out already."""
        for name in self.random.sample(sorted(self.workers), count):
            for number in self.workers.pop(name).owned:
                del self.leases[number]

    def settled(self) -> bool:
        counts = [len(tenancy.owned) for tenancy in self.workers.values()]
        return sum(counts) == self.partitions == len(self.leases) and max(counts) - min(counts) <= 1

    def settle(self, rounds_max: int) -> int:
        """Rounds until everything is owned and balanced."""
        for rounds in range(rounds_max):
            if self.settled():
                return rounds
            self.round()
        assert self.settled(), f"not balanced after {rounds_max} rounds: {Counter(self.leases.values())}"
        return rounds_max

    def round(self) -> None:
        self.rounds += 1
        order = self.random.sample(sorted(self.workers), len(self.workers))
        if self.lockstep:
            decisions = [(name, self._decide(name)) for name in order]
            for name, decision in decisions:
                self._act(name, decision)
        else:
            for name in order:
                self._act(name, self._decide(name))

    def _decide(self, name: str) -> LeasePlan:
        tenancy = self.workers[name]
        trip = tenancy.trip(self.rounds)
        self.looked += len(trip.look)
        answers = RenewalReply(
            live=self.workers.keys(),
            kept=dict.fromkeys(trip.renew, True),
            taken={number: self.leases[number] for number in trip.look if number in self.leases},
            free=[number for number in trip.look if number not in self.leases],
        )
        return tenancy.replied(
            trip, answers, sent_at=self.rounds, now=self.rounds, chance=self.random.random()
        )

    def _act(self, name: str, decision: LeasePlan) -> None:
        tenancy = self.workers[name]
        assert not decision.lost
        for number in decision.release:
            assert self.leases.pop(number) == name
            tenancy.gone(number)
            self.moves += 1
        for number in decision.acquire:
            if number not in self.leases:
                self.leases[number] = name
                self.tokens += 1
                tenancy.acquired(number, self.tokens, self.rounds)
                self.moves += 1
