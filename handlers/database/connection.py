"""Connects to PostgreSQL: to the first host that takes writes, with sessions that are durable and never hang.

Every wait has a bound: of the client's, in case that the server does not answer, and a shorter one of the server's, so
that it gives up first and the connection stays good.
"""

import asyncio
import contextlib
import re
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple, Protocol

import asyncpg
import structlog

from maskline.handlers.database.verdicts import Verdict, verdict_of
from maskline.schemas.errors import ConfigError, MasklineError
from maskline.schemas.privacy import redact

CONNECT_TIMEOUT_S: Final = 3.0
"""For each host: one that is down must not use up the time of the others."""
STATEMENT_TIMEOUT_S: Final = 8.0
LOCK_TIMEOUT_S: Final = 4.0
"""Waiting for a lock is what is most likely to take long; its error names it."""
WRITE_TIMEOUT_S: Final = 10.0
"""The client's, for a statement. Two of them, and a new connection, fit into a handler's `timeout_ms`."""
CLOSE_TIMEOUT_S: Final = 1.0
UNREADABLE_URL: Final = (
    "MASKLINE_POSTGRES_URL cannot be read: a port is a number, and in its user and password, write "
    "/ as %2F, ? as %3F, # as %23, @ as %40, [ as %5B, % as %25"
)
VERSION_MIN: Final = 140_000
"""PostgreSQL 14: older ones are no longer maintained."""


class Connection(Protocol):
    """What is used of `asyncpg.Connection`, which has no types."""

    async def execute(self, query: str, *args: Any) -> str: ...  # noqa: D102
    async def fetch(self, query: str, *args: Any) -> list[Any]: ...  # noqa: D102
    async def fetchrow(self, query: str, *args: Any) -> Any: ...  # noqa: D102
    async def fetchval(self, query: str, *args: Any) -> Any: ...  # noqa: D102
    def transaction(self) -> AbstractAsyncContextManager[Any]: ...  # noqa: D102
    def is_closed(self) -> bool: ...  # noqa: D102
    async def close(self, *, timeout: float) -> None: ...  # noqa: ASYNC109, D102
    def terminate(self) -> None: ...  # noqa: D102


_SESSION_SETTINGS: Final = "SET statement_timeout = '{:g}s'; SET lock_timeout = '{:g}s'; SET jit = off"
"""`jit`: compiling a statement costs more than it takes."""

_log = structlog.get_logger("maskline.handlers")


class StoreUnavailableError(MasklineError):
    """PostgreSQL did not store a row, for a reason that may pass. The handler that raises it is tried again."""


class ServerFacts(NamedTuple):
    """What a connection was told by its server."""

    version: int
    synchronous_commit: str
    fsync: str
    """`off`: a crash of the server's machine may lose what it confirmed."""


def urls_by_host(url: str) -> list[str]:
    """A URL of several hosts as one URL each, in their order. asyncpg would try all of them within one timeout."""
    scheme, separator, rest = url.partition("://")
    netloc = re.split("[/?#]", rest, maxsplit=1)[0]  # not by urllib: it takes one host
    login, at, hosts = netloc.rpartition("@")
    return [f"{scheme}{separator}{login}{at}{host}{rest[len(netloc) :]}" for host in hosts.split(",")]


async def connect(url: str) -> Connection:
    """A connection to the first host that takes writes. Raises asyncpg's errors, OSError or TimeoutError."""
    last_error: Exception | None = None
    for one in urls_by_host(url):
        try:
            return await _connect_host(one)
        except (asyncpg.PostgresError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
            last_error = error
    assert last_error is not None  # noqa: S101  a URL has at least one host, if only an empty one
    raise last_error


async def close(connection: Connection) -> None:
    """Close a connection: in CLOSE_TIMEOUT_S the server is told so, else without its knowledge."""
    with contextlib.suppress(Exception):
        await connection.close(timeout=CLOSE_TIMEOUT_S)


async def _connect_host(url: str) -> Connection:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        connection = await _open(url)
        try:
            await connection.execute(_SESSION_SETTINGS.format(STATEMENT_TIMEOUT_S, LOCK_TIMEOUT_S))
            await _make_durable(connection)
        except BaseException:
            connection.terminate()
            raise
    return connection


async def _open(url: str) -> Connection:
    options = {} if "target_session_attrs" in url else {"target_session_attrs": "read-write"}
    # No other settings here: PgBouncer refuses a connection that begins with one that it does not know.
    settings = {"application_name": "maskline", "timezone": "UTC"}
    try:
        connection: Connection = await asyncpg.connect(
            url, timeout=CONNECT_TIMEOUT_S, server_settings=settings, **options
        )
    except ValueError as error:
        if isinstance(error, (OSError, asyncpg.ClientConfigurationError)):
            raise  # a certificate, an option: they say which
        # Without its text, which repeats a part of the URL: of a password with a '/', what is before it.
        raise ConfigError(UNREADABLE_URL) from None
    return connection


async def _make_durable(connection: Connection) -> None:
    """A commit that returns is on the disk, whatever the role's or the database's defaults say."""
    facts = ServerFacts(
        *await connection.fetchrow(
            "SELECT current_setting('server_version_num')::int, current_setting('synchronous_commit'), "
            "current_setting('fsync')"
        )
    )
    if facts.version < VERSION_MIN:
        raise ConfigError(
            f"PostgreSQL {facts.version // 10_000} is too old: it must be {VERSION_MIN // 10_000} or later"
        )
    if facts.synchronous_commit == "off":
        await connection.execute("SET synchronous_commit = on")
    if facts.fsync == "off":
        _log.warning("postgres not durable", reason="fsync is off")


def error_text(error: BaseException) -> str:
    """An error in a few words, without values of rows, which PostgreSQL's messages may repeat."""
    if isinstance(error, asyncpg.PostgresError):
        text = type(error).__name__.removesuffix("Error")
        # Messages about rights, log-ins and names hold no values of rows, and say what is to be done.
        if verdict_of(error.sqlstate) in (Verdict.SETUP, Verdict.AWAY):
            text = redact(str(error.args[0]) if error.args else text)
        return f"{text} (SQLSTATE {error.sqlstate})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return redact(f"{type(error).__name__}: {error}".removesuffix(": ").partition("\n")[0])


def sqlstate_of(error: BaseException) -> tuple[str | None, str]:
    """The SQLSTATE and the message of an error; None where it did not come from PostgreSQL."""
    if not isinstance(error, asyncpg.PostgresError):
        return None, ""
    return error.sqlstate, str(error.args[0]) if error.args else ""


def verdict_on(error: BaseException) -> Verdict:
    """What is to be done about an error."""
    return verdict_of(*sqlstate_of(error))
