"""Whole histories of the lease protocol in virtual time: a seed says what happens when, and nothing else does.

Messages take their time, are lost before or after they were carried out, or are carried out long after their sender
has given them up. Workers are killed, paused, suspended together with their clock, stopped; others join. Servers go
away, fail over, and their clocks leap. In the end there is calm, and everything must be in its place again.

    python tests/worker/lease_simulation.py --seeds 20000 [--first 0]
"""

import argparse
import heapq
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2])]

from lease_model import LEASE_S, RATE_SKEW, Clock, Server, ViolationError
from lease_worker import Node

NUDGE_S = 0.005 * LEASE_S
"""What a server's clock may leap forward besides what its rate is off, and every lease is still safe."""
APART_S = 0.1 * LEASE_S
"""How far the clocks of a primary and of its replica are apart, at most."""
DOUBT_S = 1.2 * LEASE_S
"""After more than that (or a failover, or a clock that stood still), until what was renewed before has run out."""

OWNED_WITHIN = 2
"""Lease times after the last fault until every partition has a worker that starts handlers."""
BALANCED_WITHIN = 3
WATCHED_FOR = 2
"""Lease times after that, in which nothing may move any more."""
TRACE_MAX = 150

FAULTS = (
    "kill", "kill", "pause", "pause", "suspend", "join", "join", "stop", "away", "away", "fail over", "fail over",
    "come back", "back", "nudge", "leap",
)  # fmt: skip
ONCE = {"back", "nudge"}


class Weather(NamedTuple):
    """What a history is made of. Times in seconds."""

    servers: int
    workers: int
    partitions: int
    lost: float
    """How likely a message does not arrive; half of those were carried out all the same."""
    slow: float
    """How likely it is slow."""
    faults: tuple[tuple[float, str, float], ...]
    """When, what, for how long."""

    @classmethod
    def of(cls, random: Random) -> "Weather":
        drawn = random.choices(FAULTS, k=random.randint(1, 6))
        kinds = [kind for at, kind in enumerate(drawn) if kind not in ONCE or kind not in drawn[:at]]
        storm_s = random.uniform(1, 4) * LEASE_S
        return cls(
            servers=random.choice((1, 1, 2, 3)),
            workers=random.randint(1, 5),
            partitions=random.randint(1, 10),
            lost=random.choice((0.0, 0.02, 0.1)),
            slow=random.choice((0.0, 0.1, 0.3)),
            faults=tuple(
                sorted(
                    (random.uniform(0, storm_s), kind, random.uniform(0.1, 2.5) * LEASE_S) for kind in kinds
                )
            ),
        )

    @property
    def calm_from_s(self) -> float:
        """A clock set back makes all leases longer for as long as it was set back."""
        return max(
            (at + (0 if kind in {"kill", "join", "leap"} else long) for at, kind, long in self.faults),
            default=0,
        )


class Simulation:
    def __init__(self, seed: int, *, flaws: Iterable[str] = (), weather: Weather | None = None) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.flaws = frozenset(flaws)
        self.weather = weather or Weather.of(random)
        self.partitions = self.weather.partitions
        self.calm_from = self.weather.calm_from_s
        self.now = 0.0
        self.moves = 0
        self._due: list[tuple[float, int, Callable[..., None], tuple, Node | None]] = []
        self._count = 0
        self._trace: deque[tuple] = deque(maxlen=TRACE_MAX)
        self.happened: Counter[str] = Counter()
        self._newest: dict[int, int] = {}
        self._doubt: dict[Node | Server, float] = {}
        self.owned_after_s: dict[int, float] = {}
        """How long after the last fault each partition had a worker again, as far as was seen."""
        self.servers = [
            Server(
                Clock(1 + random.uniform(-RATE_SKEW, RATE_SKEW), 1000 + random.uniform(0, 100)), self.flaws
            )
            for _ in range(self.weather.servers)
        ]
        self.nodes: list[Node] = []
        for _ in range(self.weather.workers):
            self.later(random.uniform(0, 0.5) * LEASE_S if self.calm_from else 0.0, self.join)
        for at, kind, long in self.weather.faults:
            self.later(at, self._befall, kind, long)

    # The scheduler

    def later(self, in_s: float, act: Callable[..., None], *args: Any, node: Node | None = None) -> None:
        """Do something in a while; what is a node's own waits while it is paused, and dies with it."""
        self._count += 1
        heapq.heappush(self._due, (self.now + in_s, self._count, act, args, node))

    def run_until(self, end: float) -> None:
        due = self._due
        while due and due[0][0] <= end:
            self.now, _, act, args, node = heapq.heappop(due)
            if node is None:
                act(*args)
            elif node.paused:
                node.backlog.append((act, args))
            elif not node.dead:
                act(*args)
        self.now = end

    def send(
        self, node: Node, server: Server, command: Callable[[], Any], answer: Callable[[Any], None]
    ) -> None:
        """Carry a command to a server and its reply back; the answer is None if the connection was lost."""
        random, weather, storm_s = self.random, self.weather, self.calm_from - self.now
        there_s, back_s = random.uniform(0.0001, 0.01), random.uniform(0.0001, 0.01)
        if storm_s <= 0:
            self.later(there_s, self._carry_out, node, server, command, answer, back_s)
            return
        if random.random() < weather.slow:
            there_s = min(random.expovariate(8 / LEASE_S), max(storm_s, there_s))
        if random.random() < weather.slow:
            back_s = min(random.expovariate(8 / LEASE_S), max(storm_s, back_s))
        if random.random() < weather.lost:
            self.later(random.uniform(0.001, 0.3 * LEASE_S), answer, None, node=node)
            if random.random() < 0.5:
                return
            there_s, answer = min(random.uniform(0, LEASE_S), storm_s), _nobody
        self.later(there_s, self._carry_out, node, server, command, answer, back_s)

    def _carry_out(
        self,
        node: Node,
        server: Server,
        command: Callable[[], Any],
        answer: Callable[[Any], None],
        back_s: float,
    ) -> None:
        self.later(back_s, answer, None if server.away else command(), node=node)

    # Faults

    def join(self) -> None:
        node = Node(self, f"{self.random.getrandbits(20):05x}")
        self.nodes.append(node)
        self.note("%s joins", node.name)

    def live(self) -> list[Node]:
        return [node for node in self.nodes if not node.dead]

    def _befall(self, kind: str, long: float) -> None:
        server = self.random.choice(self.servers)
        node = self.random.choice(self.live() or [None])
        self.note(kind + ", %s, for %.3f s", node.name if node else None, long)
        if kind == "join":
            self.join()
        elif kind in {"away", "fail over", "come back", "back", "nudge", "leap"}:
            self._befall_server(server, kind, long)
        elif node is not None and not node.draining:
            self._befall_node(node, kind, long)

    def _befall_server(self, server: Server, kind: str, long: float) -> None:
        if kind == "back":
            server.clock.offset_s -= long
        elif kind == "nudge":
            server.clock.offset_s += NUDGE_S
        elif kind == "leap":
            server.clock.offset_s += long
            self._doubt[server] = self.now + DOUBT_S
        elif kind == "away":
            server.away = True
            self.later(long, setattr, server, "away", False)
        elif kind == "come back":
            # Without a replication before: as a primary that was cut off, with all that it took by itself.
            self.later(long, self._fail_over, server)
        else:
            server.replicate()
            self.later(long, self._fail_over, server)

    def _fail_over(self, server: Server) -> None:
        self.note("a server fails over")
        server.fail_over()
        server.clock.offset_s += self.random.uniform(-APART_S, APART_S)
        self._doubt[server] = self.now + DOUBT_S
        self._newest = {n: token for n, token in self._newest.items() if self.server(n) is not server}

    def _befall_node(self, node: Node, kind: str, long: float) -> None:
        if kind == "stop":
            node.draining = True  # nobody else stops it again
            self.later(0, node.stop, node=node)
        elif kind == "kill":
            node.dead = True
        elif not node.paused:
            node.paused = True
            self.later(long, self._go_on, node, kind == "suspend", long)
        if all(node.draining for node in self.live()):
            self.join()

    def _go_on(self, node: Node, suspended: bool, long: float) -> None:
        if node.dead:
            return
        self.note("%s goes on", node.name)
        if suspended:  # as a virtual machine is, whose clock stood still
            node.clock.offset_s -= long
            self._doubt[node] = self.now + DOUBT_S
        node.paused = False
        node.work(False)
        backlog, node.backlog = node.backlog, []
        for act, args in backlog:
            self.later(0, act, *args, node=node)

    # What must hold

    def server(self, number: int) -> Server:
        return self.servers[number % len(self.servers)]

    def started(self, node: Node, number: int, token: int) -> None:
        """A handler starts: its worker holds the lease, and no newer owner has started one."""
        server, newest = self.server(number), self._newest.get(number, 0)
        if self.now < max(self._doubt.get(server, 0), self._doubt.get(node, 0)):
            return
        self._newest[number] = max(newest, token)
        if token < newest:
            raise ViolationError(f"{node.name} starts {number} under {token}, and {newest} has started it")
        if (held := server.held(number, self.now)) != (token, node.name):
            raise ViolationError(f"{node.name} starts {number} under {token}, and {held} holds it")

    def note_owned(self) -> None:
        if len(self.owned_after_s) == self.partitions or self.now < self.calm_from:
            return
        for node in self.live():
            for number, holding in node.holdings.items():
                if node.may_start(number) and not holding.aside:
                    self.owned_after_s.setdefault(number, self.now - self.calm_from)

    def counts(self) -> list[int]:
        return [len(node.planner.owned) for node in self.live()]

    def note(self, text: str, *args: Any) -> None:
        self.happened[text] += 1
        self._trace.append((self.now, text, args))

    def run(self) -> "Simulation":
        """The whole history. Raises ViolationError, with the seed and what happened last."""
        try:
            self._run()
        except ViolationError as violation:
            trace = "\n".join(f"{now:8.3f}  {text % args}" for now, text, args in self._trace)
            raise ViolationError(f"seed {self.seed}: {violation}\n{self.weather}\n{trace}") from None
        return self

    def _run(self) -> None:
        self.run_until(self.calm_from + OWNED_WITHIN * LEASE_S)
        self.note_owned()
        if idle := {*range(self.partitions)}.difference(self.owned_after_s):
            raise ViolationError(f"nobody works on {idle} {OWNED_WITHIN} lease times after the last fault")
        self.run_until(self.calm_from + BALANCED_WITHIN * LEASE_S)
        counts, moves = self.counts(), self.moves
        if sum(counts) != self.partitions or max(counts) - min(counts) > 1:
            raise ViolationError(f"{self.partitions} partitions are owned by {counts}")
        self.run_until(self.now + WATCHED_FOR * LEASE_S)
        if self.moves != moves:
            raise ViolationError("leases move though nothing happens")
        if any(node.holdings[n].aside for node in self.live() for n in node.holdings):
            raise ViolationError("what was put aside stays there")


def _nobody(_reply: Any) -> None:
    """The connection is gone, and with it whoever waited."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        Simulation(seed).run()
    sys.stdout.write(f"{arguments.seeds} histories, nothing found\n")


if __name__ == "__main__":
    main()
