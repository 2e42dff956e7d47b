"""Opens connections: tries the addresses of a server's name in turn, with TLS and log-in.

Within one connect every address has its share of the time: one that takes the connection and then sends nothing, or
refuses, is given up for the next.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple

import hiredis

from maskline.runtime.redis.addresses import Addresses, ServerAddress
from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.runtime.redis.url import Login, Server
from maskline.schemas.errors import RedisRefusesError, RedisUnavailableError

SHARE_MIN_S: Final = 1.0
"""The least that TLS and log-in may take at one address of several: three round trips of a slow, working network."""

_LOGIN_REFUSED: Final = (
    "WRONGPASS",
    "NOAUTH",
    "NOPERM",
    "ERR invalid password",
    "ERR Client sent AUTH",
    "ERR AUTH",
)


class ConnectionOptions(NamedTuple):
    """How to set a connection up: TLS, log-in, database and name."""

    tls: ssl.SSLContext | None
    login: Login
    database: int = 0
    name: str = ""
    """The connection's name in CLIENT LIST."""


class Dialer:
    """Opens connections for one process, and remembers which addresses failed."""

    def __init__(self) -> None:
        self._addresses = Addresses()

    async def dial(
        self,
        server: Server,
        options: ConnectionOptions,
        on_lost: Callable[[], None] | None = None,
        *,
        timeout_s: float,
        server_address: ServerAddress | None = None,
    ) -> PipelinedConnection:
        """Connect to `server` within `timeout_s` and log in.

        `server_address`: the only address to try. `on_lost`: called once, when the connection ends after its log-in.

        Raises RedisUnavailableError where no address answers in time, RedisRefusesError where one refuses.
        """
        failures = _Failures(server)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                addresses = await self._addresses.of(server) if server_address is None else [server_address]
                while addresses:
                    sock, address = await self._addresses.open(addresses)
                    share_s = max((deadline - loop.time()) / len(addresses), SHARE_MIN_S)
                    try:
                        async with asyncio.timeout(share_s if len(addresses) > 1 else None):
                            return await self._open(sock, address, options, on_lost)
                    except (OSError, TimeoutError, RedisUnavailableError) as error:
                        failures.add(address, error, share_s)
                    self._addresses.failed(address)
                    addresses.remove(address)
        except (OSError, TimeoutError, UnicodeError) as error:  # UnicodeError: of a host that is no name
            failures.add(None, error, timeout_s)
        raise failures.as_error()

    async def _open(
        self,
        sock: socket.socket | None,
        server_address: ServerAddress,
        options: ConnectionOptions,
        on_lost: Callable[[], None] | None,
    ) -> PipelinedConnection:
        logged_in = False

        def lost() -> None:
            self._addresses.failed(server_address)
            if logged_in and on_lost is not None:
                on_lost()

        loop = asyncio.get_running_loop()
        if sock is None:
            _, connection = await loop.create_unix_connection(
                lambda: PipelinedConnection(lost), server_address.server.host
            )
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server_name = server_address.server.host if options.tls is not None else None
            _, connection = await loop.create_connection(
                lambda: PipelinedConnection(lost), sock=sock, ssl=options.tls, server_hostname=server_name
            )
        connection.server_address = server_address
        try:
            await _log_in(connection, server_address, options)
        except BaseException:
            connection.close()
            raise
        if not connection.connected:
            raise RedisUnavailableError(f"Redis at {server_address} closed the connection at once")
        logged_in = True
        return connection


def refused(server_name: str, reply: str) -> RedisUnavailableError:
    """The error for an error reply to a connection's first commands. `server_name`: the server, for the message."""
    if reply.startswith(_LOGIN_REFUSED):
        return RedisRefusesError(f"MASKLINE_REDIS_URL: {server_name} refuses the log-in: {reply}")
    if "DB index" in reply:
        return RedisRefusesError(f"MASKLINE_REDIS_URL: {server_name} refuses the database: {reply}")
    if "cluster support disabled" in reply:
        return RedisRefusesError(
            f"MASKLINE_REDIS_URL: {server_name} is no cluster: use redis:// for one server"
        )
    return RedisUnavailableError(f"{server_name} refuses: {reply}")


async def _log_in(
    connection: PipelinedConnection, server_address: ServerAddress, options: ConnectionOptions
) -> None:
    commands: list[bytes] = []
    username, password = options.login
    if username or password:  # a user without a password is one with `nopass`
        commands.append(pack("AUTH", *filter(None, (username,)), password))
    if options.database:
        commands.append(pack("SELECT", options.database))
    if options.name:
        commands.append(pack("CLIENT", "SETNAME", options.name))
    if not commands:
        return
    for reply in await connection.send(b"".join(commands), len(commands)):
        if isinstance(reply, hiredis.ReplyError):
            raise refused(f"Redis at {server_address}", str(reply))


class _Failures:
    """Why the addresses of one server failed, for one error about all of them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._errors: list[RedisUnavailableError] = []
        self._reasons: list[str] = []

    def add(self, server_address: ServerAddress | None, error: Exception, timeout_s: float) -> None:
        where = "" if server_address is None else f"{server_address.text}: "
        if isinstance(error, RedisUnavailableError):
            self._errors.append(error)
            self._reasons.append(where + str(error))
        else:
            self._reasons.append(where + _reason(error, timeout_s))

    def as_error(self) -> RedisUnavailableError:
        if len(self._reasons) == len(self._errors) == 1:
            return self._errors[0]
        refuses = any(isinstance(error, RedisRefusesError) for error in self._errors)
        kind = RedisRefusesError if refuses else RedisUnavailableError
        if len(self._reasons) == 1:
            self._reasons[0] = self._reasons[0].removeprefix(f"{self._server}: ")
        return kind(f"Redis at {self._server} cannot be reached: {'; '.join(self._reasons)}")


def _reason(error: BaseException, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:.2g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
