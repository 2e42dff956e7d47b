"""The layout of a namespace, on which all nodes must agree: the first node ever started writes it to Redis."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

import hiredis

from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.runtime.redis.url import Server
from maskline.schemas.errors import ConfigError, RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.schemas.privacy import set_token_key
from maskline.schemas.settings import Settings

LAYOUT_VERSION: Final = 1
TOKEN_KEY_BYTES: Final = 32
AGREE_TIMEOUT_S: Final = 1.0
"""How long a connection waits for the one to the cluster's node that has the layout, before it is opened anew: at the
start all of them are opened at once."""


async def check_namespace(connection: PipelinedConnection, settings: Settings) -> None:
    """Compare the settings with the layout in Redis, or write it there if this is the first node ever started.

    Takes over the key of the number tokens, so that all nodes' logs have the same tokens. Raises ConfigError if
    MASKLINE_PARTITIONS differs from the layout, as a session would then be in two partitions, without order;
    RedisUnavailableError if Redis refuses, or replies with something else than a layout.
    """
    key = Keys(settings.namespace).layout
    replies = await connection.send(
        pack("HSETNX", key, "partitions", settings.partitions)
        + pack("HSETNX", key, "version", LAYOUT_VERSION)
        + pack("HSETNX", key, "token_key", secrets.token_bytes(TOKEN_KEY_BYTES))
        + pack("HMGET", key, "partitions", "version", "token_key"),
        4,
    )
    there = isinstance(replies[-1], list) and None not in replies[-1]
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError) and not (there and str(reply).startswith("OOM")):
            # Out of memory does no harm where the layout exists: nothing had to be written.
            raise RedisUnavailableError(f"Redis refuses to keep the layout: {reply}")
    try:
        partitions, version, token_key = int(replies[-1][0]), int(replies[-1][1]), bytes(replies[-1][2])
        if len(token_key) != TOKEN_KEY_BYTES:
            raise ValueError(len(token_key))  # noqa: TRY301  one way out for all that is damaged
    except (ValueError, TypeError, LookupError) as error:
        # Not what Redis replies to this. The caller tries again: the right server may still come to this address.
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


class NamespaceCheck:
    """Holds connections up until the layout was checked once; checks again with every connection to its server.

    `server_of(key)`: the cluster's node that has a key, None while that is not known.
    """

    def __init__(self, settings: Settings, server_of: Callable[[str], Server | None] | None = None) -> None:
        self._settings = settings
        self._key = Keys(settings.namespace).layout
        self._server_of = server_of
        self._agreed = asyncio.Event()

    async def check(self, connection: PipelinedConnection, server: Server | None) -> None:
        """Check the layout by a new connection to `server`, or wait until another connection has done so.

        Raises ConfigError if the layout contradicts the settings, RedisUnavailableError if it cannot be read yet.
        """
        if server is None or self._server_of is None or self._server_of(self._key) == server:
            await check_namespace(connection, self._settings)
            self._agreed.set()
            return
        try:
            async with asyncio.timeout(AGREE_TIMEOUT_S):
                await self._agreed.wait()
        except TimeoutError:
            raise RedisUnavailableError("the node that keeps the layout has not answered yet") from None
