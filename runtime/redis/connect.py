"""Opens connections to the servers that MASKLINE_REDIS_URL leads to.

One server needs no search. Sentinels are asked for the primary at every connect (`runtime.redis.sentinels`), and that
server whether it is one: so a failover costs a reconnect. A cluster's nodes are asked which has which keys, at the
start and whenever a node says that a key has moved (`runtime.redis.cluster`).
"""

from collections.abc import Callable
from typing import Final, Literal

import hiredis

from maskline.runtime.logs import get_logger
from maskline.runtime.redis.addresses import ServerAddress
from maskline.runtime.redis.dial import ConnectionOptions, Dialer, refused
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.runtime.redis.sentinels import SENTINELS_TIMEOUT_S, find_primary
from maskline.runtime.redis.slots import SlotMap, read_slots
from maskline.runtime.redis.url import RedisUrl, Server, read_redis_url
from maskline.schemas.errors import ConfigError, RedisRefusesError, RedisUnavailableError
from maskline.schemas.settings import Settings
from maskline.schemas.settings.sources import FileText

CONNECT_TIMEOUT_S: Final = 5.0
ASK_TIMEOUT_S: Final = 1.0
"""For asking one of a cluster's nodes for the slot map: there are others to ask."""

WRONG_SERVER: Final = ("READONLY", "MASTERDOWN", "LOADING", "NOAUTH", "UNBLOCKED")
"""Replies after which another connection may reach a server that takes writes, as after a failover."""
MOVED_AWAY: Final = ("MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN")
"""Replies of a cluster whose keys are, or are about to be, somewhere else."""

_log = get_logger("maskline.redis")


class RedisEndpoint:
    """Redis as the settings name it: one server, a cluster, or the primary behind Sentinels.

    Raises ConfigError for a URL that cannot be read. MASKLINE_REDIS_URL_FILE is read again when a log-in is refused.
    """

    def __init__(self, settings: Settings) -> None:
        self._text = settings.redis_url
        self._file_error = ""
        self._dialer = Dialer()
        self._url = read_redis_url(settings.redis_url)
        self._seeds = self._url.servers

    @property
    def address(self) -> str:
        """Where Redis is, without the credentials: for logs and status pages."""
        return self._url.address

    @property
    def is_cluster(self) -> bool:
        """Whether the URL names a cluster."""
        return self._url.kind == "cluster"

    async def find_slots(self) -> SlotMap | None:
        """Ask the cluster for its slot map; None where there is no cluster, as one server has everything.

        Raises RedisUnavailableError if no node answers.
        """
        if not self.is_cluster:
            return None
        used = self._url
        try:
            return await self._find()
        except RedisRefusesError:
            if not self._read_again(used):
                raise
        return await self._find()

    async def _find(self) -> SlotMap:
        why: RedisUnavailableError | None = None
        for server in self._seeds:
            try:
                slots = await self._ask_slots(server)
            except RedisUnavailableError as error:
                if not isinstance(why, RedisRefusesError):  # a refusal says more than a node that is away
                    why = error
                continue
            # The nodes of the present map first, then those of the URL, in case all of the map are gone one day.
            self._seeds = tuple(dict.fromkeys([*slots.primaries, *self._url.servers]))
            return slots
        raise type(why or RedisUnavailableError())(f"no node of the cluster answers: {why}")

    async def connect(
        self,
        name: str,
        on_lost: Callable[[], None] | None = None,
        *,
        server: Server | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
        beside: PipelinedConnection | None = None,
    ) -> PipelinedConnection:
        """Open a connection, logged in, on the right database, named `name` in CLIENT LIST.

        `server`: the cluster's node to connect to. `beside`: a connection whose server this one must lead to as well,
        where a name has several addresses or Sentinels change their mind. `on_lost` is called once, when the connection
        ends for any reason.

        Raises RedisUnavailableError where Redis cannot be reached, RedisRefusesError where it refuses the log-in or the
        database: not before MASKLINE_REDIS_URL_FILE was read again, as a password may have changed.
        """
        if beside is not None and beside.server_address is not None:
            return await self._dial(
                beside.server_address.server,
                name,
                on_lost,
                timeout_s=timeout_s,
                server_address=beside.server_address,
            )
        used = self._url
        try:
            return await self._connect_once(name, on_lost, server, timeout_s)
        except RedisRefusesError:
            if not self._read_again(used):
                raise
        return await self._connect_once(name, on_lost, server, timeout_s)

    # Inside

    def _read_again(self, used: RedisUrl) -> bool:
        """Read MASKLINE_REDIS_URL_FILE again. Returns whether its URL differs from the one that was `used`."""
        if self._url is not used:
            return True
        if not isinstance(self._text, FileText):
            return False
        try:
            text = self._text.read_again()
            url = read_redis_url(text)
        except ConfigError as error:
            return self._cannot_use_file(str(error))
        if url.kind != used.kind:
            return self._cannot_use_file("it names servers of another kind: restart this process")
        self._file_error = ""
        if text == self._text:
            return False
        _log.info("redis url file reloaded", redis=url.address)
        self._text, self._url, self._seeds = text, url, url.servers
        return True

    def _cannot_use_file(self, why: str) -> Literal[False]:
        if why != self._file_error:
            _log.error("redis url file rejected", reason=why)
        self._file_error = why
        return False

    async def _connect_once(
        self, name: str, on_lost: Callable[[], None] | None, server: Server | None, timeout_s: float
    ) -> PipelinedConnection:
        if self._url.kind == "sentinel":
            return await self._connect_primary(name, on_lost)
        return await self._dial(server or self._url.servers[0], name, on_lost, timeout_s=timeout_s)

    async def _connect_primary(self, name: str, on_lost: Callable[[], None] | None) -> PipelinedConnection:
        url = self._url

        async def connect(sentinel: Server) -> PipelinedConnection:
            options = ConnectionOptions(url.tls, url.sentinel_login)
            return await self._dialer.dial(sentinel, options, timeout_s=SENTINELS_TIMEOUT_S)

        primary, agreed = await find_primary(url.servers, url.service, connect)
        if not agreed:
            _log.warning("sentinel majority unreachable", primary=str(primary))
        connection = await self._dial(primary, name, on_lost)
        if await _is_primary(connection, with_replica=not agreed):
            return connection
        connection.close()
        raise RedisUnavailableError(
            f"the primary of {url.service} cannot be found: {primary} is no primary (yet)"
            + ("" if agreed else ", or has no replica, and only a minority of the Sentinels can be reached")
        )

    async def _ask_slots(self, server: Server) -> SlotMap:
        connection = await self._dial(server, "", timeout_s=ASK_TIMEOUT_S)
        try:
            (reply,) = await connection.send(pack("CLUSTER", "SLOTS"), 1, timeout_s=ASK_TIMEOUT_S)
        finally:
            connection.close()
        if isinstance(reply, hiredis.ReplyError):
            raise refused(f"the node at {server}", str(reply))
        try:
            slots = read_slots(reply, server)
        except ValueError as error:
            raise RedisUnavailableError(f"the node at {server} answers {error}") from None
        if not slots.primaries:
            raise RedisUnavailableError(f"the node at {server} knows of no slots yet")
        return slots

    async def _dial(
        self,
        server: Server,
        name: str,
        on_lost: Callable[[], None] | None = None,
        *,
        timeout_s: float = CONNECT_TIMEOUT_S,
        server_address: ServerAddress | None = None,
    ) -> PipelinedConnection:
        options = ConnectionOptions(self._url.tls, self._url.login, self._url.database, name)
        return await self._dialer.dial(
            server, options, on_lost, timeout_s=timeout_s, server_address=server_address
        )


async def _is_primary(connection: PipelinedConnection, *, with_replica: bool) -> bool:
    """Ask the server whether it is a primary: Sentinels may name one that was just demoted, or is not promoted yet.

    `with_replica`: it must have a replica as well. Closes the connection if it fails.
    """
    try:
        # As patient as for connecting: the server may be slow.
        (role,) = await connection.send(pack("ROLE"), 1, timeout_s=CONNECT_TIMEOUT_S)
    except BaseException as error:
        connection.close()
        if isinstance(error, RedisUnavailableError):
            return False
        raise
    return isinstance(role, list) and role[0] == b"master" and (bool(role[2]) or not with_replica)
