"""When finished work is committed: the pace by itself, and a committer that follows it."""

import asyncio
from itertools import pairwise
from time import monotonic

import pytest
from dispatch_kit import PATIENCE_S, until
from hypothesis import given
from hypothesis import strategies as st
from worker_parts_kit import add, owned_with, worker_parts

from maskline import Reject, on
from maskline.worker.partitions import commit_pace, committer
from maskline.worker.partitions.commit_pace import (
    COMMIT_AHEAD,
    COMMIT_INTERVAL_S,
    COMMIT_WINDOW_MAX_S,
    GATHERED_MAX,
    CommitPace,
)
from maskline.worker.streams.pipeline import ReadEntries

gaps = st.lists(st.floats(0, 4 * COMMIT_INTERVAL_S), min_size=1, max_size=60)


def flush_times(gaps_s: list[float]) -> list[tuple[float, float]]:
    """When each event was done, and when the flush went that has it, if the loop is never late."""
    pace, now, due, waiting, flushed = CommitPace(), 0.0, None, [], []

    def flush(at: float) -> None:
        pace.flushed(at)
        flushed.extend((done, at) for done in waiting)
        waiting.clear()

    for gap in gaps_s:
        now += gap
        if due is not None and due <= now:
            flush(due)
            due = None
        waiting.append(now)
        due = pace.due_s(now) if due is None else due
    flush(due)
    return flushed


@given(gaps)
def test_what_is_done_is_committed_within_the_interval_and_no_two_flushes_are_closer(gaps_s):
    flushed = flush_times(gaps_s)
    assert len(flushed) == len(gaps_s)
    assert all(done <= at <= done + COMMIT_INTERVAL_S + 1e-9 for done, at in flushed)
    times = sorted({at for _, at in flushed})
    assert all(later - earlier >= COMMIT_INTERVAL_S - 1e-9 for earlier, later in pairwise(times))


@given(gaps)
def test_what_is_done_after_a_quiet_time_is_committed_at_once(gaps_s):
    last = None
    for done, at in flush_times(gaps_s):
        if last is None or done - last >= COMMIT_INTERVAL_S:
            assert at == done
        last = at


def test_the_interval_leaves_half_of_the_crash_window_to_redis():
    assert COMMIT_WINDOW_MAX_S <= 0.05
    assert 2 * COMMIT_INTERVAL_S <= COMMIT_WINDOW_MAX_S


@given(st.lists(st.integers(0, COMMIT_AHEAD - 1), max_size=20))
def test_flush_is_full_by_all_that_gathered_since_the_last_or_by_one_partition(counts):
    pace = CommitPace()
    pace.gather(GATHERED_MAX - 1)
    pace.flushed(1.0)
    gathered = 0
    for count in counts:
        pace.gather(count)
        gathered += count
        assert pace.is_full(count) == (gathered >= GATHERED_MAX)
        assert pace.is_full(COMMIT_AHEAD)
    pace.gather(-gathered)
    assert not pace.is_full(COMMIT_AHEAD - 1)


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
            paced = (monotonic() - begun) / COMMIT_INTERVAL_S
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
