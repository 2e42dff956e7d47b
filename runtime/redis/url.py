"""Parses MASKLINE_REDIS_URL: what kind of servers it names, where they are, how to log in to them.

| URL | means |
| --- | --- |
| `redis://`, `rediss://` (TLS), `unix://` | one server |
| `redis+cluster://host:port,host:port` | a Redis Cluster, by some of its nodes |
| `redis+sentinel://host:port,host:port/service/db` | the primary of `service`, by its Sentinels |
| `rediss+cluster://`, `rediss+sentinel://` | the same with TLS |

Options stand in the query: `username`, `password` and `db`, where the usual places do not suit; with Sentinels
`sentinel_username` and `sentinel_password`; with TLS those of `runtime.redis.tls`. Any other option is refused by its
name: an option that is silently ignored costs more than a refused start. `%XX` stands for a special character
everywhere, and `+` for itself.
"""

import difflib
import re
import ssl
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote

from maskline.runtime.redis.tls import TLS_OPTIONS, option_error, tls_context
from maskline.schemas.errors import ConfigError
from maskline.schemas.hosts import with_port

ServerKind = Literal["server", "cluster", "sentinel"]

DEFAULT_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_LOGIN: Final = ("username", "password")
_SENTINEL_LOGIN: Final = ("sentinel_username", "sentinel_password")
_HINTS: Final = {
    "ssl": "TLS is said by the scheme, rediss://",
    "max_connections": "maskline opens as many as it needs",
    "socket_timeout": "see MASKLINE_PUBLISH_TIMEOUT_MS",
    "client_name": "maskline names its connections itself",
}
"""Options of redis-py that users may bring along, and what to do instead."""
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}\Z")
_DATABASE: Final = re.compile(r"[0-9]{1,9}\Z")


class Server(NamedTuple):
    """Where a server listens: host and port, or the path of its socket as host and port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return with_port(self.host, self.port)


class Login(NamedTuple):
    """Username and password, each empty where the URL has none."""

    username: str = ""
    password: str = ""


class RedisUrl(NamedTuple):
    """MASKLINE_REDIS_URL in its parts. `service` is the Sentinels' name for the primary, else empty."""

    kind: ServerKind
    servers: tuple[Server, ...]
    """The one server, some nodes of the cluster, or the Sentinels."""
    service: str
    database: int
    login: Login
    sentinel_login: Login
    tls: ssl.SSLContext | None

    @property
    def address(self) -> str:
        """Where Redis is, without credentials: for logs and status pages."""
        where = ",".join(map(str, self.servers))
        return f"{where}/{self.service}" if self.service else where


def read_redis_url(url: str) -> RedisUrl:
    """Parse the URL. Raises ConfigError, whose one line shows no credentials, for one that cannot be read."""
    if not url:
        raise ConfigError("MASKLINE_REDIS_URL is not set: say where Redis is, as redis://host:6379/0")
    scheme, _, rest = url.partition("://")
    transport, _, kind = scheme.partition("+")
    try:
        return _parse(transport, kind, rest)
    except ValueError as error:
        hint = f" ({error})" if str(error) else ""
        raise ConfigError(
            f"MASKLINE_REDIS_URL cannot be read: it should look like redis://host:6379/0{hint}"
        ) from None


def _parse(transport: str, kind: str, rest: str) -> RedisUrl:
    if transport not in ("redis", "rediss", "unix") or (transport == "unix" and kind):
        raise ValueError
    if "#" in rest:
        raise ValueError("a # stands as %23")
    credentials, hosts, path, query = _split(rest)
    if kind and re.search("@.*,", credentials):
        raise ValueError("the log-in stands once, before the first host; in a password, @ stands as %40")
    options = _options(query)
    tls = transport == "rediss"
    _check_options(options, query, tls=tls, sentinel=kind == "sentinel")
    login = _login(options, _LOGIN, credentials)
    sentinel_login = _login(options, _SENTINEL_LOGIN)
    context = tls_context({name: options[name] for name in TLS_OPTIONS if name in options}) if tls else None
    service = ""
    servers: tuple[Server, ...]
    if transport == "unix":
        if hosts or len(path) < 2:
            raise ValueError("unix:// needs an absolute path")
        servers, path, read_as = (Server(unquote(path), 0),), "", "server"
    elif kind == "":
        servers, read_as = _servers(hosts or "localhost", DEFAULT_PORT), "server"
        if len(servers) > 1:
            raise ValueError("several hosts need redis+cluster:// or redis+sentinel://")
    elif kind == "cluster":
        servers, read_as = _servers(hosts, DEFAULT_PORT), "cluster"
    elif kind == "sentinel":
        servers, read_as = _servers(hosts, SENTINEL_PORT), "sentinel"
        service, _, path = path.strip("/").partition("/")
        service = unquote(service)
        if not service:
            raise ConfigError(
                "MASKLINE_REDIS_URL: redis+sentinel:// needs a service: host:port,host:port/service/0"
            )
    else:
        raise ValueError
    database = _database(path.strip("/"), options.get("db"))
    if read_as == "cluster" and database:
        raise ConfigError("MASKLINE_REDIS_URL: a cluster has database 0 only")
    return RedisUrl(read_as, servers, service, database, login, sentinel_login, context)  # type: ignore[arg-type]


def _split(rest: str) -> tuple[str, str, str, str]:
    """Split what follows `://` into credentials, hosts, path and query."""
    front, _, query = rest.partition("?")
    authority, slash, path = front.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    return credentials, hosts, slash + path, query


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, _, value = item.partition("=")
        if name in options:
            raise _query_error(name, query, "stands there twice")
        options[name] = unquote(value)
    return options


def _check_options(options: dict[str, str], query: str, *, tls: bool, sentinel: bool) -> None:
    known = ("db", *_LOGIN, *(_SENTINEL_LOGIN if sentinel else ()), *(TLS_OPTIONS if tls else ()))
    before = ""
    for name, value in options.items():
        after, before = before, name
        if name in known:
            if not value:
                raise option_error(name, "is empty")
        elif name in TLS_OPTIONS:
            raise option_error(name, "needs TLS: rediss:// instead of redis:// (unix:// has none)")
        elif name in _SENTINEL_LOGIN:
            raise option_error(name, "needs redis+sentinel://")
        else:
            near = difflib.get_close_matches(name, known, n=1)
            hint = _HINTS.get(name) or (f"did you mean {near[0]}?" if near else "")
            # After a password it may be the rest of one that has an & in it.
            shown = "" if after.endswith("password") and not hint else name
            raise _query_error(shown, query, f"is no option: {hint or 'known are ' + ', '.join(known)}")


def _query_error(name: str, query: str, what: str) -> ConfigError:
    if "@" in query or not _NAME.match(name):  # which may be a part of a password with a ? or & in it
        return ConfigError(
            "MASKLINE_REDIS_URL: what follows the ? cannot be read as options "
            "(in a password, ? stands as %3F, & as %26, @ as %40)"
        )
    return option_error(name, what)


def _login(options: dict[str, str], names: tuple[str, str], credentials: str = "") -> Login:
    username, _, password = credentials.partition(":")
    given = Login(unquote(username), unquote(password))
    for name, value in zip(names, given, strict=True):
        if value and name in options:
            raise option_error(name, "stands before the @ as well")
    return Login(options.get(names[0]) or given.username, options.get(names[1]) or given.password)


def _database(path: str, option: str | None) -> int:
    if path and option is not None and path != option:
        raise option_error("db", "is another database than the one behind the host")
    text = path or option or "0"
    if not _DATABASE.match(text):
        raise ValueError("what follows the host is the number of a database")
    return int(text)


def _servers(hosts: str, default_port: int) -> tuple[Server, ...]:
    servers = []
    for item in hosts.split(","):
        host, colon, port = item.rpartition(":")
        if not colon or port.endswith("]"):  # no port, or an IPv6 address without one
            host, port = item, ""
        if port and not (port.isascii() and port.isdecimal() and len(port) <= 5):
            raise ValueError
        number = int(port) if port else default_port
        if not host or not 0 < number < 65_536:
            raise ValueError
        servers.append(Server(unquote(host.strip("[]")), number))
    return tuple(dict.fromkeys(servers))
