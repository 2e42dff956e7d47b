"""The Lua scripts of `lua/`, one typed function each: what they are given and what they answer stands in their heads.

Commands are packed for a PipelinedConnection; several of them travel in one round trip.
"""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import hiredis

from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys
from maskline.worker.commands.commit import Commit
from maskline.worker.commands.marks import MARKS_TTL_S, Mark, encode_mark
from maskline.worker.commands.packing import pack_arguments, pack_keys, pack_states, packed_command

CONSUMER: Final = "maskline"
"""The one consumer of every group: who owns a partition is said by the lease, not by the consumer's name."""


MARKS_MAX: Final = 1_000
"""Marks written by one call: Lua's unpack takes some thousand values."""


def _read(name: str) -> bytes:
    return Path(__file__).with_name("lua").joinpath(f"{name}.lua").read_bytes()


_SOURCES: Final = {
    name: _read(name) for name in ("acquire", "renew", "release", "heartbeat", "commit", "mark", "trim")
}
_SHA: Final = {
    name: hashlib.sha1(source, usedforsecurity=False).hexdigest() for name, source in _SOURCES.items()
}


async def load_scripts(connection: PipelinedConnection) -> None:
    """Make the scripts known to the server; once for every connection, since a restarted server forgets them."""
    replies = await connection.send(
        b"".join(pack("SCRIPT", "LOAD", source) for source in _SOURCES.values()), len(_SOURCES)
    )
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"Redis refuses to load a script: {reply}")


class AcquiredLease(NamedTuple):
    """A lease just taken, and where its group stands."""

    token: int
    cursor: str
    entries_read: int
    """-1 where the server does not know."""
    pending: int
    clean: bool
    """The last tenure ended well: its owner gave the lease back, or lives and has it again."""
    last_id: str
    """The last entry that the stream was given."""
    reset: bool
    """The group's cursor stood beyond the stream's last entry, and was set back to the beginning."""
    marks: list[bytes]
    """As `worker.poison.tracker.read_marks` takes them."""


def lease_value(token: int, worker: str) -> str:
    return f"{token} {worker}"


def acquire(keys: Keys, partition: int, worker: str, ttl_ms: int, *, token_over: int = 0) -> bytes:
    """`token_over`: the greatest token that this worker has had for the partition; the new one is greater."""
    return pack(
        "EVALSHA", _SHA["acquire"], 4,
        keys.lease(partition), keys.fence(partition), keys.callbacks(partition), keys.marks(partition),
        worker, ttl_ms, keys.group, token_over,
    )  # fmt: skip


def read_acquired(reply: Any) -> AcquiredLease | None:
    """None if somebody else holds the lease. Raises RedisUnavailableError for an error reply."""
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"a lease could not be taken: {reply}")
    if reply == 0:
        return None
    token, cursor, entries_read, pending, clean, last_id, reset, marks = reply
    return AcquiredLease(
        int(token), cursor.decode(), int(entries_read), int(pending), clean == 1, last_id.decode(), reset == 1,
        marks,
    )  # fmt: skip


def renew(keys: Keys, partition: int, value: str, ttl_ms: int) -> bytes:
    return pack("EVALSHA", _SHA["renew"], 2, keys.lease(partition), keys.fence(partition), value, ttl_ms)


def release(keys: Keys, partition: int, value: str) -> bytes:
    return pack("EVALSHA", _SHA["release"], 2, keys.lease(partition), keys.fence(partition), value)


def heartbeat(keys: Keys, worker: str, ttl_ms: int) -> bytes:
    return pack("EVALSHA", _SHA["heartbeat"], 1, keys.workers, worker, ttl_ms)


def read_heartbeat(reply: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """The live workers, and in how many ms the next of the others lapses; None where it was refused."""
    if not isinstance(reply, list):
        return None, None
    live, next_lapse_ms = reply
    return tuple(worker.decode() for worker in live), None if next_lapse_ms < 0 else int(next_lapse_ms)


COMMITTED: Final = 1
FENCED: Final = 0
DIVERGED: Final = 2
"""Replies of a commit; see lua/commit.lua."""


def commit(keys: Keys, partition: int, value: str, what: Commit, *, look_up: bool = True) -> bytes:
    """`look_up`: have the server look whether the entry at the cursor is there, where the cursor has moved."""
    callbacks, dead, lease, fence, marks, session = keys.of(partition)
    states, closed = pack_states(what.states.values())
    heads = (
        "EVALSHA", _SHA["commit"], 5 + len(what.states), lease, fence, callbacks, dead, marks,
    )  # fmt: skip
    cursor = "" if not what.moved else f"?{what.cursor}" if look_up else what.cursor
    arguments = value, what.number, keys.group, cursor, what.entries_read, what.life_s
    rest: list[int | str | bytes] = []
    if what.waiting or what.done or what.dead or what.unmarked or closed:
        rest = [
            CONSUMER, len(what.waiting), len(what.done), len(what.dead), len(what.unmarked), len(closed),
            *what.waiting, *what.done, *what.dead, *what.unmarked,
        ]  # fmt: skip
        for place in closed:
            rest += place + 1, what.closed_life_s  # the script counts from 1
    return packed_command(
        len(heads) + len(arguments) + 2 * len(what.states) + len(rest),
        pack_arguments(*heads), pack_keys(session, what.states), pack_arguments(*arguments), states,
        pack_arguments(*rest),
    )  # fmt: skip


def get_states(keys: Keys, partition: int, sessions: Collection[str]) -> bytes:
    """No script: the states of sessions, each None where there is none."""
    return packed_command(
        1 + len(sessions), pack_arguments("MGET"), pack_keys(keys.of(partition).session, sessions)
    )


def get_history(keys: Keys, partition: int, entry_id: str) -> bytes:
    """No script, two commands: token, owner and commit of the fence, and the entry under an ID."""
    return pack("HMGET", keys.fence(partition), "token", "owner", "commit") + pack(
        "XRANGE", keys.callbacks(partition), entry_id, entry_id
    )


def mark(keys: Keys, partition: int, value: str, marks: Iterable[tuple[str, Mark]]) -> bytes:
    """`marks`: by field, MARKS_MAX of them at most."""
    pairs = [argument for field, mark in marks for argument in (field, encode_mark(mark))]
    return pack(
        "EVALSHA", _SHA["mark"], 3, keys.lease(partition), keys.fence(partition), keys.marks(partition),
        value, MARKS_TTL_S, *pairs,
    )  # fmt: skip


class RetainingGroup(NamedTuple):
    """A group that keeps callbacks which retention would take."""

    group: str
    waiting: int
    """Callbacks that it has not handled; -1 where the server does not know."""
    outstayed_ms: int
    """For how long the oldest of what it keeps should have been gone."""


class TrimReply(NamedTuple):
    trimmed: int
    left: int
    oldest_ms: int
    """The time of the oldest entry left; -1 if there is none."""
    held: tuple[RetainingGroup, ...]


def trim(keys: Keys, partition: int, *, retention_ms: int, keep: int, at_most: int) -> bytes:
    return pack("EVALSHA", _SHA["trim"], 1, keys.callbacks(partition), retention_ms, keep, at_most)


def read_trimmed(reply: Any) -> TrimReply:
    """Raises RedisUnavailableError for an error reply."""
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"a stream could not be trimmed: {reply}")
    trimmed, left, oldest_ms, *held = reply
    groups = (
        RetainingGroup(name.decode("utf-8", "replace"), int(waiting), int(ms)) for name, waiting, ms in held
    )
    return TrimReply(int(trimmed), int(left), int(oldest_ms), tuple(groups))
