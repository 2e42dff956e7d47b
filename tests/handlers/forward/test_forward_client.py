"""One request, against servers that do what receivers, proxies and attackers do."""

import asyncio
import gzip
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from forward_kit import endpoint, raw_server, receiving, write_config
from tls_kit import Certificates

from maskline.handlers.webhooks import client as client_module
from maskline.handlers.webhooks.addresses import AddressPolicy
from maskline.handlers.webhooks.answers import Answer
from maskline.handlers.webhooks.client import ANSWER_BYTES_MAX, NotDeliveredError, WebhookClient
from maskline.handlers.webhooks.config import read_endpoints
from maskline.handlers.webhooks.endpoint import Endpoint

BODY = '{"type": "x"}'
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Resolver(AbstractResolver):
    """Answers with the addresses that a test says, one list after the other."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        self.asked += 1
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            {
                "hostname": host,
                "host": it,
                "port": port,
                "family": 10 if ":" in it else 2,
                "proto": 6,
                "flags": 0,
            }
            for it in addresses
        ]

    async def close(self) -> None: ...


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Endpoint]:
    def made(port: int, host: str = "127.0.0.1", **keys: Any) -> Endpoint:
        table = endpoint(f"http://{host}:{port}/hooks", **keys)
        return read_endpoints(write_config(tmp_path / "forward.toml", table))[0]

    return made


async def post(to: Endpoint, resolver: AbstractResolver | None = None) -> Answer:
    async with WebhookClient((to,), resolver) as client:
        return await client.post(to, BODY, {})


async def failure(to: Endpoint, resolver: AbstractResolver | None = None) -> str:
    with pytest.raises(NotDeliveredError) as caught:
        await post(to, resolver)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saying(*parts: bytes, then: Talk | None = None) -> Talk:
    """Reads a request, says `parts`, goes on with `then`, and closes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(BODY.encode())
            for part in parts:
                writer.write(part)
            await writer.drain()
            if then is not None:
                await then(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return talk


@pytest.mark.parametrize(
    ("parts", "status", "start"),
    [
        ([b"HTTP/1.1 202 Taken\r\nContent-Length: 3\r\n\r\nyes"], 202, b"yes"),
        ([b"HTTP/1.0 500 No\r\n\r\nwhy"], 500, b"why"),
        ([b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n", OK], 200, b""),
        ([b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"], 101, b""),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut"], 200, b"cut"),
        ([b"HTTP/1.1 302 Found\r\nLocation: http://x.example/\r\nContent-Length: 0\r\n\r\n"], 302, b""),
        ([b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok"], 204, b""),
        ([b"HTTP/1.0 204 No Content\r\n\r\nok"], 204, b""),
        ([OK + b"rubbish"], 200, b""),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz"], 200, b""),
    ],
    ids=[
        "ordinary",
        "1.0",
        "early hints",
        "101",
        "cut",
        "redirect",
        "204 with a body",
        "204 with a body in 1.0",
        "more than its length",
        "bad chunk",
    ],
)
async def test_the_status_is_the_answer(parts, status, start, make):
    async with raw_server(saying(*parts)) as port:
        answer = await post(make(port))
    assert (answer.status, answer.start) == (status, start)


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ([], "closed before an answer came"),
        ([b"SSH-2.0-OpenSSH\r\n"], "no answer that can be read"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"], "no answer that can be read"),
    ],
    ids=["closed", "no HTTP", "long header"],
)
async def test_what_is_no_answer_is_a_failure(parts, what, make):
    async with raw_server(saying(*parts)) as port:
        assert what in await failure(make(port))


def talking(*answers: bytes) -> tuple[Talk, list[int]]:
    """Answers requests in order, an empty answer by closing. Also how many each connection had."""
    left, requests = list(answers), list[int]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(0)
        mine = len(requests) - 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while left:
                await reader.readuntil(BODY.encode())
                requests[mine] += 1
                if not (answer := left.pop(0)):
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()

    return talk, requests


async def test_a_connection_that_was_closed_while_idle_costs_no_attempt(make):
    talk, requests = talking(OK, b"", OK)
    async with raw_server(talk) as port:
        to = make(port)
        async with WebhookClient((to,)) as client:
            assert [(await client.post(to, BODY, {})).status for _ in range(2)] == [200, 200]
    assert requests == [2, 1]


async def test_several_connections_may_have_been_closed(make):
    all_there = asyncio.Barrier(client_module.STALE_MAX)
    opened = 0

    async def one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(BODY.encode())
            if opened <= client_module.STALE_MAX:
                await all_there.wait()
            writer.write(OK)
            await reader.readuntil(BODY.encode())
        writer.close()

    async with raw_server(one_answer) as port:
        to = make(port)
        async with WebhookClient((to,)) as client:
            await asyncio.gather(*[client.post(to, BODY, {}) for _ in range(client_module.STALE_MAX)])
            assert (await client.post(to, BODY, {})).status == 200
    assert opened == client_module.STALE_MAX + 1


async def test_what_fails_over_a_new_connection_or_late_is_a_failure(make, monkeypatch):
    talk, requests = talking(b"", OK, b"", OK)
    async with raw_server(talk) as port:
        to = make(port)
        async with WebhookClient((to,)) as client:
            with pytest.raises(NotDeliveredError, match="closed before an answer came"):
                await client.post(to, BODY, {})
            assert (await client.post(to, BODY, {})).status == 200
            monkeypatch.setattr(client_module, "STALE_WITHIN_S", -1.0)
            with pytest.raises(NotDeliveredError, match="closed before an answer came"):
                await client.post(to, BODY, {})
    assert requests == [1, 2]


async def test_ipv6_and_the_other_addresses_of_a_name(make):
    try:
        server = await asyncio.start_server(saying(OK), "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with server:
        port = server.sockets[0].getsockname()[1]
        keys = {"allow_private": ["::1/128", "127.0.0.0/8"]}
        assert (await post(make(port, "[::1]", **keys))).status == 200
        assert (await post(make(port, "both.example", **keys), Resolver(["127.0.0.1", "::1"]))).status == 200


async def test_nobody_listens(make):
    async with raw_server(saying()) as port:
        pass
    assert "no connection" in await failure(make(port))
    assert "does not resolve" in await failure(make(port, "name.invalid"))


async def test_an_address_that_drops_packets_is_told_as_that(make, monkeypatch):
    monkeypatch.setattr(client_module, "CONNECT_TIMEOUT_S", 0.1)
    with ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # the kernel answers no more connections than the backlog and one
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        assert "no connection within 0.1 s" in await failure(make(full.getsockname()[1]))


async def test_no_status_in_time_is_a_failure_and_leaves_no_connection_open(make):
    gone = asyncio.Event()

    async def until_closed(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        gone.set()

    async with raw_server(saying(then=until_closed)) as port:
        to = make(port, timeout_ms=100)
        async with WebhookClient((to,)) as client:
            with pytest.raises(NotDeliveredError, match="no answer within 100 ms"):
                await client.post(to, BODY, {})
            async with asyncio.timeout(60):
                await gone.wait()


async def test_an_endless_answer_is_read_as_far_as_the_bound(make):
    sent, gone = 0, asyncio.Event()

    async def without_end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while True:
                writer.write(b"x" * 4096)
                await writer.drain()
                sent += 4096
        finally:
            gone.set()

    head = b"HTTP/1.1 500 No\r\nTransfer-Encoding: identity\r\n\r\n"
    async with raw_server(saying(head, then=without_end)) as port:
        answer = await post(make(port))
        async with asyncio.timeout(60):
            await gone.wait()
    assert len(answer.start) == ANSWER_BYTES_MAX
    assert sent < 512 * ANSWER_BYTES_MAX, "what buffers of the kernel take: up to 10 MB"


async def test_an_answer_that_drips_in_does_not_hold_up_the_event(make, monkeypatch):
    monkeypatch.setattr(client_module, "ANSWER_BODY_S", 0.05)

    async def dripping(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.02)

    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"
    async with raw_server(saying(head, then=dripping)) as port, asyncio.timeout(60):
        assert (await post(make(port, timeout_ms=300_000))).status == 200


async def test_a_packed_answer_is_not_unpacked(make):
    packed = gzip.compress(b"x" * 10_000_000)
    head = b"HTTP/1.1 400 No\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with raw_server(saying(head, packed)) as port:
        assert (await post(make(port))).start == packed


async def test_a_redirect_is_not_followed(make):
    async with receiving() as other, receiving() as receiver:
        receiver.answer = lambda _: web.Response(status=307, headers={"Location": other.url})
        to = msgspec.structs.replace(
            make(receiver.port), url=make(receiver.port).url.with_path("/hooks/masking")
        )
        answer = await signed(to)
        assert answer.status == 307
        assert other.received == []


async def signed(to: Endpoint) -> Answer:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    headers = {
        "webhook-id": "m",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": to.signers[0].sign("m", now, BODY),
    }
    async with WebhookClient((to,)) as client:
        return await client.post(to, BODY, headers)


# Addresses


async def test_an_address_in_the_url_is_checked_where_it_is_connected_to(make):
    """No resolver sees it, and here not even the check at start."""
    connected = Counter[str]()

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected["once"] += 1
        writer.close()

    async with raw_server(count) as port:
        to = msgspec.structs.replace(make(port), policy=AddressPolicy())
        assert "127.0.0.1 is not public (loopback)" in await failure(to)
    assert not connected


@pytest.mark.parametrize("name", ["localhost", "rebind.example"])
async def test_a_name_that_leads_to_refused_addresses_is_refused(name, make):
    resolver = None if name == "localhost" else Resolver(["10.0.0.7", "::1", "::ffff:127.0.0.1"])
    to = msgspec.structs.replace(make(80, name), policy=AddressPolicy())
    assert f"not connected: {name}: " in (text := await failure(to, resolver))
    assert "is not public" in text


async def test_of_a_mixed_answer_only_what_is_allowed_is_connected_to(make):
    async with raw_server(saying(OK)) as port:
        to = make(port, "mixed.example")
        resolver = Resolver(["10.0.0.7", "169.254.169.254", "127.0.0.1", "fd00::1"])
        assert (await post(to, resolver)).status == 200
    assert resolver.asked == 1


async def test_an_answer_that_changes_after_the_check_changes_nothing(make):
    """The second answer would lead elsewhere: nobody asks for it, and were it asked for, it would be checked."""
    async with raw_server(saying(OK)) as port:
        to = make(port, "rebind.example")
        resolver = Resolver(["127.0.0.1"], ["10.0.0.7"])
        assert (await post(to, resolver)).status == 200
        assert resolver.asked == 1
        assert "10.0.0.7 is not public" in await failure(to, resolver)


async def test_http_reaches_no_public_address(make):
    assert "8.8.8.8 is public, and http://" in await failure(make(80, "plain.example"), Resolver(["8.8.8.8"]))


async def test_proxies_of_the_environment_are_not_used(make, monkeypatch):
    async def no_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("the proxy was asked")

    async with raw_server(no_proxy) as proxy, raw_server(saying(OK)) as port:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        assert (await post(make(port))).status == 200


# TLS


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "certificates", "hooks.example")


async def test_certificates_are_verified(certificates, tmp_path):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server, certificates.server_key)
    resolver = Resolver(["127.0.0.1"])

    def to(host: str, **keys: Any) -> Endpoint:
        table = endpoint(f"https://{host}:{receiver.port}/hooks/masking", **keys)
        return read_endpoints(write_config(tmp_path / "forward.toml", table))[0]

    async with receiving(ssl=context) as receiver:
        trusting = to("hooks.example", ca_file=str(certificates.authority))
        assert (await post(trusting, resolver)).status == 500, "connected: the body is not signed"
        assert "its certificate is not trusted" in await failure(to("hooks.example"), resolver)
        other = to("other.example", ca_file=str(certificates.authority))
        assert "its certificate is not trusted" in await failure(other, resolver)

    async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with raw_server(no_tls) as receiver.port:
        assert "no TLS connection" in await failure(to("hooks.example"), resolver)
