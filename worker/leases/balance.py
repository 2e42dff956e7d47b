"""Who should own how many partitions: the decision every worker takes by itself, from what all of them see.

All workers see the same live workers and so, once their views agree, the same shares: sorted by id, the first
`partitions mod workers` get one more than the others. Counts then differ by one at most. A worker gives back what it
has over its share, and takes free partitions up to it; nothing else moves.

Who sees all leases knows what every other worker still lacks, so each takes its own part of the free ones, and those
who decide at the same moment do not reach for the same. Who sees only some of them begins anywhere among the free.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Plan(NamedTuple):
    release: list[int]
    acquire: list[int]


def share(worker: str, workers: Collection[str], partitions: int) -> int:
    """How many partitions a worker should own. A worker that is missing from `workers` counts as live."""
    live = sorted({*workers, worker})
    each, rest = divmod(partitions, len(live))
    return each + (bisect_left(live, worker) < rest)


def plan(
    worker: str,
    workers: Collection[str],
    owned: Collection[int],
    taken: Mapping[int, str],
    partitions: int,
    *,
    looked: Sequence[int] | None = None,
    spread: float = 0.0,
) -> Plan:
    """What a worker should give back and what it should try to take, in that order of preference.

    `owned` are its own partitions, `taken` the leases it sees, by partition, its own among them. `looked` are the
    partitions it has looked at, in the order in which it would have them; without it, it has looked at all. `spread`
    (0 ... 1, random) is where it begins among those it finds free, where it has not looked at all.
    """
    live = sorted({*workers, worker})
    rank = bisect_left(live, worker)
    each, rest = divmod(partitions, len(live))
    missing = each + (rank < rest) - len(owned)
    if missing < 0:
        return Plan(sorted(owned)[missing:], [])
    if missing == 0:
        return Plan([], [])
    mine = set(owned)
    seen = range(partitions) if looked is None else looked
    free = [partition for partition in seen if partition not in taken and partition not in mine]
    if not free:
        return Plan([], [])
    if looked is None:
        held = Counter(taken.values())
        first = sum(max(each + (at < rest) - held[live[at]], 0) for at in range(rank))
    elif len(free) == len(looked):
        first = 0  # nobody was here yet: its own place in the ring is as good as any, and nobody else's
    else:
        first = int(spread * len(free))
    first %= len(free)
    return Plan([], (free[first:] + free[:first])[:missing])
