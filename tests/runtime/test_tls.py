"""rediss:// with real certificates: whom a connection trusts, and how it says that it does not."""

import pytest
from servers import binary_of
from tls_kit import Certificates, TlsServer

from runtime.link import pack
from runtime.store import Store
from schemas.errors import ConfigError, RedisUnavailableError
from schemas.settings import Settings

pytestmark = pytest.mark.storage


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path / "certificates", "localhost", "127.0.0.1")


@pytest.fixture
def server(server_kind, tmp_path, certificates):
    server = TlsServer(tmp_path / "data", certificates, binary_of(server_kind)).start()
    yield server
    server.stop()


@pytest.fixture
def strict_server(server_kind, tmp_path, certificates):
    """Wants to see the client's certificate."""
    server = TlsServer(
        tmp_path / "data", certificates, binary_of(server_kind), client_certificates=True
    ).start()
    yield server
    server.stop()


async def ping(url):
    link = await Store(Settings(redis_url=url)).connect("test")
    try:
        return await link.execute("PING")
    finally:
        link.close()


async def refusal(url):
    with pytest.raises(RedisUnavailableError) as caught:
        await ping(url)
    text = str(caught.value)
    assert text.isprintable(), "one line"
    return text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_server_whose_authority_is_trusted(server, certificates, host):
    assert await ping(server.url(certificates.trusting(), host=host)) == b"PONG"


async def test_much_data_and_many_batches_go_through(server, certificates):
    link = await Store(Settings(redis_url=server.url(certificates.trusting()))).connect("test")
    big = bytes(range(256)) * 8_000
    batches = [link.send(pack("ECHO", big) + pack("ECHO", number), 2) for number in range(8)]
    for number, batch in enumerate(batches):
        assert await batch == [big, b"%d" % number]
    link.close()


async def test_an_authority_that_is_not_trusted(server, tmp_path):
    others = Certificates(tmp_path / "others", "localhost")
    text = await refusal(server.url(others.trusting()))
    assert f"localhost:{server.port} cannot be reached" in text
    assert "certificate verify failed" in text
    assert "certificate verify failed" in await refusal(server.url("")), "nor is it in the system's list"


async def test_a_certificate_of_another_host(server_kind, tmp_path):
    others = Certificates(tmp_path / "others", "redis.example.com")
    server = TlsServer(tmp_path / "data", others, binary_of(server_kind)).start()
    try:
        text = await refusal(server.url(others.trusting()))
        assert "Hostname mismatch" in text
        assert "'localhost'" in text
    finally:
        server.stop()


async def test_a_server_that_wants_a_client_certificate(strict_server, certificates, tmp_path):
    assert await ping(strict_server.url(certificates.trusting(client=certificates))) == b"PONG"
    others = Certificates(tmp_path / "others", "localhost")
    for query in (certificates.trusting(), certificates.trusting(client=others)):
        assert "lost" in await refusal(strict_server.url(query))


@pytest.mark.parametrize(
    "query", ["?ssl_ca_certs=/no/such/file", "?ssl_certfile=/no/such/file&ssl_keyfile=/no/such/file"]
)
async def test_files_that_are_not_there_are_the_operator_s_fault(query):
    with pytest.raises(ConfigError, match=r"^MASKLINE_REDIS_URL: TLS cannot be set up: \w+$"):
        Store(Settings(redis_url=f"rediss://localhost:1/0{query}"))


async def test_a_password_goes_over_tls(server, certificates):
    with server.server.client() as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", ">pass", "~*", "+@all")
    assert await ping(server.url(certificates.trusting(), login="ann:pass@")) == b"PONG"
