"""MASKLINE_REDIS_URL taken apart: what kind of servers it names, where they are, how to log in to them.

| URL | means |
| --- | --- |
| `redis://`, `rediss://` (TLS), `unix://` | one server |
| `redis+cluster://host:port,host:port` | a Redis Cluster, by some of its nodes |
| `redis+sentinel://host:port,host:port/service/db` | the primary of `service`, by its Sentinels |
| `rediss+cluster://`, `rediss+sentinel://` | the same with TLS |

redis-py reads what they have in common: credentials, database, TLS options in the query (`ssl_ca_certs=…`).
"""

import ssl
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl, urlencode

from redis.asyncio.connection import SSLConnection, parse_url

from schemas.errors import ConfigError

Kind = Literal["server", "cluster", "sentinel"]

DEFAULT_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_SENTINEL_LOGIN: Final = ("sentinel_username", "sentinel_password")


class Server(NamedTuple):
    """Where a server listens: host and port, or the path of its socket as host and port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Login(NamedTuple):
    username: str = ""
    password: str = ""


class RedisUrl(NamedTuple):
    kind: Kind
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
    """Raises ConfigError, with one line that shows no credentials, for what cannot be read."""
    if not url:
        raise ConfigError("MASKLINE_REDIS_URL is not set: say where Redis is, as redis://host:6379/0")
    scheme, _, rest = url.partition("://")
    transport, _, kind = scheme.partition("+")
    try:
        if kind == "cluster":
            return _read_cluster(transport, rest)
        if kind == "sentinel":
            return _read_sentinel(transport, rest)
        return _read_server(url)
    except ValueError:
        raise ConfigError(
            "MASKLINE_REDIS_URL cannot be read: it should look like redis://host:6379/0"
        ) from None


def _read_server(url: str) -> RedisUrl:
    options: dict[str, Any] = dict(parse_url(url))
    if path := options.get("path"):
        server = Server(str(path), 0)
    else:
        server = Server(options.get("host", "localhost"), int(options.get("port", DEFAULT_PORT)))
    return _made("server", (server,), "", options)


def _read_cluster(transport: str, rest: str) -> RedisUrl:
    credentials, hosts, path, query = _split(rest)
    if path.strip("/") not in ("", "0"):
        raise ConfigError("MASKLINE_REDIS_URL: a cluster has database 0 only")
    options = dict(parse_url(f"{transport}://{credentials}localhost/0{query}"))
    return _made("cluster", _servers(hosts, DEFAULT_PORT), "", options)


def _read_sentinel(transport: str, rest: str) -> RedisUrl:
    credentials, hosts, path, query = _split(rest)
    service, _, database = path.strip("/").partition("/")
    if not service:
        raise ConfigError(
            "MASKLINE_REDIS_URL: redis+sentinel:// needs a service: host:port,host:port/service/0"
        )
    parameters = parse_qsl(query.removeprefix("?"), keep_blank_values=True)
    own = dict(pair for pair in parameters if pair[0] in _SENTINEL_LOGIN)
    others = urlencode([pair for pair in parameters if pair[0] not in _SENTINEL_LOGIN])
    options = dict(parse_url(f"{transport}://{credentials}localhost/{int(database or 0)}?{others}"))
    login = Login(own.get("sentinel_username", ""), own.get("sentinel_password", ""))
    return _made("sentinel", _servers(hosts, SENTINEL_PORT), service, options, login)


def _split(rest: str) -> tuple[str, str, str, str]:
    """What follows `://`, as credentials with their `@`, hosts, path, query with its `?`."""
    front, mark, query = rest.partition("?")
    authority, slash, path = front.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    return credentials + at, hosts, slash + path, mark + query


def _servers(hosts: str, default_port: int) -> tuple[Server, ...]:
    servers = []
    for item in hosts.split(","):
        host, colon, port = item.rpartition(":")
        if not colon or port.endswith("]"):  # no port, or an IPv6 address without one
            host, port = item, ""
        number = int(port) if port else default_port
        if not host or not 0 < number < 65_536:
            raise ValueError(item)
        servers.append(Server(host.strip("[]"), number))
    return tuple(dict.fromkeys(servers))


def _made(
    kind: Kind, servers: tuple[Server, ...], service: str, options: dict[str, Any],
    sentinel_login: Login | None = None,
) -> RedisUrl:  # fmt: skip
    login = Login(options.get("username") or "", options.get("password") or "")
    return RedisUrl(
        kind,
        servers,
        service,
        int(options.get("db") or 0),
        login,
        sentinel_login or Login(),
        _tls_context(options),
    )


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext | None:
    if options.pop("connection_class", None) is not SSLConnection:
        return None
    try:
        return SSLConnection(**options).ssl_context.get()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"MASKLINE_REDIS_URL: TLS cannot be set up: {type(error).__name__}") from None
