"""What one worker plans about its leases, reply by reply. Whole groups of workers: `test_lease_simulation.py`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.leases import planner as planner_module
from maskline.worker.leases.balance import fair_share
from maskline.worker.leases.planner import LeasePlanner, RenewalReply, RenewalRequest

LEASE_S = 10.0
THIRD_S = LEASE_S / 3


def exchange(
    planner: LeasePlanner,
    reply: RenewalReply,
    sent_at: float = 0.0,
    now: float | None = None,
    chance: float = 1.0,
):
    """One request with this reply, back at once unless `now` says otherwise."""
    request = planner.request(sent_at)
    return planner.plan(request, reply, sent_at=sent_at, now=sent_at if now is None else now, chance=chance)


def balanced(live="ab", owned=(0, 1), partitions=4) -> LeasePlanner:
    """Worker `a`, which knows the live workers and owns partitions; each token is the number plus 100, taken at 0.0."""
    planner = LeasePlanner("a", partitions, LEASE_S)
    exchange(planner, RenewalReply(live=live))
    for number in owned:
        planner.acquired(number, number + 100, 0.0)
    return planner


def all_kept(planner: LeasePlanner, live="ab", next_lapse_ms=None) -> RenewalReply:
    return RenewalReply(live, next_lapse_ms, dict.fromkeys(planner.owned, True))


# Who lives, and what is free


def test_worker_probes_and_acquires_nothing_until_live_workers_are_known():
    planner = LeasePlanner("a", 4, LEASE_S)
    assert planner.request(0.0) == RenewalRequest(heartbeat=True, renew={}, probe=())
    plan = exchange(planner, RenewalReply(live=None, free=[0, 1, 2, 3]))
    assert (plan.acquire, planner.live) == ([], ())
    assert planner.request(0.0).probe == ()
    plan = exchange(planner, RenewalReply(live=["b", "a"]))
    assert (plan.acquire, planner.live) == ([], ("a", "b"))
    assert planner.request(0.0).probe == [0, 1, 2, 3]


def test_worker_probes_from_its_own_place_in_the_ring_and_acquires_its_share():
    planner = LeasePlanner("b", 5, LEASE_S)
    exchange(planner, RenewalReply(live="ab"))
    assert planner.request(0.0).probe == [3, 4, 0, 1, 2]
    plan = exchange(planner, RenewalReply("ab", taken={4: "a"}, free=[3, 0, 1, 2]))
    assert len(plan.acquire) == 2
    assert set(plan.acquire) <= {3, 0, 1, 2}


def test_worker_with_its_share_does_not_probe():
    assert balanced(owned=(0, 1)).request(1.0) == RenewalRequest(
        heartbeat=True, renew={0: 100, 1: 101}, probe=()
    )
    assert balanced(owned=(0,)).request(1.0).probe == [1, 2, 3]


def test_partitions_of_a_dead_worker_are_shared_by_the_live_ones():
    planner = balanced(live="abc", owned=(0, 1), partitions=6)
    plan = exchange(planner, all_kept(planner, live="ac"))
    assert (plan.acquire, plan.next_s) == ([], pytest.approx(0.03 * LEASE_S))
    assert planner.request(1.0).probe == [2, 3, 4, 5]
    reply = all_kept(planner, live="ac")._replace(taken={4: "c", 5: "c"}, free=[2, 3])
    assert len(exchange(planner, reply).acquire) == 1


def test_live_workers_stay_as_last_seen_while_no_server_answers():
    planner = balanced(owned=(0, 1))
    plan = exchange(planner, RenewalReply(live=None, kept={0: True, 1: True}))
    assert planner.live == ("a", "b")
    assert (plan.release, plan.acquire) == ([], [])


def test_first_worker_back_at_an_empty_redis_waits_for_the_others():
    planner = balanced(owned=(0, 1))
    plan = exchange(planner, RenewalReply(live="a", kept={0: False, 1: False}), 5.0)
    assert plan.lost == [0, 1]
    assert planner.request(5.1).probe == (), "however early the next request is"
    assert exchange(planner, RenewalReply(live="a"), 5.1).next_s > LEASE_S / 4
    exchange(planner, RenewalReply(live="ab"), 6.0)
    assert planner.request(5.0 + THIRD_S).probe == [0, 1, 2, 3]


def test_last_live_worker_acquires_everything_at_once():
    planner = balanced(owned=(0, 1))
    assert exchange(planner, all_kept(planner, live="a"), 5.0).lost == []
    assert planner.request(5.1).probe == [2, 3]


# How long a lease is held


def test_lease_counts_from_before_its_request_was_sent():
    planner = balanced(owned=())
    planner.acquired(2, 7, sent_at=100.0)
    assert planner.lease_until(2) == 109.5
    assert planner.may_start(2, 109.4)
    assert not planner.may_start(2, 109.5)
    assert not planner.may_start(3, 100.0)
    assert planner.lease_until(3) == 0
    exchange(planner, RenewalReply("ab", kept={2: True}), sent_at=103.0, now=112.0)
    assert planner.lease_until(2) == 112.5


def test_lease_that_was_not_kept_is_lost_and_forgotten():
    planner = balanced(owned=(0, 1))
    assert exchange(planner, RenewalReply("ab", kept={0: True, 1: False}), 1.0).lost == [1]
    assert list(planner.owned) == [0]
    assert not planner.may_start(1, 1.0)


def test_lease_that_no_server_answered_for_lapses_by_the_clock():
    planner = balanced(owned=(0, 1))
    plan = exchange(planner, RenewalReply("ab", kept={1: True}), 9.0)
    assert plan.lost == []
    assert not planner.may_start(0, 9.6)
    assert planner.may_start(1, 9.6)
    assert planner.request(9.6).renew == {0: 100, 1: 101}, "it may be ours still"


def test_partition_is_resumed_when_its_lapsed_lease_is_surely_held_again():
    planner = balanced(owned=(0,))
    assert exchange(planner, RenewalReply("ab", kept={0: True}), 1.0).resume == [], "it had not lapsed"
    # A reply that took a lease's life says only that the lease was held then.
    assert exchange(planner, RenewalReply("ab", kept={0: True}), 12.0, now=30.0).resume == []
    assert not planner.may_start(0, 30.0)
    assert exchange(planner, RenewalReply("ab", kept={0: True}), 30.0, now=30.1).resume == [0]
    assert exchange(planner, RenewalReply("ab", kept={0: True}), 31.0).resume == []


def test_reply_about_an_earlier_token_changes_nothing():
    planner = balanced(owned=(0,))
    request = planner.request(1.0)
    planner.forget(0)
    planner.acquired(0, 200, 1.5)
    plan = planner.plan(request, RenewalReply("ab", kept={0: False}), sent_at=1.0, now=2.0, chance=0)
    assert plan.lost == []
    assert planner.may_start(0, 2.0)


# Releasing


def test_surplus_is_released_once_and_renewed_until_it_is_forgotten():
    planner = balanced(live="a", owned=(0, 1, 2, 3))
    assert exchange(planner, all_kept(planner)).release == [2, 3]
    assert [planner.may_start(number, 1.0) for number in range(4)] == [True, True, False, False]
    assert sorted(planner.request(1.0).renew) == [0, 1, 2, 3]
    assert planner.request(1.0).probe == ()
    assert exchange(planner, all_kept(planner)).release == []
    planner.forget(3)
    assert sorted(planner.owned) == [0, 1, 2]


def test_partition_being_released_is_not_acquired_again():
    planner = balanced(live="a", owned=(0, 1, 2, 3))
    exchange(planner, all_kept(planner))
    plan = exchange(planner, all_kept(planner, live="a"))  # b has gone again
    assert plan.acquire == []
    assert planner.request(1.0).probe == []
    planner.forget(2)
    reply = all_kept(planner, live="a")._replace(free=[2])
    assert exchange(planner, reply).acquire == [2]


def test_stopping_worker_acquires_nothing_and_keeps_unreleased_leases():
    planner = balanced(live="a", owned=(0, 1))
    planner.drain()
    assert planner.request(1.0) == RenewalRequest(heartbeat=False, renew={0: 100, 1: 101}, probe=())
    plan = exchange(planner, RenewalReply(kept={0: True, 1: False}, free=[2, 3]), 1.0)
    assert plan == ([1], [], [], [], THIRD_S)
    planner.acquired(2, 102, 1.0)  # had been asked for before
    assert not planner.may_start(0, 1.0)
    assert not planner.may_start(2, 1.0)


# When the next request goes


def next_s(reply_of, chance, **kinds) -> float:
    planner = balanced(**kinds)
    return exchange(planner, reply_of(planner), chance=chance).next_s / LEASE_S


@pytest.mark.parametrize(
    ("reply_of", "least", "most"),
    [
        (all_kept, 0.3, 1 / 3),
        (lambda t: all_kept(t, next_lapse_ms=9000), 0.3, 1 / 3),
        (lambda t: all_kept(t, next_lapse_ms=1000), 0.11, 0.15),
        (lambda t: all_kept(t, next_lapse_ms=0), 0.01, 0.05),
        (lambda t: RenewalReply(), 0.075, 0.125),
        (lambda t: all_kept(t)._replace(live=None), 0.075, 0.125),
        (lambda t: RenewalReply("ab", kept={0: True}), 0.075, 0.125),
        (lambda t: all_kept(t, live="a"), 0.01, 0.03),
    ],
    ids=[
        "nothing to do", "lapse is far", "lapse before the next renewal", "lapse now", "no server answers",
        "heartbeat unanswered", "a lease unanswered", "has to probe",
    ],
)  # fmt: skip
def test_next_request_of_worker_with_its_share(reply_of, least, most):
    assert next_s(reply_of, 0.0) == pytest.approx(least)
    assert next_s(reply_of, 1.0) == pytest.approx(most)


@pytest.mark.parametrize(
    ("taken", "free", "least", "most"),
    [
        ({1: "b", 2: "b"}, [3], 0.01, 0.03),
        ({1: "b", 2: "b", 3: "b"}, [], 0.3, 1 / 3),
        ({1: "b", 2: "b", 3: "x"}, [], 0.01, 0.03),
        ({1: "b", 2: "b", 3: "a"}, [], 0.01, 0.03),
        ({1: "b"}, [], 0.075, 0.125),
    ],
    ids=[
        "tries to acquire one",
        "must wait",
        "a dead one holds it",
        "its own lost reply holds it",
        "some unanswered",
    ],
)
def test_next_request_of_worker_below_its_share(taken, free, least, most):
    def reply_of(planner):
        return all_kept(planner)._replace(taken=taken, free=free)

    assert next_s(reply_of, 0.0, owned=(0,)) == pytest.approx(least)
    assert next_s(reply_of, 1.0, owned=(0,)) == pytest.approx(most)


def test_early_requests_for_a_lease_that_does_not_come_free_are_bounded():
    planner = balanced(owned=(0,))
    reply = all_kept(planner)._replace(taken={1: "b", 2: "b", 3: "x"})
    waits = [exchange(planner, reply).next_s for _ in range(2 * planner_module.EARLY_REQUESTS_MAX)]
    # One request was early already: it was not known yet what the others hold.
    assert sum(wait < LEASE_S / 10 for wait in waits) in {
        planner_module.EARLY_REQUESTS_MAX - 1,
        planner_module.EARLY_REQUESTS_MAX,
    }
    assert waits[-1] == pytest.approx(THIRD_S)
    exchange(planner, reply._replace(live="abc"))
    planner.acquired(1, 101, 0.0)
    exchange(planner, all_kept(planner))
    assert exchange(planner, all_kept(planner, live="a")).next_s < LEASE_S / 10, "something has changed since"


# Very many partitions


def test_worker_that_found_too_few_free_leases_probes_more_each_time():
    live = [f"w{index:03}" for index in range(1000)] + ["a"]
    planner = LeasePlanner("a", 16_384, LEASE_S)
    exchange(planner, RenewalReply(live))
    probed = []
    for _ in range(4):
        probe = planner.request(0.0).probe
        probed.append(len(probe))
        exchange(planner, RenewalReply(live, taken=dict.fromkeys(probe, "w001")))
    assert probed == [1024, 4096, 16_384, 16_384]
    probe = planner.request(0.0).probe
    for number in exchange(planner, RenewalReply(live, free=probe)).acquire:
        planner.acquired(number, 1, 0.0)
    exchange(planner, all_kept(planner, live))
    planner.forget(next(iter(planner.owned)))
    assert len(planner.request(0.0).probe) == 1024


def test_single_worker_acquires_many_partitions_a_thousand_at_a_time():
    planner = LeasePlanner("a", 16_384, LEASE_S)
    now = exchange(planner, RenewalReply("a")).next_s
    requests = 0
    while len(planner.owned) < 16_384:
        free = [number for number in planner.request(now).probe if number not in planner.owned]
        plan = exchange(planner, all_kept(planner, "a")._replace(free=free), now)
        assert 0 < len(plan.acquire) <= planner_module.ACQUIRE_MAX
        for number in plan.acquire:
            planner.acquired(number, 1, now)
        now += plan.next_s
        requests += 1
    assert requests == 16
    assert now < LEASE_S


# Any replies


@given(st.data())
def test_plans_are_bounded_whatever_the_servers_reply(data):
    partitions = data.draw(st.integers(1, 12))
    planner = LeasePlanner("c", partitions, LEASE_S)
    workers = st.sampled_from("abcd")
    now = 0.0
    for step in range(data.draw(st.integers(1, 8))):
        request = planner.request(now)
        assert not set(request.probe) & set(planner.owned)
        seen = {n: data.draw(st.one_of(st.none(), workers, st.just("unanswered"))) for n in request.probe}
        reply = RenewalReply(
            live=data.draw(st.one_of(st.none(), st.sets(workers))),
            next_lapse_ms=data.draw(st.one_of(st.none(), st.integers(0, 10_000))),
            kept={n: data.draw(st.booleans()) for n in request.renew if data.draw(st.booleans())},
            taken={n: who for n, who in seen.items() if who not in {None, "unanswered"}},
            free=[n for n, who in seen.items() if who is None],
        )
        owned = set(planner.owned)
        plan = planner.plan(
            request,
            reply,
            sent_at=now,
            now=now + data.draw(st.floats(0, 20)),
            chance=data.draw(st.floats(0, 1)),
        )
        assert LEASE_S * planner_module.DELAY_MIN_PART <= plan.next_s <= THIRD_S
        assert set(plan.lost) == {n for n, kept in reply.kept.items() if not kept}
        assert set(plan.resume) <= set(planner.owned) == owned - set(plan.lost)
        assert set(plan.release) <= set(planner.owned)
        assert set(plan.acquire) <= set(reply.free)
        staying = [n for n in planner.owned if planner.may_start(n, -1.0)]
        if plan.release or plan.acquire:
            assert len(staying) + len(plan.acquire) <= fair_share("c", planner.live, partitions)
        for number in plan.acquire:
            if data.draw(st.booleans()):
                planner.acquired(number, 1000 * step + number, now)
        for number in plan.release:
            if data.draw(st.booleans()):
                planner.forget(number)
        now += plan.next_s
