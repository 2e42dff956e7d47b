"""How an operator's command asks Redis: one connection a server, nothing written.

If none is set, the server of a `maskline dev` in this directory.

Where Redis cannot be reached, RedisUnavailableError ends the command with its one line and exit code 1.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import hiredis
import msgspec

from maskline.console.account import STATE_DIRECTORY
from maskline.console.embedded import EmbeddedServer
from maskline.runtime.process.run import run
from maskline.runtime.redis.connect import RedisEndpoint
from maskline.runtime.redis.pipeline import Argument, PipelinedConnection, pack
from maskline.runtime.redis.slots import SlotMap
from maskline.runtime.redis.url import Server
from maskline.schemas.errors import ConfigError, RedisRefusesError, RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.privacy import set_token_key
from maskline.schemas.settings import Settings, load_settings

COMMANDS_MAX: Final = 1_000
"""Commands in one trip: with 16,384 partitions the server is not to build one reply of megabytes."""


class Question(NamedTuple):
    """A command, and the key it is about: in a cluster the key says which server to ask; None asks any."""

    key: str | None
    packed: bytes


def about(key: str, *arguments: Argument) -> Question:
    """The command `arguments`, for the server that has `key`."""
    return Question(key, pack(*arguments))


class Servers:
    """Connections to every server that has partitions: one, or a cluster's primaries."""

    def __init__(
        self, connections: Mapping[Server | None, PipelinedConnection], slots: SlotMap | None
    ) -> None:
        self._connections = connections
        self._slots = slots

    def of_key(self, key: str | None) -> PipelinedConnection:
        """Raises RedisUnavailableError where the cluster has nobody for the key."""
        if self._slots is None or key is None:
            return next(iter(self._connections.values()))
        server = self._slots.server_of(key)
        if server is None:
            raise RedisUnavailableError("the cluster has slots that no node serves")
        return self._connections[server]

    @property
    def addresses(self) -> list[str]:
        """The addresses that the names of the servers have led to, as ip:port."""
        return [connection.address for connection in self._connections.values()]

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


async def connect(endpoint: RedisEndpoint, name: str) -> Servers:
    slots = await endpoint.find_slots()
    connections: dict[Server | None, PipelinedConnection] = {}
    try:
        for server in (None,) if slots is None else slots.primaries:
            connections[server] = await endpoint.connect(name, server=server)
    except BaseException:
        Servers(connections, slots).close()
        raise
    return Servers(connections, slots)


class Inquiry:
    """Connections and what stands in the layout."""

    def __init__(self, servers: Servers, settings: Settings, partitions: int, address: str) -> None:
        self._servers = servers
        self.settings = settings
        self.keys = Keys(settings.namespace, settings.group)
        self.partitions = partitions
        """As laid out in Redis; as set, where nothing is laid out yet."""
        self.address = address
        self.connected_to = servers.addresses

    async def send(self, questions: Sequence[Question]) -> list[Any]:
        """The replies in order, an error reply as hiredis.ReplyError in its place."""
        replies: list[Any] = []
        for start in range(0, len(questions), COMMANDS_MAX):
            by_connection: dict[PipelinedConnection, list[int]] = {}
            part = questions[start : start + COMMANDS_MAX]
            for place, question in enumerate(part):
                by_connection.setdefault(self._servers.of_key(question.key), []).append(place)
            answers: list[Any] = [None] * len(part)
            for connection, places in by_connection.items():
                packed = b"".join(part[place].packed for place in places)
                for place, reply in zip(places, await connection.send(packed, len(places)), strict=True):
                    answers[place] = reply
            replies += answers
        return replies


def ask(question: Callable[[Inquiry], Awaitable[int]]) -> int:
    """Open a connection as the settings say and have the question's exit code."""
    settings = with_server(load_settings())

    async def body(_stop: asyncio.Event) -> int:
        endpoint = RedisEndpoint(settings)
        try:
            servers = await connect(endpoint, "maskline-console")
        except RedisRefusesError as error:
            raise ConfigError(str(error)) from None  # for a command, which does not wait, a setting is wrong
        try:
            partitions = await _read_layout(servers, settings)
            return await question(Inquiry(servers, settings, partitions, endpoint.address))
        finally:
            servers.close()

    return run(body)


def with_server(settings: Settings) -> Settings:
    """With the server of a `maskline dev` in this directory, where no other is set."""
    if settings.redis_url:
        return settings
    url = EmbeddedServer(STATE_DIRECTORY / "valkey").running_url
    if url is None:
        raise ConfigError("MASKLINE_REDIS_URL is not set, and no maskline dev runs in this directory")
    return msgspec.structs.replace(settings, redis_url=url)


async def _read_layout(servers: Servers, settings: Settings) -> int:
    """The partitions; the key of the number tokens is taken over, so that they equal those in the logs."""
    key = Keys(settings.namespace).layout
    (reply,) = await servers.of_key(key).send(pack("HMGET", key, "partitions", "token_key"), 1)
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"Redis does not say how it is laid out: {reply}")
    partitions, token_key = reply
    if token_key is not None:
        set_token_key(token_key)
    return int(partitions) if partitions is not None else settings.partitions
