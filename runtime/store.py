"""Where Redis is and how to get a connection to it: addresses, TLS and log-in from MASKLINE_REDIS_URL.

redis-py reads the URL and builds the TLS context; the connection itself is a `Link`.
"""

import asyncio
import secrets
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

from runtime.link import Link, pack
from schemas.errors import ConfigError, RedisUnavailableError
from schemas.keys import Keys
from schemas.privacy import set_token_key
from schemas.settings import Settings

CONNECT_TIMEOUT_S: Final = 5.0
RECONNECT_FIRST_S: Final = 0.05
"""A restart of Redis takes less than a second: the first tries are quick."""
RECONNECT_MAX_S: Final = 2.0
"""A node is back within two seconds of Redis; hundreds of nodes that ask twice a second do no harm."""
LAYOUT_VERSION: Final = 1
TOKEN_KEY_BYTES: Final = 32

_LATER_SCHEMES: Final = ("redis+cluster://", "redis+sentinel://")
_CREDENTIAL_ERRORS: Final = (
    "WRONGPASS",
    "NOAUTH",
    "NOPERM",
    "ERR invalid password",
    "ERR Client sent AUTH",
    "ERR AUTH",
)


class Store:
    """One Redis server, as the settings name it.

    Raises ConfigError for a URL that cannot be read or whose kind of server this release does not serve.
    """

    def __init__(self, settings: Settings) -> None:
        url = settings.redis_url
        if not url:
            raise ConfigError("MASKLINE_REDIS_URL is not set: say where Redis is, as redis://host:6379/0")
        if url.startswith(_LATER_SCHEMES):
            scheme = url.partition("://")[0]
            raise ConfigError(
                f"MASKLINE_REDIS_URL: {scheme}:// is not served by this release, use redis://, rediss:// or unix://"
            )
        try:
            self._options: dict[str, Any] = dict(parse_url(url))
        except ValueError:
            raise ConfigError(
                "MASKLINE_REDIS_URL cannot be read: it should look like redis://host:6379/0"
            ) from None
        self._tls = self._tls_context()

    @property
    def address(self) -> str:
        """Where Redis is, without the credentials: for logs and status pages."""
        options = self._options
        return (
            str(options["path"])
            if "path" in options
            else f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        )

    async def connect(self, name: str, on_lost: Callable[[], None] | None = None) -> Link:
        """Open a connection, logged in, on the right database, named `name` in CLIENT LIST.

        `on_lost` is called once, when the connection ends for whatever reason. Raises RedisUnavailableError where
        Redis cannot be reached, ConfigError where it refuses the credentials or the database.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                link = await self._open(on_lost)
                try:
                    await self._log_in(link, name)
                except BaseException:
                    link.close()
                    raise
        except (OSError, TimeoutError, ssl.SSLError, UnicodeError) as error:  # of a host that is no name
            raise RedisUnavailableError(
                f"Redis at {self.address} cannot be reached: {_reason(error)}"
            ) from None
        return link

    async def _open(self, on_lost: Callable[[], None] | None) -> Link:
        loop, options = asyncio.get_running_loop(), self._options
        if "path" in options:
            _, link = await loop.create_unix_connection(lambda: Link(on_lost), options["path"])
            return link
        transport, link = await loop.create_connection(
            lambda: Link(on_lost), options.get("host", "localhost"), options.get("port", 6379), ssl=self._tls
        )
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link

    async def _log_in(self, link: Link, name: str) -> None:
        options = self._options
        commands: list[bytes] = []
        if password := options.get("password"):
            user = options.get("username")
            commands.append(pack("AUTH", user, password) if user else pack("AUTH", password))
        if database := options.get("db"):
            commands.append(pack("SELECT", database))
        commands.append(pack("CLIENT", "SETNAME", name))
        for reply in await link.send(b"".join(commands), len(commands), timeout_s=CONNECT_TIMEOUT_S):
            if not isinstance(reply, hiredis.ReplyError):
                continue
            text = str(reply)
            if text.startswith(_CREDENTIAL_ERRORS) or "DB index" in text:
                raise ConfigError(f"MASKLINE_REDIS_URL: Redis at {self.address} refuses the log-in: {text}")
            raise RedisUnavailableError(f"Redis at {self.address} refuses: {text}")

    def _tls_context(self) -> ssl.SSLContext | None:
        connection_class = self._options.pop("connection_class", None)
        if connection_class is not SSLConnection:
            return None
        try:
            return SSLConnection(**self._options).ssl_context.get()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"MASKLINE_REDIS_URL: TLS cannot be set up: {type(error).__name__}") from None


async def check_layout(link: Link, settings: Settings) -> None:
    """Agree with every other node on the layout, which the first node ever started writes down.

    Takes over the key of the number tokens, so that all nodes' logs agree on them. Raises ConfigError where
    MASKLINE_PARTITIONS differs from the layout in Redis, as a session would then be in two partitions, in no order;
    RedisUnavailableError where Redis refuses, or answers what is no layout.
    """
    key = Keys(settings.namespace).layout
    replies = await link.send(
        pack("HSETNX", key, "partitions", settings.partitions)
        + pack("HSETNX", key, "version", LAYOUT_VERSION)
        + pack("HSETNX", key, "token_key", secrets.token_bytes(TOKEN_KEY_BYTES))
        + pack("HMGET", key, "partitions", "version", "token_key"),
        4,
    )
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"Redis refuses to keep the layout: {reply}")
    try:
        partitions, version, token_key = int(replies[-1][0]), int(replies[-1][1]), bytes(replies[-1][2])
        if len(token_key) != TOKEN_KEY_BYTES:
            raise ValueError(len(token_key))  # noqa: TRY301  one way out for all that is damaged
    except (ValueError, TypeError, LookupError) as error:
        # Not what Redis replies to that. Trying goes on: the right server may come to this address yet.
        raise RedisUnavailableError(
            f"no Redis answers, or its layout is damaged ({type(error).__name__})"
        ) from None
    if version > LAYOUT_VERSION:
        raise ConfigError(
            f"the namespace {settings.namespace} was laid out by a newer maskline (layout {version})"
        )
    if partitions != settings.partitions:
        raise ConfigError(
            f"MASKLINE_PARTITIONS is {settings.partitions}, but the namespace {settings.namespace} "
            f"was laid out with {partitions}: set it to that"
        )
    set_token_key(token_key)


def reconnect_delay_s(attempt: int, chance: float) -> float:
    """The wait before try number `attempt` (0, 1, …): doubled each time up to a bound, half of it by chance (0 … 1)."""
    # The exponent is bounded as well: 2.0**1100 is no float any more.
    ceiling = min(RECONNECT_MAX_S, RECONNECT_FIRST_S * 2.0 ** min(attempt, 16))
    return ceiling * (0.5 + 0.5 * chance)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT_S:g} s"
    return getattr(error, "strerror", None) or type(error).__name__
