"""The runner takes every queue that is due, whatever commits make due while it takes others."""

import asyncio

from dispatch_kit import until
from worker_parts_kit import feed, letters_of, owned_with, worker_parts

from maskline import Reject, on

SERVER_WAITS_MS = 300


async def test_queue_that_a_commit_lets_go_on_is_run_though_a_take_meanwhile_left_it_out(
    own_redis, namespace
):
    handled = []

    @on.every(name="picky")
    async def picky(event, ctx):
        if ctx.sequence_number == 1:
            raise Reject("no")
        handled.append(ctx.sequence_number)

    async with worker_parts(own_redis, namespace, picky) as parts:
        with own_redis.client() as client:
            runner = parts.retry_runner()
            partition = await owned_with(client, parts)
            task = asyncio.create_task(runner.run())
            await until(lambda: partition.jobs.loaded)
            await feed(client, parts, partition, 1, 2, 3)
            await until(lambda: not partition.unfinished and not partition.uncommitted)
            (letter_id,) = client.xrange(parts.keys.dead(0))[0][:1]
            (state,) = client.mget(parts.keys.session(0, "s"))
            assert len(letters_of(client, parts)) == 1

            client.client_pause(SERVER_WAITS_MS, all=True)
            partition.unpark(partition.session_of("s", state), "picky", letter_id.decode(), None, 1)
            parts.committer.mark(partition)
            await until(lambda: partition.commit_in_flight is not None)
            runner.note_due(partition, {"picky": 0})  # as another session's queue would be
            await until(lambda: runner.active)
            assert partition.commit_in_flight is not None, "both are answered together"
            await until(lambda: handled == [2, 3])
        task.cancel()
