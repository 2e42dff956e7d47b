"""The Lua scripts of `lua/`, one typed function each: what they are given and what they answer stands in their heads.

Commands are packed for a Link; several of them travel in one round trip.
"""

import hashlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import hiredis

from runtime.link import Link, pack
from schemas.errors import RedisUnavailableError
from schemas.keys import Keys
from worker.partition import Commit

CONSUMER: Final = "maskline"
"""The one consumer of every group: who owns a partition is said by the lease, not by the consumer's name."""


def _read(name: str) -> bytes:
    return Path(__file__).with_name("lua").joinpath(f"{name}.lua").read_bytes()


_SOURCES: Final = {name: _read(name) for name in ("acquire", "renew", "release", "heartbeat", "commit")}
_SHA: Final = {
    name: hashlib.sha1(source, usedforsecurity=False).hexdigest() for name, source in _SOURCES.items()
}


async def load_scripts(link: Link) -> None:
    """Make the scripts known to the server; once for every connection, since a restarted server forgets them."""
    replies = await link.send(
        b"".join(pack("SCRIPT", "LOAD", source) for source in _SOURCES.values()), len(_SOURCES)
    )
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"Redis refuses to load a script: {reply}")


class Acquired(NamedTuple):
    """A lease just taken, and where its group stands."""

    token: int
    cursor: str
    entries_read: int
    """-1 where the server does not know."""
    pending: int


def lease_value(token: int, worker: str) -> str:
    return f"{token} {worker}"


def acquire(keys: Keys, partition: int, worker: str, ttl_ms: int) -> bytes:
    return pack(
        "EVALSHA", _SHA["acquire"], 3, keys.lease(partition), keys.fence(partition), keys.callbacks(partition),
        worker, ttl_ms, keys.group,
    )  # fmt: skip


def read_acquired(reply: Any) -> Acquired | None:
    """None if somebody else holds the lease. Raises RedisUnavailableError for an error reply."""
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"a lease could not be taken: {reply}")
    if reply == 0:
        return None
    token, cursor, entries_read, pending = reply
    return Acquired(int(token), cursor.decode(), int(entries_read), int(pending))


def renew(keys: Keys, partition: int, value: str, ttl_ms: int) -> bytes:
    return pack("EVALSHA", _SHA["renew"], 1, keys.lease(partition), value, ttl_ms)


def release(keys: Keys, partition: int, value: str) -> bytes:
    return pack("EVALSHA", _SHA["release"], 1, keys.lease(partition), value)


def heartbeat(keys: Keys, worker: str, ttl_ms: int) -> bytes:
    return pack("EVALSHA", _SHA["heartbeat"], 1, keys.workers, worker, ttl_ms)


def commit(keys: Keys, partition: int, value: str, what: Commit) -> bytes:
    sessions = keys.sessions(partition, (uuid for uuid, _, _ in what.states))
    states = [argument for _, ttl_s, state in what.states for argument in (ttl_s, state)]
    return pack(
        "EVALSHA", _SHA["commit"], 4 + len(sessions),
        keys.lease(partition), keys.fence(partition), keys.callbacks(partition), keys.dead(partition), *sessions,
        value, what.number, keys.group, CONSUMER, what.cursor, what.entries_read,
        len(what.waiting), len(what.done), len(what.dead), *what.waiting, *what.done, *what.dead, *states,
    )  # fmt: skip
