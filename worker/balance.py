"""Who should own how many partitions: the decision every worker takes by itself, from what all of them see.

All workers see the same live workers and so, once their views agree, the same shares: sorted by id, the first
`partitions mod workers` get one more than the others. Counts then differ by one at most. A worker gives back what it
has over its share, and takes free partitions up to it; nothing else moves. Workers begin their search for free
partitions at different places, so that they rarely reach for the same one.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Plan(NamedTuple):
    release: list[int]
    acquire: list[int]


def share(worker: str, workers: Collection[str], partitions: int) -> int:
    """How many partitions a worker should own. A worker that is missing from `workers` counts as live."""
    live = sorted({*workers, worker})
    each, rest = divmod(partitions, len(live))
    return each + (live.index(worker) < rest)


def plan(
    worker: str, workers: Sequence[str], owned: Collection[int], taken: Mapping[int, str], partitions: int
) -> Plan:
    """What a worker should give back and what it should try to take, in that order of preference.

    `owned` are its own partitions, `taken` the leases it sees, by partition, its own among them.
    """
    target = share(worker, workers, partitions)
    surplus = len(owned) - target
    if surplus > 0:
        return Plan(sorted(owned)[-surplus:], [])
    live = sorted({*workers, worker})
    start = live.index(worker) * partitions // len(live)
    free = [
        partition
        for step in range(partitions)
        if (partition := (start + step) % partitions) not in taken and partition not in owned
    ]
    return Plan([], free[: target - len(owned)])
