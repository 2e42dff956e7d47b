"""How to get a connection to Redis: the servers that MASKLINE_REDIS_URL leads to, log-in, TLS.

One server needs no finding. Sentinels are asked for the primary at every connect, and the primary whether it is one: so
a failover costs a reconnect. A cluster's nodes are asked who has which keys, at the start and whenever a node says that
a key has moved (`runtime.shards`).
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

import hiredis

from runtime.link import Link, pack
from runtime.redis_url import Login, Server, read_redis_url
from runtime.slots import SlotMap, read_slots
from schemas.errors import ConfigError, RedisUnavailableError
from schemas.settings import Settings

CONNECT_TIMEOUT_S: Final = 5.0
ASK_TIMEOUT_S: Final = 1.0
"""For a Sentinel, or a cluster's node, that is asked where others are: there are more of them."""
RECONNECT_FIRST_S: Final = 0.05
"""A restart of Redis takes less than a second: the first tries are quick."""
RECONNECT_MAX_S: Final = 2.0
"""A node is back within two seconds of Redis; hundreds of nodes that ask twice a second do no harm."""

WRONG_SERVER: Final = ("READONLY", "MASTERDOWN", "LOADING", "NOAUTH")
"""Replies after which another connection may reach a server that takes writes, as after a failover."""
MOVED_AWAY: Final = ("MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN")
"""Replies of a cluster whose keys are, or are about to be, somewhere else."""

_CREDENTIAL_ERRORS: Final = (
    "WRONGPASS",
    "NOAUTH",
    "NOPERM",
    "ERR invalid password",
    "ERR Client sent AUTH",
    "ERR AUTH",
)


class Store:
    """Redis, as the settings name it.

    Raises ConfigError for a URL that cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = read_redis_url(settings.redis_url)
        self._seeds = self._url.servers

    @property
    def address(self) -> str:
        """Where Redis is, without the credentials: for logs and status pages."""
        return self._url.address

    @property
    def is_cluster(self) -> bool:
        return self._url.kind == "cluster"

    async def find(self) -> SlotMap | None:
        """The cluster's servers by their slots; None where there is no cluster, and one server has everything.

        Raises RedisUnavailableError where no node answers, ConfigError where it is no cluster.
        """
        if not self.is_cluster:
            return None
        why = ""
        for server in self._seeds:
            try:
                slots = await self._ask_slots(server)
            except RedisUnavailableError as error:
                why = str(error)
                continue
            # Ever longer lists of ever other nodes, and those of the URL at the end, should all the others be gone.
            self._seeds = tuple(dict.fromkeys([*slots.primaries, *self._url.servers]))
            return slots
        raise RedisUnavailableError(f"no node of the cluster answers: {why}")

    async def connect(
        self, name: str, on_lost: Callable[[], None] | None = None, *, server: Server | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> Link:  # fmt: skip
        """Open a connection, logged in, on the right database, named `name` in CLIENT LIST.

        `server`: the cluster's node to connect to. `on_lost` is called once, when the connection ends for whatever
        reason. Raises RedisUnavailableError where Redis cannot be reached, ConfigError where it refuses the
        credentials or the database.
        """
        if self._url.kind == "sentinel":
            return await self._connect_primary(name, on_lost)
        return await self._connect(server or self._url.servers[0], name, on_lost, timeout_s=timeout_s)

    # Inside

    async def _connect_primary(self, name: str, on_lost: Callable[[], None] | None) -> Link:
        why = "no Sentinel was asked"
        for sentinel in self._url.servers:
            try:
                primary = await self._ask_sentinel(sentinel)
                link = await self._connect(primary, name, on_lost)
            except RedisUnavailableError as error:
                why = str(error)
                continue
            if await _is_primary(link):
                return link
            link.close()
            why = f"{primary} is no primary (yet)"
        raise RedisUnavailableError(f"the primary of {self._url.service} cannot be found: {why}")

    async def _ask_sentinel(self, sentinel: Server) -> Server:
        link = await self._connect(sentinel, "", None, self._url.sentinel_login, timeout_s=ASK_TIMEOUT_S)
        try:
            command = pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.service)
            (reply,) = await link.send(command, 1, timeout_s=ASK_TIMEOUT_S)
        finally:
            link.close()
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"the Sentinel at {sentinel} refuses: {reply}")
        if not reply:
            raise RedisUnavailableError(f"the Sentinel at {sentinel} knows no {self._url.service}")
        return Server(reply[0].decode(), int(reply[1]))

    async def _ask_slots(self, server: Server) -> SlotMap:
        link = await self._connect(server, "", None, timeout_s=ASK_TIMEOUT_S)
        try:
            (reply,) = await link.send(pack("CLUSTER", "SLOTS"), 1, timeout_s=ASK_TIMEOUT_S)
        finally:
            link.close()
        if isinstance(reply, hiredis.ReplyError):
            if "cluster support disabled" in str(reply):
                raise ConfigError(f"MASKLINE_REDIS_URL: {server} is no cluster: use redis:// for one server")
            raise RedisUnavailableError(f"the node at {server} refuses: {reply}")
        try:
            slots = read_slots(reply, server)
        except ValueError as error:
            raise RedisUnavailableError(f"the node at {server} answers {error}") from None
        if not slots.primaries:
            raise RedisUnavailableError(f"the node at {server} knows of no slots yet")
        return slots

    async def _connect(
        self, server: Server, name: str, on_lost: Callable[[], None] | None, login: Login | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> Link:  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._open(server, on_lost)
                try:
                    if login is None:
                        await self._log_in(link, server, name, self._url.login, self._url.database)
                    else:
                        await self._log_in(link, server, name, login, 0)
                except BaseException:
                    link.close()
                    raise
        except (OSError, TimeoutError, ssl.SSLError, UnicodeError) as error:  # of a host that is no name
            raise RedisUnavailableError(
                f"Redis at {server} cannot be reached: {_reason(error, timeout_s)}"
            ) from None
        return link

    async def _open(self, server: Server, on_lost: Callable[[], None] | None) -> Link:
        loop = asyncio.get_running_loop()
        if not server.port:
            _, link = await loop.create_unix_connection(lambda: Link(on_lost), server.host)
            return link
        transport, link = await loop.create_connection(
            lambda: Link(on_lost), server.host, server.port, ssl=self._url.tls
        )
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link

    async def _log_in(self, link: Link, server: Server, name: str, login: Login, database: int) -> None:
        commands: list[bytes] = []
        if login.password:
            user = (login.username,) if login.username else ()
            commands.append(pack("AUTH", *user, login.password))
        if database:
            commands.append(pack("SELECT", database))
        if name:
            commands.append(pack("CLIENT", "SETNAME", name))
        if not commands:
            return
        for reply in await link.send(b"".join(commands), len(commands), timeout_s=CONNECT_TIMEOUT_S):
            if not isinstance(reply, hiredis.ReplyError):
                continue
            text = str(reply)
            if text.startswith(_CREDENTIAL_ERRORS) or "DB index" in text:
                raise ConfigError(f"MASKLINE_REDIS_URL: Redis at {server} refuses the log-in: {text}")
            raise RedisUnavailableError(f"Redis at {server} refuses: {text}")


def reconnect_delay_s(attempt: int, chance: float) -> float:
    """The wait before try number `attempt` (0, 1, …): doubled each time up to a bound, half of it by chance (0 … 1)."""
    # The exponent is bounded as well: 2.0**1100 is no float any more.
    ceiling = min(RECONNECT_MAX_S, RECONNECT_FIRST_S * 2.0 ** min(attempt, 16))
    return ceiling * (0.5 + 0.5 * chance)


async def _is_primary(link: Link) -> bool:
    """Sentinels may still name a server that has just been demoted, or name one that has not been promoted yet."""
    try:
        (role,) = await link.send(pack("ROLE"), 1, timeout_s=ASK_TIMEOUT_S)
    except BaseException as error:
        link.close()
        if isinstance(error, RedisUnavailableError):
            return False
        raise
    return isinstance(role, list) and role[0] == b"master"


def _reason(error: BaseException, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return getattr(error, "strerror", None) or type(error).__name__
