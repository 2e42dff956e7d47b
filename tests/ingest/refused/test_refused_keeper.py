"""Refused requests on their way to Redis: what is kept of which, at what bounds, and while Redis is away."""

import asyncio
from collections import Counter
from ipaddress import ip_network

from ingest_kit import Client, Request, ask, running, until
from servers import RedisServer
from structlog.testing import capture_logs

from maskline.ingest.refused import keeper as keeper_module
from maskline.ingest.refused.request import RefusedRequest, decode_refused
from maskline.schemas.keys import Keys

WRONG = Request(token="wrong")


def kept(server: RedisServer, namespace: str) -> list[RefusedRequest]:
    with server.client() as client:
        entries = client.xrange(Keys(namespace).refused.requests)
    requests = [decode_refused(fields[b"r"]) for _, fields in entries]
    return [request for request in requests if request is not None]


async def test_refusals_that_could_be_plivos_are_kept_and_scanners_are_not(redis_server, namespace):
    requests = [
        (WRONG, 403),
        (Request(target="/callbacks/MAYYYYYYYYYYYYYYYYYY"), 404),
        (Request(target="/hooks/callbacks"), 404),
        (Request(headers={"X-Plivo-Signature-V3": None}), 403),
        (
            Request(
                method="GET",
                target="/.env",
                headers={"X-Plivo-Signature-V3": None, "X-Plivo-Signature-V3-Nonce": None},
            ),
            404,
        ),
        (Request(), 200),
    ]
    async with running(redis_server.url, namespace) as node:
        for request, status in requests:
            assert (await ask(node.port, request)).status == status
        await until(lambda: node.metrics.refused_kept == 4)
    found = kept(redis_server, namespace)
    assert [(each.status, each.code) for each in found] == [
        (403, "signature_wrong"),
        (404, "unknown_account"),
        (404, "unknown_path"),
        (403, "signature_missing"),
    ]
    assert len({each.key for each in found}) == 4
    assert {(each.peer, each.client) for each in found} == {("127.0.0.1", "127.0.0.1")}
    body = WRONG.encode().partition(b"\r\n\r\n")[2]
    assert {each.body for each in found} == {body}


async def test_body_that_comes_later_is_kept_too(redis_server, namespace):
    head, _, body = Request(target="/callbacks/MAYYYYYYYYYYYYYYYYYY").encode().partition(b"\r\n\r\n")
    async with running(redis_server.url, namespace) as node:
        async with await Client.connect(node.port) as client:
            client.send(head + b"\r\n\r\n")
            await until(lambda: node._http.requests_under_way == 1)
            assert (await client.ask(body)).error == "unknown_account"
            assert (await client.ask(Request().encode())).status == 200
        await until(lambda: node.metrics.refused_kept == 1)
    assert [each.body for each in kept(redis_server, namespace)] == [body]


async def test_refusal_by_the_head_is_answered_also_where_the_body_never_comes(redis_server, namespace):
    head, _, body = Request(target="/callbacks/MAYYYYYYYYYYYYYYYYYY").encode().partition(b"\r\n\r\n")
    async with running(redis_server.url, namespace) as node, await Client.connect(node.port) as client:
        client.send(head + b"\r\n\r\n" + body[:10])
        client.writer.write_eof()
        assert (await client.response()).error == "unknown_account"
    assert kept(redis_server, namespace) == []


async def test_bytes_that_are_no_utf_8_are_kept_as_they_came(redis_server, namespace):
    """No text of one request keeps those that go to Redis with it from getting there."""
    odd = [
        WRONG.encode().replace(b"Host: ", b"X-Forwarded-For: %b\r\nHost: " % forwarded, 1)
        for forwarded in (b"\xff", b"fe80::1%\xff", b"[fe80::1%\xff]:80")
    ]
    odd.append(WRONG.encode().replace(b"Host: ", b"Host: \xff", 1))
    async with (
        running(redis_server.url, namespace, trusted_proxies=(ip_network("127.0.0.0/8"),)) as node,
        await Client.connect(node.port) as client,
    ):
        for raw in odd:
            assert (await client.ask(raw)).status == 403
        await until(lambda: node.metrics.refused_kept == len(odd))
        assert not node._tasks.failures
    assert [b"\xff" in each.head for each in kept(redis_server, namespace)] == [True] * len(odd)


async def test_nothing_is_kept_where_the_bound_is_0(redis_server, namespace):
    async with running(redis_server.url, namespace, refused_max_bytes=0) as node:
        assert (await ask(node.port, WRONG)).status == 403
    assert kept(redis_server, namespace) == []


async def test_request_larger_than_all_the_room_is_counted_as_dropped(redis_server, namespace):
    async with running(redis_server.url, namespace, refused_max_bytes=100) as node:
        assert (await ask(node.port, WRONG)).status == 403
        await until(lambda: node.metrics.refused_dropped[keeper_module.NO_ROOM] == 1)
    assert kept(redis_server, namespace) == []


async def test_body_of_the_largest_size_is_kept_and_a_larger_one_is_not(redis_server, namespace):
    whole = Request(token="wrong", body=b"SessionUUID=" + b"s" * 65_524)
    async with running(redis_server.url, namespace, max_body_bytes=65_536) as node:
        assert (await ask(node.port, whole)).status == 403
        assert (await ask(node.port, whole._replace(body=b"SessionUUID=" + b"s" * 65_525))).status == 413
        await until(lambda: node.metrics.refused_kept == 1)
    assert [len(each.body) for each in kept(redis_server, namespace)] == [65_536]


async def test_stop_moves_what_is_kept_to_redis(redis_server, namespace, monkeypatch):
    monkeypatch.setattr(keeper_module, "GATHER_S", 3600.0)
    async with running(redis_server.url, namespace) as node:
        assert (await ask(node.port, WRONG)).status == 403
    assert len(kept(redis_server, namespace)) == 1


async def test_redis_away_costs_the_intake_nothing_and_loses_nothing_within_the_buffer(
    own_redis, namespace, monkeypatch
):
    monkeypatch.setattr(keeper_module, "RETRY_S", 0.05)
    async with running(own_redis.url, namespace) as node:
        await ask(node.port, WRONG)
        await until(lambda: node.metrics.refused_kept == 1)
        own_redis.kill()
        for _ in range(20):
            assert (await ask(node.port, WRONG)).status == 403
        assert (await ask(node.port, Request())).status == 200  # to the spool
        assert node.metrics.refused_kept == 1
        await asyncio.to_thread(own_redis.start)
        await until(lambda: node.metrics.refused_kept == 21)
        assert not node.metrics.refused_dropped
    assert len({each.key for each in kept(own_redis, namespace)}) == 21


async def test_flood_from_one_address_does_not_push_out_anothers(own_redis, namespace, monkeypatch):
    """Both come by one proxy. Redis is away, so the buffer alone holds what it may."""
    monkeypatch.setattr(keeper_module, "BUFFER_MAX_BYTES", 40_000)
    monkeypatch.setattr(keeper_module, "RETRY_S", 0.05)
    from ipaddress import ip_network

    def from_client(address: str) -> bytes:
        return Request(token="wrong", headers={"X-Forwarded-For": address}).encode()

    async with running(own_redis.url, namespace, trusted_proxies=(ip_network("127.0.0.0/8"),)) as node:
        own_redis.kill()
        await until(lambda: not node._pool.ready)
        async with await Client.connect(node.port) as client:
            for number in range(200):
                assert (await client.ask(from_client("192.0.2.66"))).status == 403
                if number % 40 == 0:
                    assert (await client.ask(from_client(f"2001:db8:0:7::{number}"))).status == 403
        assert node.metrics.refused_dropped["buffer_full"] > 100
        await asyncio.to_thread(own_redis.start)
        await until(lambda: node.metrics.refused_kept + node.metrics.refused_dropped.total() == 205)
    found = Counter(each.client.partition("::")[0] for each in kept(own_redis, namespace))
    assert found["2001:db8:0:7"] == 5
    assert 10 < found["192.0.2.66"] < 100


async def test_refusal_of_redis_is_logged_and_tried_again(own_redis, namespace, monkeypatch):
    monkeypatch.setattr(keeper_module, "RETRY_S", 0.05)
    with own_redis.client() as client, capture_logs() as lines:
        async with running(own_redis.url, namespace) as node:
            client.set(Keys(namespace).refused.requests, "something else")
            await ask(node.port, WRONG)
            await until(lambda: any(line["event"] == "refused callbacks not kept yet" for line in lines))
            client.delete(Keys(namespace).refused.requests)
            await until(lambda: node.metrics.refused_kept == 1)
            assert (await ask(node.port, Request())).status == 200
    assert len(kept(own_redis, namespace)) == 1


async def test_what_redis_does_not_take_before_the_stop_is_counted(own_redis, namespace) -> None:
    with capture_logs() as lines:
        async with running(own_redis.url, namespace, stop_timeout_ms=0) as node:
            own_redis.kill()
            await until(lambda: not node._pool.ready)
            await ask(node.port, WRONG)
    assert node.metrics.refused_dropped == {"stopped": 1}
    assert "refused callbacks lost at stop" in [line["event"] for line in lines]
