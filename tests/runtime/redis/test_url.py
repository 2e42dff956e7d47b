"""MASKLINE_REDIS_URL taken apart."""

import ssl

import pytest

from maskline.runtime.redis.url import Login, Server, read_redis_url
from maskline.schemas.errors import ConfigError


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
def test_unreadable_url_is_one_line_without_secrets(url, says):
    with pytest.raises(ConfigError) as caught:
        read_redis_url(url)
    text = str(caught.value)
    assert says in text
    assert "MASKLINE_REDIS_URL" in text
    assert "secret" not in text
    assert len(text.splitlines()) == 1


FILE = __file__
"""There, and no certificate."""


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://h?ssl=True", "ssl is no option: TLS is said by the scheme, rediss://"),
        ("rediss://h?ssl=True", "ssl is no option"),
        ("redis://h/0?max_connections=5", "max_connections is no option"),
        ("redis://h?anything=1", "anything is no option: known are db, username, password"),
        ("redis+cluster://a,b?decode_responses=1", "decode_responses is no option"),
        ("redis+sentinel://a/rides?socket_timeout=1", "socket_timeout is no option"),
        ("unix:///s?health_check_interval=1", "health_check_interval is no option"),
        ("rediss://h?ssl_ca_cert=/x", "ssl_ca_cert is no option: did you mean ssl_ca_certs?"),
        ("redis://h?flag", "flag is no option"),
        ("redis://h?ssl_ca_certs=/x", "ssl_ca_certs needs TLS"),
        ("redis+cluster://h?ssl_cert_reqs=none", "ssl_cert_reqs needs TLS"),
        ("redis+sentinel://h/s?ssl_keyfile=/x", "ssl_keyfile needs TLS"),
        ("unix:///s?ssl_cert_reqs=none", "ssl_cert_reqs needs TLS"),
        ("redis://h?sentinel_password=secret", "sentinel_password needs redis+sentinel://"),
        ("rediss://h?ssl_cert_reqs=some", "ssl_cert_reqs must be none, optional or required"),
        ("rediss+cluster://h?ssl_cert_reqs=2", "ssl_cert_reqs must be"),
        ("rediss://h?ssl_cert_reqs=", "ssl_cert_reqs is empty"),
        ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=true", "ssl_check_hostname needs a certificate"),
        ("rediss://h?ssl_check_hostname=perhaps", "ssl_check_hostname must be true or false"),
        ("rediss://h?ssl_min_version=TLSv1", "ssl_min_version must be TLSv1.2 or TLSv1.3"),
        ("rediss://h?ssl_ciphers=secret", "ssl_ciphers cannot be used"),
        ("rediss://h?ssl_ca_certs=/no/such", "ssl_ca_certs cannot be read: '/no/such' (No such file"),
        ("rediss://h?ssl_ca_certs=/", "ssl_ca_certs cannot be read: '/' (Is a directory)"),
        (f"rediss://h?ssl_ca_certs={FILE}", f"ssl_ca_certs cannot be used: '{FILE}'"),
        ("rediss://h?ssl_ca_path=/no/such", "ssl_ca_path cannot be read: '/no/such'"),
        (f"rediss://h?ssl_ca_path={FILE}", f"ssl_ca_path cannot be read: '{FILE}' (Not a directory)"),
        ("rediss://h?ssl_ca_data=secret", "ssl_ca_data cannot be used"),
        ("rediss://h?ssl_ca_data=s\u00e9cret", "ssl_ca_data cannot be used"),
        ("redis://h?password=half&secret", "cannot be read as options"),
        ("rediss://h?password=half&secret=&db=1", "cannot be read as options"),
        ("redis+sentinel://h/s?sentinel_password=half&secret", "cannot be read as options"),
        ("redis://h?password=x&max_connections=5", "max_connections is no option"),
        ("rediss+sentinel://h/s?ssl_certfile=/no/such", "ssl_certfile cannot be read: '/no/such'"),
        (f"rediss://h?ssl_certfile={FILE}", f"ssl_certfile cannot be used: '{FILE}'"),
        (f"rediss://h?ssl_certfile={FILE}&ssl_keyfile=/no", "ssl_keyfile cannot be read: '/no'"),
        ("rediss://h?ssl_keyfile=/x", "ssl_keyfile needs ssl_certfile"),
        ("rediss://h?ssl_password=secret", "ssl_password needs ssl_certfile"),
        ("redis://h?db=1&db=2", "db stands there twice"),
        ("redis://h/1?db=2", "db is another database"),
        ("redis://h?db=x", "number of a database"),
        ("redis+cluster://h?db=1", "database 0 only"),
        ("redis://u:secret@h?password=secret", "password stands before the @ as well"),
        ("redis://u:1?secret@h", "in a password, ? stands as %3F"),
        ("redis://u:1?x&secret=1@h", "in a password, ? stands as %3F"),
        ("redis://h?%73ecret=1", "in a password, ? stands as %3F"),
        ("redis://h/0#secret", "# stands as %23"),
        ("redis+other://h", "cannot be read"),
        ("redis+sentinel://:secret@h:1,:secret@g:2/s", "stands once, before the first host"),
        ("redis+cluster://u:secret@h,u:secret@g", "stands once, before the first host"),
        ("unix+sentinel://h/s", "cannot be read"),
        ("redis://h:٣", "cannot be read"),
    ],
)
def test_every_option_is_known_or_refused_by_its_name(url, says):
    with pytest.raises(ConfigError) as caught:
        read_redis_url(url)
    text = str(caught.value)
    assert says in text
    assert text.startswith("MASKLINE_REDIS_URL")
    assert "secret" not in text
    assert text.isprintable()


def test_options_of_every_kind_of_url():
    read = read_redis_url("redis://h?db=3&username=ann&password=p%26+w")
    assert (read.database, read.login) == (3, Login("ann", "p&+w"))
    read = read_redis_url("rediss+cluster://a,b?ssl_cert_reqs=CERT_NONE&db=0")
    assert read.tls is not None
    assert (read.tls.verify_mode, read.tls.check_hostname) == (ssl.CERT_NONE, False)
    read = read_redis_url("rediss://h?ssl_min_version=1.3&ssl_check_hostname=off")
    assert read.tls is not None
    assert (read.tls.minimum_version, read.tls.check_hostname) == (ssl.TLSVersion.TLSv1_3, False)
    assert read_redis_url("rediss://h").tls.minimum_version is ssl.TLSVersion.TLSv1_2  # type: ignore[union-attr]


def test_server_is_shown_as_it_is_dialled():
    assert str(Server("/run/x.sock", 0)) == "/run/x.sock"
