"""Idle connections: how long they are kept, and what becomes of a callback that is sent while one is closed."""

import asyncio
import socket
from typing import Any

import pytest
from ingest_kit import PAIRS, Client, Request, node_settings, running, stored, until

from maskline.ingest.node import IngestNode
from maskline.schemas.settings import Settings

GOOD = Request().encode()
GET = Request(method="GET", query=PAIRS).encode()


def stored_count(redis_server: Any, namespace: str) -> int:
    with redis_server.client() as client:
        return len(stored(client, node_settings(redis_server.url, namespace)))


def test_idle_connections_outlive_those_of_proxies():
    assert Settings().keepalive_s == 620


@pytest.mark.parametrize(
    "late", [GOOD, GET, GOOD + GET, GOOD[:-1]], ids=["post", "get", "both", "incomplete"]
)
async def test_a_callback_that_crosses_the_end_of_an_idle_connection_is_stored_count(
    redis_server, namespace, late
):
    """The client writes before it knows; it gets no answer, but nothing is lost."""
    async with (
        running(redis_server.url, namespace, keepalive_s=1) as node,
        await Client.connect(node.port) as client,
    ):
        assert (await client.ask(GOOD)).status == 200
        assert await client.ended()
        client.send(late)
        await until(lambda: node.metrics.taken == 1 + late.count(b"HTTP/1.1") - (late == GOOD[:-1]))
        if late == GOOD[:-1]:
            client.send(GOOD[-1:])
            await until(lambda: node.metrics.taken == 2)
        client.writer.close()
        await until(lambda: not node._http.connections)
    assert stored_count(redis_server, namespace) == node.metrics.taken


async def test_callback_sent_on_an_idle_connection_at_the_stop_is_stored(
    redis_server, namespace, monkeypatch
):
    monkeypatch.setattr("maskline.ingest.http.server.STOP_LINGER_S", 5)
    node = IngestNode(node_settings(redis_server.url, namespace))
    await node.start()
    async with await Client.connect(node.port) as client:
        assert (await client.ask(GOOD)).status == 200
        stopping = asyncio.create_task(node.stop())
        assert await client.ended()
        client.send(GET)
        await until(lambda: node.metrics.taken == 2)
        client.writer.close()
        await stopping
    assert stored_count(redis_server, namespace) == 2


async def test_connection_with_bytes_in_its_socket_is_not_idle(redis_server, namespace):
    async with running(redis_server.url, namespace) as node:
        with socket.create_connection(("127.0.0.1", node.port)) as client:
            await until(lambda: node._http.connections)
            (connection,) = node._http._connections
            assert connection.is_idle()
            client.sendall(GOOD)
            connection.end_if_idle()  # before the loop has had a turn
            client.settimeout(10)
            answer = await asyncio.to_thread(client.recv, 1_000)
            assert answer.startswith(b"HTTP/1.1 200 ")


async def test_client_that_does_not_close_its_side_is_cut_off(redis_server, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.http.limits.LINGER_S", 0.05)
    async with (
        running(redis_server.url, namespace, keepalive_s=1) as node,
        await Client.connect(node.port) as client,
        await Client.connect(node.port) as closing,
    ):
        assert (await closing.ask(Request(headers={"Connection": "close"}).encode())).status == 200
        assert await client.ended()
        await until(lambda: not node._http.connections)


async def test_connections_idle_for_longest_are_closed_for_new_ones(redis_server, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.http.server.CONNECTIONS_MAX", 8)
    monkeypatch.setattr("maskline.ingest.http.server.SHED_IDLE_S", 0.0)
    monkeypatch.setattr("maskline.ingest.http.server.SHED_INTERVAL_S", 0.0)
    monkeypatch.setattr("maskline.ingest.http.server.SHED_AT_ONCE_MAX", 1)
    async with running(redis_server.url, namespace) as node:
        clients: list[Client] = []
        try:
            for _ in range(30):
                before = node._http._shed_at
                clients.append(await Client.connect(node.port))
                assert (await clients[-1].ask(GOOD)).status == 200
                if node._http._shed_at != before:
                    await until(lambda: any(client.reader.at_eof() for client in clients))
                    (ended,) = (client for client in clients if client.reader.at_eof())
                    assert ended is not clients[-1]
                    clients.remove(ended)
                    ended.writer.close()
                    await until(lambda: node._http.connections < 8)
            assert node.metrics.connections_refused == 0
            assert 6 <= node._http.connections <= 8
            assert (await clients[0].ask(GOOD)).status == 200
        finally:
            for client in clients:
                client.writer.close()


async def test_no_more_connections_are_closed_than_needed(redis_server, namespace, monkeypatch):
    """However many new ones come before the closed ones are gone."""
    monkeypatch.setattr("maskline.ingest.http.server.CONNECTIONS_MAX", 16)
    monkeypatch.setattr("maskline.ingest.http.server.SHED_IDLE_S", 0.0)
    monkeypatch.setattr("maskline.ingest.http.server.SHED_INTERVAL_S", 0.0)
    async with running(redis_server.url, namespace) as node:
        clients = [await Client.connect(node.port) for _ in range(14)]
        try:
            await until(lambda: node._http.connections == 14)
            for opening in (0, 0, 1):
                node._http.admit(0, opening)
            ending = [each for each in node._http._connections if each.is_ending()]
            assert len(ending) == 2
        finally:
            for client in clients:
                client.writer.close()


async def test_connections_in_use_are_not_closed_for_new_ones(redis_server, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.http.server.CONNECTIONS_MAX", 2)
    async with (
        running(redis_server.url, namespace) as node,
        await Client.connect(node.port) as first,
        await Client.connect(node.port) as second,
    ):
        assert (await second.ask(GOOD)).status == 200
        assert (await first.ask(GOOD)).status == 200
        async with await Client.connect(node.port) as third:
            assert await third.ended()
        assert (await first.ask(GOOD)).status == 200


async def test_body_that_comes_byte_by_byte_is_408_after_the_read_timeout(
    redis_server, namespace, monkeypatch
):
    monkeypatch.setattr("maskline.ingest.http.limits.READ_TIMEOUT_S", 0.1)
    async with running(redis_server.url, namespace) as node, await Client.connect(node.port) as client:
        answer = asyncio.create_task(client.response())
        client.send(GOOD[:-100])
        for byte in GOOD[-100:-1]:
            client.send(bytes([byte]))
            await asyncio.sleep(0.005)
            if answer.done():
                break
        response = await answer
        assert (response.status, response.error) == (408, "read_timeout")
        assert await client.ended()
