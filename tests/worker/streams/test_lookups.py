"""What a batch needs of Redis before it is ordered: states and spool notices, in one round trip after the read."""

import asyncio

from dispatch_kit import until
from structlog.testing import capture_logs
from test_pipeline import COUNT, read
from worker_parts_kit import add, worker_parts

from maskline import on
from maskline.schemas.spool_notices import write_notice
from maskline.worker.partitions.phase import Phase

NODE = "web-1:/spool/spool-maskline-0.db"


def now_ms(client):
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000


def say(client, parts, held_ms, number=0):
    client.execute_command(*write_notice(parts.keys.spooled(number), NODE, held_ms))


async def order(parts, partition, entries, at_ms):
    """Entries that a poller has read at this time, or none, go through the pipeline."""
    await parts.pipeline.process(parts.pipeline.receive([(partition, entries)], COUNT, at_ms))


def recorder(handled):
    @on.every
    async def handler(event, ctx):
        handled.append((ctx.sequence_number, ctx.order))

    return handler


async def acquired(parts, number=0):
    partition, _ = await parts.acquire(number)
    parts.owned.move(partition, Phase.OPEN)
    return partition


async def test_gap_waits_while_a_notice_says_that_a_node_holds_callbacks(redis_server, namespace):
    handled = []
    async with worker_parts(redis_server, namespace, recorder(handled), gap_timeout_ms=0) as parts:
        with redis_server.client() as client:
            partition = await acquired(parts)
            say(client, parts, 100)
            add(client, parts.keys, 0, "s", 2)
            ((_, entries),) = read(client, parts, partition)
            at_ms = now_ms(client) + 1
            await order(parts, partition, entries, at_ms)
            assert (handled, partition.held) == ([], 1)
            assert partition.gaps.spools.holders(at_ms) == [NODE]
            say(client, parts, None)
            await order(parts, partition, [], at_ms + 2_500)
            assert partition.held == 1, "others have a moment to say what they hold"
            await order(parts, partition, [], at_ms + 4_000)
            await until(lambda: handled == [(2, "after_gap")])


async def test_only_new_notices_are_read(redis_server, namespace):
    async with worker_parts(redis_server, namespace, gap_timeout_ms=0) as parts:
        with redis_server.client() as client:
            partition = await acquired(parts)
            for held_ms in (0, 50):
                say(client, parts, held_ms)
                add(client, parts.keys, 0, f"s{held_ms}", 2)
                ((_, entries),) = read(client, parts, partition)
                await order(parts, partition, entries[-1:], now_ms(client))
            ((last_id, _),) = client.xrevrange(parts.keys.spooled(0), count=1)
            assert partition.gaps.spools.last_id == last_id.decode()


async def test_notices_of_several_partitions_are_told_apart(redis_server, namespace):
    async with worker_parts(redis_server, namespace, gap_timeout_ms=0) as parts:
        with redis_server.client() as client:
            held, free = await acquired(parts, 0), await acquired(parts, 1)
            say(client, parts, 100, number=0)
            for number in (0, 1):
                add(client, parts.keys, number, f"s{number}", 2)
            at_ms = now_ms(client) + 1
            received = parts.pipeline.receive(read(client, parts, held, free), COUNT, at_ms)
            await parts.pipeline.process(received)
            assert (held.held, free.held) == (1, 0)


async def test_stream_of_notices_that_is_none_lets_everything_go_on(redis_server, namespace):
    handled = []
    async with worker_parts(redis_server, namespace, recorder(handled), gap_timeout_ms=0) as parts:
        with redis_server.client() as client, capture_logs() as lines:
            partition = await acquired(parts)
            client.set(parts.keys.spooled(0), "not a stream")
            add(client, parts.keys, 0, "s", 2)
            ((_, entries),) = read(client, parts, partition)
            await order(parts, partition, entries, now_ms(client) + 1)
            await until(lambda: handled == [(2, "after_gap")])
    assert "spool notice read failed" in [line["event"] for line in lines]


async def test_after_a_reconnect_gaps_wait_a_moment_and_notices_are_read_again(redis_server, namespace):
    async with worker_parts(redis_server, namespace, gap_timeout_ms=0) as parts:
        with redis_server.client() as client:
            partition = await acquired(parts)
            add(client, parts.keys, 0, "s", 2)
            ((_, entries),) = read(client, parts, partition)
            before = parts.server.incarnation
            assert parts.server.lost_ms is None
            opened_ms = parts.server.opened_ms
            assert abs(opened_ms - now_ms(client)) < 60_000
            parts.server.commands.close()
            async with asyncio.timeout(60):
                while parts.server.incarnation is before:
                    await asyncio.sleep(0.01)
            assert parts.server.lost_ms < parts.server.opened_ms
            await order(parts, partition, entries, now_ms(client))
            assert partition.held == 1
            assert partition.gaps.spools.incarnation is parts.server.incarnation
            await order(parts, partition, [], parts.server.opened_ms + 4_000)
            assert partition.held == 0
