"""Every worker decides by itself; together they must end up balanced, without a partition taken from anybody."""

import random

from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.leases.balance import plan, share

ids = st.text("abcdef-0123456789", min_size=1, max_size=8)
groups = st.lists(ids, min_size=1, max_size=40, unique=True)

ROUNDS_MAX = 12
"""Whoever has too much lets go in one round, and in the next ones it is taken: with collisions a few more."""


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
            release, acquire = plan(worker, self.live, owned, dict(self.leases), self.partitions)
            assert set(release) <= owned, "a worker gives back what it does not have"
            assert not (release and acquire)
            for partition in release:
                del self.leases[partition]
            for partition in acquire:
                assert partition not in self.leases, "a partition was taken from its holder"
                self.leases[partition] = worker
            self.moves += len(release) + len(acquire)

    def settle(self) -> int:
        """Rounds until everything is owned and the counts differ by one at most."""
        for rounds in range(ROUNDS_MAX + 1):
            counts = [len(self.owned(worker)) for worker in self.live]
            if sum(counts) == self.partitions and max(counts) - min(counts) <= 1:
                return rounds
            self.step()
        raise AssertionError(f"not balanced after {ROUNDS_MAX} rounds")


@given(groups, st.integers(1, 600))
def test_shares_sum_to_the_partitions_and_differ_by_one_at_most(workers, partitions):
    shares = [share(worker, workers, partitions) for worker in workers]
    assert sum(shares) == partitions
    assert max(shares) - min(shares) <= 1


@given(groups, st.integers(1, 64), st.randoms(use_true_random=False))
def test_all_workers_agree_whatever_the_order_they_see_each_other_in(workers, partitions, rng):
    shuffled = rng.sample(workers, len(workers))
    assert [share(w, workers, partitions) for w in workers] == [
        share(w, shuffled, partitions) for w in workers
    ]


def test_a_worker_counts_itself_even_before_it_is_seen():
    assert share("b", ["a"], 10) == 5
    assert share("a", [], 10) == 10
    assert plan("a", [], [], {}, 3) == ([], [0, 1, 2])


def test_more_workers_than_partitions_leave_some_without():
    shares = [share(worker, "abcdef", 4) for worker in "abcdef"]
    assert shares == [1, 1, 1, 1, 0, 0]


@given(groups, st.integers(1, 128), st.randoms(use_true_random=False), st.data())
def test_a_group_settles_whoever_joins_and_leaves_and_then_moves_nothing(workers, partitions, rng, data):
    cluster = Cluster(partitions, rng)
    cluster.live = workers[: data.draw(st.integers(1, len(workers)))]
    cluster.settle()
    for _ in range(data.draw(st.integers(0, 4))):
        if len(cluster.live) > 1 and rng.random() < 0.5:
            leaver = rng.choice(cluster.live)
            cluster.live.remove(leaver)
            for partition in cluster.owned(leaver):
                del cluster.leases[partition]
        elif joiners := [worker for worker in workers if worker not in cluster.live]:
            cluster.live.append(rng.choice(joiners))
        if rng.random() < 0.7:
            cluster.settle()
        else:
            cluster.step()  # the next change comes before all is settled
    cluster.settle()
    for _ in range(ROUNDS_MAX):
        cluster.step()
    settled, moves = dict(cluster.leases), cluster.moves
    cluster.step()
    assert (cluster.leases, cluster.moves) == (settled, moves), "a stable group moved something"


@given(groups, st.integers(1, 256), st.randoms(use_true_random=False))
def test_a_joiner_moves_hardly_more_than_its_share(workers, partitions, rng):
    cluster = Cluster(partitions, rng)
    cluster.live, joiner = list(workers), "zz-joiner"
    cluster.settle()
    for _ in range(3):
        cluster.step()
    before = dict(cluster.leases)
    cluster.live.append(joiner)
    cluster.settle()
    for _ in range(3):
        cluster.step()
    moved = sum(owner != before[partition] for partition, owner in cluster.leases.items())
    # Who has one more than the others is said by the order of ids: that may shift by one for each worker.
    assert moved <= share(joiner, cluster.live, partitions) + len(workers)


@given(st.integers(2, 40), st.integers(1, 256))
def test_free_workers_reach_for_different_partitions_first(count, partitions):
    workers = [f"w{index:02}" for index in range(count)]
    wanted = [plan(worker, workers, [], {}, partitions).acquire for worker in workers]
    assert all(len(set(wish)) == len(wish) for wish in wanted)
    if partitions % count == 0:
        assert len({partition for wish in wanted for partition in wish}) == partitions


def test_a_surplus_is_given_back_and_nothing_is_taken_meanwhile():
    release, acquire = plan("a", ["a", "b"], [0, 1, 2, 3], {0: "a", 1: "a", 2: "a", 3: "a"}, 8)
    assert (release, acquire) == ([], [])
    release, acquire = plan("a", ["a", "b"], [4, 1, 3, 0, 2, 7], {}, 8)
    assert (release, acquire) == ([4, 7], [])


def test_an_expired_lease_of_mine_that_another_took_is_not_taken_back():
    assert plan("a", ["a", "b"], [0], {0: "a", 1: "b", 2: "b"}, 4).acquire == [3]


@given(groups, st.integers(1, 256), st.randoms(use_true_random=False))
def test_who_see_all_leases_at_the_same_moment_do_not_reach_for_the_same(workers, partitions, rng):
    taken: dict[int, str] = {}
    for worker in workers:  # any number up to its share, anywhere
        free = [partition for partition in range(partitions) if partition not in taken]
        most = min(share(worker, workers, partitions), len(free))
        taken |= dict.fromkeys(rng.sample(free, rng.randint(0, most)), worker)
    wanted = []
    for worker in workers:
        owned = [partition for partition, owner in taken.items() if owner == worker]
        wanted += plan(worker, workers, owned, taken, partitions).acquire
    assert sorted(wanted + list(taken)) == list(range(partitions)), "one round is enough"


def test_what_a_dead_worker_still_holds_is_nobodys_lack():
    assert plan("b", ["a", "b"], [], {0: "dead", 1: "a", 2: "a"}, 4).acquire == [3]


def test_who_has_looked_at_some_only_takes_what_it_saw_from_anywhere_on():
    taken = {11: "b"}
    looked = [10, 11, 12, 13, 14]
    assert plan("a", ["a", "b"], [], taken, 4, looked=looked, spread=0.0).acquire == [10, 12]
    assert plan("a", ["a", "b"], [], taken, 4, looked=looked, spread=0.5).acquire == [13, 14]
    assert plan("a", ["a", "b"], [], taken, 4, looked=looked, spread=1.0).acquire == [10, 12]
    assert plan("a", ["a", "b"], [], {}, 4, looked=looked, spread=0.5).acquire == [10, 11], (
        "nobody was here yet"
    )
    assert plan("a", ["a", "b"], [1], {}, 4, looked=[], spread=0.5) == ([], [])
