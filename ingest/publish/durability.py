"""When a callback counts as taken: what MASKLINE_DURABILITY adds to a batch, and whether the server can do it.

| level | last command of a batch | taken if |
| --- | --- | --- |
| `memory` | none | each entry's own reply says so |
| `fsync` | `WAITAOF 1 0 timeout` | besides, the server has fsynced its append-only file |
| `replicas:N` | `WAIT N timeout` | besides, N replicas have it |
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
"""A confirmation waits a quarter of MASKLINE_PUBLISH_TIMEOUT_MS at most. A connection confirms one batch after the
other: a callback may wait for the batch before its own, and for a page of the spool, before its own is confirmed."""

FSYNC_TIMEOUT_MS: Final = 1500 * SHARE_OF_TIMEOUT
"""With `appendfsync everysec` a confirmation takes a second and some."""

PATIENT_MS: Final = 3000
"""For a page of the spool: with `appendfsync everysec` a confirmation takes up to two seconds. Well within what a
connection may be silent for."""

EARLY_MS: Final = 900
"""With `appendfsync everysec` a thousand milliseconds lie between two fsyncs; no honest server confirms two writes that
followed each other within less."""

PROBE_KEYS_MAX: Final = 64
"""Keys tried until one lies on this server of a cluster: enough for one that has a tenth of the slots."""

VALKEY_EARLY_SINCE: Final = 8

RECHECK_S: Final = 15.0
"""As often as servers are inspected: somebody's CONFIG SET appendfsync shows within that."""

_CANNOT: Final = "MASKLINE_DURABILITY=fsync: Redis at this address"


class Durability:
    """One level, ready for use."""

    __slots__ = ("command", "in_time_s", "patient", "replicas")

    def __init__(self, level: str, publish_timeout_ms: int) -> None:
        wait_ms = max(1, publish_timeout_ms // SHARE_OF_TIMEOUT)  # 0 would be for ever
        self.replicas = int(level.partition(":")[2] or 0)
        """How many must have a callback."""
        self.command = b""
        """The packed command that ends a batch; empty where none does."""
        self.patient = b""
        """The same for whom no request waits."""
        self.in_time_s = wait_ms / 1000 if level != "memory" else publish_timeout_ms / 1000
        """A batch whose replies took longer would have been no use to a request."""
        if self.replicas:
            self.command, self.patient = (
                pack("WAIT", self.replicas, wait) for wait in (wait_ms, max(wait_ms, PATIENT_MS))
            )
        elif level == "fsync":
            self.command, self.patient = (
                pack("WAITAOF", 1, 0, wait) for wait in (wait_ms, max(wait_ms, PATIENT_MS))
            )

    def reached(self, reply: Any) -> bool:
        """Whether the reply to `command` says that the batch is safe."""
        if self.replicas:
            return reply.__class__ is int and reply >= self.replicas
        return reply.__class__ is list and reply[0] >= 1


async def check_durability(
    redis: PipelinedConnection, settings: Settings, honest: set[tuple[bytes, bytes]]
) -> str:
    """Make sure that the server does what MASKLINE_DURABILITY asks.

    `honest`: servers, and how they were set, that earlier checks have tried out. Returns what is in doubt, or missing
    for now, "" if nothing is. Raises RedisRefusesError where somebody must act (Redis before 7.2, no append-only file,
    not permitted, a confirmation that comes before the fsync), RedisUnavailableError where it refuses for now.
    """
    durability = Durability(settings.durability, settings.publish_timeout_ms)
    if durability.replicas:
        return await _check_replicas(redis, durability.replicas)
    if durability.command:
        policy = await _check_waitaof(redis)
        return await _check_policy(redis, settings, policy, honest)
    return ""


async def _check_waitaof(redis: PipelinedConnection) -> bytes:
    """Try it: no other command tells as surely, and needs as few rights. Returns `appendfsync`, b"" if not told."""
    reply, policy = await redis.send(pack("WAITAOF", 1, 0, 1) + pack("CONFIG", "GET", "appendfsync"), 2)
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
    redis: PipelinedConnection, settings: Settings, policy: bytes, honest: set[tuple[bytes, bytes]]
) -> str:
    if policy == b"always":
        return ""
    if policy == b"no":
        raise RedisRefusesError(
            f"{_CANNOT} never fsyncs its append-only file (appendfsync no): set appendfsync always"
        )
    (reply,) = await redis.send(pack("INFO", "server"), 1)
    info = parse_info(reply.decode()) if isinstance(reply, bytes) else {}
    server = info.get("run_id", "").encode(), policy
    early: bool | None = False
    if server not in honest:
        early = await _confirms_early(redis, settings.namespace)
        if early is False and server[0]:
            honest.clear()  # of the server as it is: what others were like is no matter
            honest.add(server)
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


async def _confirms_early(redis: PipelinedConnection, namespace: str) -> bool | None:
    """Whether two writes, one after the other, are confirmed within less than the second that lies between two fsyncs.

    The second write is made when the first is confirmed, so it needs an fsync of its own. With `appendfsync always` it
    has one. None where it cannot be tried.
    """
    end = monotonic() + EARLY_MS / 1000
    for _ in range(2):
        left_ms = int((end - monotonic()) * 1000)
        if left_ms <= 0:
            return False
        confirmation = await _write_and_wait(redis, namespace, left_ms)
        if confirmation is None:
            return None
        if not confirmation:
            return False
    return monotonic() < end


async def _write_and_wait(redis: PipelinedConnection, namespace: str, wait_ms: int) -> bool | None:
    """Whether a write was confirmed in time. None where none can be made."""
    for number in range(PROBE_KEYS_MAX):
        write = pack("XADD", probe_stream(namespace, number), "MAXLEN", 0, "*", "c", "")
        written, confirmation = await redis.send(write + pack("WAITAOF", 1, 0, wait_ms), 2)
        if isinstance(written, bytes):
            return isinstance(confirmation, list) and confirmation[0] >= 1
        if not str(written).startswith("MOVED"):  # a slot of another server: there is one of this one's
            return None
    return None


def known_early(info: Mapping[str, str]) -> bool:
    """Whether a server of this version confirms before the fsync with `appendfsync everysec`.

    Redis 7.4 brought that in (redis/redis#12622), 8.0 mended it (#13793), and Valkey has had it since 8.0.
    """
    valkey, redis = info.get("valkey_version", ""), info.get("redis_version", "")
    if valkey:
        return int(valkey.partition(".")[0]) >= VALKEY_EARLY_SINCE
    return redis.startswith("7.4.")


async def _check_replicas(redis: PipelinedConnection, needed: int) -> str:
    (reply,) = await redis.send(pack("INFO", "replication"), 1)
    # Where INFO is not permitted the first WAIT will tell.
    there = parse_info(reply.decode()).get("connected_slaves") if isinstance(reply, bytes) else None
    if there is not None and int(there) < needed:
        return f"{there} of {needed} replicas are connected: callbacks go to the spool until they are there"
    return ""
