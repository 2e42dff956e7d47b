"""Finding Redis and logging in."""

import asyncio
import socket

import pytest
import redis
from servers import RedisServer, free_port, wait_until

from maskline.runtime.redis.connect import (
    RedisEndpoint,
)
from maskline.runtime.redis.pipeline import pack
from maskline.schemas.errors import ConfigError, RedisRefusesError, RedisUnavailableError
from maskline.schemas.settings import Settings, load_settings

PASSWORD = "p4ss/w:rd @%"
QUOTED = "p4ss%2Fw%3Ard%20%40%25"


@pytest.fixture
def locked(tmp_path):
    """A server with a password, also at a Unix socket."""
    server = RedisServer(tmp_path / "data", options=("--unixsocket", str(tmp_path / "s")))
    server.start()
    with server.client() as client:
        client.config_set("requirepass", PASSWORD)
    yield server
    server.stop()


def endpoint(url):
    return RedisEndpoint(Settings(redis_url=url))


async def ping(url):
    connection = await endpoint(url).connect("test-store")
    try:
        return await connection.execute("PING")
    finally:
        connection.close()


def one_line(error, *, without=()):
    text = str(error)
    assert len(text.splitlines()) == 1
    for secret in (PASSWORD, QUOTED, *without):
        assert secret not in text
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    return text


# Addresses


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://localhost:6379", "redis://localhost:port", "redis://localhost:99999", "redis://:secret@h:1x/0"],
)  # fmt: skip
def test_urls_that_cannot_be_read(url):
    with pytest.raises(ConfigError) as caught:
        endpoint(url)
    assert "MASKLINE_REDIS_URL" in one_line(caught.value, without=["secret"])


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://:secret@example.com:6380/2", "example.com:6380"),
        ("redis://example.com", "example.com:6379"),
        ("redis://", "localhost:6379"),
        ("rediss://user:secret@example.com:1/0", "example.com:1"),
        ("unix://user:secret@/run/redis.sock?db=1", "/run/redis.sock"),
        ("redis+cluster://:secret@a:1,b", "a:1,b:6379"),
        ("redis+sentinel://:secret@a,b:2/rides/1", "a:26379,b:2/rides"),
    ],
)
def test_address_shows_no_credentials(url, address):
    assert endpoint(url).address == address


def test_tls_that_cannot_be_set_up():
    with pytest.raises(ConfigError) as caught:
        endpoint("rediss://h:1/0?ssl_ca_certs=/no/such/file")
    assert "ssl_ca_certs cannot be read: '/no/such/file'" in one_line(caught.value)


# Connecting


async def test_name_database_and_socket_options(redis_server, namespace):
    connection = await endpoint(redis_server.url.removesuffix("0") + "3").connect("maskline-test-name")
    info = (await connection.execute("CLIENT", "INFO")).decode()
    assert " name=maskline-test-name " in info
    assert " db=3 " in info
    sock = connection._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    connection.close()


async def test_password_a_user_and_a_unix_socket(locked):
    with redis.Redis(port=locked.port, password=PASSWORD) as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", f">{PASSWORD}", "~*", "+@all")
        path = client.config_get("unixsocket")["unixsocket"]
    for url in (
        f"redis://:{QUOTED}@127.0.0.1:{locked.port}/0",
        f"redis://ann:{QUOTED}@127.0.0.1:{locked.port}/0",
        f"redis://127.0.0.1:{locked.port}/0?password={QUOTED}",
        f"unix://:{QUOTED}@{path}?db=1",
        f"unix://ann:{QUOTED}@{path}",
    ):
        assert await ping(url) == b"PONG"


@pytest.mark.parametrize(
    "credentials", ["", ":wrong@", "nobody:wrong@", f"nobody:{QUOTED}@", f"ann:{QUOTED}@"]
)
async def test_wrong_credentials_are_refused(locked, credentials):
    with redis.Redis(port=locked.port, password=PASSWORD) as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", f">{PASSWORD}", "~*", "-@all")
        before = len(client.client_list())
        lost = []
        with pytest.raises(RedisRefusesError) as caught:
            await endpoint(f"redis://{credentials}127.0.0.1:{locked.port}/0").connect(
                "test", lambda: lost.append(1)
            )
        text = one_line(caught.value, without=["wrong"] if "wrong" in credentials else [])
        assert text.startswith("MASKLINE_REDIS_URL: ")
        assert f"127.0.0.1:{locked.port}" in text
        assert not lost, "nobody has had it"
        await asyncio.to_thread(
            wait_until, lambda: len(client.client_list()) <= before, what="the server to see it closed"
        )


async def test_password_where_none_is_asked_for(redis_server):
    with pytest.raises(RedisRefusesError) as caught:
        await ping(f"redis://:{QUOTED}@127.0.0.1:{redis_server.port}/0")
    one_line(caught.value)


def locked_url(locked, password):
    return f"redis://:{password}@127.0.0.1:{locked.port}/0"


async def test_url_in_a_file_is_read_again_when_the_log_in_is_refused(locked, tmp_path):
    file = tmp_path / "redis-url"
    file.write_text(locked_url(locked, "yesterday") + "\n")
    settings = load_settings({"MASKLINE_REDIS_URL_FILE": str(file)})
    found = RedisEndpoint(settings)
    with pytest.raises(RedisRefusesError, match="WRONGPASS"):
        await found.connect("test")
    file.unlink()
    with pytest.raises(RedisRefusesError, match="WRONGPASS"):
        await found.connect("test")
    file.write_text("redis+cluster://127.0.0.1:1")  # another kind is for the next start
    with pytest.raises(RedisRefusesError, match="WRONGPASS"):
        await found.connect("test")
    file.write_text(locked_url(locked, QUOTED))
    connections = await asyncio.gather(found.connect("test"), found.connect("test"))
    for connection in connections:
        assert await connection.execute("PING") == b"PONG"
        connection.close()


async def test_missing_database_is_refused(redis_server):
    with pytest.raises(RedisRefusesError, match="DB index"):
        await ping(f"redis://127.0.0.1:{redis_server.port}/9999")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@127.0.0.1:{port}/0",
        "redis://:secret@no-such-host.invalid:6379/0",
        "redis://:secret@a..b:6379/0",
        f"redis://:secret@{'x' * 70}.invalid:6379/0",
        "unix://:secret@/no/such/socket",
    ],
)
async def test_server_that_is_not_there_is_unavailable(url):
    with pytest.raises(RedisUnavailableError) as caught:
        await ping(url.format(port=free_port()))
    assert "cannot be reached" in one_line(caught.value, without=["secret"])


async def test_server_that_does_not_answer(own_redis):
    own_redis.pause()
    with pytest.raises(RedisUnavailableError) as caught:
        await endpoint(own_redis.url).connect("test-store", timeout_s=0.1)
    assert "no answer within 0.1 s" in str(caught.value)


async def test_tls_to_a_plain_port_is_unavailable(redis_server):
    found = endpoint(f"rediss://:secret@127.0.0.1:{redis_server.port}/0")
    with pytest.raises(RedisUnavailableError) as caught:
        await found.connect("test", timeout_s=0.3)  # the server waits for the rest of a command
    one_line(caught.value, without=["secret"])


async def test_full_server_refuses_another_connection(own_redis):
    with own_redis.client() as client:
        client.config_set("maxclients", 1)
        with pytest.raises(RedisUnavailableError):
            await ping(own_redis.url)


async def test_commands_after_the_log_in_are_not_mixed_up_with_it(locked):
    connection = await endpoint(f"redis://:{QUOTED}@127.0.0.1:{locked.port}/2").connect("x")
    assert await connection.send(pack("ECHO", "1") + pack("ECHO", "2"), 2) == [b"1", b"2"]
    connection.close()
