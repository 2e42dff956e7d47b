"""Connections: the same bytes to two nodes, one without the fast path; requests behind requests; limits; the end."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ingest_kit import (
    MAIN,
    PAIRS,
    SUB,
    SUB_TOKEN,
    Client,
    Request,
    ask,
    node_settings,
    running,
    stored,
    until,
)
from test_ingest_http import REFUSED, TAKEN

from maskline.ingest.http.connection import HttpConnection
from maskline.ingest.http.limits import TURN_MAX, WAITING_MAX_BYTES
from maskline.ingest.http.pending_request import PendingRequest
from maskline.ingest.http.request_reader import RequestReader
from maskline.ingest.node import IngestNode
from maskline.ingest.outcome import NotStoredError

GOOD = Request()
LAST = Request(target="/last", headers={"Connection": "close"}).encode()
"""Refused, and it closes its connection: so a client can read to the end."""


@pytest.fixture
async def node(redis_server, namespace, monkeypatch) -> AsyncIterator[IngestNode]:
    monkeypatch.setattr("maskline.ingest.fastpath.head_templates.LEARN_AFTER", 1)
    async with running(redis_server.url, namespace) as node:
        await teach(node)
        yield node


async def teach(node: IngestNode) -> None:
    async with await Client.connect(node.port) as client:
        for _ in range(3):
            assert (await client.ask(GOOD.encode())).status == 200


def open_connections(node: IngestNode) -> int:
    return node._http.connections


async def answers(node: IngestNode, pieces: list[bytes], *, first: Request | None = None) -> bytes:
    """Everything that comes back until the node closes the connection, dates aside."""
    async with await Client.connect(node.port) as client, asyncio.timeout(60):
        if first is not None:
            assert (await client.ask(first.encode())).status == 200
        for piece in pieces:
            client.send(piece)
            await client.writer.drain()
            for _ in range(3):  # so that the node may read it alone
                await asyncio.sleep(0)
        received = b""
        while data := await client.reader.read(65_536):
            received += data
        return re.sub(rb"Date: [^\r]*", b"Date", received)


ordinary = st.sampled_from(
    [GOOD, Request(target=f"/callbacks/{MAIN}"), Request(target=f"/callbacks/{SUB}", token=SUB_TOKEN),
     Request(query=[("a", "b")]), Request(pairs=PAIRS[::-1]), Request(pairs=[("SessionUUID", "\0é%&=+")]),
     Request(token="x"),
     Request(headers={"Connection": "keep-alive"}),
     Request(members={"a": 1}),
     Request(headers={"X-More": "x"}), Request(target="/x", pairs=[], body=b""), Request(method="GET", query=PAIRS)]
).map(Request.encode)  # fmt: skip
table = st.sampled_from(
    [request if isinstance(request, bytes) else request.encode()
     for request in (*TAKEN.values(), *(request for request, *_ in REFUSED.values()))]
).filter(lambda request: len(request) < 10_000)  # fmt: skip


@pytest.fixture
async def both(redis_server, namespace, monkeypatch) -> AsyncIterator[Any]:
    """A node with the fast path, one without, and the settings of what they store."""
    monkeypatch.setattr("maskline.ingest.fastpath.head_templates.LEARN_AFTER", 1)
    monkeypatch.setattr("maskline.ingest.http.limits.READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr("maskline.ingest.http.limits.HEAD_TIMEOUT_S", 0.2)
    names = [f"{namespace}-fast", f"{namespace}-parsed"]
    async with running(redis_server.url, names[0]) as fast:
        monkeypatch.setattr("maskline.ingest.http.server.FAST_PATH", False)
        async with running(redis_server.url, names[1]) as parsed:
            await teach(fast)
            await teach(parsed)
            with redis_server.client() as client:
                yield fast, parsed, client, [node_settings(redis_server.url, name) for name in names]


@example(
    ([Request(target=f"/callbacks/{MAIN}").encode()], [260])
)  # within the head: then the fast path takes it
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.tuples(st.lists(ordinary, min_size=1, max_size=4), st.lists(st.integers(1, 1_500), max_size=4))
    | st.tuples(st.lists(ordinary | table, min_size=1, max_size=4), st.just([]))
)
async def test_answers_and_stored_callbacks_are_the_same_with_and_without_the_fast_path(both, sends):
    requests, cuts = sends
    fast, parsed, client, spaces = both
    sent = b"".join(requests) + LAST
    cuts = sorted({cut for cut in cuts if cut < len(sent)})
    pieces = [sent[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert await answers(fast, pieces) == await answers(parsed, pieces)
    assert fast.metrics.taken == parsed.metrics.taken
    assert fast.metrics.refused == parsed.metrics.refused
    first, second = (
        sorted((c.method, c.query, c.content_type, c.body, c.auth_id) for c in stored(client, space))
        for space in spaces
    )
    assert first == second


ROWS = [*TAKEN.items(), *((name, row[0]) for name, row in REFUSED.items())]
AT_ONCE = 12
"""Rows that two nodes answer one after the other: to start them takes far longer."""


@pytest.mark.parametrize("begin", range(0, len(ROWS), AT_ONCE))
async def test_every_row_of_the_tables_is_the_same_behind_a_fast_request(both, begin):
    fast, parsed, *_ = both
    for name, request in ROWS[begin : begin + AT_ONCE]:
        sent = (request if isinstance(request, bytes) else request.encode()) + LAST
        assert await answers(fast, [sent], first=GOOD) == await answers(parsed, [sent], first=GOOD), name


# The fast path


async def test_known_request_is_not_parsed(node, monkeypatch):
    monkeypatch.setattr(RequestReader, "read", None)
    async with await Client.connect(node.port) as client:
        for _ in range(3):
            assert (await client.ask(GOOD.encode())).status == 200


async def test_connection_takes_the_fast_path_again_after_odd_requests(node, monkeypatch):
    odd = [
        (Request(method="GET", query=PAIRS), 200),
        (Request(target="/unknown"), 404),
        (Request(token="wrong"), 403),
        (Request(method="PUT"), 405),
        (Request(members={"SessionUUID": "s"}), 200),
    ]
    async with await Client.connect(node.port) as client:
        for request, status in odd:
            assert (await client.ask(request.encode())).status == status
            with monkeypatch.context() as patch:
                patch.setattr(RequestReader, "read", None)
                assert (await client.ask(GOOD.encode())).status == 200


async def test_head_and_body_may_come_in_two_packets(node):
    head, _, body = GOOD.encode().partition(b"\r\n\r\n")
    async with await Client.connect(node.port) as client:
        for _ in range(10):
            client.send(head + b"\r\n\r\n")
            await until(lambda: node.metrics.gauges().requests_under_way == 1)
            assert (await client.ask(body)).status == 200


async def test_head_may_come_in_any_number_of_packets(node):
    async with await Client.connect(node.port) as client:
        (connection,) = await connections(node, 1)
        head = GOOD.encode().partition(b"\r\n\r\n")[0]
        for place in range(0, len(head), 20):
            client.send(head[place : place + 20])
            await until(lambda place=place: len(connection._waiting) >= min(place + 20, len(head)))
        assert (await client.ask(GOOD.encode()[len(head) :])).status == 200


async def connections(node: IngestNode, count: int) -> list[HttpConnection]:
    await until(lambda: open_connections(node) == count)
    return [*node._http._connections]


# Limits


async def test_incomplete_malformed_head_is_answered(node):
    async with await Client.connect(node.port) as client:
        response = await client.ask(b"POST /callbacks HTTP/1.1\r\nthat is no header\r\n")
        assert (response.status, response.error) == (400, "malformed_http")


async def test_idle_connection_is_closed_on_time(redis_server, namespace):
    async with (
        running(redis_server.url, namespace, keepalive_s=1) as node,
        await Client.connect(node.port) as client,
        await Client.connect(node.port) as silent,
    ):
        began = asyncio.get_running_loop().time()
        assert (await client.ask(GOOD.encode())).status == 200
        assert await client.ended()
        assert asyncio.get_running_loop().time() - began >= 1
        assert await silent.ended()
    await until(lambda: not open_connections(node))


@pytest.mark.parametrize("keepalive_s", [1, 620])
@pytest.mark.parametrize("sent", [b"P", b"GET /cal", b"POST /callbacks HTTP/1.1\r\nHost: h\r\nX-Slow: "])
async def test_incomplete_head_is_408_after_the_head_timeout(
    redis_server, namespace, monkeypatch, keepalive_s, sent
):
    monkeypatch.setattr("maskline.ingest.http.limits.HEAD_TIMEOUT_S", 0.2)
    async with running(redis_server.url, namespace, keepalive_s=keepalive_s) as node:
        async with await Client.connect(node.port) as client:
            assert (await client.ask(GOOD.encode())).status == 200
            response = await client.ask(sent)
            assert (response.status, response.error) == (408, "head_timeout")
            assert response.headers["connection"] == "close"
            assert await client.ended()
        # Also when it comes byte by byte.
        async with await Client.connect(node.port) as client:
            dripping = asyncio.create_task(client.response())
            client.send(sent)
            while not dripping.done():
                client.send(b"X")
                await asyncio.sleep(0.01)
            assert (await dripping).status in (400, 408)


async def test_blank_lines_start_no_head_timeout(redis_server, namespace, monkeypatch):
    monkeypatch.setattr("maskline.ingest.http.limits.HEAD_TIMEOUT_S", 0.05)
    async with running(redis_server.url, namespace, keepalive_s=1) as node:
        for blank in (b"\r\n\r\n", b"\r", b"\r\n\r"):
            async with await Client.connect(node.port) as client:
                client.send(blank)
                (connection,) = await connections(node, 1)
                if blank.endswith(b"\r"):
                    await until(lambda c=connection: c._read_timer is not None)
                    client.send(b"\n")
                await until(lambda c=connection: c._read_timer is None)
                assert await client.ended()  # as an idle one
            await until(lambda: not open_connections(node))


async def test_client_gone_within_a_body_is_counted(node):
    async with await Client.connect(node.port) as client:
        client.send(GOOD.encode()[:-5])
        await until(lambda: node.metrics.gauges().requests_under_way == 1)
        client.writer.transport.abort()
        await until(lambda: node.metrics.refused[400, "client_gone"] == 1)
    await until(lambda: not open_connections(node))
    assert node.metrics.gauges().requests_under_way == 0


async def test_client_that_ends_its_side_within_a_body_gets_400(node):
    async with await Client.connect(node.port) as client:
        client.send(GOOD.encode() + GOOD.encode()[:-5])
        client.writer.write_eof()
        assert (await client.response()).status == 200
        response = await client.response()
        assert (response.status, response.error) == (400, "client_gone")
        assert await client.ended()
    assert node.metrics.refused[400, "client_gone"] == 1
    assert node.metrics.gauges().requests_under_way == 0


BAD = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"


async def test_flood_of_requests_is_answered_to_its_end(node):
    """It takes several turns of the loop, and the client ends its side in between."""
    async with await Client.connect(node.port) as client:
        client.send(BAD * (3 * TURN_MAX) + GOOD.encode())
        client.writer.write_eof()
        assert [(await client.response()).status for _ in range(3 * TURN_MAX)] == [404] * (3 * TURN_MAX)
        assert (await client.response()).status == 200
        assert await client.ended()


async def test_flood_of_requests_takes_at_most_turn_max_of_a_turn(node, monkeypatch):
    monkeypatch.setattr("maskline.ingest.http.limits.TURN_MAX", 8)
    refused = node.metrics.refused
    async with await Client.connect(node.port) as client:
        client.writer.transport.set_write_buffer_limits(high=1 << 20)
        reading = asyncio.create_task(client.reader.read())
        most = 0
        for _ in range(100):
            client.send(BAD * 20)
            before = refused[404, "unknown_path"]
            await asyncio.sleep(0)
            most = max(most, refused[404, "unknown_path"] - before)
        assert 0 < most <= 8 + 1
        client.writer.write_eof()
        assert (await reading).count(b"HTTP/1.1 404") == 2_000


async def test_client_that_floods_and_does_not_read_is_cut_off(node, monkeypatch):
    monkeypatch.setattr("maskline.ingest.http.limits.WRITE_TIMEOUT_S", 0.2)
    async with await Client.connect(node.port) as client:
        client.writer.transport.pause_reading()
        (connection,) = await connections(node, 1)
        # Else the system takes some megabytes of answers.
        connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        flood = GOOD.encode() * 100
        with pytest.raises(ConnectionError):  # noqa: PT012 - the write that fails is not the first
            for _ in range(5_000):
                client.send(flood)
                await asyncio.wait_for(client.writer.drain(), 20)
    await until(lambda: not open_connections(node))
    assert (await ask(node.port, GOOD)).status == 200


@asynccontextmanager
async def unread_connection(node: IngestNode, monkeypatch: Any) -> AsyncIterator[Any]:
    """A client that does not read, and its connection: answers wait in the process, too few to block it."""
    monkeypatch.setattr("maskline.ingest.http.limits.LINGER_S", 0.05)
    async with await Client.connect(node.port) as client:
        client.writer.transport.pause_reading()
        (connection,) = await connections(node, 1)
        connection._transport.set_write_buffer_limits(high=10_000_000)
        connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        yield client, connection


@pytest.mark.parametrize("ends", [True, False])
async def test_finished_connection_whose_answers_are_not_read_is_closed(node, monkeypatch, ends):
    monkeypatch.setattr("maskline.ingest.http.limits.WRITE_TIMEOUT_S", 0.2)
    async with unread_connection(node, monkeypatch) as (client, connection):
        client.send(BAD * 4_000 + (b"" if ends else LAST))
        if ends:
            client.writer.write_eof()
        await until(lambda: connection._closer._linger_timer)
        assert connection._transport.get_write_buffer_size()
        await until(lambda: not open_connections(node))


async def test_client_that_reads_late_gets_the_last_answers(node, monkeypatch):
    async with unread_connection(node, monkeypatch) as (client, connection):
        client.send(BAD * 4_000 + LAST)
        await until(lambda: connection._closer._linger_timer)
        first = connection._closer._linger_timer
        await until(lambda: connection._closer._linger_timer is not first or not open_connections(node))
        connection._transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20
        )
        client.writer.transport.resume_reading()
        assert (await client.reader.read()).count(b"HTTP/1.1 404") == 4_001


async def test_bytes_behind_a_pending_request_are_bounded(own_redis, namespace):
    async with running(own_redis.url, namespace, publish_timeout_ms=5_000) as node:
        own_redis.pause()
        try:
            async with await Client.connect(node.port) as client:
                flood = GOOD.encode() * 4_000
                client.send(flood)
                (connection,) = await connections(node, 1)
                await until(lambda: connection._reading_paused)
                assert len(connection._waiting) < WAITING_MAX_BYTES + 1_000_000
                own_redis.resume()
                for _ in range(4_000):
                    assert (await client.response()).status == 200
        finally:
            own_redis.resume()


# Outcomes, and the stop


async def test_callback_that_is_not_stored_is_503_and_the_connection_goes_on(node, monkeypatch):
    def at_once(*_: Any) -> None:
        raise NotStoredError("busy")

    def later(request: PendingRequest, *_: Any) -> None:
        node._http._context.loop.call_soon(request.set_exception, NotStoredError("spool_full"))

    router = node._http._context.router
    async with await Client.connect(node.port) as client:
        for store, code in ((at_once, "busy"), (later, "spool_full")):
            with monkeypatch.context() as patch:
                patch.setattr(router, "store_for", store)
                client.send(GOOD.encode() * 3)
                for _ in range(3):
                    response = await client.response()
                    assert (response.status, response.error, response.headers["retry-after"]) == (
                        503,
                        code,
                        "1",
                    )
            assert node.metrics.refused[503, code] == 3
            assert (await client.ask(GOOD.encode())).status == 200
        assert open_connections(node) == 1
    assert node.metrics.gauges().requests_under_way == 0


async def test_second_outcome_of_a_request_does_not_answer_the_next(node, monkeypatch):
    pending: list[PendingRequest] = []
    monkeypatch.setattr(node._http._context.router, "store_for", lambda request, *_: pending.append(request))
    async with await Client.connect(node.port) as client:
        client.send(GOOD.encode() * 2)
        await until(lambda: len(pending) == 1)
        pending[0].set_exception(NotStoredError("spool_slow"))
        assert (await client.response()).status == 503
        await until(lambda: len(pending) == 2)
        assert pending[0].done()
        assert not pending[1].done()
        pending[0].set_result(None)
        assert not pending[1].done()
        pending[1].set_result(None)
        assert (await client.response()).status == 200
    assert node.metrics.taken == 4  # three of them while it was taught


async def test_outcome_counts_when_the_client_is_gone(node, monkeypatch):
    pending: list[PendingRequest] = []
    monkeypatch.setattr(node._http._context.router, "store_for", lambda request, *_: pending.append(request))
    async with await Client.connect(node.port) as client:
        client.send(GOOD.encode())
        await until(lambda: pending)
        client.writer.transport.abort()
    await until(lambda: [c for c in node._http._connections if c._client_ended])
    pending[0].set_result(None)
    await until(lambda: not open_connections(node))
    assert node.metrics.taken == 4
    assert node.metrics.gauges().requests_under_way == 0


async def test_stop_answers_pending_requests_and_closes_idle_connections(own_redis, namespace):
    node = IngestNode(node_settings(own_redis.url, namespace, publish_timeout_ms=5_000))
    await node.start()
    try:
        async with await Client.connect(node.port) as idle, await Client.connect(node.port) as busy:
            await connections(node, 2)
            own_redis.pause()
            busy.send(GOOD.encode())
            await until(lambda: node.metrics.gauges().requests_under_way == 1)
            stopping = asyncio.create_task(node.stop())
            await until(lambda: node._http._context.stopping)
            own_redis.resume()
            response = await busy.response()
            assert (response.status, response.headers["connection"]) == (200, "close")
            assert await busy.ended()
            assert await idle.ended()
            await stopping
    finally:
        own_redis.resume()


async def test_fast_path_of_a_trusted_proxy_is_not_that_of_other_peers(redis_server, namespace, monkeypatch):
    from ipaddress import ip_network

    monkeypatch.setattr("maskline.ingest.fastpath.head_templates.LEARN_AFTER", 1)
    forwarded: dict[str, str | None] = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "outside.example"}
    forwarded_request = Request(base="https://outside.example/callbacks", headers=forwarded)
    trusted = (ip_network("127.0.0.0/8"),)
    async with (
        running(redis_server.url, namespace, trusted_proxies=trusted) as node,
        await Client.connect(node.port) as client,
    ):
        for _ in range(3):
            assert (await client.ask(forwarded_request.encode())).status == 200
        (connection,) = node._http._connections
        assert connection._fast_verifier is not node._http._context.fast_verifier("192.0.2.1")
        elsewhere = {**forwarded, "X-Forwarded-Host": "elsewhere.example"}
        assert (await client.ask(forwarded_request._replace(headers=elsewhere).encode())).status == 403


ZEROS = b"POST /callbacks HTTP/1.1\r\nHost: h\r\nContent-Length: " + b"0" * 5_000 + b"\r\n\r\n"
"""More digits than Python reads."""


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "parsed"])
async def test_length_of_thousands_of_digits_is_answered(redis_server, namespace, monkeypatch, fast_path):
    monkeypatch.setattr("maskline.ingest.http.server.FAST_PATH", fast_path)
    async with running(redis_server.url, namespace) as node, await Client.connect(node.port) as client:
        client.send(ZEROS)
        assert (await client.response()).status in (400, 403, 413)


async def test_fault_after_an_outcome_ends_one_connection_only(own_redis, namespace, monkeypatch):
    """An error raised to the publisher would leave the other requests of the batch pending for ever."""
    async with running(own_redis.url, namespace, publish_timeout_ms=5_000) as node:
        monkeypatch.setattr("maskline.ingest.fastpath.head_templates.LEARN_AFTER", 1)
        await teach(node)
        async with await Client.connect(node.port) as faulty, await Client.connect(node.port) as other:
            await until(lambda: open_connections(node) == 2)
            own_redis.pause()
            faulty.send(GOOD.encode() + b"POST /broken HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            other.send(GOOD.encode())
            await until(lambda: node.metrics.gauges().requests_under_way == 2)

            def broken(*_: Any) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr("maskline.ingest.http.request_reader.read_head", broken)
            own_redis.resume()
            assert (await other.response()).status == 200
            assert (await faulty.response()).status == 200
            assert await faulty.ended()
        assert node.metrics.gauges().requests_under_way == 0
        await until(lambda: not open_connections(node))


async def test_stop_waits_for_an_incomplete_body(redis_server, namespace):
    node = IngestNode(node_settings(redis_server.url, namespace))
    await node.start()
    async with await Client.connect(node.port) as client:
        request = GOOD.encode()
        client.send(request[:-5])
        await until(lambda: node.metrics.gauges().requests_under_way == 1)
        stopping = asyncio.create_task(node.stop())
        await until(lambda: node._http._context.stopping)
        client.send(request[-5:])
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        await stopping
    assert node.metrics.gauges().requests_under_way == 0


async def test_forgotten_template_is_learned_again_on_the_same_connection(node, monkeypatch):
    async with await Client.connect(node.port) as client:
        assert (await client.ask(GOOD.encode())).status == 200
        fast = node._http._context.fast_verifier("127.0.0.1")
        fast.head_templates.templates, fast._targets = [], {}
        for _ in range(3):
            assert (await client.ask(GOOD.encode())).status == 200
        monkeypatch.setattr(RequestReader, "read", None)
        assert (await client.ask(GOOD.encode())).status == 200
