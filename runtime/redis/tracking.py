"""Asks a server to tell a connection when a key changes that it has read: CLIENT TRACKING, of Redis 6 and Valkey.

The message comes once after each read of the key, whoever changes it; in a cluster, from the node that has it. The
server notes the key in the same step as it reads it, so no change is missed between a read and its reply. Messages may
be lost all the same: with the connection, or when a slot moves. They are push messages, which take RESP3.
"""

from collections.abc import Sequence
from typing import Any

import hiredis

from maskline.runtime.redis.pipeline import PipelinedConnection, pack


async def track_reads(connection: PipelinedConnection) -> str:
    """Switch the connection to RESP3, and ask for messages about keys that it reads from now on.

    Returns why the server refuses, empty if it does not. Refused, the connection is as before. Raises
    RedisUnavailableError if it is lost.
    """
    replies = await connection.send(pack("HELLO", 3) + pack("CLIENT", "TRACKING", "ON"), 2)
    refusals = [str(reply) for reply in replies if isinstance(reply, hiredis.ReplyError)]
    if refusals:
        await connection.send(pack("CLIENT", "TRACKING", "OFF") + pack("HELLO", 2), 2)
    return next(iter(refusals), "")


def changed_keys(message: Sequence[Any]) -> list[bytes] | None:
    """The keys that a push message says have changed; None if it says that all have, as after FLUSHALL."""
    if message[0] != b"invalidate":
        return []
    keys: list[bytes] | None = message[1]
    return keys
