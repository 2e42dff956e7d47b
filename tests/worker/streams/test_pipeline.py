"""The pipeline decodes entries, orders them with their sessions' states, and submits them; it bounds what is held."""

import asyncio

from dispatch_kit import until
from worker_parts_kit import add, worker_parts

from maskline import on
from maskline.worker.partitions.ledger import RUN_AHEAD_MAX
from maskline.worker.streams.pipeline import HELD_FACTOR, QUIET_WATERMARK_MS

COUNT = 1_000
"""Entries asked for: more than any test adds."""


def read(client, parts, *partitions):
    """The streams of partitions, as a poller reads them."""
    return [
        (
            partition,
            [(entry_id, [part for pair in fields.items() for part in pair]) for entry_id, fields in entries],
        )
        for partition in partitions
        for entries in [client.xrange(parts.keys.callbacks(partition.number))]
    ]


async def test_entries_of_several_sessions_are_handled_in_order(redis_server, namespace):
    handled = []

    @on.every
    async def handler(event, ctx):
        handled.append((event.session_uuid, ctx.sequence_number, ctx.order))

    async with worker_parts(redis_server, namespace, handler) as parts:
        first, second = parts.own(0), parts.own(1)
        with redis_server.client() as client:
            add(client, parts.keys, 0, "a", 2, 1)
            add(client, parts.keys, 1, "b", 1, 2)
            streams = read(client, parts, first, second)
        await parts.pipeline.process(parts.pipeline.receive(streams, COUNT, 0))
        await until(lambda: len(handled) == 4)
        assert sorted(handled) == [(name, number, "in_order") for name in "ab" for number in (1, 2)]
        assert [first.read_id, second.read_id] == [entries[-1][0].decode() for _, entries in streams]
        assert parts.counters.read == 4


async def test_state_of_a_session_that_is_not_in_memory_is_fetched(redis_server, namespace):
    handled = []

    @on.every
    async def handler(event, ctx):
        handled.append(ctx.sequence_number)

    async with worker_parts(redis_server, namespace, handler) as parts:
        with redis_server.client() as client:
            partition, _ = await parts.acquire(0)
            add(client, parts.keys, 0, "s", 1, 2)
            await parts.pipeline.process(parts.pipeline.receive(read(client, parts, partition), COUNT, 0))
            await until(lambda: handled == [1, 2] and not partition.uncommitted)
            client.xtrim(parts.keys.callbacks(0), maxlen=0)
            parts.owned.remove(partition)
            client.delete(parts.keys.lease(0))
            heir, _ = await parts.acquire(0)
            add(client, parts.keys, 0, "s", 3)
            await parts.pipeline.process(parts.pipeline.receive(read(client, parts, heir), COUNT, 0))
            await until(lambda: len(handled) == 3)
        assert handled == [1, 2, 3], "without its state the session would wait for number 1"


async def test_entries_under_way_take_room_until_they_are_done(redis_server, namespace):
    started, go_on = asyncio.Event(), asyncio.Event()

    @on.every
    async def handler(event, ctx):
        started.set()
        await go_on.wait()

    async with worker_parts(redis_server, namespace, handler, outstanding_max=100) as parts:
        partition = parts.own(0)
        with redis_server.client() as client:
            add(client, parts.keys, 0, "s", 1, 2, 3)
            streams = read(client, parts, partition)
        assert parts.pipeline.room() == 100
        processed = parts.pipeline.process(parts.pipeline.receive(streams, COUNT, 0))
        assert parts.pipeline.room() == 97, "read, and not ordered yet"
        await processed
        await started.wait()
        assert parts.pipeline.room() == 97, "ordered, and not done"
        go_on.set()
        await until(lambda: parts.pipeline.room() == 100)


async def test_partition_is_not_readable_ahead_of_its_commits_unverified_or_for_a_second_poller(
    redis_server, namespace
):
    async with worker_parts(redis_server, namespace) as parts:
        first, second = parts.own(0), parts.own(1)
        mine = object()
        assert parts.pipeline.readable(parts.server, mine) == ([first, second], False)
        first.run_ahead = RUN_AHEAD_MAX
        assert parts.pipeline.readable(parts.server, mine) == ([second], True)
        second.verified_at = None
        assert parts.pipeline.readable(parts.server, mine) == ([], True)
        first.run_ahead, second.verified_at = 0, parts.server.incarnation
        first.poller, second.poller = mine, object()
        assert parts.pipeline.readable(parts.server, mine) == ([first], True)


async def test_watermark_of_a_full_read_is_its_last_entry_and_of_a_short_one_the_servers_time(
    redis_server, namespace
):
    async with worker_parts(redis_server, namespace) as parts:
        partition = parts.own(0)
        with redis_server.client() as client:
            add(client, parts.keys, 0, "s", 1, 2)
            streams = read(client, parts, partition)
        last_ms = int(streams[0][1][-1][0].partition(b"-")[0])
        (full,) = parts.pipeline.receive(streams, 2, last_ms + 500)
        assert full.watermark_ms == last_ms
        (short,) = parts.pipeline.receive(streams, 3, last_ms + 500)
        assert short.watermark_ms == last_ms + 500
        assert parts.pipeline.receive([(partition, [])], 3, last_ms + 900) == []
        assert partition.watermark_ms == last_ms + 900


async def test_watermark_of_a_quiet_partition_keeps_near_the_servers_time(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        partition = parts.own(0)
        for now_ms in range(1_000_000, 1_001_000, 7):
            assert parts.pipeline.receive([(partition, [])], COUNT, now_ms) == []
            assert 0 <= now_ms - partition.watermark_ms < QUIET_WATERMARK_MS
        # Where the server's clock goes back, the stream's time goes on from there.
        was_ms = partition.watermark_ms
        for now_ms in range(500_000, 500_500, 7):
            parts.pipeline.receive([(partition, [])], COUNT, now_ms)
        assert partition.watermark_ms >= was_ms + 400


async def test_gap_whose_time_is_over_is_given_up_by_a_read_that_brings_nothing(redis_server, namespace):
    handled = []

    @on.every
    async def handler(event, ctx):
        handled.append((ctx.sequence_number, ctx.order))

    async with worker_parts(redis_server, namespace, handler) as parts:
        partition = parts.own(0)
        with redis_server.client() as client:
            add(client, parts.keys, 0, "s", 2)
            streams = read(client, parts, partition)
        now_ms = int(streams[0][1][-1][0].partition(b"-")[0])
        await parts.pipeline.process(parts.pipeline.receive(streams, COUNT, now_ms))
        assert (handled, partition.held) == ([], 1)
        later_ms = partition.next_deadline_ms
        await parts.pipeline.process(parts.pipeline.receive([(partition, [])], COUNT, later_ms - 1))
        assert partition.held == 1
        await parts.pipeline.process(parts.pipeline.receive([(partition, [])], COUNT, later_ms))
        await until(lambda: handled == [(2, "after_gap")])


async def test_oldest_gaps_are_forced_when_too_many_events_are_held(redis_server, namespace):
    outstanding_max = 10
    async with worker_parts(redis_server, namespace, outstanding_max=outstanding_max) as parts:
        partition = parts.own(0)
        with redis_server.client() as client:
            for session in range(HELD_FACTOR * outstanding_max + 3):
                add(client, parts.keys, 0, f"s{session}", 2)
            streams = read(client, parts, partition)
        await parts.pipeline.process(parts.pipeline.receive(streams, COUNT, 0))
        assert partition.held == HELD_FACTOR * outstanding_max
        assert parts.counters.forced_gaps == 3
