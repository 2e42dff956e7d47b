"""Gaps of a partition wait while a node holds spooled callbacks: when it looks, when it gives up, and after a crash."""

import pytest
from dispatch_kit import START_MS
from partition_kit import GAP_MS, SETTINGS, entry, finish_all, make

from maskline.schemas.spool_notices import NOTICE_LIFE_MS, SpoolNotice
from maskline.worker.counters import Counters
from maskline.worker.ordering.spool_history import SETTLE_MS
from maskline.worker.partitions.gap_deadlines import LOOK_AGAIN_MS

SPOOL_MS = 60_000
WAITING = SETTINGS._replace(
    policy=type(SETTINGS.policy)(GAP_MS, first_sequence=1, held_max=8, gap_spool_ms=SPOOL_MS)
)
TIMEOUT = "SessionTimeout"


def own(counters=None):
    return make(settings=WAITING, counters=counters)


def say(partition, at_ms, held_ms, node="web-1"):
    partition.gaps.spools.add([SpoolNotice(node, START_MS + at_ms, held_ms)])


def take_in(partition, entries, watermark, *, pending=False):
    """As the pipeline does it. Returns whether it had to look for notices, which the test says beforehand."""
    decoded = partition.decode(entries, pending=pending, now_ms=START_MS, watermark_ms=START_MS + watermark)
    partition.arrive(decoded, {}, START_MS + watermark)
    return decoded.look


def numbers(partition):
    return [(it.arrival.number, it.order) for it in finish_all(partition)]


def held(partition):
    """1 is handled, 3 waits for 2 since 10 ms."""
    take_in(partition, [entry(0, SequenceNumber=1), entry(10, SequenceNumber=3)], 10)
    assert numbers(partition) == [(1, "in_order")]
    return partition


def test_gap_is_given_up_once_the_node_has_drained():
    partition = held(own())
    say(partition, 50, 45)
    take_in(partition, [], GAP_MS + 10)
    assert numbers(partition) == []
    say(partition, 20_000, None)
    take_in(partition, [], 20_000)
    assert numbers(partition) == [], "what was drained in this millisecond may still be read"
    take_in(partition, [], 20_001)
    assert numbers(partition) == [(3, "after_gap")]


def test_callback_that_was_spooled_is_in_order():
    partition = held(own())
    say(partition, 50, 45)
    take_in(partition, [entry(30_000, SequenceNumber=2)], 30_000)
    assert numbers(partition) == [(2, "in_order"), (3, "in_order")]


def test_gap_waits_no_longer_than_the_bound():
    counters = Counters()
    partition = held(own(counters))
    for at_ms in range(0, SPOOL_MS + 10_000, 10_000):
        say(partition, at_ms, at_ms)
    take_in(partition, [], GAP_MS + 10 + SPOOL_MS - 1)
    assert numbers(partition) == []
    assert counters.spools_given_up == 0
    take_in(partition, [], GAP_MS + 10 + SPOOL_MS)
    assert numbers(partition) == [(3, "after_gap")]
    assert counters.spools_given_up == 1


def test_backlog_is_decided_by_what_nodes_held_when_the_gap_ran_out():
    """The worker is behind: the node has long drained, and all of it lies further down the stream."""
    partition = own()
    say(partition, 50, 45)
    say(partition, 20_000, None)
    backlog = [
        *(entry(0, SequenceNumber=1), entry(10, SequenceNumber=3)),
        *(entry(15_000, SequenceNumber=2), entry(40_000, SequenceNumber=5), entry(90_000, SequenceNumber=6)),
    ]
    assert take_in(partition, backlog, 90_000)
    assert numbers(partition) == [
        *((1, "in_order"), (2, "in_order"), (3, "in_order"), (5, "after_gap"), (6, "in_order"))
    ]


def test_session_timeout_does_not_overtake_what_is_spooled():
    partition = held(own())
    say(partition, 50, 45)
    take_in(partition, [entry(60, EventName=TIMEOUT)], 60)
    assert numbers(partition) == []
    assert partition.held == 2
    take_in(partition, [entry(2_000, SequenceNumber=2)], 2_000)
    assert numbers(partition) == [(2, "in_order"), (3, "in_order")]
    say(partition, 3_000, None)
    take_in(partition, [], 50 + SETTLE_MS)
    assert partition.held == 1
    take_in(partition, [], 50 + SETTLE_MS + 1)
    assert numbers(partition) == [(None, "unsequenced")]
    assert partition.held == 0


def test_session_timeout_is_released_at_once_where_nobody_holds_anything():
    partition = held(own())
    assert take_in(partition, [entry(60, EventName=TIMEOUT)], 60), "it looks first"
    assert numbers(partition) == [(3, "after_gap"), (None, "unsequenced")]


def test_it_looks_only_where_something_may_be_given_up():
    partition = own()
    assert take_in(partition, [entry(0, SequenceNumber=1)], 0), "nothing is known before the first look"
    assert not take_in(partition, [entry(1, SequenceNumber=2), entry(2, SequenceNumber=4)], 2)
    assert not take_in(partition, [entry(GAP_MS + 1, SequenceNumber=5)], GAP_MS + 1)
    assert take_in(partition, [entry(GAP_MS + 2, SequenceNumber=6)], GAP_MS + 2)
    assert numbers(partition) == [
        *((1, "in_order"), (2, "in_order"), (4, "after_gap"), (5, "in_order"), (6, "in_order"))
    ]
    assert take_in(partition, [entry(3 * GAP_MS, SequenceNumber=8)], 3 * GAP_MS), (
        "one may begin and run out here"
    )


def test_it_looks_again_and_again_while_gaps_wait():
    partition = held(own())
    say(partition, 50, 45)
    due_ms = START_MS + GAP_MS + 10
    assert partition.next_deadline_ms == due_ms
    assert not partition.gaps.any_waits_for_spools
    assert take_in(partition, [], GAP_MS + 10)
    assert partition.gaps.any_waits_for_spools
    assert partition.gaps.count_waiting_for_spools() == 1
    assert partition.next_deadline_ms == due_ms + LOOK_AGAIN_MS
    assert not take_in(partition, [entry(GAP_MS + 20, SequenceNumber=4)], GAP_MS + 20)
    assert take_in(partition, [], GAP_MS + 10 + LOOK_AGAIN_MS)


def test_node_that_died_is_waited_for_until_its_notice_lapses():
    partition = held(own())
    say(partition, 50, 45)
    take_in(partition, [], 50 + NOTICE_LIFE_MS)
    assert numbers(partition) == []
    take_in(partition, [], 50 + NOTICE_LIFE_MS + 1)
    assert numbers(partition) == [(3, "after_gap")]


def test_gap_that_stood_while_redis_was_away_is_not_given_up_the_moment_it_is_back():
    partition = held(own())
    partition.gaps.reconnected(object(), START_MS + 50, START_MS + 30_000)
    take_in(partition, [], 30_000)
    assert numbers(partition) == []
    say(partition, 31_000, 30_980)
    take_in(partition, [], 30_000 + SETTLE_MS + 1)
    assert numbers(partition) == [], "a node has said meanwhile that it holds something since then"
    take_in(partition, [entry(35_000, SequenceNumber=2)], 35_000)
    assert numbers(partition) == [(2, "in_order"), (3, "in_order")]


def test_gap_that_stood_when_the_worker_started_waits_a_moment():
    partition = own()
    partition.gaps.reconnected(object(), None, START_MS + 30_000)
    pending = [entry(0, SequenceNumber=1), entry(29_990, SequenceNumber=3)]
    take_in(partition, pending, 29_990, pending=True)
    take_in(partition, [], 30_000 + GAP_MS)
    assert numbers(partition) == [(1, "in_order")]
    take_in(partition, [], 30_000 + GAP_MS + 1)
    assert numbers(partition) == [(3, "after_gap")]


def test_gap_is_given_up_early_all_the_same_where_the_process_holds_too_much():
    partition = held(own())
    say(partition, 50, 45)
    take_in(partition, [entry(60, EventName=TIMEOUT)], 60)
    take_in(partition, [], GAP_MS + 10)
    assert partition.give_up_oldest()
    assert numbers(partition) == [(3, "after_gap"), (None, "unsequenced")]


def test_zero_switches_it_off():
    off = WAITING._replace(policy=type(SETTINGS.policy)(GAP_MS, 1, 8, 0))
    partition = held(make(settings=off))
    say(partition, 50, 45)
    assert not take_in(partition, [], GAP_MS + 10)
    assert numbers(partition) == [(3, "after_gap")]


@pytest.mark.parametrize("cut", range(4))
def test_next_owner_goes_on_waiting(cut):
    """What is not handled is fed again, and the notices are read again."""
    entries = [entry(0, SequenceNumber=1), entry(10, SequenceNumber=3), entry(60, EventName=TIMEOUT)]
    first = own()
    say(first, 50, 45)
    take_in(first, entries[:cut], 60)
    heir = own()
    say(heir, 50, 45)
    take_in(heir, entries[:cut], 60, pending=True)
    take_in(heir, [*entries[cut:], entry(5_000, SequenceNumber=2)], 5_000)
    say(heir, 6_000, None)
    take_in(heir, [], 6_001)
    assert numbers(heir) == [(1, "in_order"), (2, "in_order"), (3, "in_order"), (None, "unsequenced")]
