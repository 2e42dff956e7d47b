"""Which spool notices are due: at once over a new connection, again and again, and once all is drained."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from maskline.ingest.delivery.notice_planner import RETRY_S, DueNotice, NoticePlanner
from maskline.schemas.spool_notices import NOTICE_LIFE_MS, NOTICE_REPEAT_MS

REPEAT_S = NOTICE_REPEAT_MS / 1000


def plan(planner, held, now, link="first"):
    return [(it.partition, it.held_ms) for it in planner.plan(held, lambda _: link, now)]


def test_what_is_held_is_said_at_once_and_again_and_withdrawn():
    planner = NoticePlanner()
    assert plan(planner, {}, 0) == []
    assert plan(planner, {3: 5, 4: 0}, 1) == [(3, 5), (4, 0)]
    assert plan(planner, {3: 900, 4: 900}, 1.9) == []
    assert plan(planner, {3: 9_999}, 2) == [(4, None)]
    assert planner.said == 1
    assert plan(planner, {3: 10_005}, 1 + REPEAT_S) == [(3, 10_005)]
    assert plan(planner, {}, 12) == [(3, None)]
    assert plan(planner, {}, 13) == []


def test_it_is_said_again_over_a_new_connection_and_not_without_one():
    planner = NoticePlanner()
    assert plan(planner, {3: 5}, 0, link=None) == []
    assert plan(planner, {3: 50}, 1) == [(3, 50)]
    assert plan(planner, {3: 60}, 2, link="second") == [(3, 60)]
    assert plan(planner, {}, 3, link=None) == []
    assert plan(planner, {}, 4, link="third") == [(3, None)]


def test_what_was_refused_is_tried_again_later_or_over_another_connection():
    planner = NoticePlanner()
    for held, said in (({3: 5}, (3, 5)), ({}, (3, None))):
        (notice,) = planner.plan(held, lambda _: "first", 0)
        planner.refused(notice, 0)
        assert plan(planner, held, RETRY_S - 0.1) == []
        assert plan(planner, held, RETRY_S) == [said]
    (notice,) = planner.plan({3: 5}, lambda _: "first", 2)
    planner.refused(notice, 2)
    assert plan(planner, {3: 9}, 2, link="second") == [(3, 9)]


class Node(RuleBasedStateMachine):
    """A node that plans every second: a server never lacks for long what it holds, nor is told what it does not."""

    def __init__(self):
        super().__init__()
        self.planner, self.now = NoticePlanner(), 0.0
        self.held: dict[int, int] = {}
        self.links: dict[int, object | None] = {0: object(), 1: object(), 2: object()}
        self.told: dict[int, tuple[object, float]] = {}
        """What each server knows: over which connection, and since when."""

    partitions = st.integers(0, 2)

    @rule(partition=partitions)
    def spool(self, partition):
        self.held[partition] = 0

    @rule(partition=partitions)
    def drain(self, partition):
        self.held.pop(partition, None)

    @rule(partition=partitions, up=st.booleans())
    def reconnect(self, partition, up):
        self.links[partition] = object() if up else None

    @rule(refuse=st.sets(partitions), seconds=st.integers(0, 12))
    def pass_time(self, refuse, seconds):
        for _ in range(seconds):
            self.now += 1.0
            self.write(refuse)
        self.write(set())

    def write(self, refuse):
        for notice in self.planner.plan(self.held, self.links.get, self.now):
            if notice.partition in refuse:
                self.planner.refused(notice, self.now)
            elif notice.held_ms is None:
                self.told.pop(notice.partition, None)
            else:
                self.told[notice.partition] = notice.link, self.now

    @invariant()
    def after_a_moment_the_servers_know(self):
        for _ in range(2):
            self.now += 1.0
            self.write(set())
        for partition, link in self.links.items():
            if link is not None:
                assert (partition in self.held) == (partition in self.told)
            if link is not None and partition in self.held:
                assert self.told[partition][0] is link
                assert self.now - self.told[partition][1] < NOTICE_LIFE_MS / 2000


Node.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestNode = Node.TestCase


def test_notice_says_for_which_partition_over_which_connection():
    assert NoticePlanner().plan({7: 1}, lambda partition: f"link {partition}", 0) == [
        DueNotice(7, "link 7", 1)
    ]
