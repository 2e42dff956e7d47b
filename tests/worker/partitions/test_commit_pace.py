"""When finished work is committed: the pace by itself, and a committer that follows it."""

import asyncio
import math
from time import monotonic
from typing import NamedTuple

import pytest
from dispatch_kit import PATIENCE_S, until
from hypothesis import given
from hypothesis import strategies as st
from worker_parts_kit import add, owned_with, worker_parts

from maskline import Reject, on
from maskline.worker.partitions import commit_pace, committer
from maskline.worker.partitions.commit_pace import (
    COMMIT_AHEAD,
    COMMIT_GRACE_S,
    COMMIT_RETRY_S,
    COMMIT_WAIT_MAX_S,
    COMMIT_WAIT_MIN_S,
    COMMIT_WINDOW_MAX_S,
    GATHERED_MAX,
    CommitPace,
)
from maskline.worker.streams.pipeline import ReadEntries

CLOCK = 1e-9
"""What the clock's arithmetic may be off by, in seconds."""

arrivals = st.lists(
    st.tuples(st.floats(0, 3 * COMMIT_WAIT_MAX_S), st.integers(0, 4)), min_size=1, max_size=60
)
"""How long after the one before, and of which partition."""


def whole(_partition: object) -> bool:
    """Of a partition that has no entries under way."""
    return True


class Flush(NamedTuple):
    """A flush, and since when the partitions that it took had waited."""

    at_s: float
    taken: dict[int, float]
    left: dict[int, float]


def flushes(events: list[tuple[float, int]]) -> list[Flush]:
    """The flushes that go where an event of a partition is done at each of these times, and the loop is never late."""
    pace: CommitPace[int] = CommitPace()
    waiting: dict[int, float] = {}
    flushed: list[Flush] = []

    def flush_until(end_s: float) -> None:
        while waiting and pace.due_s(now) <= end_s:
            at_s = pace.due_s(now)
            taken = {partition: waiting.pop(partition) for partition in pace.take(at_s, whole)}
            flushed.append(Flush(at_s, taken, dict(waiting)))

    now = 0.0
    for gap_s, partition in events:
        flush_until(now + gap_s)
        now += gap_s
        waiting.setdefault(partition, now)
        due_before = pace.due_s(now)
        assert pace.add(partition, 1, now) or pace.due_s(now) == due_before
    flush_until(math.inf)
    return flushed


@given(arrivals)
def test_work_of_a_partition_waits_for_a_bounded_time_and_is_committed_with_that_of_others(events):
    flushed = flushes(events)
    assert {partition for flush in flushed for partition in flush.taken} == {of for _, of in events}
    for flush in flushed:
        assert flush.taken
        assert all(flush.at_s - since <= COMMIT_WAIT_MAX_S + CLOCK for since in flush.taken.values())
        assert all(flush.at_s - since < COMMIT_WAIT_MIN_S + CLOCK for since in flush.left.values())


@given(arrivals)
def test_flush_goes_when_a_partition_has_waited_for_long_or_at_once_after_a_quiet_time(events):
    last_s = -math.inf
    for flush in flushes(events):
        oldest_s = min(flush.taken.values())
        if oldest_s == flush.at_s:
            assert flush.at_s - last_s >= COMMIT_WAIT_MAX_S - CLOCK
            assert not flush.left
        else:
            assert flush.at_s == pytest.approx(oldest_s + COMMIT_WAIT_MAX_S)
            assert all(flush.at_s - since >= COMMIT_WAIT_MIN_S - CLOCK for since in flush.taken.values())
        last_s = flush.at_s


def test_the_longest_wait_leaves_some_of_the_crash_window_to_redis():
    assert COMMIT_WINDOW_MAX_S <= 0.05
    assert COMMIT_WAIT_MIN_S <= COMMIT_WAIT_MAX_S
    assert COMMIT_WAIT_MAX_S + COMMIT_GRACE_S <= 0.8 * COMMIT_WINDOW_MAX_S


def busy_pace() -> CommitPace[str]:
    """A pace whose last flush went at 1.0."""
    pace: CommitPace[str] = CommitPace()
    pace.add("any", 1, 1.0)
    assert pace.take(1.0, whole) == ["any"]
    return pace


@pytest.mark.parametrize("why", ["something waits for it", "it is far ahead"])
def test_urgent_partition_goes_at_once_with_those_that_have_waited_for_long(why):
    pace, later_s = busy_pace(), 1.001 + COMMIT_WAIT_MIN_S
    pace.add("old", 1, 1.001)
    pace.add("young", 1, later_s)
    assert pace.due_s(later_s) > later_s
    if why == "something waits for it":
        assert pace.add("urgent", 1, later_s, urgent=True)
    else:
        assert not pace.add("urgent", COMMIT_AHEAD - 1, later_s)
        assert pace.add("urgent", COMMIT_AHEAD, later_s)
    assert pace.due_s(later_s) == later_s
    assert pace.take(later_s, whole) == ["old", "urgent"]
    assert pace.due_s(later_s) == later_s + COMMIT_WAIT_MAX_S
    assert pace.take(later_s + COMMIT_WAIT_MAX_S, whole) == ["young"]
    assert pace.due_s(2.0) == math.inf


@given(st.floats(0, 0.1), st.booleans())
def test_partition_with_entries_under_way_is_left_for_a_bounded_time(late_s, urgent):
    pace = busy_pace()
    pace.add("under way", 1, 1.001, urgent=urgent)
    pace.add("whole", 1, 1.002)
    due_s = pace.due_s(1.002)
    assert due_s == (1.002 if urgent else 1.001 + COMMIT_WAIT_MAX_S)
    at_s = max(due_s, 1.002 + COMMIT_WAIT_MIN_S) + late_s
    taken = pace.take(at_s, lambda partition: partition == "whole")
    bound_s = 1.001 + COMMIT_WAIT_MAX_S + COMMIT_GRACE_S
    assert taken == (["under way", "whole"] if urgent or at_s >= bound_s else ["whole"])
    while "under way" not in taken:
        again_s = pace.due_s(at_s)
        assert at_s < again_s <= max(at_s, bound_s) + COMMIT_RETRY_S
        at_s = again_s
        taken = pace.take(at_s, lambda _: False)
    assert pace.due_s(at_s) == math.inf


def test_all_go_together_whatever_is_under_way():
    pace = busy_pace()
    pace.add("a", COMMIT_AHEAD - 1, 1.001)
    for number in range(GATHERED_MAX // (COMMIT_AHEAD - 1)):
        pace.add(str(number), COMMIT_AHEAD - 1, 1.001)
    assert pace.due_s(1.001) == 1.001
    assert "a" in pace.take(1.001, lambda _: False)
    assert pace.due_s(1.001) == math.inf


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, COMMIT_AHEAD - 1)), max_size=20), st.booleans())
def test_all_go_at_once_when_enough_has_gathered(counts, lost):
    pace, entries = busy_pace(), {}
    pace.add("lost", COMMIT_AHEAD - 1, 1.0)
    if lost:
        pace.remove("lost")
        pace.remove("never seen")
    else:
        entries["lost"] = COMMIT_AHEAD - 1
    for number, more in counts:
        name = str(number)
        entries[name] = min(entries.get(name, 0) + more, COMMIT_AHEAD - 1)
        pace.add(name, entries[name], 1.001)
        if sum(entries.values()) >= GATHERED_MAX:
            assert pace.due_s(1.001) == 1.001
            assert {*pace.take(1.001, whole)} == {*entries}
            entries.clear()
        else:
            assert pace.due_s(1.001) > 1.001


# A committer on a real server


@pytest.fixture
def no_flush_by_time(monkeypatch):
    """After the first flush none goes but at once: what is committed then was not waited for."""
    monkeypatch.setattr(committer, "CommitPace", lambda: CommitPace(1_000_000.0))


async def read(client, parts, partition, session, *numbers):
    """Read events of a session, and have their handlers called."""
    ids = add(client, parts.keys, 0, session, *numbers)
    entries = [
        (entry_id, [part for pair in fields.items() for part in pair])
        for entry_id, fields in client.xrange(parts.keys.callbacks(0), ids[0], ids[-1])
    ]
    await parts.pipeline.process([ReadEntries(partition, entries, 0)])


@on.every
async def handled(event, ctx):
    pass


async def test_events_that_come_one_by_one_are_committed_together(redis_server, namespace):
    async with worker_parts(redis_server, namespace, handled) as parts:
        with redis_server.client() as client:
            partition = await owned_with(client, parts)
            begun = monotonic()
            for number in range(1, 101):
                await read(client, parts, partition, "s", number)
                await asyncio.sleep(0.001)
            await until(lambda: not partition.uncommitted)
            paced = (monotonic() - begun) / COMMIT_WAIT_MAX_S
            assert 1 <= parts.counters.commits <= paced + 2
            assert client.xinfo_groups(parts.keys.callbacks(0))[0]["lag"] == 0


@pytest.mark.usefixtures("no_flush_by_time")
async def test_first_event_after_a_quiet_time_is_committed_at_once_and_the_second_waits(
    redis_server, namespace
):
    async with worker_parts(redis_server, namespace, handled) as parts:
        with redis_server.client() as client:
            partition = await owned_with(client, parts, 1)
            await until(lambda: parts.counters.commits == 1)
            await read(client, parts, partition, "s", 2)
            await until(lambda: partition.wants_commit and not partition.running)
            assert parts.committer.flush_at is not None
            async with asyncio.timeout(PATIENCE_S):
                await parts.committer.wait_committed(partition)
            assert parts.counters.commits == 2
            assert parts.committer.flush_at is None


@pytest.mark.usefixtures("no_flush_by_time")
@pytest.mark.parametrize(
    "why", ["dead letter", "job", "entries of one partition", "entries of all partitions"]
)
async def test_commit_that_something_waits_for_goes_at_once(redis_server, namespace, monkeypatch, why):
    @on.every(retries=0, on_give_up="skip")
    async def handler(event, ctx):
        if event.session_uuid == "bad":
            raise Reject("as its name says")

    async with worker_parts(redis_server, namespace, handler) as parts:
        with redis_server.client() as client:
            partition = await owned_with(client, parts, 1)
            await until(lambda: parts.counters.commits == 1)
            if why == "entries of all partitions":
                monkeypatch.setattr(commit_pace, "GATHERED_MAX", 2)
            await read(client, parts, partition, "s", 2)
            await until(lambda: partition.wants_commit and not partition.running)
            if why == "dead letter":
                await read(client, parts, partition, "bad", 1)
            elif why == "job":
                partition.write_job("job", b"record")
                parts.committer.mark(partition)
            elif why == "entries of one partition":
                await read(client, parts, partition, "t", *range(1, COMMIT_AHEAD + 1))
            else:
                await read(client, parts, partition, "t", 1)
                parts.committer.mark(partition)
            await until(lambda: parts.counters.commits == 2)


async def test_flush_waits_for_entries_under_way(redis_server, namespace, monkeypatch):
    monkeypatch.setattr(commit_pace, "COMMIT_GRACE_S", PATIENCE_S)
    go_on = asyncio.Event()

    @on.every
    async def handler(event, ctx):
        if event.session_uuid == "slow":
            await go_on.wait()

    async with worker_parts(redis_server, namespace, handler) as parts:
        with redis_server.client() as client:
            partition = await owned_with(client, parts, 1)
            await until(lambda: parts.counters.commits == 1)
            await read(client, parts, partition, "slow", 1)
            await read(client, parts, partition, "s", 2)
            await until(lambda: partition.running == 1 and partition.wants_commit)
            end = monotonic() + 3 * COMMIT_WAIT_MAX_S
            await until(lambda: monotonic() > end)
            assert parts.counters.commits == 1
            go_on.set()
            await until(lambda: not partition.uncommitted)
            assert parts.counters.commits == 2
            group = client.xinfo_groups(parts.keys.callbacks(0))[0]
            assert (group["lag"], group["pending"]) == (0, 0)
