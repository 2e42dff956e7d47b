"""A thousand lease planners over shared leases, in rounds: nothing is lost or late, only very much happens at once.

In a round every worker sends one request. In lockstep all of them see the same and then all of them act; staggered,
each acts before the next one sends its request.
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
        self.probed = 0
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

    def balanced(self) -> bool:
        counts = [len(planner.owned) for planner in self.workers.values()]
        return sum(counts) == self.partitions == len(self.leases) and max(counts) - min(counts) <= 1

    def run_until_balanced(self, rounds_max: int) -> int:
        """Rounds until everything is owned and balanced."""
        for rounds in range(rounds_max):
            if self.balanced():
                return rounds
            self.round()
        assert self.balanced(), f"not balanced after {rounds_max} rounds: {Counter(self.leases.values())}"
        return rounds_max

    def round(self) -> None:
        self.rounds += 1
        order = self.random.sample(sorted(self.workers), len(self.workers))
        if self.lockstep:
            plans = [(name, self._plan(name)) for name in order]
            for name, plan in plans:
                self._act(name, plan)
        else:
            for name in order:
                self._act(name, self._plan(name))

    def _plan(self, name: str) -> LeasePlan:
        planner = self.workers[name]
        request = planner.request(self.rounds)
        self.probed += len(request.probe)
        reply = RenewalReply(
            live=self.workers.keys(),
            kept=dict.fromkeys(request.renew, True),
            taken={number: self.leases[number] for number in request.probe if number in self.leases},
            free=[number for number in request.probe if number not in self.leases],
        )
        return planner.plan(request, reply, sent_at=self.rounds, now=self.rounds, chance=self.random.random())

    def _act(self, name: str, plan: LeasePlan) -> None:
        planner = self.workers[name]
        assert not plan.lost
        for number in plan.release:
            assert self.leases.pop(number) == name
            planner.forget(number)
            self.moves += 1
        for number in plan.acquire:
            if number not in self.leases:
                self.leases[number] = name
                self.tokens += 1
                planner.acquired(number, self.tokens, self.rounds)
                self.moves += 1
