"""rediss:// with real certificates: whom a connection trusts, and how it says that it does not."""

from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives import serialization
from servers import binary_of
from tls_kit import Certificates, TlsServer

from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.pipeline import pack
from maskline.schemas.errors import ConfigError, RedisUnavailableError
from maskline.schemas.settings import Settings

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
    connection = await RedisEndpoint(Settings(redis_url=url)).connect("test")
    try:
        return await connection.execute("PING")
    finally:
        connection.close()


async def refusal(url):
    with pytest.raises(RedisUnavailableError) as caught:
        await ping(url)
    text = str(caught.value)
    assert text.isprintable(), "one line"
    return text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_server_whose_authority_is_trusted(server, certificates, host):
    assert await ping(server.url(certificates.trusting(), host=host)) == b"PONG"


async def test_much_data_and_many_batches_go_through(server, certificates):
    connection = await RedisEndpoint(Settings(redis_url=server.url(certificates.trusting()))).connect("test")
    big = bytes(range(256)) * 8_000
    batches = [connection.send(pack("ECHO", big) + pack("ECHO", number), 2) for number in range(8)]
    for number, batch in enumerate(batches):
        assert await batch == [big, b"%d" % number]
    connection.close()


async def test_authority_that_is_not_trusted(server, tmp_path):
    others = Certificates(tmp_path / "others", "localhost")
    text = await refusal(server.url(others.trusting()))
    assert f"localhost:{server.port} cannot be reached" in text
    assert "certificate verify failed" in text
    assert "certificate verify failed" in await refusal(server.url("")), "nor is it in the system's list"


async def test_certificate_of_another_host(server_kind, tmp_path):
    others = Certificates(tmp_path / "others", "redis.example.com")
    server = TlsServer(tmp_path / "data", others, binary_of(server_kind)).start()
    try:
        text = await refusal(server.url(others.trusting()))
        assert "Hostname mismatch" in text
        assert "'localhost'" in text
    finally:
        server.stop()


async def test_server_that_wants_a_client_certificate(strict_server, certificates, tmp_path):
    assert await ping(strict_server.url(certificates.trusting(client=certificates))) == b"PONG"
    others = Certificates(tmp_path / "others", "localhost")
    for query in (certificates.trusting(), certificates.trusting(client=others)):
        assert "lost" in await refusal(strict_server.url(query))


@pytest.mark.parametrize("spelling", ["none", "CERT_NONE", "cert_none", "None", "NONE"])
async def test_no_certificate_is_asked_for_where_that_is_said(server, spelling):
    assert await ping(server.url(f"?ssl_cert_reqs={spelling}")) == b"PONG"


@pytest.mark.parametrize("spelling", ["required", "CERT_REQUIRED", "optional", "Cert_Optional"])
async def test_certificate_is_verified_in_every_other_case(server, certificates, spelling):
    assert "certificate verify failed" in await refusal(server.url(f"?ssl_cert_reqs={spelling}"))
    assert await ping(server.url(certificates.trusting() + f"&ssl_cert_reqs={spelling}")) == b"PONG"


async def test_host_is_not_compared_where_that_is_said(server_kind, tmp_path):
    others = Certificates(tmp_path / "others", "redis.example.com")
    server = TlsServer(tmp_path / "data", others, binary_of(server_kind)).start()
    try:
        assert await ping(server.url(others.trusting() + "&ssl_check_hostname=False")) == b"PONG"
        assert "Hostname mismatch" in await refusal(server.url(others.trusting() + "&ssl_check_hostname=yes"))
        text = quote(others.authority.read_text(), safe="")
        assert await ping(server.url(f"?ssl_ca_data={text}&ssl_check_hostname=0")) == b"PONG"
    finally:
        server.stop()


async def test_versions_ciphers_and_a_key_with_a_password(strict_server, certificates, tmp_path):
    key = serialization.load_pem_private_key(certificates.client_key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"p+ss&w"),
        )
    )
    query = f"{certificates.trusting()}&ssl_certfile={certificates.client}&ssl_keyfile={locked}"
    more = "&ssl_min_version=TLSv1_3&ssl_ciphers=ECDHE%2BAESGCM"
    assert await ping(strict_server.url(f"{query}&ssl_password=p+ss%26w{more}")) == b"PONG"
    for password in ("", "&ssl_password=wrong-one"):
        with pytest.raises(ConfigError, match=f"ssl_keyfile cannot be used: '{locked} ") as caught:
            RedisEndpoint(Settings(redis_url=strict_server.url(query + password)))
        assert "wrong-one" not in str(caught.value)


async def test_password_goes_over_tls(server, certificates):
    with server.server.client() as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", ">pass", "~*", "+@all")
    assert await ping(server.url(certificates.trusting(), login="ann:pass@")) == b"PONG"
