"""A poller reads all partitions of its server, one by one where it must, and processes what it has read to the end."""

import asyncio
import itertools
from contextlib import asynccontextmanager
from time import monotonic

import pytest
from dispatch_kit import PATIENCE_S, until
from worker_parts_kit import add, worker_parts

from maskline import on
from maskline.runtime.redis.tracking import track_reads
from maskline.worker.partitions.phase import Phase
from maskline.worker.streams import read_pace, stream_news
from maskline.worker.streams.poller import Poller
from maskline.worker.streams.poller_pool import PollerPool
from maskline.worker.streams.read_pace import READ_FULL, READ_INTERVAL_S


@asynccontextmanager
async def polling(parts, *, combined=True):
    released = []
    poller = Poller(parts.server, parts.keys, parts.pipeline, combined=combined, on_released=released.append)
    task = asyncio.create_task(poller.run())
    try:
        yield poller, task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE_S)


def recorder():
    handled = []

    @on.every
    async def handler(event, ctx):
        handled.append((event.session_uuid, ctx.sequence_number))

    return handled, handler


@pytest.mark.parametrize("combined", [True, False], ids=["combined", "single"])
async def test_entries_of_all_partitions_are_read_as_they_come(redis_server, namespace, combined):
    handled, handler = recorder()
    async with worker_parts(redis_server, namespace, handler) as parts:
        parts.own(0), parts.own(1)
        async with polling(parts, combined=combined):
            with redis_server.client() as client:
                for number in (1, 2, 3):
                    add(client, parts.keys, 0, "a", number)
                    add(client, parts.keys, 1, "b", number)
                    await until(lambda: len(handled) == 2 * number)  # noqa: B023 - asked at once
        assert sorted(handled) == [(name, number) for name in "ab" for number in (1, 2, 3)]


async def test_partition_that_cannot_be_read_is_named_and_the_others_go_on(redis_server, namespace):
    handled, handler = recorder()
    async with worker_parts(redis_server, namespace, handler) as parts:
        parts.own(0), parts.own(1)
        with redis_server.client() as client:
            client.set(parts.keys.callbacks(0), "another type of key")
            async with polling(parts) as (poller, _):
                await until(lambda: poller.details()["refused_partitions"] == [0])
                add(client, parts.keys, 1, "b", 1)
                await until(lambda: handled == [("b", 1)])
                client.delete(parts.keys.callbacks(0))
                add(client, parts.keys, 0, "a", 1)
                await until(lambda: handled == [("b", 1), ("a", 1)])
                assert poller.details()["refused_partitions"] == []


async def test_woken_poller_reads_a_partition_that_was_opened_while_it_waited(redis_server, namespace):
    handled, handler = recorder()
    async with worker_parts(redis_server, namespace, handler) as parts, polling(parts) as (poller, _):
        with redis_server.client() as client:
            add(client, parts.keys, 0, "a", 1)
        await asyncio.sleep(0)  # it waits, as there is nothing to read
        parts.own(0)
        poller.wake()
        await until(lambda: handled == [("a", 1)])


async def test_partition_has_one_poller_until_its_read_is_over(redis_server, namespace):
    async with worker_parts(redis_server, namespace) as parts:
        partition = parts.own(0)
        async with polling(parts) as (poller, task):
            await until(lambda: partition.poller is poller)
            assert parts.pipeline.readable(parts.server, object()) == ([], True)
            poller.retire(task)
            await asyncio.wait([task], timeout=PATIENCE_S)
        assert partition.poller is None


@pytest.mark.parametrize("notified", [False, True], ids=["reads wait", "the server tells"])
async def test_reading_goes_on_once_there_is_room_though_no_commit_tells_of_it(
    redis_server, namespace, monkeypatch, notified
):
    monkeypatch.setattr(stream_news, "READ_ALL_S", 3_600.0)
    handled, handler = recorder()
    some_parts = told_parts if notified else worker_parts
    async with some_parts(redis_server, namespace, handler, outstanding_max=4) as parts:
        parts.own(0)  # its commits are refused
        with redis_server.client() as client:
            add(client, parts.keys, 0, "a", *range(1, 41))
            async with polling(parts):
                await until(lambda: len(handled) == 40)


async def test_reading_goes_on_over_a_new_connection_and_the_lost_read_is_counted(own_redis, namespace):
    handled, handler = recorder()
    async with worker_parts(own_redis, namespace, handler) as parts:
        partition = parts.own(0)
        async with polling(parts) as (poller, _):
            await until(lambda: partition.poller is poller)
            own_redis.kill()
            await until(lambda: poller.details()["reads_cut"] == 1 and partition.poller is None)
            own_redis.start()
            await until(lambda: parts.server.up)
            with own_redis.client() as client:
                add(client, parts.keys, 0, "a", 1)
            assert parts.pipeline.readable(parts.server, poller) == ([], True), "not verified yet"
            partition.verified_at = parts.server.incarnation
            poller.wake()
            await until(lambda: handled == [("a", 1)])


async def test_pool_polls_each_server_and_is_woken_by_a_partition_that_opens(redis_server, namespace):
    handled, handler = recorder()
    async with worker_parts(redis_server, namespace, handler) as parts:
        pool = PollerPool(parts.connections, parts.keys, parts.owned, parts.pipeline)
        task = asyncio.create_task(pool.run())
        await until(lambda: pool.servers == [parts.server])
        with redis_server.client() as client:
            add(client, parts.keys, 0, "a", 1)
            partition = parts.own(0)
            await until(lambda: handled == [("a", 1)])
            parts.owned.move(partition, Phase.PAUSED)
            await until(lambda: partition.poller is None)
            add(client, parts.keys, 0, "a", 2)
            parts.owned.move(partition, Phase.OPEN)
            await until(lambda: handled == [("a", 1), ("a", 2)])
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE_S)


def xread_calls(client):
    return client.info("commandstats").get("cmdstat_xread", {"calls": 0})["calls"]


async def test_reads_of_a_steady_stream_keep_their_distance_and_bring_what_has_gathered(own_redis, namespace):
    handled, handler = recorder()
    async with worker_parts(own_redis, namespace, handler) as parts:
        parts.own(0), parts.own(1)
        async with polling(parts):
            with own_redis.client() as client:
                calls, began_at = xread_calls(client), monotonic()
                for number in range(1, 201):
                    add(client, parts.keys, 0, "a", number)
                    await asyncio.sleep(0)
                await until(lambda: len(handled) == 200)
                calls = xread_calls(client) - calls
                # A read of n entries keeps a distance of at least 1 - n / READ_FULL intervals.
                assert calls <= (monotonic() - began_at) / READ_INTERVAL_S + 200 / READ_FULL + 2


async def test_first_callback_after_a_quiet_time_is_read_without_a_pause(own_redis, namespace, monkeypatch):
    monkeypatch.setattr(read_pace, "READ_INTERVAL_S", 3_600.0)
    handled, handler = recorder()
    async with worker_parts(own_redis, namespace, handler) as parts:
        parts.own(0)
        async with polling(parts):
            with own_redis.client() as client:
                await until(lambda: xread_calls(client) > 0)  # one that brought nothing
                add(client, parts.keys, 0, "a", 1)
                await until(lambda: handled == [("a", 1)])


async def test_gap_is_given_up_in_time_while_other_sessions_keep_their_poller_busy(redis_server, namespace):
    handled, handler = recorder()
    async with worker_parts(redis_server, namespace, handler, gap_timeout_ms=50) as parts:
        partition, _ = await parts.acquire(0)
        parts.owned.move(partition, Phase.OPEN)
        numbers = itertools.count(1)
        async with polling(parts):
            with redis_server.client() as client:
                add(client, parts.keys, 0, "with a gap", 1, 3)

                def given_up():
                    add(client, parts.keys, 0, "busy", next(numbers))
                    return ("with a gap", 3) in handled

                await until(given_up)


@asynccontextmanager
async def told_parts(redis_server, namespace, handler, *, lost=False, **settings):
    """Parts whose server tells what has changed; `lost`: no message arrives."""
    async with worker_parts(redis_server, namespace, handler, **settings) as parts:
        assert lost or await track_reads(parts.server.reads) == ""
        parts.server.notifies = True
        yield parts


@pytest.mark.parametrize("combined", [True, False], ids=["combined", "single"])
async def test_partition_with_news_is_read_at_once_and_no_other(own_redis, namespace, monkeypatch, combined):
    monkeypatch.setattr(stream_news, "READ_ALL_S", 3_600.0)
    handled, handler = recorder()
    async with told_parts(own_redis, namespace, handler) as parts:
        partitions = parts.own(0), parts.own(1)
        async with polling(parts, combined=combined):
            with own_redis.client() as client:
                await until(lambda: all(p.watermark_ms for p in partitions))  # all were read once
                calls = xread_calls(client)
                for number in (1, 2, 3):
                    add(client, parts.keys, 0, "a", number)
                    await until(lambda: len(handled) == number)  # noqa: B023 - asked at once
                assert xread_calls(client) - calls == 3


async def test_lost_message_is_made_up_for_by_the_next_read_of_all(redis_server, namespace):
    handled, handler = recorder()
    async with told_parts(redis_server, namespace, handler, lost=True) as parts:
        partition = parts.own(0)
        async with polling(parts):
            await until(lambda: partition.watermark_ms)
            with redis_server.client() as client:
                add(client, parts.keys, 0, "a", 1)
                await until(lambda: handled == [("a", 1)])


async def test_more_than_a_read_brings_is_read_on_without_another_message(
    redis_server, namespace, monkeypatch
):
    monkeypatch.setattr(stream_news, "READ_ALL_S", 3_600.0)
    handled, handler = recorder()
    async with told_parts(redis_server, namespace, handler) as parts:
        with redis_server.client() as client:
            add(client, parts.keys, 0, "a", *range(1, 600))
            parts.own(0)
            async with polling(parts):
                await until(lambda: len(handled) == 599)


async def test_partition_that_may_not_be_read_yet_keeps_its_news(redis_server, namespace, monkeypatch):
    monkeypatch.setattr(stream_news, "READ_ALL_S", 3_600.0)
    handled, handler = recorder()
    async with told_parts(redis_server, namespace, handler) as parts:
        partition, other = parts.own(0), parts.own(1)
        partition.poller = object()
        async with polling(parts) as (poller, _):
            await until(lambda: other.watermark_ms)
            assert poller.starved
            with redis_server.client() as client:
                add(client, parts.keys, 0, "a", 1)
            partition.poller = None
            poller.progressed()
            await until(lambda: handled == [("a", 1)])


async def test_gap_is_given_up_in_time_where_the_server_tells_what_has_changed(
    redis_server, namespace, monkeypatch
):
    monkeypatch.setattr(stream_news, "READ_ALL_S", 3_600.0)
    handled, handler = recorder()
    async with told_parts(redis_server, namespace, handler, gap_timeout_ms=50) as parts:
        partition, _ = await parts.acquire(0)
        other, _ = await parts.acquire(1)
        parts.owned.move(partition, Phase.OPEN)
        parts.owned.move(other, Phase.OPEN)
        async with polling(parts):
            with redis_server.client() as client:
                add(client, parts.keys, 0, "a", 1, 3)
                await until(lambda: partition.held)
                add(client, parts.keys, 1, "b", 1)  # from now on its deadline is known
                await until(lambda: ("a", 3) in handled)
