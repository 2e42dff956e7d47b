"""Pipelined requests: a good one is answered and stored whatever follows it, in whatever packets it comes."""

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ingest_kit import MAIN, PAIRS, Client, Request, ask, node_settings, stored
from test_ingest_http import BODY, BODY_PAIRS, chunked

from maskline.ingest.node import IngestNode

GOOD = {
    "get": Request(method="GET", query=PAIRS),
    "post": Request(),
    "post to the account": Request(target=f"/callbacks/{MAIN}"),
    "chunked": Request(
        pairs=BODY_PAIRS, body=chunked(BODY[:3], BODY[3:]),
        headers={"Content-Length": None, "Transfer-Encoding": "chunked"},
    ),
    "doubled headers": Request(headers={"User-Agent": "Plivo\r\nUser-Agent: Plivo", "Content-Type": None,
                                        "content-type": "text/plain\r\nContent-Type: text/plain"}),
}  # fmt: skip
LAST = {
    "close": Request(headers={"Connection": "close"}),
    "http/1.0": Request(version="HTTP/1.0"),
    "get, http/1.0": Request(method="GET", query=PAIRS, version="HTTP/1.0"),
    "chunked, close": GOOD["chunked"]._replace(
        headers={"Content-Length": None, "Transfer-Encoding": "chunked", "Connection": "close"}
    ),
}
GARBAGE = [b"x", b" ", b"\0", b"\n", b"\xff\xfe", b"xyz\r\n\r\n", b"\x16\x03\x01\x00\xa5", b"{}",
           b"HTTP/1.1 200 OK\r\n\r\n",
           b"POST /callbacks HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
           b"POST /callbacks HTTP/1.1\r\nHost: h\r\nbroken\r\n", b"GET / HTTP/9.9\r\n\r\n",
           b"\r\n\r\n\0", b"x" * 40_000]  # fmt: skip


@pytest.fixture(params=[True, False], ids=["fast path", "parsed"])
async def node(redis_server, namespace, monkeypatch, request) -> AsyncIterator[IngestNode]:
    monkeypatch.setattr("maskline.ingest.http.server.FAST_PATH", request.param)
    monkeypatch.setattr("maskline.ingest.fastpath.head_templates.LEARN_AFTER", 1)
    node = IngestNode(node_settings(redis_server.url, namespace))
    await node.start()
    for _ in range(3):
        assert (await ask(node.port, GOOD["post"])).status == 200
    yield node
    await node.stop()


async def statuses(node: IngestNode, sent: bytes, cuts: list[int]) -> list[int]:
    """The statuses of all answers until the node ends the connection; `cuts`: where the sent bytes are cut."""
    answered: list[int] = []
    places = [0, *sorted({cut for cut in cuts if cut < len(sent)}), len(sent)]
    async with await Client.connect(node.port) as client:
        for begin, end in pairwise(places):
            client.send(sent[begin:end])
            await client.writer.drain()
            for _ in range(3):  # so that the node may read it alone
                await asyncio.sleep(0)
        async with asyncio.timeout(60):
            received = await client.reader.read()
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        answered.append(int(head.split()[1]))
        length = int(head.rpartition(b"Content-Length: ")[2])
        content, received = received[:length], received[length:]
        assert (answered[-1] == 200) == (content == b"")
        if content:
            assert b"Content-Type: application/json\r\n" in head
            assert json.loads(content).keys() == {"error", "detail"}
    return answered


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from([*GOOD.values()]), max_size=4), st.none() | st.sampled_from([*LAST.values()]),
    st.sampled_from(GARBAGE) | st.binary(min_size=1, max_size=9).map(lambda data: b"\0" + data),
    st.lists(st.integers(1, 2_500), max_size=5),
)  # fmt: skip
@example([GOOD["get"]] * 3, None, b"x", [])
@example([GOOD["chunked"]], None, b"\0", [])
@example([], LAST["close"], b" ", [])
@example([GOOD["get"]], LAST["http/1.0"], b"x", [])
async def test_good_requests_are_answered_whatever_follows_them(node, good, last, garbage, cuts):
    taken = node.metrics.taken
    requests = [*good, *([last] if last else [])]
    sent = b"".join(request.encode() for request in requests) + garbage
    refused = [] if last else [400]
    assert await statuses(node, sent, cuts) == [200] * len(requests) + refused
    assert node.metrics.taken == taken + len(requests)


async def test_good_requests_before_rubbish_are_stored(node, redis_server, namespace):
    sent = b"".join(request.encode() for request in GOOD.values())
    assert await statuses(node, sent + b"\0", []) == [200] * len(GOOD) + [400]
    with redis_server.client() as client:
        assert len(stored(client, node_settings(redis_server.url, namespace))) == 3 + len(GOOD)


async def test_client_gets_its_answers_although_it_sends_more(node):
    """Closed with bytes unread, the client would get a reset in place of its answer."""
    async with await Client.connect(node.port) as client:
        client.send(LAST["close"].encode())
        while node.metrics.taken != 4:
            await asyncio.sleep(0)
        for _ in range(50):
            client.send(bytes(10_000))
            await client.writer.drain()
        assert (await client.response()).status == 200
        assert await client.ended()


async def test_client_may_end_its_side_before_the_answer(node):
    async with await Client.connect(node.port) as client:
        client.send(b"".join(request.encode() for request in GOOD.values()))
        client.writer.write_eof()
        assert [(await client.response()).status for _ in GOOD] == [200] * len(GOOD)
        assert await client.ended()


ODD = [
    "User-Agent",
    "Content-Type",
    "X-Plivo-Signature-V3",
    "X-Plivo-Signature-V3-Nonce",
    "Content-Length",
    "Server",
    "ETag",
]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("joined", [False, True])
async def test_header_that_a_proxy_doubled_or_joined_is_no_error(node, name, joined):
    head, _, body = (
        Request(headers={"User-Agent": "p", "Server": "x", "ETag": "x"}).encode().partition(b"\r\n\r\n")
    )
    (line,) = (line for line in head.split(b"\r\n") if line.startswith(name.encode() + b":"))
    value = line.partition(b": ")[2]
    doubled = line + b", " + value if joined else line + b"\r\n" + line
    request = head.replace(line, doubled) + b"\r\n\r\n" + body
    for _ in range(3):
        assert (await ask(node.port, request)).status == 200


ENCODED: dict[str, tuple[Any, int, str]] = {
    "br": (
        Request(body=b"\x0b\x02\x80abc\x03", pairs=PAIRS, headers={"Content-Encoding": "br"}), 400, "content_encoding",
    ),
    "zstd, unsigned": (Request(token="x", headers={"Content-Encoding": "zstd"}), 400, "content_encoding"),
    "said to be br, but signed as it is": (Request(headers={"Content-Encoding": "br"}), 200, ""),
    "said to be gzip, but signed as it is": (Request(headers={"Content-Encoding": "gzip"}), 200, ""),
    "identity": (Request(headers={"Content-Encoding": "identity"}), 200, ""),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "code"), ENCODED.values(), ids=ENCODED)
async def test_content_encodings(node, request_, status, code):
    response = await ask(node.port, request_)
    assert response.status == status
    assert status == 200 or response.error == code
