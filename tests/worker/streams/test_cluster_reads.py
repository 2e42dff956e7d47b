"""A worker of a cluster reads what a node says has changed; where none says anything, it polls, and logs that once."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from cluster_kit import ClusterServers
from dispatch_kit import PATIENCE_S, until
from servers import binary_of
from structlog.testing import capture_logs
from worker_parts_kit import add, worker_parts

from maskline import on
from maskline.worker.streams import stream_news
from maskline.worker.streams.poller_pool import PollerPool


class OneNode:
    """A cluster of one node, which has all slots. `login`: the user to connect as, and a colon and a password."""

    def __init__(self, servers: ClusterServers, login: str = "") -> None:
        (self._node,) = servers.nodes
        self.url = f"redis+cluster://{login}{'@' if login else ''}127.0.0.1:{self._node.port}"

    def client(self):
        return self._node.client()


@pytest.fixture(scope="module")
def one_node(server_kind, tmp_path_factory):
    servers = ClusterServers(tmp_path_factory.mktemp("cluster"), 1, 0, binary_of(server_kind)).start()
    yield servers
    servers.stop()


@asynccontextmanager
async def reading(node, namespace):
    """(parts, pool, handled): a worker's pollers with a partition open."""
    handled = []

    @on.every
    async def handler(event, ctx):
        handled.append(ctx.sequence_number)

    async with worker_parts(node, namespace, handler) as parts:
        parts.own(0)
        pool = PollerPool(parts.connections, parts.keys, parts.owned, parts.pipeline)
        task = asyncio.create_task(pool.run())
        await until(lambda: parts.owned.get(0).watermark_ms)  # it was read once
        yield parts, pool, handled
        task.cancel()
        await asyncio.wait([task], timeout=PATIENCE_S)


@pytest.mark.storage
async def test_changed_partition_is_read_though_all_are_read_seldom(one_node, namespace, monkeypatch):
    monkeypatch.setattr(stream_news, "READ_ALL_S", 60.0)
    node = OneNode(one_node)
    async with reading(node, namespace) as (parts, pool, handled):
        assert [poller["notified"] for poller in pool.details()] == [True]
        with node.client() as client:
            for number in (1, 2, 3):
                add(client, parts.keys, 0, "a", number)
                await until(lambda: len(handled) == number)  # noqa: B023 - asked at once


async def test_partitions_are_polled_where_the_user_may_not_ask_what_has_changed(
    one_node, namespace, monkeypatch
):
    monkeypatch.setattr(stream_news, "READ_ALL_S", 60.0)
    with OneNode(one_node).client() as client:
        client.execute_command("ACL", "SETUSER", "old", "on", ">pw", "~*", "+@all", "-client|tracking")
    node = OneNode(one_node, "old:pw")
    with capture_logs() as lines:
        async with reading(node, namespace) as (parts, pool, handled):
            assert [poller["notified"] for poller in pool.details()] == [False]
            with node.client() as client:
                add(client, parts.keys, 0, "a", 1)
                await until(lambda: handled == [1])
            parts.server.commands.close()  # the next connection asks again
            incarnation = parts.server.incarnation
            await until(lambda: parts.server.up and parts.server.incarnation is not incarnation)
    refusals = [line for line in lines if line["event"] == "stream notifications refused"]
    assert len(refusals) == 1
    assert refusals[0]["reply"].startswith("NOPERM")
