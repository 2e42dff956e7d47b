"""The Lua scripts of `lua/` as typed functions. The head of each script lists its KEYS, its ARGV and its reply.

A function named like a script returns one packed command, for `PipelinedConnection.send`: several of them travel in one
round trip. A function `read_…` reads that script's reply.
"""

from collections.abc import Collection, Iterable
from typing import Any, Final, NamedTuple

import hiredis

from maskline.runtime.redis.pipeline import PipelinedConnection, pack
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.keys import Keys, decode_handler, encode_handler
from maskline.worker.commands.commit import Commit
from maskline.worker.commands.lua_sources import SHA, SOURCES
from maskline.worker.commands.marks import MARKS_TTL_S, Mark, encode_mark
from maskline.worker.commands.packing import pack_arguments, pack_keys, pack_states, packed_command
from maskline.worker.commands.retry_ops import pack_retry_ops

CONSUMER: Final = "maskline"
"""The only consumer of every group: the lease says who owns a partition, not the consumer's name."""

MARKS_MAX: Final = 1_000
"""Marks written by one call: Lua's unpack takes some thousand values."""


async def load_scripts(connection: PipelinedConnection) -> None:
    """Load all scripts into the server: once for every connection, since a restarted server forgets them.

    Raises RedisUnavailableError where the server refuses one.
    """
    replies = await connection.send(
        b"".join(pack("SCRIPT", "LOAD", source) for source in SOURCES.values()), len(SOURCES)
    )
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError):
            raise RedisUnavailableError(f"Redis refuses to load a script: {reply}")


class AcquiredLease(NamedTuple):
    """The reply of `acquire`: a lease just taken, and where its group stands."""

    token: int
    cursor: str
    entries_read: int
    """-1 where the server does not know."""
    pending: int
    clean: bool
    """The last tenure ended well: its owner gave the lease back, or is alive and has acquired it again."""
    last_id: str
    """The last entry that the stream was given."""
    reset: bool
    """The group's cursor stood beyond the stream's last entry, and was set back to the beginning."""
    marks: list[bytes]
    """As `worker.poison.tracker.read_marks` takes them."""


def lease_value(token: int, worker: str) -> str:
    """The value of a lease's key while `worker` holds it with this fencing token."""
    return f"{token} {worker}"


def acquire(keys: Keys, partition: int, worker: str, ttl_ms: int, *, token_over: int = 0) -> bytes:
    """Take the partition's lease, if nobody holds it.

    `token_over`: the greatest fencing token that this worker has had for the partition; the new one is greater.
    """
    return pack(
        "EVALSHA",
        SHA["acquire"],
        4,
        keys.lease(partition),
        keys.fence(partition),
        keys.callbacks(partition),
        keys.marks(partition),
        worker,
        ttl_ms,
        keys.group,
        token_over,
    )


def read_acquired(reply: Any) -> AcquiredLease | None:
    """Read the reply of `acquire`: None if another worker holds it. Raises RedisUnavailableError for an error."""
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"a lease could not be taken: {reply}")
    if reply == 0:
        return None
    token, cursor, entries_read, pending, clean, last_id, reset, marks = reply
    return AcquiredLease(
        int(token),
        cursor.decode(),
        int(entries_read),
        int(pending),
        clean == 1,
        last_id.decode(),
        reset == 1,
        marks,
    )


def renew(keys: Keys, partition: int, value: str, ttl_ms: int) -> bytes:
    """Hold a lease for `ttl_ms` more; `value` is its `lease_value`. Reply: 1 if it is still held, else 0."""
    return pack("EVALSHA", SHA["renew"], 2, keys.lease(partition), keys.fence(partition), value, ttl_ms)


def release(keys: Keys, partition: int, value: str) -> bytes:
    """Give a lease back, and record that its tenure ended well. Reply: 1, or 0 if it was not held any more."""
    return pack("EVALSHA", SHA["release"], 2, keys.lease(partition), keys.fence(partition), value)


def heartbeat(keys: Keys, worker: str, ttl_ms: int) -> bytes:
    """Send the worker's heartbeat, and ask for the live workers."""
    return pack("EVALSHA", SHA["heartbeat"], 1, keys.workers, worker, ttl_ms)


def read_heartbeat(reply: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """Read the reply of `heartbeat`: the live workers' IDs, and the ms until the next heartbeat of another one lapses.

    Both are None if Redis refused the command, the second if no other worker lives.
    """
    if not isinstance(reply, list):
        return None, None
    live, next_lapse_ms = reply
    return tuple(worker.decode() for worker in live), None if next_lapse_ms < 0 else int(next_lapse_ms)


COMMITTED: Final = 1
FENCED: Final = 0
DIVERGED: Final = 2
"""Replies of `commit`: done; the lease is another worker's; the server lacks data that the commit builds on."""


def commit(keys: Keys, partition: int, value: str, what: Commit, *, check_cursor: bool = True) -> bytes:
    """Write what was done to a partition, if the lease is still held; `value` is its `lease_value`.

    `check_cursor`: where the cursor has moved, have the server check that the entry at it is there.
    """
    at = keys.of(partition)
    states, closed = pack_states(what.states.values())
    ops = pack_retry_ops(what.retry_ops, at)
    cursor = "" if not what.moved else f"?{what.cursor}" if check_cursor else what.cursor
    arguments = value, what.number, keys.group, cursor, what.entries_read, what.life_s
    rest_keys: list[str] = []
    rest: list[int | str | bytes] = []
    lives = _other_lives(what, closed) if closed or what.lasting else {}
    if what.waiting or what.done or what.dead or what.unmarked or lives or what.retry_ops:
        counts = len(what.waiting), len(what.done), len(what.dead), len(what.unmarked), len(lives)
        rest = [CONSUMER, *counts, *what.waiting, *what.done, *what.dead, *what.unmarked]
        for place, life_s in lives.items():
            rest += place + 1, life_s  # the script counts from 1
        rest += ops.arguments
        rest_keys = [at.dead, at.marks, *ops.keys]
    keys_count = 3 + len(what.states) + len(rest_keys)
    heads = "EVALSHA", SHA["commit"], keys_count, at.lease, at.fence, at.callbacks
    return packed_command(
        len(heads) + len(arguments) + 2 * len(what.states) + len(rest_keys) + len(rest),
        pack_arguments(*heads),
        pack_keys(at.session, what.states),
        pack_arguments(*rest_keys),
        pack_arguments(*arguments),
        states,
        pack_arguments(*rest),
    )


def _other_lives(what: Commit, closed: Iterable[int]) -> dict[int, int]:
    """How long those states live that do not live `life_s`, by their place in `states`; 0 for ever."""
    lives = dict.fromkeys(closed, what.closed_life_s)
    if what.lasting:
        lives |= {place: 0 for place, session in enumerate(what.states) if session in what.lasting}
    return lives


def get_states(keys: Keys, partition: int, sessions: Collection[str]) -> bytes:
    """The encoded states of sessions, each None where there is none: an MGET, no script. `sessions`: SessionUUIDs."""
    return packed_command(
        1 + len(sessions), pack_arguments("MGET"), pack_keys(keys.of(partition).session, sessions)
    )


def get_history(keys: Keys, partition: int, entry_id: str) -> bytes:
    """Two commands, no script: HMGET of the fence's token, owner and commit, and XRANGE of the entry under an ID."""
    return pack("HMGET", keys.fence(partition), "token", "owner", "commit") + pack(
        "XRANGE", keys.callbacks(partition), entry_id, entry_id
    )


class TakenQueue(NamedTuple):
    """A retry queue that was taken to be run."""

    session: str
    """The SessionUUID."""
    takes: int
    """How many workers have taken it, this one included, since an operation of a commit last ended a run of it."""
    state: bytes | None
    """The session's encoded state; None if there is none."""
    items: list[bytes]
    """Its first events, at least one."""
    waiting: int
    """All events in it."""


class Taken(NamedTuple):
    """The reply of `take_due`."""

    queues: list[TakenQueue]
    next_due_ms: int | None
    """In how many ms the next queue that was not taken is due, 0 if it is now; None if there is none."""


def take_due(
    keys: Keys,
    partition: int,
    value: str,
    handler: str,
    *,
    count: int,
    items: int,
    commits: tuple[int, int],
    excluded: Collection[str] = (),
) -> bytes:
    """Take the `count` queues of a handler that are due longest, with their first `items` events, if the lease is held.

    `value`: its `lease_value`. `handler`: its name as it is. `commits`: the numbers that the last commit in Redis may
    have (`EntryLedger.commit_numbers`); with any other the reply is DIVERGED. `excluded`: the SessionUUIDs of those to
    leave out, as the caller has taken them, or is about to commit something of them.
    """
    at, name = keys.of(partition), encode_handler(handler)
    heads = "EVALSHA", SHA["take"], 7, at.lease, at.fence, at.retry_due + name, at.retry_since + name
    return pack(
        *heads,
        *(at.retry_taken, f"{at.retry}{name}:", at.session),
        *(value, name, count, items),
        *commits,
        *excluded,
    )


def read_taken(reply: Any) -> Taken | None:
    """Read the reply of `take_due`: None if the lease is lost. Raises RedisUnavailableError for an error."""
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"retry queues could not be taken: {reply}")
    if reply == 0:
        return None
    next_due_ms, *queues = reply
    taken = [
        TakenQueue(session.decode(), int(takes), state, items, int(waiting))
        for session, takes, state, waiting, items in queues
    ]
    return Taken(taken, _ms_or_none(next_due_ms))


class HandlerBacklog(NamedTuple):
    """What waits for one handler in one partition."""

    handler: str
    """Its name as it is."""
    waiting: int
    """Events in its retry queues."""
    parked: int
    """Those of them that wait behind a dead letter."""
    next_due_ms: int | None
    """In how many ms the first of its queues is due, 0 if one is now; None if all are parked."""
    oldest_ms: int | None
    """How long the oldest of its queues has been there: so long the handler has been behind in that session."""
    parked_oldest_ms: int | None
    """How long ago the first of the parked queues was parked; None if none is."""
    queues: int
    """Sessions with a retry queue; parked ones may be empty."""
    due_queues: int
    """Those of them that are due now."""
    parked_queues: int


def retry_index(keys: Keys, partition: int) -> bytes:
    """Ask what waits for each handler in a partition. It needs no lease."""
    at = keys.of(partition)
    return pack(
        "EVALSHA", SHA["retry_index"], 4, at.retry_counts, at.retry_due, at.retry_parked, at.retry_since
    )


def read_retry_index(reply: Any) -> list[HandlerBacklog]:
    """Read the reply of `retry_index`. Raises RedisUnavailableError for an error."""
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"the retry queues could not be counted: {reply}")
    return [
        HandlerBacklog(
            decode_handler(name.decode()),
            int(waiting),
            int(parked),
            _ms_or_none(due_ms),
            _ms_or_none(oldest_ms),
            _ms_or_none(parked_ms),
            *map(int, queues),
        )
        for name, waiting, parked, due_ms, oldest_ms, parked_ms, *queues in reply
    ]


def _ms_or_none(reply: Any) -> int | None:
    return None if reply < 0 else int(reply)


def mark(keys: Keys, partition: int, value: str, marks: Iterable[tuple[str, Mark]]) -> bytes:
    """Write marks, if the lease is still held. `marks`: by field, MARKS_MAX of them at most. Reply: 1, else 0."""
    pairs = [argument for field, mark in marks for argument in (field, encode_mark(mark))]
    return pack(
        "EVALSHA",
        SHA["mark"],
        3,
        keys.lease(partition),
        keys.fence(partition),
        keys.marks(partition),
        value,
        MARKS_TTL_S,
        *pairs,
    )


class RetainingGroup(NamedTuple):
    """A consumer group that has not handled some callbacks that retention would trim."""

    group: str
    waiting: int
    """Callbacks that it has not handled; -1 where the server does not know."""
    outstayed_ms: int
    """By how many ms the oldest of them has outstayed retention."""


class TrimReply(NamedTuple):
    """The reply of `trim`."""

    trimmed: int
    """Entries that were trimmed."""
    left: int
    """Entries that are still in the stream."""
    oldest_ms: int
    """The time of the oldest entry left; -1 if there is none."""
    held: tuple[RetainingGroup, ...]
    """The groups that hold retention back."""


def trim(keys: Keys, partition: int, *, retention_ms: int, keep: int, at_most: int) -> bytes:
    """Trim a stream to `retention_ms` and `keep` entries, as far as all groups have handled it, by `at_most`."""
    return pack("EVALSHA", SHA["trim"], 1, keys.callbacks(partition), retention_ms, keep, at_most)


def read_trimmed(reply: Any) -> TrimReply:
    """Read the reply of `trim`. Raises RedisUnavailableError for an error."""
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"a stream could not be trimmed: {reply}")
    trimmed, left, oldest_ms, *held = reply
    groups = (
        RetainingGroup(name.decode("utf-8", "replace"), int(waiting), int(ms)) for name, waiting, ms in held
    )
    return TrimReply(int(trimmed), int(left), int(oldest_ms), tuple(groups))


def get_jobs(keys: Keys, partition: int) -> bytes:
    """The progress of all jobs in a partition: an HGETALL, no script."""
    return pack("HGETALL", keys.partition_jobs(partition))


def read_jobs(reply: Any) -> dict[bytes, bytes]:
    """Read the reply of `get_jobs`: encoded records by job id. Raises RedisUnavailableError for an error."""
    if isinstance(reply, hiredis.ReplyError):
        raise RedisUnavailableError(f"the jobs of a partition could not be read: {reply}")
    return dict(zip(reply[::2], reply[1::2], strict=True))


def take_runs(keys: Keys, job_id: str, microseconds_each: float, runs: int) -> bytes:
    """Take runs out of a job's rate, of which each takes up so many microseconds.

    Reply: 0 if they may begin, else the microseconds after which to ask again.
    """
    return pack("EVALSHA", SHA["take_runs"], 1, keys.job_rate(job_id), f"{microseconds_each:.3f}", runs)


def dead_seen(keys: Keys, partition: int, *, age_ms: int, known: str = "", new: str = "") -> bytes:
    """Read how far the handlers of dead letters have come, and put `new` in its place if it is `known`.

    `age_ms`: for how long this worker has had such handlers; what is older does not concern the first of them. Reply:
    the value as bytes, `new` if it was put there; its parts stand in the script's head.
    """
    return pack("EVALSHA", SHA["dead_seen"], 1, keys.dead_seen(partition), age_ms, known, new)
