"""Computes how many partitions each worker should own, and which ones it gives back or takes. Pure.

Every worker computes this by itself from what all of them see. Workers that see the same live workers compute the same
shares: sorted by id, the first `partitions mod workers` get one more than the others. So counts differ by one at most.
A worker gives back what it has over its share, and takes free partitions up to it; nothing else moves.

A worker that sees all leases knows how many every other worker still lacks. It takes its own section of the free ones,
so that workers that decide at the same moment do not try to take the same. A worker that sees only some leases starts
anywhere among the free ones.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Rebalance(NamedTuple):
    """The partitions that a worker should give back, and those that it should try to take, in order of preference."""

    release: list[int]
    acquire: list[int]


def fair_share(worker: str, workers: Collection[str], partitions: int) -> int:
    """How many partitions `worker` should own. It counts as live even if it is missing from `workers`."""
    live = sorted({*workers, worker})
    each, rest = divmod(partitions, len(live))
    return each + (bisect_left(live, worker) < rest)


def rebalance(
    worker: str,
    workers: Collection[str],
    owned: Collection[int],
    taken: Mapping[int, str],
    partitions: int,
    *,
    probed: Sequence[int] | None = None,
    spread: float = 0.0,
) -> Rebalance:
    """Decide which partitions a worker gives back, and which it tries to take.

    `owned`: its own partitions. `taken`: the worker that holds each lease it sees, by partition, its own included.
    `partitions`: how many there are. `probed`: the partitions whose leases it has asked for, in the order in which it
    prefers them; None if it has seen all leases. `spread`: a random number from 0 to 1 that says where it starts among
    the free partitions if it has seen only some leases.
    """
    live = sorted({*workers, worker})
    rank = bisect_left(live, worker)
    each, rest = divmod(partitions, len(live))
    missing = each + (rank < rest) - len(owned)
    if missing < 0:
        return Rebalance(sorted(owned)[missing:], [])
    if missing == 0:
        return Rebalance([], [])
    mine = set(owned)
    seen = range(partitions) if probed is None else probed
    free = [partition for partition in seen if partition not in taken and partition not in mine]
    if not free:
        return Rebalance([], [])
    if probed is None:
        held = Counter(taken.values())
        first = sum(max(each + (at < rest) - held[live[at]], 0) for at in range(rank))
    elif len(free) == len(probed):
        first = (
            0  # nobody has taken any yet: a worker's own place in the ring differs from every other worker's
        )
    else:
        first = int(spread * len(free))
    first %= len(free)
    return Rebalance([], (free[first:] + free[:first])[:missing])
