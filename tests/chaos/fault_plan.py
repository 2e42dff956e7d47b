"""Which faults a chaos run suffers, and when: a pure function of the seed.

Besides, the server that a handler calls goes away twice, whatever else is wrong (`outages`).

Rules
- The kinds are dealt from a shuffled deck, so that each comes as often as DECK says, whatever the seed.
- A target has one fault at a time, and rests after it; no more than AT_ONCE_MAX targets have one.
- Every fault is over before the end of the time given.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from downstream import WAYS, Way

AT_ONCE_MAX = 2
WARM_UP_S = 2.0
PAUSE_S = (0.3, 2.5)
"""Between the beginnings of two faults, if a target is free."""
REST_S = 2.0
"""A process that was killed has to start: about a second on a quiet machine."""
OUTAGE_S = 60.0
SILENCE_MAX_S = 6.0
"""After half_open, until the last connection that lost bytes is given up: the link's timeout and two looks at it."""

# (kind, role): how often in a deck, its length in seconds or, where `leases`, in lease times.
DECK: dict[tuple[str, str], tuple[int, float, float, bool]] = {
    ("kill", "worker"): (6, 0.1, 2.5, False),
    ("restart", "worker"): (2, 0.1, 0.5, False),
    ("stop", "worker"): (3, 0.2, 2.2, True),
    ("delay", "worker"): (1, 1.0, 3.0, False),
    ("cut", "worker"): (2, 0.2, 2.0, True),
    ("half_open", "worker"): (1, 0.5, 2.0, False),
    ("reset", "worker"): (2, 0.3, 1.5, False),
    ("thin", "worker"): (1, 2.0, 5.0, False),
    ("slow", "worker"): (1, 2.0, 5.0, False),
    ("descriptors", "worker"): (1, 0.5, 3.0, False),
    ("log", "worker"): (1, 1.0, 4.0, True),
    ("kill", "ingest"): (4, 0.1, 2.0, False),
    ("restart", "ingest"): (2, 0.1, 0.5, False),
    ("stop", "ingest"): (1, 0.2, 3.0, False),
    ("delay", "ingest"): (1, 1.0, 3.0, False),
    ("cut", "ingest"): (2, 0.3, 3.0, False),
    ("half_open", "ingest"): (1, 0.5, 2.0, False),
    ("reset", "ingest"): (2, 0.3, 1.5, False),
    ("thin", "ingest"): (1, 2.0, 5.0, False),
    ("slow", "ingest"): (1, 2.0, 6.0, False),
    ("descriptors", "ingest"): (1, 0.5, 3.0, False),
    ("log", "ingest"): (1, 1.0, 4.0, False),
    ("spool", "ingest"): (1, 1.0, 4.0, False),
    ("kill", "redis"): (1, 0.1, 1.5, False),
    ("stop", "redis"): (2, 0.2, 1.8, True),
    ("fail_over", "redis"): (2, 0.1, 1.0, False),
    ("come_back", "redis"): (1, 0.1, 1.0, False),
}

REPLIES_MAX = 20
"""Of a connection that is reset: so many replies pass at most before one is torn."""

# What Planned.amount is, by kind: any number between two, or a whole one below.
BETWEEN = {"delay": (0.02, 0.25), "slow": (0.3, 0.45), "thin": (40_000.0, 250_000.0)}
"""`slow`: MASKLINE_PUBLISH_TIMEOUT_MS is over before an answer can be there."""
BELOW = {"descriptors": 4, "spool": 3, "fail_over": 2, "come_back": 2}


class Planned(NamedTuple):
    at_s: float
    kind: str
    target: str
    lasts_s: float
    """Until it is taken back, or the killed process is started again."""
    amount: float
    """`delay`, `slow`: how late every byte comes; `thin`: bytes a second; `reset`: replies before the one that is torn;
    `descriptors`: how many may still be opened; `spool`: its directory is removed (0), and made anew (1), or the files
    in it are removed (2); `fail_over`, `come_back`: 1 where the old primary's clock is ahead, else 0."""

    @property
    def free_at_s(self) -> float:
        return self.at_s + self.lasts_s + (SILENCE_MAX_S if self.kind == "half_open" else REST_S)


def plan(seed: int, duration_s: float, *, workers: int, ingests: int, lease_s: float) -> list[Planned]:
    """The faults of a run, by their beginnings."""
    rng = random.Random(f"{seed}:faults")
    targets = {
        "worker": [f"worker-{index}" for index in range(workers)],
        "ingest": [f"ingest-{index}" for index in range(ingests)],
        "redis": ["redis"],
    }
    planned: list[Planned] = []
    at_s = WARM_UP_S
    for kind, role in _deal(rng):
        low, high, leases = DECK[kind, role][1:]
        lasts_s = rng.uniform(low, high) * (lease_s if leases else 1.0)
        target = rng.choice(targets[role])
        at_s = max(at_s, _free_at_s(planned, target))
        fault = Planned(at_s, kind, target, lasts_s, _amount(kind, rng))
        if fault.free_at_s > duration_s:
            break
        planned.append(fault)
        at_s += rng.uniform(*PAUSE_S)
    return planned


class Outage(NamedTuple):
    """The server that a handler calls is away."""

    at_s: float
    way: Way
    lasts_s: float


def outages(seed: int, duration_s: float) -> list[Outage]:
    """A short one, and one of a minute, or of a fifth of a shorter run; both are over long before the end."""
    rng = random.Random(f"{seed}:outages")
    first, second = rng.sample(WAYS, 2)
    return [
        Outage(rng.uniform(0.1, 0.15) * duration_s, first, min(0.1 * duration_s, OUTAGE_S / 4)),
        Outage(rng.uniform(0.3, 0.4) * duration_s, second, min(0.2 * duration_s, OUTAGE_S)),
    ]


def _amount(kind: str, rng: random.Random) -> float:
    if kind in BETWEEN:
        return rng.uniform(*BETWEEN[kind])
    return float(rng.randrange(BELOW.get(kind, REPLIES_MAX)))


def _deal(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        deck = [card for card, (copies, *_) in DECK.items() for _ in range(copies)]
        rng.shuffle(deck)
        yield from deck


def _free_at_s(planned: list[Planned], target: str) -> float:
    """When a fault of the target may begin: it is free itself, and fewer than AT_ONCE_MAX others are not."""
    ends = sorted((fault.free_at_s for fault in planned), reverse=True)
    slot = ends[AT_ONCE_MAX - 1] if len(ends) >= AT_ONCE_MAX else 0.0
    return max([slot, *(fault.free_at_s for fault in planned if fault.target == target)])
