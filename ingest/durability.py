"""When a callback counts as taken: what MASKLINE_DURABILITY adds to a batch, and whether the server can do it.

| level | last command of a batch | taken if |
| --- | --- | --- |
| `memory` | none | each entry's own reply says so |
| `fsync` | `WAITAOF 1 0 timeout` | besides, the server has fsynced its append-only file |
| `replicas:N` | `WAIT N timeout` | besides, N replicas have it |
"""

from typing import Any, Final

import hiredis

from runtime.link import Link, pack
from runtime.logs import get_logger
from schemas.errors import RedisRefusesError, RedisUnavailableError
from schemas.settings import Settings

SHARE_OF_TIMEOUT: Final = 4
"""A confirmation waits a quarter of MASKLINE_PUBLISH_TIMEOUT_MS at most. A connection confirms one batch after the
other, and three are under way on it: the last one must still be answered before the connection counts as dead."""

FSYNC_TIMEOUT_MS: Final = 1500 * SHARE_OF_TIMEOUT
"""With `appendfsync everysec` a confirmation takes a second and some."""

_CANNOT: Final = "MASKLINE_DURABILITY=fsync: Redis at this address"

_log = get_logger("maskline.ingest")


class Durability:
    """One level, ready for use."""

    __slots__ = ("command", "replicas")

    def __init__(self, level: str, publish_timeout_ms: int) -> None:
        wait_ms = max(1, publish_timeout_ms // SHARE_OF_TIMEOUT)  # 0 would be for ever
        self.replicas = int(level.partition(":")[2] or 0)
        """How many must have a callback."""
        self.command = b""
        """The packed command that ends a batch; empty where none does."""
        if self.replicas:
            self.command = pack("WAIT", self.replicas, wait_ms)
        elif level == "fsync":
            self.command = pack("WAITAOF", 1, 0, wait_ms)

    def reached(self, reply: Any) -> bool:
        """Whether the reply to `command` says that the batch is safe."""
        if self.replicas:
            return reply.__class__ is int and reply >= self.replicas
        return reply.__class__ is list and reply[0] >= 1


async def check_durability(link: Link, settings: Settings) -> None:
    """Make sure that the server can do what MASKLINE_DURABILITY asks.

    Raises RedisRefusesError where somebody must act (Redis before 7.2, no append-only file, not permitted) and
    RedisUnavailableError where it refuses for now. Replicas that are missing may come: they are worth a warning.
    """
    durability = Durability(settings.durability, settings.publish_timeout_ms)
    if durability.replicas:
        await _check_replicas(link, durability.replicas)
    elif durability.command:
        await _check_fsync(link, settings)


async def _check_fsync(link: Link, settings: Settings) -> None:
    """Try it: no other command tells as surely, and needs as few rights."""
    reply, policy = await link.send(pack("WAITAOF", 1, 0, 1) + pack("CONFIG", "GET", "appendfsync"), 2)
    if isinstance(reply, hiredis.ReplyError):
        text = str(reply)
        if "unknown command" in text:
            raise RedisRefusesError(
                f"{_CANNOT} has no WAITAOF: it takes Redis 7.2 or Valkey 7.2, or another level"
            )
        if "appendonly is disabled" in text:
            raise RedisRefusesError(
                f"{_CANNOT} keeps no append-only file: set appendonly yes, or another level"
            )
        if text.startswith("NOPERM"):
            raise RedisRefusesError(f"{_CANNOT} does not permit WAITAOF to this user")
        raise RedisUnavailableError(f"Redis refuses WAITAOF: {text}")
    # Where CONFIG is not permitted the reply is an error, and nothing is known of the policy.
    lazy = isinstance(policy, list) and policy[1:] not in ([], [b"always"])
    if lazy and settings.publish_timeout_ms < FSYNC_TIMEOUT_MS:
        _log.warning(
            "MASKLINE_DURABILITY=fsync with this appendfsync takes longer than Redis is waited for: callbacks will go "
            "through the spool; set appendfsync always in Redis, or a longer MASKLINE_PUBLISH_TIMEOUT_MS",
            appendfsync=policy[1],
            publish_timeout_ms=settings.publish_timeout_ms,
            enough_ms=FSYNC_TIMEOUT_MS,
        )


async def _check_replicas(link: Link, needed: int) -> None:
    (reply,) = await link.send(pack("INFO", "replication"), 1)
    if not isinstance(reply, bytes):  # not permitted: the first WAIT will tell
        return
    for line in reply.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"connected_slaves" and int(value) < needed:
            _log.warning(
                "fewer replicas than MASKLINE_DURABILITY asks for: callbacks go to the spool until they are there",
                needed=needed,
                connected=int(value),
            )
