"""The HTTP side of a node, by raw bytes: the table of accepted requests, the table of refused ones, their bounds."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ingest_kit import (
    FORM,
    MAIN,
    NONCE,
    PAIRS,
    SUB,
    SUB_TOKEN,
    Client,
    Request,
    ask,
    node_settings,
    stored,
    until,
)

from maskline.ingest.node import IngestNode

GOOD = Request()
BODY = b"SessionUUID=s&EventName=e"
BODY_PAIRS = [("SessionUUID", "s"), ("EventName", "e")]


@pytest.fixture(params=[True, False], ids=["fast path", "parsed"], autouse=True)
def fast_path(request, monkeypatch) -> bool:
    """Whether there is a fast path, which must make no difference to a client."""
    monkeypatch.setattr("maskline.ingest.http.server.FAST_PATH", request.param)
    monkeypatch.setattr("maskline.ingest.fastpath.head_templates.LEARN_AFTER", 1)
    return bool(request.param)


@pytest.fixture
async def node(redis_server, namespace, fast_path) -> AsyncIterator[IngestNode]:
    node = IngestNode(node_settings(redis_server.url, namespace))
    await node.start()
    yield node
    await node.stop()


def lines(*head: str, body: bytes = b"") -> bytes:
    return "".join(f"{line}\r\n" for line in (*head, "")).encode("utf-8", "surrogateescape") + body


def signed(*more: str, body: bytes = b"", target: str = "/callbacks") -> bytes:
    """A POST with any headers, and a signature that is wrong for any body."""
    return lines(
        f"POST {target} HTTP/1.1", "Host: h", "X-Plivo-Signature-V3: x", "X-Plivo-Signature-V3-Nonce: 1", *more,
        body=body,
    )  # fmt: skip


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def with_headers(**more: str | None) -> Request:
    return Request(headers={name.replace("_", "-"): value for name, value in more.items()})


# What is taken, although it does not look like what Plivo sends today.
TAKEN: dict[str, Request | bytes] = {
    "post": GOOD,
    "post to the account": Request(target=f"/callbacks/{MAIN}"),
    "post to the subaccount": Request(target=f"/callbacks/{SUB}", token=SUB_TOKEN),
    "get": Request(method="GET", query=PAIRS),
    "get with a body that counts for nothing": Request(
        method="GET", query=PAIRS, headers={"Content-Length": "3"}, body=b"a=b"
    ),
    "post with a query": Request(query=[("tenant", "7"), ("q", "a b&c=d")]),
    "post without a body": Request(query=PAIRS, pairs=[], body=b""),
    "json": Request(members={"SessionUUID": "s", "EventName": "e", "Amount": 0.5, "list": [1, "2"], "n": None}),
    "json, nested": Request(members={"SessionUUID": "s", "EventName": "e", "a": {"b": {"c": [1, 2]}}}),
    "no session": Request(pairs=[("EventName", "e")]),
    "no event": Request(pairs=[("SessionUUID", "s")]),
    "nothing at all": Request(pairs=[], body=b""),
    "doubled parameters": Request(pairs=[("SessionUUID", "s"), ("SessionUUID", "t"), ("a", ""), ("a", "")]),
    "nul bytes in values": Request(pairs=[("SessionUUID", "a\0b"), ("EventName", "\0")]),
    "all of unicode": Request(pairs=[("SessionUUID", "sé"), ("naïve", "日本 😀\u202e")]),
    "upper-case content type": with_headers(Content_Type=FORM.upper() + "; Charset=UTF-8"),
    "content type of nothing": with_headers(Content_Type=";;,="),
    "no content type": with_headers(Content_Type=None),
    "text": with_headers(Content_Type="text/plain"),
    "any type": with_headers(Content_Type="*/*"),
    "multipart": with_headers(Content_Type="multipart/form-data; boundary=x"),
    "content type joined with itself": with_headers(Content_Type=f"{FORM}, {FORM}"),
    "content type with a comma behind": with_headers(Content_Type=f"{FORM},"),
    "form said to be json": with_headers(Content_Type="application/json"),
    "json said to be a form": Request(members={"SessionUUID": "s"}, headers={"Content-Type": FORM}),
    "json said to be text": Request(members={"SessionUUID": "s"}, headers={"Content-Type": "text/json"}),
    "json with a byte order mark": Request(members={"SessionUUID": "s"}, body=b'\xef\xbb\xbf{"SessionUUID":"s"}'),
    "trailing slash": Request(target="/callbacks/"),
    "trailing slash behind the account": Request(target=f"/callbacks/{MAIN}/"),
    "escaped path": Request(target="/%63allbacks"),
    "escaped account": Request(target=f"/callbacks/%4D{MAIN[1:]}"),
    "header names in lower case": GOOD.encode().replace(b"X-Plivo-Signature", b"x-plivo-signature"),
    "host that is no ascii": Request(host="hööks.example.com"),
    "absolute target": Request(target="http://dialled.example/callbacks", base="http://dialled.example/callbacks"),
    "fragment left on": Request(target="/callbacks#rc=5&rp=all", base="http://hooks.example.com/callbacks"),
    "chunked": Request(
        pairs=BODY_PAIRS,
        body=chunked(BODY[:3], BODY[3:]),
        headers={"Content-Length": None, "Transfer-Encoding": "chunked"},
    ),
    "gzip": Request(
        pairs=BODY_PAIRS, body=gzip.compress(BODY), headers={"Content-Encoding": "gzip"},
    ),
    "deflate": Request(
        pairs=BODY_PAIRS, body=zlib.compress(BODY), headers={"Content-Encoding": "deflate"},
    ),
    "body of the greatest size": Request(pairs=[("a", "b" * (65_536 - 2))]),
    "upgrade that nobody wants": with_headers(Connection="upgrade", Upgrade="websocket"),
    "blank lines before": b"\r\n\r\n" + GOOD.encode(),
}  # fmt: skip


@pytest.mark.parametrize("request_", TAKEN.values(), ids=TAKEN)
async def test_callback_is_answered_200_and_stored(node, redis_server, namespace, request_):
    response = await ask(node.port, request_)
    assert (response.status, response.body) == (200, b"")
    assert response.headers["content-length"] == "0"
    assert "date" in response.headers
    with redis_server.client() as client:
        assert len(stored(client, node_settings(redis_server.url, namespace))) == 1


BIG = 65_537
BOMB = gzip.compress(bytes(20 << 20))

# name: request, status, error code
REFUSED: dict[str, tuple[Request | bytes, int, str]] = {
    # Who signed?
    "no signature": (with_headers(X_Plivo_Signature_V3=None), 403, "signature_missing"),
    "empty signature": (with_headers(X_Plivo_Signature_V3=""), 403, "signature_missing"),
    "no nonce": (with_headers(X_Plivo_Signature_V3_Nonce=None), 403, "nonce_missing"),
    "another nonce": (with_headers(X_Plivo_Signature_V3_Nonce="1"), 403, "signature_wrong"),
    "wrong signature": (Request(token="wrong"), 403, "signature_wrong"),
    "signature of commas": (with_headers(X_Plivo_Signature_V3="," * 5_000), 403, "signature_wrong"),
    "signature that is no ascii": (with_headers(X_Plivo_Signature_V3="é"), 403, "signature_wrong"),
    "another body than was signed": (
        Request(pairs=PAIRS, body=BODY), 403, "signature_wrong",
    ),
    "another host than was signed": (with_headers(Host="other.example.com"), 403, "signature_wrong"),
    "v2 while it is off": (
        with_headers(X_Plivo_Signature_V3=None, X_Plivo_Signature_V2="x", X_Plivo_Signature_V2_Nonce=NONCE),
        403, "signature_missing",
    ),
    "signed by another account": (Request(target=f"/callbacks/{MAIN}", token=SUB_TOKEN), 403, "signature_wrong"),
    "json that cannot be signed": (
        signed("Content-Type: application/json", "Content-Length: 13", body=b'{"a":[1,"b"]}'), 403, "signature_wrong",
    ),
    # Where to?
    "unknown account": (Request(target="/callbacks/MAYYYYYYYYYYYYYYYYYY"), 404, "unknown_account"),
    "account under the account": (Request(target=f"/callbacks/{MAIN}/x"), 404, "unknown_account"),
    "root": (Request(target="/"), 404, "unknown_path"),
    "longer path": (Request(target="/callbacksx"), 404, "unknown_path"),
    "upper-case path": (Request(target="/Callbacks"), 404, "unknown_path"),
    "double slash": (Request(target="//callbacks"), 404, "unknown_path"),
    "prefix that no proxy stripped": (Request(target="/hooks/callbacks/"), 404, "unknown_path"),
    "path with dots": (Request(target="/x/../callbacks"), 404, "unknown_path"),
    "path with parameters": (Request(target="/callbacks;v=1"), 404, "unknown_path"),
    "path that is no ascii": (Request(target="/cällbacks"), 400, "malformed_http"),
    "admin path": (Request(method="GET", target="/metrics"), 404, "unknown_path"),
    "favicon": (b"GET /favicon.ico HTTP/1.1\r\nHost: h\r\n\r\n", 404, "unknown_path"),
    "absolute target elsewhere": (Request(target="http://h/other", base="http://h/other"), 404, "unknown_path"),
    # How?
    "put": (Request(method="PUT", body=BODY), 405, "method_not_allowed"),
    "delete": (Request(method="DELETE"), 405, "method_not_allowed"),
    "patch": (Request(method="PATCH", body=BODY), 405, "method_not_allowed"),
    "options": (Request(method="OPTIONS"), 405, "method_not_allowed"),
    "trace": (Request(method="TRACE"), 405, "method_not_allowed"),
    "options for all": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 404, "unknown_path"),
    "method in lower case": (GOOD.encode().replace(b"POST", b"post"), 400, "malformed_http"),
    "invented method": (b"CALLBACK /callbacks HTTP/1.1\r\nHost: h\r\n\r\n", 400, "malformed_http"),
    "webdav method": (b"PROPFIND /callbacks HTTP/1.1\r\nHost: h\r\n\r\n", 405, "method_not_allowed"),
    # What?
    "text, wrongly signed": (Request(token="wrong", headers={"Content-Type": "text/plain"}), 403, "signature_wrong"),
    "form said to be json, wrongly signed": (
        Request(token="wrong", headers={"Content-Type": "application/json"}), 403, "signature_wrong",
    ),
    "xml": (signed("Content-Type: application/xml", "Content-Length: 4", body=b"<a/>"), 403, "signature_wrong"),
    "broken json": (
        signed("Content-Type: application/json", "Content-Length: 4", body=b'{"a"'), 400, "not_decodable",
    ),
    "json list": (signed("Content-Type: application/json", "Content-Length: 2", body=b"[]"), 400, "not_decodable"),
    "json text": (signed("Content-Type: application/json", "Content-Length: 3", body=b'"a"'), 400, "not_decodable"),
    "json nan": (
        signed("Content-Type: application/json", "Content-Length: 9", body=b'{"a":NaN}'), 400, "not_decodable",
    ),
    "json in latin-1": (
        signed("Content-Type: application/json", "Content-Length: 9", body=b'{"a":"\xe9"}'), 400, "not_decodable",
    ),
    "json with half a character": (
        signed("Content-Type: application/json", "Content-Length: 14", body=b'{"a":"\\ud800"}'), 400, "not_decodable",
    ),
    "json too deep": (
        signed("Content-Type: application/json", "Content-Length: 60005", body=b'{"a":' + b"[" * 60_000), 400,
        "not_decodable",
    ),
    "form in latin-1": (signed(f"Content-Type: {FORM}", "Content-Length: 5", body=b"a=%E9"), 400, "not_decodable"),
    "form of raw bytes": (
        signed(f"Content-Type: {FORM}", "Content-Length: 4", body=b"a=\xff\xfe"), 400, "not_decodable",
    ),
    "query in latin-1": (signed("Content-Length: 0", target="/callbacks?a=%E9"), 400, "not_decodable"),
    "a thousand and one parameters": (
        signed(f"Content-Type: {FORM}", "Content-Length: 2002", body=b"&a" * 1_001), 400, "not_decodable",
    ),
    # How much?
    "announced too large": (signed(f"Content-Length: {BIG}"), 413, "body_too_large"),
    "announced absurdly large": (signed("Content-Length: 999999999999999999"), 413, "body_too_large"),
    "chunked too large": (
        signed("Transfer-Encoding: chunked", body=chunked(*[bytes(8192)] * 9)), 413, "body_too_large",
    ),
    "gzip bomb": (
        signed("Content-Encoding: gzip", f"Content-Length: {len(BOMB)}", body=BOMB), 413, "body_too_large",
    ),
    "request line too long": (
        b"GET /callbacks?a=" + b"b" * 20_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 400, "head_too_large",
    ),
    "header too long": (signed(f"X-Long: {'x' * 20_000}"), 400, "head_too_large"),
    "flood of headers": (signed(*(f"X-{number}: x" for number in range(200))), 400, "head_too_large"),
    # In what wrapping?
    "gzip that is none": (
        signed("Content-Encoding: gzip", f"Content-Length: {len(BODY)}", body=BODY), 400, "body_broken",
    ),
    # What could be unpacked is looked at; the signature is of the whole.
    "gzip cut short": (
        signed("Content-Encoding: gzip", "Content-Length: 15", body=gzip.compress(BODY)[:15]), 403, "signature_wrong",
    ),
    "gzip with a broken sum": (
        signed("Content-Encoding: gzip", f"Content-Length: {len(gzip.compress(BODY))}",
               body=gzip.compress(BODY)[:-8] + b"12345678"), 400, "body_broken",
    ),
    "chunk size of rubbish": (signed("Transfer-Encoding: chunked", body=b"xyz\r\nab\r\n0\r\n\r\n"), 400, "body_broken"),
    "chunk longer than said": (
        signed("Transfer-Encoding: chunked", body=b"2\r\nabcdef\r\n0\r\n\r\n"), 400, "body_broken",
    ),
    "chunk size without end": (signed("Transfer-Encoding: chunked", body=b"f" * 40 + b"\r\n"), 400, "body_broken"),
    "length and chunks": (
        signed("Content-Length: 3", "Transfer-Encoding: chunked", body=chunked(BODY)), 400, "headers_contradict",
    ),
    "two lengths": (signed("Content-Length: 2", "Content-Length: 3", body=b"a=b"), 400, "headers_contradict"),
    "negative length": (signed("Content-Length: -1"), 400, "headers_contradict"),
    "length in words": (signed("Content-Length: three"), 400, "headers_contradict"),
    "unknown transfer encoding": (signed("Transfer-Encoding: xchunked", body=chunked(BODY)), 400, "transfer_encoding"),
    "expects a wonder": (
        signed("Expect: wonder", "Content-Length: 3"), 417, "expectation_failed",
    ),
    # Is that HTTP at all?
    "no host": (lines("POST /callbacks HTTP/1.1"), 400, "malformed_http"),
    "http/2 in letters": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "http_version"),
    "http/9.9": (b"POST /callbacks HTTP/9.9\r\nHost: h\r\n\r\n", 400, "http_version"),
    "no version": (b"GET /callbacks\r\n\r\n", 400, "http_version"),
    "tls": (bytes.fromhex("16030100a5010000a1030357") + bytes(160), 400, "tls_on_plain_port"),
    "rubbish": (b"\x00\xff\xfe rubbish\r\n\r\n", 400, "malformed_http"),
    "nul in a header": (signed("X-Nul: a\0b"), 400, "malformed_http"),
    "nul in the target": (b"GET /call\0backs HTTP/1.1\r\nHost: h\r\n\r\n", 400, "malformed_http"),
    "blank in the target": (b"GET /callbacks ?a=b HTTP/1.1\r\nHost: h\r\n\r\n", 400, "malformed_http"),
    "bare return in a header": (signed("X-Bare: a\rb"), 400, "malformed_http"),
    "header without colon": (signed("nothing"), 400, "malformed_http"),
    "header name with a blank": (signed("X Y: z"), 400, "malformed_http"),
    "folded header": (signed("X-Folded: a", " b"), 400, "malformed_http"),
    "connect": (b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 404, "unknown_path"),
}  # fmt: skip


class Recorder:
    """Keeps what would be in the log."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, _event: str, **details: Any) -> None:
        self.lines.append(("warning", details))

    def error(self, event: str, **details: Any) -> None:
        self.lines.append(("error", {"event": event, **details}))


@pytest.fixture
def log(monkeypatch) -> Recorder:
    recorder = Recorder()
    for module in ("maskline.ingest.http.connection", "maskline.ingest.http.refusal_log"):
        monkeypatch.setattr(f"{module}._log", recorder)
    return recorder


@pytest.mark.parametrize(("request_", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_request_is_refused_logged_and_counted(node, log, request_, status, code):
    response = await ask(node.port, request_)
    assert (response.status, response.error) == (status, code)
    assert response.headers["content-type"] == "application/json"
    assert response.headers.get("allow") == ("GET, POST" if status == 405 else None)
    assert (await ask(node.port, GOOD)).status == 200
    assert [(level, line["reason"], line["status"]) for level, line in log.lines] == [
        ("warning", code, status)
    ]
    assert node.metrics.refused == {(status, code): 1}


async def test_tables_of_requests_are_long_enough():
    assert len(REFUSED) >= 60


async def test_head_request_gets_no_body(node):
    async with await Client.connect(node.port) as client:
        response = await client.ask(Request(method="HEAD").encode(), "HEAD")
        assert (response.status, response.headers["allow"]) == (405, "GET, POST")
        assert int(response.headers["content-length"]) > 0
        assert (await client.ask(GOOD.encode())).status == 200  # no byte of it is left on the connection


async def test_connection_serves_many_requests(node):
    async with await Client.connect(node.port) as client:
        for _ in range(3):
            assert (await client.ask(GOOD.encode())).status == 200
            assert (await client.ask(Request(token="x").encode())).status == 403
    assert node.metrics.taken == 3


async def test_pipelined_requests_are_answered_in_order(node):
    async with await Client.connect(node.port) as client:
        client.send(b"".join([GOOD.encode(), Request(target="/x").encode(), GOOD.encode()]))
        assert [(await client.response()).status for _ in range(3)] == [200, 404, 200]
        assert (await client.ask(b"rubbish\r\n\r\n")).status == 400
        assert await client.ended()


async def test_request_may_come_byte_by_byte(node):
    async with await Client.connect(node.port) as client:
        for byte in GOOD.encode():
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.response()).status == 200


@pytest.mark.parametrize(
    ("version", "header"),
    [("HTTP/1.1", "close"), ("HTTP/1.0", "close"), ("HTTP/1.0", "keep-alive"), ("HTTP/1.0", None)],
)
async def test_connection_ends_where_the_request_says_so(node, version, header):
    async with await Client.connect(node.port) as client:
        response = await client.ask(Request(version=version, headers={"Connection": header}).encode())
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await client.ended()


async def test_expect_100_continue(node):
    request = with_headers(Expect="100-continue").encode()
    head, _, body = request.partition(b"\r\n\r\n")
    async with await Client.connect(node.port) as client:
        assert (await client.ask(head + b"\r\n\r\n")).status == 100
        assert (await client.ask(body)).status == 200
    async with await Client.connect(node.port) as client:  # refused without asking for the body
        refused = head.replace(b"X-Plivo-Signature-V3:", b"X-Other:")
        assert (await client.ask(refused + b"\r\n\r\n")).status == 403


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_endless_body_is_refused_at_its_bound(node, encoding):
    piece = bytes(BIG)
    if encoding == "gzip":
        piece = gzip.compress(bytes(20 << 20))[:-8]
    async with await Client.connect(node.port) as client:
        head = signed("Transfer-Encoding: chunked", f"Content-Encoding: {encoding}")
        response = await client.ask(head + b"%x\r\n" % len(piece) + piece + b"\r\n")
        assert (response.status, response.error) == (413, "body_too_large")


async def test_slow_body_is_408_after_the_read_timeout(node, monkeypatch):
    monkeypatch.setattr("maskline.ingest.http.limits.READ_TIMEOUT_S", 0.05)
    async with await Client.connect(node.port) as client:
        response = await client.ask(GOOD.encode()[:-1])
        assert (response.status, response.error) == (408, "read_timeout")
    assert (await ask(node.port, GOOD)).status == 200


async def test_client_that_goes_away_is_counted_and_harms_no_other(node):
    async with await Client.connect(node.port) as client:
        client.send(GOOD.encode()[:-5])
        await until(lambda: node.metrics.gauges().requests_under_way == 1)
        client.writer.transport.abort()
    await until(lambda: node.metrics.refused[400, "client_gone"] == 1)
    assert (await ask(node.port, GOOD)).status == 200


async def test_connections_are_bounded(node, monkeypatch):
    monkeypatch.setattr("maskline.ingest.http.server.CONNECTIONS_MAX", 2)
    async with await Client.connect(node.port) as first, await Client.connect(node.port) as second:
        assert (await first.ask(GOOD.encode())).status == 200
        assert (await second.ask(GOOD.encode())).status == 200
        async with await Client.connect(node.port) as third:
            assert await third.ended()
        assert node.metrics.connections_refused == 1
        assert (await first.ask(GOOD.encode())).status == 200


async def test_client_that_does_not_read_is_cut_off(node, monkeypatch):
    monkeypatch.setattr("maskline.ingest.http.limits.WRITE_TIMEOUT_S", 0.05)
    async with await Client.connect(node.port) as client:
        client.writer.transport.pause_reading()
        flood = Request(target="/x").encode() * 200
        with pytest.raises(ConnectionError):  # noqa: PT012 - the write that fails is not the first
            for _ in range(2_000):
                client.send(flood)
                await asyncio.wait_for(client.writer.drain(), 20)
    assert (await ask(node.port, GOOD)).status == 200


async def test_public_url_overrides_the_request(redis_server, namespace):
    node = IngestNode(node_settings(redis_server.url, namespace, public_url="https://public.example:444/x"))
    await node.start()
    try:
        base = "https://public.example:444/x/callbacks"
        assert (await ask(node.port, Request(base=base))).status == 200
        assert (await ask(node.port, GOOD)).status == 403
    finally:
        await node.stop()


async def test_trusted_proxy_names_the_dialled_url(redis_server, namespace):
    from ipaddress import ip_network

    node = IngestNode(
        node_settings(redis_server.url, namespace, trusted_proxies=(ip_network("127.0.0.0/8"),))
    )
    await node.start()
    forwarded: dict[str, Any] = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "outside.example"}
    try:
        good = Request(base="https://outside.example/callbacks", headers=forwarded)
        assert (await ask(node.port, good)).status == 200
        assert (await ask(node.port, GOOD)).status == 200
    finally:
        await node.stop()
