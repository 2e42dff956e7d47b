"""MASKLINE_DURABILITY: the command that confirms a batch as taken, and the check whether the server can do that.

| level | last command of a batch | taken if |
| --- | --- | --- |
| `memory` | none | each entry's own reply says so |
| `fsync` | `WAITAOF 1 0 timeout` | also, the server has fsynced its append-only file |
| `replicas:N` | `WAIT N timeout` | also, N replicas have it |
"""

from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

import hiredis

from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.runtime.redis.server_checks import parse_info, version_of
from maskline.schemas.errors import RedisRefusesError, RedisUnavailableError
from maskline.schemas.keys import probe_stream
from maskline.schemas.settings import Settings

SHARE_OF_TIMEOUT: Final = 4
"""A confirmation may take a quarter of MASKLINE_PUBLISH_TIMEOUT_MS. A connection confirms one batch after the other: a
callback may have to wait for the batch before its own, and for a page of the spool, before its own is confirmed."""

FSYNC_TIMEOUT_MS: Final = 1500 * SHARE_OF_TIMEOUT
"""The least MASKLINE_PUBLISH_TIMEOUT_MS for `appendfsync everysec`, whose confirmation takes a second and some."""

PAGE_CONFIRM_MS: Final = 3000
"""How long the confirmation of a spool's page may take: up to two seconds with `appendfsync everysec`. Well within what
a connection may be silent for."""

EARLY_MS: Final = 900
"""With `appendfsync everysec` a thousand milliseconds lie between two fsyncs; no honest server confirms two writes that
followed each other within less."""

PROBE_KEYS_MAX: Final = 64
"""Keys tried until one lies on this server of a cluster: enough for one that has a tenth of the slots."""

VALKEY_EARLY_SINCE: Final = 8
"""The major version since which Valkey confirms before the fsync with `appendfsync everysec`."""

RECHECK_S: Final = 15.0
"""How often the check is repeated, as often as servers are inspected: a CONFIG SET appendfsync shows within that."""

_CANNOT: Final = "MASKLINE_DURABILITY=fsync: Redis at this address"


class Durability:
    """A level of MASKLINE_DURABILITY, with the commands that confirm a batch.

    `level`: `memory`, `fsync` or `replicas:N`. `publish_timeout_ms`: how long a request waits for Redis.
    """

    __slots__ = ("command", "in_time_s", "page_command", "replicas")

    def __init__(self, level: str, publish_timeout_ms: int) -> None:
        wait_ms = max(1, publish_timeout_ms // SHARE_OF_TIMEOUT)  # 0 would be for ever
        self.replicas = int(level.partition(":")[2] or 0)
        """How many replicas must have a callback."""
        self.command = b""
        """The packed command that ends a batch; empty where none does."""
        self.page_command = b""
        """The same for a page of the spool, for which no request waits."""
        self.in_time_s = wait_ms / 1000 if level != "memory" else publish_timeout_ms / 1000
        """How long replies may take to be of use to a request, in seconds."""
        if self.replicas:
            self.command, self.page_command = (
                pack("WAIT", self.replicas, wait) for wait in (wait_ms, max(wait_ms, PAGE_CONFIRM_MS))
            )
        elif level == "fsync":
            self.command, self.page_command = (
                pack("WAITAOF", 1, 0, wait) for wait in (wait_ms, max(wait_ms, PAGE_CONFIRM_MS))
            )

    def reached(self, reply: Any) -> bool:
        """Whether this reply to `command` confirms the batch: an integer for WAIT, a list for WAITAOF."""
        if self.replicas:
            return reply.__class__ is int and reply >= self.replicas
        return reply.__class__ is list and reply[0] >= 1


async def check_durability(
    connection: PipelinedConnection, settings: Settings, verified: set[tuple[bytes, bytes]]
) -> str:
    """Check that the server does what MASKLINE_DURABILITY asks.

    `verified`: (run_id, appendfsync) of servers that earlier checks have tried out; this check adds to it. Returns why
    the durability is in doubt, or missing for now; "" if it is not. Raises RedisRefusesError if the operator must act
    (Redis before 7.2, no append-only file, no permission, a confirmation before the fsync), RedisUnavailableError where
    the server refuses for now.
    """
    durability = Durability(settings.durability, settings.publish_timeout_ms)
    if durability.replicas:
        return await _check_replicas(connection, durability.replicas)
    if durability.command:
        policy = await _check_waitaof(connection)
        return await _check_policy(connection, settings, policy, verified)
    return ""


async def _check_waitaof(connection: PipelinedConnection) -> bytes:
    """Try WAITAOF: nothing else is as sure a test, or needs as few rights. Returns `appendfsync`, b"" if not known."""
    reply, policy = await connection.send(pack("WAITAOF", 1, 0, 1) + pack("CONFIG", "GET", "appendfsync"), 2)
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
    return policy[1] if isinstance(policy, list) and len(policy) == 2 else b""


async def _check_policy(
    connection: PipelinedConnection, settings: Settings, policy: bytes, verified: set[tuple[bytes, bytes]]
) -> str:
    if policy == b"always":
        return ""
    if policy == b"no":
        raise RedisRefusesError(
            f"{_CANNOT} never fsyncs its append-only file (appendfsync no): set appendfsync always"
        )
    (reply,) = await connection.send(pack("INFO", "server"), 1)
    info = parse_info(reply)
    server = info.get("run_id", "").encode(), policy
    early: bool | None = False
    if server not in verified:
        early = await _confirms_early(connection, settings.namespace)
        if early is False and server[0]:
            verified.clear()  # only the server as it is now matters
            verified.add(server)
    if policy:
        if early or (early is None and known_early(info)):
            raise RedisRefusesError(
                f"{_CANNOT} confirms before the fsync (appendfsync {policy.decode()}, {version_of(info)}): "
                "set appendfsync always"
            )
    elif early is not False and known_early(info):
        return (
            f"whether Redis fsyncs before it confirms is not known: {version_of(info)} does with appendfsync always "
            "alone; allow this user CONFIG|GET"
        )
    if policy and settings.publish_timeout_ms < FSYNC_TIMEOUT_MS:
        return (
            f"appendfsync {policy.decode()} takes longer than Redis is waited for: callbacks go through the spool; "
            f"set appendfsync always in Redis, or MASKLINE_PUBLISH_TIMEOUT_MS to {FSYNC_TIMEOUT_MS} or more"
        )
    return ""


async def _confirms_early(connection: PipelinedConnection, namespace: str) -> bool | None:
    """Whether two writes, one after the other, are confirmed within less than the second between two fsyncs.

    The second write is made when the first is confirmed, so it needs an fsync of its own; with `appendfsync always` it
    has one. None where that cannot be tried.
    """
    end = monotonic() + EARLY_MS / 1000
    for _ in range(2):
        left_ms = int((end - monotonic()) * 1000)
        if left_ms <= 0:
            return False
        confirmation = await _write_and_wait(connection, namespace, left_ms)
        if confirmation is None:
            return None
        if not confirmation:
            return False
    return monotonic() < end


async def _write_and_wait(connection: PipelinedConnection, namespace: str, wait_ms: int) -> bool | None:
    """Whether a write to this server was confirmed in time. None where none could be made."""
    for number in range(PROBE_KEYS_MAX):
        write = pack("XADD", probe_stream(namespace, number), "MAXLEN", 0, "*", "c", "")
        written, confirmation = await connection.send(write + pack("WAITAOF", 1, 0, wait_ms), 2)
        if isinstance(written, bytes):
            return isinstance(confirmation, list) and confirmation[0] >= 1
        # Moved: the key is another server's, the next may be this one's.
        if not str(written).startswith("MOVED"):
            return None
    return None


def known_early(info: Mapping[str, str]) -> bool:
    """Whether a server with these fields of INFO confirms before the fsync with `appendfsync everysec`.

    Redis 7.4 introduced that (redis/redis#12622), 8.0 fixed it (#13793), and Valkey has had it since 8.0.
    """
    valkey, redis = info.get("valkey_version", ""), info.get("redis_version", "")
    if valkey:
        return int(valkey.partition(".")[0]) >= VALKEY_EARLY_SINCE
    return redis.startswith("7.4.")


async def _check_replicas(connection: PipelinedConnection, needed: int) -> str:
    (reply,) = await connection.send(pack("INFO", "replication"), 1)
    # Where INFO is not permitted, the first WAIT will show it.
    connected = parse_info(reply).get("connected_slaves")
    if connected is not None and int(connected) < needed:
        return (
            f"{connected} of {needed} replicas are connected: callbacks go to the spool until they are there"
        )
    return ""
