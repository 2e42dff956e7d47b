"""How an operator's command asks Redis: one connection, nothing written, the server of `maskline dev` if none is set.

Where Redis cannot be reached, RedisUnavailableError ends the command with its one line and exit code 1.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import hiredis
import msgspec

from console.account import STATE_DIRECTORY
from console.embedded import EmbeddedServer
from runtime.link import Link, pack
from runtime.process import run
from runtime.store import Store
from schemas.errors import ConfigError, RedisUnavailableError
from schemas.keys import Keys
from schemas.privacy import set_token_key
from schemas.settings import Settings, load_settings

COMMANDS_MAX: Final = 1_000
"""Commands in one trip: with 16,384 partitions the server is not to build one reply of megabytes."""


class Inquiry:
    """A connection and what stands in the layout."""

    def __init__(self, link: Link, settings: Settings, partitions: int, address: str) -> None:
        self.link = link
        self.settings = settings
        self.keys = Keys(settings.namespace, settings.group)
        self.partitions = partitions
        """As laid out in Redis; as set, where nothing is laid out yet."""
        self.address = address

    async def send(self, commands: Sequence[bytes]) -> list[Any]:
        """The replies to packed commands, an error reply as hiredis.ReplyError in its place."""
        replies: list[Any] = []
        for start in range(0, len(commands), COMMANDS_MAX):
            part = commands[start : start + COMMANDS_MAX]
            replies += await self.link.send(b"".join(part), len(part))
        return replies


def ask(question: Callable[[Inquiry], Awaitable[int]]) -> int:
    """Open a connection as the settings say and have the question's exit code."""
    settings = with_server(load_settings())

    async def body(_stop: asyncio.Event) -> int:
        store = Store(settings)
        link = await store.connect("maskline-console")
        try:
            partitions = await _read_layout(link, settings)
            return await question(Inquiry(link, settings, partitions, store.address))
        finally:
            link.close()

    return run(body)


def with_server(settings: Settings) -> Settings:
    """With the server of a `maskline dev` in this directory, where no other is set."""
    if settings.redis_url:
        return settings
    url = EmbeddedServer(STATE_DIRECTORY / "valkey").running_url
    if url is None:
        raise ConfigError("MASKLINE_REDIS_URL is not set, and no maskline dev runs in this directory")
    return msgspec.structs.replace(settings, redis_url=url)


async def _read_layout(link: Link, settings: Settings) -> int:
    """The partitions; the key of the number tokens is taken over, so that they equal those in the logs."""
    (reply,) = await link.send(pack("HMGET", Keys(settings.namespace).layout, "partitions", "token_key"), 1)
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"Redis does not say how it is laid out: {reply}")
    partitions, token_key = reply
    if token_key is not None:
        set_token_key(token_key)
    return int(partitions) if partitions is not None else settings.partitions
