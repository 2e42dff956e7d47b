"""Every worker decides by itself; together they end up balanced, and no partition is taken from its holder."""

import random

from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.leases.balance import fair_share, rebalance

ids = st.text("abcdef-0123456789", min_size=1, max_size=8)
groups = st.lists(ids, min_size=1, max_size=40, unique=True)

ROUNDS_MAX = 12
"""A surplus is released in one round and acquired in the next ones; collisions take a few more."""


class Cluster:
    """Workers that apply their plans to shared leases, one worker after the other, in random order."""

    def __init__(self, partitions: int, rng: random.Random) -> None:
        self.partitions = partitions
        self.rng = rng
        self.leases: dict[int, str] = {}
        self.live: list[str] = []
        self.moves = 0

    def owned(self, worker: str) -> set[int]:
        return {partition for partition, owner in self.leases.items() if owner == worker}

    def step(self) -> None:
        for worker in self.rng.sample(self.live, len(self.live)):
            owned = self.owned(worker)
            release, acquire = rebalance(worker, self.live, owned, dict(self.leases), self.partitions)
            assert set(release) <= owned, "a worker gives back what it does not have"
            assert not (release and acquire)
            for partition in release:
                del self.leases[partition]
            for partition in acquire:
                assert partition not in self.leases, "a partition was taken from its holder"
                self.leases[partition] = worker
            self.moves += len(release) + len(acquire)

    def run_until_balanced(self) -> int:
        """Rounds until everything is owned and the counts differ by one at most."""
        for rounds in range(ROUNDS_MAX + 1):
            counts = [len(self.owned(worker)) for worker in self.live]
            if sum(counts) == self.partitions and max(counts) - min(counts) <= 1:
                return rounds
            self.step()
        raise AssertionError(f"not balanced after {ROUNDS_MAX} rounds")


@given(groups, st.integers(1, 600))
def test_shares_sum_to_the_partitions_and_differ_by_one_at_most(workers, partitions):
    shares = [fair_share(worker, workers, partitions) for worker in workers]
    assert sum(shares) == partitions
    assert max(shares) - min(shares) <= 1


@given(groups, st.integers(1, 64), st.randoms(use_true_random=False))
def test_shares_do_not_depend_on_the_order_in_which_workers_are_seen(workers, partitions, rng):
    shuffled = rng.sample(workers, len(workers))
    assert [fair_share(w, workers, partitions) for w in workers] == [
        fair_share(w, shuffled, partitions) for w in workers
    ]


def test_worker_counts_itself_even_before_it_is_seen():
    assert fair_share("b", ["a"], 10) == 5
    assert fair_share("a", [], 10) == 10
    assert rebalance("a", [], [], {}, 3) == ([], [0, 1, 2])


def test_more_workers_than_partitions_leave_some_without():
    shares = [fair_share(worker, "abcdef", 4) for worker in "abcdef"]
    assert shares == [1, 1, 1, 1, 0, 0]


@given(groups, st.integers(1, 128), st.randoms(use_true_random=False), st.data())
def test_group_is_balanced_after_joins_and_leaves_and_then_moves_nothing(workers, partitions, rng, data):
    cluster = Cluster(partitions, rng)
    cluster.live = workers[: data.draw(st.integers(1, len(workers)))]
    cluster.run_until_balanced()
    for _ in range(data.draw(st.integers(0, 4))):
        if len(cluster.live) > 1 and rng.random() < 0.5:
            leaver = rng.choice(cluster.live)
            cluster.live.remove(leaver)
            for partition in cluster.owned(leaver):
                del cluster.leases[partition]
        elif joiners := [worker for worker in workers if worker not in cluster.live]:
            cluster.live.append(rng.choice(joiners))
        if rng.random() < 0.7:
            cluster.run_until_balanced()
        else:
            cluster.step()  # the next change comes before all is settled
    cluster.run_until_balanced()
    for _ in range(ROUNDS_MAX):
        cluster.step()
    settled, moves = dict(cluster.leases), cluster.moves
    cluster.step()
    assert (cluster.leases, cluster.moves) == (settled, moves), "a stable group moved something"


@given(groups, st.integers(1, 256), st.randoms(use_true_random=False))
def test_joining_worker_moves_hardly_more_than_its_share(workers, partitions, rng):
    cluster = Cluster(partitions, rng)
    cluster.live, joiner = list(workers), "zz-joiner"
    cluster.run_until_balanced()
    for _ in range(3):
        cluster.step()
    before = dict(cluster.leases)
    cluster.live.append(joiner)
    cluster.run_until_balanced()
    for _ in range(3):
        cluster.step()
    moved = sum(owner != before[partition] for partition, owner in cluster.leases.items())
    # The order of ids says which workers have one more than the others: that may shift by one for each worker.
    assert moved <= fair_share(joiner, cluster.live, partitions) + len(workers)


@given(st.integers(2, 40), st.integers(1, 256))
def test_workers_without_partitions_try_different_ones_first(count, partitions):
    workers = [f"w{index:02}" for index in range(count)]
    wanted = [rebalance(worker, workers, [], {}, partitions).acquire for worker in workers]
    assert all(len(set(wish)) == len(wish) for wish in wanted)
    if partitions % count == 0:
        assert len({partition for wish in wanted for partition in wish}) == partitions


def test_surplus_is_released_and_nothing_is_acquired_meanwhile():
    release, acquire = rebalance("a", ["a", "b"], [0, 1, 2, 3], {0: "a", 1: "a", 2: "a", 3: "a"}, 8)
    assert (release, acquire) == ([], [])
    release, acquire = rebalance("a", ["a", "b"], [4, 1, 3, 0, 2, 7], {}, 8)
    assert (release, acquire) == ([4, 7], [])


def test_expired_lease_that_another_worker_took_is_not_acquired_again():
    assert rebalance("a", ["a", "b"], [0], {0: "a", 1: "b", 2: "b"}, 4).acquire == [3]


@given(groups, st.integers(1, 256), st.randoms(use_true_random=False))
def test_workers_that_see_all_leases_at_once_acquire_different_ones(workers, partitions, rng):
    taken: dict[int, str] = {}
    for worker in workers:  # any number up to its share, anywhere
        free = [partition for partition in range(partitions) if partition not in taken]
        most = min(fair_share(worker, workers, partitions), len(free))
        taken |= dict.fromkeys(rng.sample(free, rng.randint(0, most)), worker)
    wanted = []
    for worker in workers:
        owned = [partition for partition, owner in taken.items() if owner == worker]
        wanted += rebalance(worker, workers, owned, taken, partitions).acquire
    assert sorted(wanted + list(taken)) == list(range(partitions)), "one round is enough"


def test_lease_of_a_dead_worker_is_not_counted_as_missing():
    assert rebalance("b", ["a", "b"], [], {0: "dead", 1: "a", 2: "a"}, 4).acquire == [3]


def test_worker_that_probed_some_leases_starts_anywhere_among_the_free_ones():
    taken = {11: "b"}
    probed = [10, 11, 12, 13, 14]
    assert rebalance("a", ["a", "b"], [], taken, 4, probed=probed, spread=0.0).acquire == [10, 12]
    assert rebalance("a", ["a", "b"], [], taken, 4, probed=probed, spread=0.5).acquire == [13, 14]
    assert rebalance("a", ["a", "b"], [], taken, 4, probed=probed, spread=1.0).acquire == [10, 12]
    assert rebalance("a", ["a", "b"], [], {}, 4, probed=probed, spread=0.5).acquire == [10, 11], (
        "nobody has taken any yet"
    )
    assert rebalance("a", ["a", "b"], [1], {}, 4, probed=[], spread=0.5) == ([], [])
