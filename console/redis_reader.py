"""Connects an operator's command to a running namespace in Redis; one connection a server.

If MASKLINE_REDIS_URL is not set, the server is that of a `maskline dev` in this directory. If Redis cannot be reached,
RedisUnavailableError ends the command with one line and exit code 1. SIGINT (Ctrl-C) and SIGTERM cancel the command,
which then ends with EXIT_KILLED.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import hiredis
import msgspec

from maskline.console.account import STATE_DIRECTORY
from maskline.console.embedded_server import EmbeddedServer
from maskline.runtime.process.run import EXIT_KILLED, run
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.pipeline import Argument, PipelinedConnection, pack
from maskline.runtime.redis.slots import SlotMap
from maskline.runtime.redis.url import Server
from maskline.schemas.errors import ConfigError, RedisRefusesError, RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.privacy import set_token_key
from maskline.schemas.settings import Settings, load_settings
from maskline.worker.commands.scripts import load_scripts

COMMANDS_MAX: Final = 1_000
"""Commands in one round trip. With 16,384 partitions the server would otherwise build a reply of megabytes."""


CLIENT_NAME: Final = "maskline-console"
"""What CLIENT LIST shows."""


class Query(NamedTuple):
    """A command for the server that has `key`: one of a cluster's primaries; None is any server."""

    key: str | None
    packed: bytes


def query_for(key: str, *arguments: Argument) -> Query:
    """The query that sends the command `arguments` to the server that has `key`."""
    return Query(key, pack(*arguments))


def entry_order(entry_id: str) -> tuple[int, int]:
    """The ID of a stream entry as numbers, which sort as the entries do."""
    milliseconds, _, counter = entry_id.partition("-")
    return int(milliseconds), int(counter)


class ReaderConnections:
    """A connection to every server that has partitions: one server, or a cluster's primaries."""

    def __init__(
        self, connections: Mapping[Server | None, PipelinedConnection], slots: SlotMap | None
    ) -> None:
        self._connections = connections
        self._slots = slots

    def of_key(self, key: str | None) -> PipelinedConnection:
        """The connection to the server of `key`. Raises RedisUnavailableError if no node of the cluster serves its
        slot.
        """
        if self._slots is None or key is None:
            return next(iter(self._connections.values()))
        server = self._slots.server_of(key)
        if server is None:
            raise RedisUnavailableError("the cluster has slots that no node serves")
        return self._connections[server]

    def __iter__(self) -> Iterator[PipelinedConnection]:
        """One connection to each server."""
        return iter(self._connections.values())

    @property
    def addresses(self) -> list[str]:
        """The addresses that the servers' names resolved to, as ip:port."""
        return [connection.address for connection in self._connections.values()]

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()


async def connect_all(endpoint: RedisEndpoint, name: str) -> ReaderConnections:
    """Connect to every server; `name` is what CLIENT LIST shows. Raises as `RedisEndpoint.connect` does."""
    slots = await endpoint.find_slots()
    connections: dict[Server | None, PipelinedConnection] = {}
    try:
        for server in (None,) if slots is None else slots.primaries:
            connections[server] = await endpoint.connect(name, server=server)
    except BaseException:
        ReaderConnections(connections, slots).close()
        raise
    return ReaderConnections(connections, slots)


class RedisReader:
    """Sends queries, and knows the namespace's settings, keys and number of partitions."""

    def __init__(
        self, endpoint: RedisEndpoint, servers: ReaderConnections, settings: Settings, partitions: int
    ) -> None:
        self._endpoint = endpoint
        self._servers = servers
        self.settings = settings
        self.keys = Keys(settings.namespace, settings.group)
        self.partitions = partitions
        """As kept in Redis; as set, if Redis does not keep them yet."""
        self.address = endpoint.address
        self.connected_to = servers.addresses

    async def reconnect(self) -> None:
        """Close all connections and open new ones, to the servers that have the partitions by then.

        Raises RedisUnavailableError, after which another call may succeed.
        """
        self._servers.close()
        self._servers = await connect_all(self._endpoint, CLIENT_NAME)

    def close(self) -> None:
        """Close all connections."""
        self._servers.close()

    def one_of_each_server(self, keys: Iterable[str]) -> list[str]:
        """One of these keys for each server that has any of them: for a command to each of these servers."""
        return list({self._servers.of_key(key): key for key in keys}.values())

    async def load_scripts(self) -> None:
        """Load the workers' scripts into every server, for queries that run one. Raises RedisUnavailableError."""
        for connection in self._servers:
            await load_scripts(connection)

    async def send(self, queries: Sequence[Query]) -> list[Any]:
        """The replies, in the order of the queries; an error reply is a hiredis.ReplyError in its place."""
        replies: list[Any] = []
        for start in range(0, len(queries), COMMANDS_MAX):
            by_connection: dict[PipelinedConnection, list[int]] = {}
            part = queries[start : start + COMMANDS_MAX]
            for place, query in enumerate(part):
                by_connection.setdefault(self._servers.of_key(query.key), []).append(place)
            answers: list[Any] = [None] * len(part)
            for connection, places in by_connection.items():
                packed = b"".join(part[place].packed for place in places)
                for place, reply in zip(places, await connection.send(packed, len(places)), strict=True):
                    answers[place] = reply
            replies += answers
        return replies


def run_with_reader(command: Callable[[RedisReader], Coroutine[Any, Any, int]]) -> int:
    """Connect as the settings say, run `command`, and return its exit code. Raises ConfigError."""
    settings = with_embedded_server(load_settings())

    async def connect_and_run() -> int:
        reader = await open_reader(settings)
        try:
            return await command(reader)
        finally:
            reader.close()

    return run(lambda stop: _run_until(stop, connect_and_run()))


async def open_reader(settings: Settings) -> RedisReader:
    """Connect as the settings say. Raises RedisUnavailableError, and ConfigError where Redis refuses the log-in."""
    endpoint = RedisEndpoint(settings)
    try:
        servers = await connect_all(endpoint, CLIENT_NAME)
    except RedisRefusesError as error:
        raise ConfigError(str(error)) from None  # a command does not wait until that is mended
    try:
        return RedisReader(endpoint, servers, settings, await _read_layout(servers, settings))
    except BaseException:
        servers.close()
        raise


async def _run_until(stop: asyncio.Event, command: Coroutine[Any, Any, int]) -> int:
    """The command's exit code. Once `stop` is set, cancel the command and return EXIT_KILLED."""
    work = asyncio.create_task(command)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not work.done():
        work.cancel()
        await asyncio.wait((work,))
    return EXIT_KILLED if work.cancelled() else work.result()


def with_embedded_server(settings: Settings) -> Settings:
    """The settings, with the server of a `maskline dev` in this directory if none is set. Raises ConfigError."""
    if settings.redis_url:
        return settings
    url = EmbeddedServer(STATE_DIRECTORY / "valkey").running_url
    if url is None:
        raise ConfigError("MASKLINE_REDIS_URL is not set, and no maskline dev runs in this directory")
    return msgspec.structs.replace(settings, redis_url=url)


async def _read_layout(servers: ReaderConnections, settings: Settings) -> int:
    """The number of partitions. Takes the key of number tokens over as well, so that tokens are those of the logs."""
    key = Keys(settings.namespace).layout
    (reply,) = await servers.of_key(key).send(pack("HMGET", key, "partitions", "token_key"), 1)
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"Redis does not say how it is laid out: {reply}")
    partitions, token_key = reply
    if token_key is not None:
        set_token_key(token_key)
    return int(partitions) if partitions is not None else settings.partitions
