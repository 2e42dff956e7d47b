"""What waits behind dead letters is given up after its time, and giving up waits where there are too many letters."""

import asyncio

from dispatch_kit import until
from worker_parts_kit import feed, letters_of, owned_with, worker_parts

from maskline import Reject, on
from maskline.worker.partitions.dead_letter_counts import DeadLetterCounts
from maskline.worker.retry_queues.expiry import ParkedQueueExpiry

FULL_BYTES = 1_000


async def test_what_waits_behind_a_letter_is_given_up_after_its_time_and_later_events_run(
    redis_server, namespace
):
    handled = []

    @on.every(name="picky")
    async def picky(event, ctx):
        if ctx.sequence_number == 1:
            raise Reject("no")
        handled.append((ctx.sequence_number, ctx.skipped))

    async with worker_parts(redis_server, namespace, picky) as parts:
        with redis_server.client() as client:
            partition = await owned_with(client, parts, 1, 2, 3)
            await until(lambda: not partition.unfinished and not partition.uncommitted)
            assert handled == []
            keys = parts.keys.retry_parked(0, "picky")
            assert client.zrange(keys, 0, -1) == [b"s"]
            expiry = ParkedQueueExpiry(
                parts.connections, parts.keys, parts.owned, parts.committer, ttl_s=0, interval_s=0.01
            )
            task = asyncio.create_task(expiry.run())
            await until(lambda: len(letters_of(client, parts)) == 3)
            task.cancel()
            assert [(one.code, one.sequence_number, one.handler) for one in letters_of(client, parts)] == [
                ("rejected", 1, "picky"),
                ("waited_too_long", 2, "picky"),
                ("waited_too_long", 3, "picky"),
            ]
            assert not client.exists(keys)
            await feed(client, parts, partition, 4)
            await until(lambda: handled)
            assert handled == [(4, (1, 2, 3))]


async def test_no_event_is_given_up_while_there_are_too_many_dead_letters(redis_server, namespace):
    @on.every(name="picky")
    async def picky(event, ctx):
        raise Reject("no")

    async with worker_parts(redis_server, namespace, picky) as parts:
        with redis_server.client() as client:
            counts = DeadLetterCounts(
                parts.connections, parts.keys, parts.owned, partitions=2, max_bytes=FULL_BYTES
            )
            partition = await owned_with(client, parts)
            client.xadd(parts.keys.dead(1), {"d": b"x" * FULL_BYTES})
            await counts.refresh()
            assert partition.dead_letters_full, "the letters of all partitions count"
            await feed(client, parts, partition, 1)
            await until(lambda: not partition.unfinished and not partition.uncommitted)
            assert letters_of(client, parts) == []
            assert client.zcard(parts.keys.retry_due(0, "picky")) == 1
            client.delete(parts.keys.dead(1))
            await counts.refresh()
            assert not partition.dead_letters_full
