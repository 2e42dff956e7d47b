"""MASKLINE_REDIS_URL taken apart."""

import ssl

import pytest

from runtime.redis_url import Login, Server, read_redis_url
from schemas.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "kind", "servers", "service", "database", "login"),
    [
        ("redis://h:1/2", "server", ["h:1"], "", 2, ("", "")),
        ("redis://:p%40ss@h", "server", ["h:6379"], "", 0, ("", "p@ss")),
        ("redis://[::1]:7/0", "server", ["[::1]:7"], "", 0, ("", "")),
        ("unix:///run/r.sock?db=3", "server", ["/run/r.sock"], "", 3, ("", "")),
        ("redis+cluster://a:1,b:2,a:1", "cluster", ["a:1", "b:2"], "", 0, ("", "")),
        ("redis+cluster://ann:x%2Cy@a,[::1]:2/0", "cluster", ["a:6379", "[::1]:2"], "", 0, ("ann", "x,y")),
        ("redis+sentinel://a,b:2/rides", "sentinel", ["a:26379", "b:2"], "rides", 0, ("", "")),
        ("redis+sentinel://:pw@a:1/rides/4", "sentinel", ["a:1"], "rides", 4, ("", "pw")),
    ],
)
def test_urls(url, kind, servers, service, database, login):
    read = read_redis_url(url)
    assert (read.kind, [*map(str, read.servers)]) == (kind, servers)
    assert (read.service, read.database, read.login) == (service, database, Login(*login))
    assert read.tls is None


def test_sentinels_may_have_a_login_of_their_own():
    url = "redis+sentinel://ann:one@a/rides/0?sentinel_username=bob&sentinel_password=t%26wo"
    read = read_redis_url(url)
    assert read.login == Login("ann", "one")
    assert read.sentinel_login == Login("bob", "t&wo")
    assert read.address == "a:26379/rides"


@pytest.mark.parametrize("url", ["rediss://h", "rediss+cluster://a,b", "rediss+sentinel://a/rides"])
def test_tls_is_said_by_the_scheme(url):
    context = read_redis_url(url).tls
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+cluster://:secret@a:1/3", "database 0 only"),
        ("redis+sentinel://:secret@a:1", "needs a service"),
        ("redis+cluster://:secret@a:x", "cannot be read"),
        ("redis+cluster://:secret@a:0", "cannot be read"),
        ("redis+cluster://:secret@a:1,", "cannot be read"),
        ("redis+sentinel://:secret@a:1/rides/x", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line_without_secrets(url, says):
    with pytest.raises(ConfigError) as caught:
        read_redis_url(url)
    text = str(caught.value)
    assert says in text
    assert "MASKLINE_REDIS_URL" in text
    assert "secret" not in text
    assert len(text.splitlines()) == 1


def test_a_server_is_shown_as_it_is_dialled():
    assert str(Server("/run/x.sock", 0)) == "/run/x.sock"
