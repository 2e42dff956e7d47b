"""Which faults a run suffers: what holds for every seed."""

from collections import Counter, defaultdict

from fault_plan import AT_ONCE_MAX, BETWEEN, DECK, WARM_UP_S, plan
from hypothesis import given
from hypothesis import strategies as st

LEASE_S = 1.5

seeds = st.integers(0, 2**32)


@given(seed=seeds, duration_s=st.floats(1, 400), workers=st.integers(1, 4), ingests=st.integers(1, 3))
def test_faults_keep_to_their_time_and_to_their_number(
    seed: int, duration_s: float, workers: int, ingests: int
):
    planned = plan(seed, duration_s, workers=workers, ingests=ingests, lease_s=LEASE_S)
    assert [fault.at_s for fault in planned] == sorted(fault.at_s for fault in planned)
    for place, fault in enumerate(planned):
        assert fault.at_s >= WARM_UP_S
        assert fault.at_s < fault.free_at_s <= duration_s, "all is over before the end"
        busy = [other for other in planned[:place] if other.free_at_s > fault.at_s]
        assert len(busy) < AT_ONCE_MAX
        assert fault.target not in {other.target for other in busy}
        role, _, index = fault.target.partition("-")
        assert (fault.kind, role) in DECK
        assert int(index or 0) < {"worker": workers, "ingest": ingests, "redis": 1}[role]


@given(seeds)
def test_the_seed_says_everything(seed: int):
    one, same, other = (plan(it, 120, workers=3, ingests=2, lease_s=LEASE_S) for it in (seed, seed, seed + 1))
    assert one == same
    assert one != other


@given(seeds)
def test_five_minutes_hold_every_kind_and_enough_kills(seed: int):
    planned = plan(seed, 300, workers=3, ingests=2, lease_s=LEASE_S)
    kinds = Counter((fault.kind, fault.target.partition("-")[0]) for fault in planned)
    assert kinds.keys() == DECK.keys()
    assert sum(count for (kind, _), count in kinds.items() if kind == "kill") >= 20


def test_stops_are_shorter_and_longer_than_a_lease():
    planned = plan(1, 3_000, workers=3, ingests=2, lease_s=LEASE_S)
    stops = [fault.lasts_s for fault in planned if fault.kind == "stop" and fault.target != "ingest-0"]
    assert min(stops) < LEASE_S / 2 < LEASE_S * 1.5 < max(stops)


def test_amounts_are_what_each_kind_takes():
    amounts: defaultdict[str, set[float]] = defaultdict(set)
    for fault in plan(1, 6_000, workers=3, ingests=2, lease_s=LEASE_S):
        amounts[fault.kind].add(fault.amount)
    assert amounts["spool"] == {0, 1, 2}
    assert amounts["descriptors"] == {0, 1, 2, 3}
    for kind, (low, high) in BETWEEN.items():
        assert low <= min(amounts[kind]) < max(amounts[kind]) <= high
