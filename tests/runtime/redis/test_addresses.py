"""A name with several addresses, some of which are dead, silent or refuse."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import binary_of
from tls_kit import Certificates, TlsServer

from maskline.runtime.redis.addresses import (
    ADDRESS_DELAY_S,
    ADDRESSES_MAX,
    FAILED_MAX,
    Addresses,
    ServerAddress,
)
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.pipeline import PipelinedConnection
from maskline.runtime.redis.url import Server
from maskline.schemas.errors import RedisRefusesError, RedisUnavailableError
from maskline.schemas.settings import Settings

NAME = "redis.example.com"
DEAD, ALIVE, THIRD = "127.0.0.2", "127.0.0.1", "127.0.0.3"

Resolve = Callable[..., None]


@pytest.fixture
async def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """The resolver of the test's loop says what the test wants of NAME."""
    loop = asyncio.get_running_loop()

    def say(*addresses: str) -> None:
        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            assert host == NAME
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)

    return say


@contextlib.contextmanager
def dead(address: str, port: int) -> Iterator[None]:
    """An address whose SYNs are dropped: its backlog is full, and nobody accepts."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(20):
            client = stack.enter_context(socket.socket())
            client.settimeout(0.2)
            try:
                client.connect((address, port))
            except TimeoutError:
                yield
                return
        raise AssertionError("the backlog never fills")


@contextlib.asynccontextmanager
async def silent(address: str, port: int) -> AsyncIterator[None]:
    """An address that takes connections and says nothing."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), address, port)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


def endpoint(port: int, scheme: str = "redis", login: str = "", query: str = "") -> RedisEndpoint:
    return RedisEndpoint(Settings(redis_url=f"{scheme}://{login}{NAME}:{port}/0{query}"))


async def timed(found: RedisEndpoint, **more: Any) -> tuple[PipelinedConnection, float]:
    began = time.monotonic()
    connection = await found.connect("test", **more)
    return connection, time.monotonic() - began


def led_to(connection: PipelinedConnection) -> str:
    assert connection.server_address is not None
    return connection.server_address.text


async def test_dead_first_address_costs_a_fraction_of_a_second_once(redis_server, resolve):
    resolve(DEAD, THIRD, ALIVE)  # nobody listens on the third at all
    found = endpoint(redis_server.port)
    with dead(DEAD, redis_server.port):
        first, took_s = await timed(found)
        assert ADDRESS_DELAY_S * 0.9 < took_s < 2
        second, again_s = await timed(found)
        assert again_s < ADDRESS_DELAY_S
    for connection in (first, second):
        assert await connection.execute("PING") == b"PONG"
        assert led_to(connection) == f"{ALIVE}:{redis_server.port}"
        assert str(connection.server_address) == f"{NAME}:{redis_server.port} ({ALIVE}:{redis_server.port})"
        connection.close()


async def test_silent_address_leaves_time_for_the_next_and_comes_last_afterwards(redis_server, resolve):
    resolve(DEAD, ALIVE)
    found = endpoint(redis_server.port)
    async with silent(DEAD, redis_server.port):
        connection, took_s = await timed(found, timeout_s=2.2)
        assert 1 < took_s < 2.2
        assert led_to(connection).startswith(ALIVE)
        again, again_s = await timed(found)
        assert again_s < 1
        beside, _ = await timed(found, beside=again)
        assert led_to(beside) == led_to(again)
        for one in (connection, again, beside):
            one.close()


async def test_address_that_lost_its_connection_comes_last(redis_server, resolve):
    found = endpoint(redis_server.port)
    resolve(ALIVE, DEAD)
    async with relay(DEAD, redis_server.port):
        first, _ = await timed(found)
        assert led_to(first).startswith(ALIVE)
        first.close()
        second, _ = await timed(found)
        assert led_to(second).startswith(DEAD)
        second.close()


@contextlib.asynccontextmanager
async def relay(address: str, port: int) -> AsyncIterator[None]:
    """The server of 127.0.0.1 at another address."""

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(ALIVE, port)

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65_536):
                    target.write(data)
            finally:
                target.transport.abort()

        await asyncio.gather(pass_on(reader, forth), pass_on(back, writer), return_exceptions=True)

    server = await asyncio.start_server(both, address, port)
    try:
        yield
    finally:
        server.close()


async def test_address_that_refuses_the_log_in_is_given_up_for_the_next(own_redis, resolve):
    """One that another server has."""
    with own_redis.client() as client:
        client.config_set("requirepass", "sesame")
        resolve(DEAD, ALIVE)

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.read(1000):
                    writer.write(b"-WRONGPASS invalid username-password pair\r\n" * 2)
            finally:
                writer.transport.abort()

        async with await asyncio.start_server(refuse, DEAD, own_redis.port):
            connection, _ = await timed(endpoint(own_redis.port, login=":sesame@"))
            assert led_to(connection).startswith(ALIVE)
            connection.close()
            with pytest.raises(RedisRefusesError) as caught:
                await endpoint(own_redis.port, login=":wrong@").connect("test")
            assert f"{DEAD}:{own_redis.port}: " in str(caught.value)
            assert f"{ALIVE}:{own_redis.port}: " in str(caught.value)


async def test_server_without_a_live_address_is_unavailable(redis_server, resolve):
    resolve(DEAD, THIRD)
    with pytest.raises(RedisUnavailableError) as caught:
        await endpoint(redis_server.port).connect("test")
    text = str(caught.value)
    assert text.startswith(f"Redis at {NAME}:{redis_server.port} cannot be reached: ")
    assert DEAD in text
    assert THIRD in text


async def test_certificate_is_checked_against_the_name_and_silent_address_is_skipped(
    server_kind, tmp_path: Path, resolve
):
    certificates = Certificates(tmp_path / "certificates", NAME)
    server = TlsServer(tmp_path / "data", certificates, binary_of(server_kind)).start()
    try:
        resolve(DEAD, ALIVE)
        async with silent(DEAD, server.port):
            found = endpoint(server.port, "rediss", query=certificates.trusting())
            connection, took_s = await timed(found, timeout_s=2.2)
            assert took_s < 2.2
            assert await connection.execute("PING") == b"PONG"
            connection.close()
    finally:
        server.stop()


async def test_remembered_and_tried_addresses_are_bounded(resolve):
    resolve(*(f"127.0.1.{number}" for number in range(1, 40)))
    known = Addresses()
    addresses = await known.of(Server(NAME, 1))
    assert len(addresses) == ADDRESSES_MAX
    for server_address in addresses:
        known.failed(server_address)
    assert not set(addresses) & set(await known.of(Server(NAME, 1)))
    for number in range(2 * FAILED_MAX):
        known.failed(ServerAddress(addresses[0].server, (*addresses[0].info[:4], ("127.0.0.1", number))))
    assert len(known._failed) <= FAILED_MAX


async def test_address_needs_no_resolver(redis_server, resolve):
    resolve()
    connection = await RedisEndpoint(Settings(redis_url=redis_server.url)).connect("test")
    assert str(connection.server_address) == led_to(connection) == f"{ALIVE}:{redis_server.port}"
    connection.close()
