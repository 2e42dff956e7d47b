"""A commit whose lease has been lost changes nothing, and its sender is told: on a real server."""

import asyncio

import pytest
from dispatch_kit import until
from worker_parts_kit import owned_with, worker_parts

from maskline import on


@pytest.mark.parametrize("lapsed", [False, True], ids=["held", "lapsed"])
@pytest.mark.parametrize("owner", ["me", "another"])
async def test_commit_after_the_lease_was_lost_changes_nothing(redis_server, namespace, owner, lapsed):
    """The next owner holds a lease, or its lease has lapsed too."""
    running, go_on = asyncio.Event(), asyncio.Event()

    @on.every
    async def handler(event, ctx):
        running.set()
        await go_on.wait()

    async with worker_parts(redis_server, namespace, handler) as parts:
        with redis_server.client() as client:
            partition = await owned_with(client, parts, 1)
            await running.wait()
            token = partition.token + 1
            client.hset(parts.keys.fence(0), mapping={"token": token, "owner": owner})
            client.set(parts.keys.lease(0), f"{token} {owner}")
            if lapsed:
                client.delete(parts.keys.lease(0))
            before = client.dump(parts.keys.callbacks(0))
            go_on.set()
            await until(lambda: parts.fenced)
            assert parts.fenced == [partition]
            assert (parts.counters.fenced, parts.counters.commits) == (1, 0)
            assert client.dump(parts.keys.callbacks(0)) == before, (
                "its consumer group stands in the stream's value"
            )
            assert not client.exists(parts.keys.session(0, "s"))
