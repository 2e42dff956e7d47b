"""What one worker decides about its leases, reply by reply. Whole groups of them: `test_lease_simulation.py`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskline.worker.leases import planner as rules
from maskline.worker.leases.balance import share
from maskline.worker.leases.planner import LeasePlanner, RenewalReply, RenewalRequest

LEASE_S = 10.0
THIRD_S = LEASE_S / 3


def tell(
    tenancy: LeasePlanner,
    answers: RenewalReply,
    sent_at: float = 0.0,
    now: float | None = None,
    chance: float = 1.0,
):
    """One trip with these answers, back at once unless `now` says otherwise."""
    trip = tenancy.trip(sent_at)
    return tenancy.replied(trip, answers, sent_at=sent_at, now=sent_at if now is None else now, chance=chance)


def settled(live="ab", owned=(0, 1), partitions=4) -> LeasePlanner:
    """Worker `a`, who knows who lives and owns partitions under their number plus 100, taken at 0.0."""
    tenancy = LeasePlanner("a", partitions, LEASE_S)
    tell(tenancy, RenewalReply(live=live))
    for number in owned:
        tenancy.acquired(number, number + 100, 0.0)
    return tenancy


def all_kept(tenancy: LeasePlanner, live="ab", next_lapse_ms=None) -> RenewalReply:
    return RenewalReply(live, next_lapse_ms, dict.fromkeys(tenancy.owned, True))


# Who lives, and what is free


def test_nothing_is_looked_at_or_taken_before_it_is_known_who_lives():
    tenancy = LeasePlanner("a", 4, LEASE_S)
    assert tenancy.trip(0.0) == RenewalRequest(heartbeat=True, renew={}, look=())
    decision = tell(tenancy, RenewalReply(live=None, free=[0, 1, 2, 3]))
    assert (decision.acquire, tenancy.live) == ([], ())
    assert tenancy.trip(0.0).look == ()
    decision = tell(tenancy, RenewalReply(live=["b", "a"]))
    assert (decision.acquire, tenancy.live) == ([], ("a", "b"))
    assert tenancy.trip(0.0).look == [0, 1, 2, 3]


def test_a_worker_looks_from_its_own_place_and_takes_its_share():
    tenancy = LeasePlanner("b", 5, LEASE_S)
    tell(tenancy, RenewalReply(live="ab"))
    assert tenancy.trip(0.0).look == [3, 4, 0, 1, 2]
    decision = tell(tenancy, RenewalReply("ab", taken={4: "a"}, free=[3, 0, 1, 2]))
    assert len(decision.acquire) == 2
    assert set(decision.acquire) <= {3, 0, 1, 2}


def test_who_has_its_share_does_not_look():
    assert settled(owned=(0, 1)).trip(1.0) == RenewalRequest(heartbeat=True, renew={0: 100, 1: 101}, look=())
    assert settled(owned=(0,)).trip(1.0).look == [1, 2, 3]


def test_a_dead_workers_partitions_are_shared_by_those_who_live():
    tenancy = settled(live="abc", owned=(0, 1), partitions=6)
    decision = tell(tenancy, all_kept(tenancy, live="ac"))
    assert (decision.acquire, decision.next_s) == ([], pytest.approx(0.03 * LEASE_S))
    assert tenancy.trip(1.0).look == [2, 3, 4, 5]
    answers = all_kept(tenancy, live="ac")._replace(taken={4: "c", 5: "c"}, free=[2, 3])
    assert len(tell(tenancy, answers).acquire) == 1


def test_the_last_known_workers_stay_while_nobody_tells():
    tenancy = settled(owned=(0, 1))
    decision = tell(tenancy, RenewalReply(live=None, kept={0: True, 1: True}))
    assert tenancy.live == ("a", "b")
    assert (decision.release, decision.acquire) == ([], [])


def test_one_who_is_first_to_come_back_to_an_empty_redis_lets_the_others_come_too():
    tenancy = settled(owned=(0, 1))
    decision = tell(tenancy, RenewalReply(live="a", kept={0: False, 1: False}), 5.0)
    assert decision.lost == [0, 1]
    assert tenancy.trip(5.1).look == (), "however soon it goes again"
    assert tell(tenancy, RenewalReply(live="a"), 5.1).next_s > LEASE_S / 4
    tell(tenancy, RenewalReply(live="ab"), 6.0)
    assert tenancy.trip(5.0 + THIRD_S).look == [0, 1, 2, 3]


def test_the_only_one_left_takes_all_at_once():
    tenancy = settled(owned=(0, 1))
    assert tell(tenancy, all_kept(tenancy, live="a"), 5.0).lost == []
    assert tenancy.trip(5.1).look == [2, 3]


# How long a lease is held


def test_a_lease_counts_from_before_its_request_was_sent():
    tenancy = settled(owned=())
    tenancy.acquired(2, 7, sent_at=100.0)
    assert tenancy.lease_until(2) == 109.5
    assert tenancy.may_start(2, 109.4)
    assert not tenancy.may_start(2, 109.5)
    assert not tenancy.may_start(3, 100.0)
    assert tenancy.lease_until(3) == 0
    tell(tenancy, RenewalReply("ab", kept={2: True}), sent_at=103.0, now=112.0)
    assert tenancy.lease_until(2) == 112.5


def test_a_lease_that_is_not_kept_is_lost_and_forgotten():
    tenancy = settled(owned=(0, 1))
    assert tell(tenancy, RenewalReply("ab", kept={0: True, 1: False}), 1.0).lost == [1]
    assert list(tenancy.owned) == [0]
    assert not tenancy.may_start(1, 1.0)


def test_a_lease_nobody_answered_for_lapses_by_the_clock():
    tenancy = settled(owned=(0, 1))
    decision = tell(tenancy, RenewalReply("ab", kept={1: True}), 9.0)
    assert decision.lost == []
    assert not tenancy.may_start(0, 9.6)
    assert tenancy.may_start(1, 9.6)
    assert tenancy.trip(9.6).renew == {0: 100, 1: 101}, "it may be ours still"


def test_what_was_put_aside_is_resumed_when_the_lease_is_surely_held_again():
    tenancy = settled(owned=(0,))
    assert tell(tenancy, RenewalReply("ab", kept={0: True}), 1.0).resume == [], "it had not lapsed"
    # A reply that took a lease's life says only that the lease was held then.
    assert tell(tenancy, RenewalReply("ab", kept={0: True}), 12.0, now=30.0).resume == []
    assert not tenancy.may_start(0, 30.0)
    assert tell(tenancy, RenewalReply("ab", kept={0: True}), 30.0, now=30.1).resume == [0]
    assert tell(tenancy, RenewalReply("ab", kept={0: True}), 31.0).resume == []


def test_a_reply_about_an_earlier_token_changes_nothing():
    tenancy = settled(owned=(0,))
    trip = tenancy.trip(1.0)
    tenancy.gone(0)
    tenancy.acquired(0, 200, 1.5)
    decision = tenancy.replied(trip, RenewalReply("ab", kept={0: False}), sent_at=1.0, now=2.0, chance=0)
    assert decision.lost == []
    assert tenancy.may_start(0, 2.0)


# Giving back


def test_a_surplus_is_given_back_once_and_renewed_until_it_is_gone():
    tenancy = settled(live="a", owned=(0, 1, 2, 3))
    assert tell(tenancy, all_kept(tenancy)).release == [2, 3]
    assert [tenancy.may_start(number, 1.0) for number in range(4)] == [True, True, False, False]
    assert sorted(tenancy.trip(1.0).renew) == [0, 1, 2, 3]
    assert tenancy.trip(1.0).look == ()
    assert tell(tenancy, all_kept(tenancy)).release == []
    tenancy.gone(3)
    assert sorted(tenancy.owned) == [0, 1, 2]


def test_what_is_on_its_way_back_is_not_taken_instead():
    tenancy = settled(live="a", owned=(0, 1, 2, 3))
    tell(tenancy, all_kept(tenancy))
    decision = tell(tenancy, all_kept(tenancy, live="a"))  # b has gone again
    assert decision.acquire == []
    assert tenancy.trip(1.0).look == []
    tenancy.gone(2)
    answers = all_kept(tenancy, live="a")._replace(free=[2])
    assert tell(tenancy, answers).acquire == [2]


def test_one_who_stops_says_nothing_takes_nothing_and_keeps_what_it_has_not_given_back():
    tenancy = settled(live="a", owned=(0, 1))
    tenancy.drain()
    assert tenancy.trip(1.0) == RenewalRequest(heartbeat=False, renew={0: 100, 1: 101}, look=())
    decision = tell(tenancy, RenewalReply(kept={0: True, 1: False}, free=[2, 3]), 1.0)
    assert decision == ([1], [], [], [], THIRD_S)
    tenancy.acquired(2, 102, 1.0)  # had been asked for before
    assert not tenancy.may_start(0, 1.0)
    assert not tenancy.may_start(2, 1.0)


# When to go again


def next_s(answers_of, chance, **kinds) -> float:
    tenancy = settled(**kinds)
    return tell(tenancy, answers_of(tenancy), chance=chance).next_s / LEASE_S


@pytest.mark.parametrize(
    ("answers", "least", "most"),
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
        "nothing to do", "lapse is far", "lapse before the next renewal", "lapse now", "nobody answers",
        "heartbeat unanswered", "a lease unanswered", "has to look",
    ],
)  # fmt: skip
def test_the_next_trip_of_one_who_has_its_share(answers, least, most):
    assert next_s(answers, 0.0) == pytest.approx(least)
    assert next_s(answers, 1.0) == pytest.approx(most)


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
        "reaches for one",
        "must wait",
        "a dead one holds it",
        "its own lost reply holds it",
        "some unanswered",
    ],
)
def test_the_next_trip_of_one_who_has_too_little(taken, free, least, most):
    def answers(tenancy):
        return all_kept(tenancy)._replace(taken=taken, free=free)

    assert next_s(answers, 0.0, owned=(0,)) == pytest.approx(least)
    assert next_s(answers, 1.0, owned=(0,)) == pytest.approx(most)


def test_nobody_hammers_at_a_lease_that_does_not_come_free():
    tenancy = settled(owned=(0,))
    answers = all_kept(tenancy)._replace(taken={1: "b", 2: "b", 3: "x"})
    waits = [tell(tenancy, answers).next_s for _ in range(2 * rules.HURRIES_MAX)]
    # One was hurried already, when it was not known yet what the others hold.
    assert sum(wait < LEASE_S / 10 for wait in waits) in {rules.HURRIES_MAX - 1, rules.HURRIES_MAX}
    assert waits[-1] == pytest.approx(THIRD_S)
    tell(tenancy, answers._replace(live="abc"))
    tenancy.acquired(1, 101, 0.0)
    tell(tenancy, all_kept(tenancy))
    assert tell(tenancy, all_kept(tenancy, live="a")).next_s < LEASE_S / 10, "something has changed since"


# Very many partitions


def test_one_of_many_looks_at_more_each_time_it_found_too_little():
    live = [f"w{index:03}" for index in range(1000)] + ["a"]
    tenancy = LeasePlanner("a", 16_384, LEASE_S)
    tell(tenancy, RenewalReply(live))
    looked = []
    for _ in range(4):
        look = tenancy.trip(0.0).look
        looked.append(len(look))
        tell(tenancy, RenewalReply(live, taken=dict.fromkeys(look, "w001")))
    assert looked == [1024, 4096, 16_384, 16_384]
    look = tenancy.trip(0.0).look
    for number in tell(tenancy, RenewalReply(live, free=look)).acquire:
        tenancy.acquired(number, 1, 0.0)
    tell(tenancy, all_kept(tenancy, live))
    tenancy.gone(next(iter(tenancy.owned)))
    assert len(tenancy.trip(0.0).look) == 1024


def test_one_alone_takes_very_many_a_thousand_at_a_time():
    tenancy = LeasePlanner("a", 16_384, LEASE_S)
    now = tell(tenancy, RenewalReply("a")).next_s
    trips = 0
    while len(tenancy.owned) < 16_384:
        free = [number for number in tenancy.trip(now).look if number not in tenancy.owned]
        decision = tell(tenancy, all_kept(tenancy, "a")._replace(free=free), now)
        assert 0 < len(decision.acquire) <= rules.ACQUIRE_MAX
        for number in decision.acquire:
            tenancy.acquired(number, 1, now)
        now += decision.next_s
        trips += 1
    assert trips == 16
    assert now < LEASE_S


# Whatever comes


@given(st.data())
def test_whatever_is_answered_the_decisions_are_bounded(data):
    partitions = data.draw(st.integers(1, 12))
    tenancy = LeasePlanner("c", partitions, LEASE_S)
    workers = st.sampled_from("abcd")
    now = 0.0
    for step in range(data.draw(st.integers(1, 8))):
        trip = tenancy.trip(now)
        assert not set(trip.look) & set(tenancy.owned)
        seen = {n: data.draw(st.one_of(st.none(), workers, st.just("unanswered"))) for n in trip.look}
        answers = RenewalReply(
            live=data.draw(st.one_of(st.none(), st.sets(workers))),
            next_lapse_ms=data.draw(st.one_of(st.none(), st.integers(0, 10_000))),
            kept={n: data.draw(st.booleans()) for n in trip.renew if data.draw(st.booleans())},
            taken={n: who for n, who in seen.items() if who not in {None, "unanswered"}},
            free=[n for n, who in seen.items() if who is None],
        )
        owned = set(tenancy.owned)
        decision = tenancy.replied(
            trip,
            answers,
            sent_at=now,
            now=now + data.draw(st.floats(0, 20)),
            chance=data.draw(st.floats(0, 1)),
        )
        assert LEASE_S * rules.FLOOR_PART <= decision.next_s <= THIRD_S
        assert set(decision.lost) == {n for n, kept in answers.kept.items() if not kept}
        assert set(decision.resume) <= set(tenancy.owned) == owned - set(decision.lost)
        assert set(decision.release) <= set(tenancy.owned)
        assert set(decision.acquire) <= set(answers.free)
        staying = [n for n in tenancy.owned if tenancy.may_start(n, -1.0)]
        if decision.release or decision.acquire:
            assert len(staying) + len(decision.acquire) <= share("c", tenancy.live, partitions)
        for number in decision.acquire:
            if data.draw(st.booleans()):
                tenancy.acquired(number, 1000 * step + number, now)
        for number in decision.release:
            if data.draw(st.booleans()):
                tenancy.gone(number)
        now += decision.next_s
