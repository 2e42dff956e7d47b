"""The session of a callback as Redis has it before the callback is sent: what decides where it comes in the order.

The callback is then put in order here as the worker does it, by `worker.ordering`, from the state that was committed
and the arrivals that wait. So the command knows whether it is due, held for which numbers and until when, late, or a
duplicate, though no worker says so anywhere. If other callbacks of the session come at the same moment, the worker may
decide otherwise.
"""

from typing import Any, Final, NamedTuple

import hiredis

from maskline.console.jobs.records import checked
from maskline.console.redis_reader import RedisReader, query_for
from maskline.schemas.keys import partition_of
from maskline.schemas.settings import Settings
from maskline.worker.entries.decode import entry_decoder
from maskline.worker.ordering.reorder import Arrival, Duplicate, Order, Policy, Release, SessionOrder
from maskline.worker.ordering.state import NEW_SESSION, SessionState, decode_state

UNFINISHED_MAX: Final = 1_000
"""Entries of the partition's pending list that are looked at, and of those behind the cursor: the first ones of each. A
worker that is further behind puts the callback in order in some time."""


class SessionSnapshot(NamedTuple):
    """A session, and the ends of its partition's streams."""

    session_uuid: str
    partition: int
    stream_end: str
    """The last entry of the stream, `0-0` if there is none: a later one may be the callback."""
    dead_end: str
    state: SessionState
    waiting: list[Arrival]
    """Its callbacks that no worker has finished, in the order of the stream."""

    def next_number(self, *, recording: bool, first_sequence: int) -> int:
        """The number after all that have come. `recording`: where recordings are numbered apart."""
        lane = self.state.recording if recording else self.state.status
        numbers = [
            arrival.number
            for arrival in self.waiting
            if arrival.recording == recording and arrival.number is not None
        ]
        return max([*numbers, first_sequence - 1 if lane.next is None else lane.next - 1]) + 1


class Place(NamedTuple):
    """Where a callback comes in the order of its session."""

    order: Order | None = None
    """None if it is a duplicate."""
    missing: tuple[int, ...] = ()
    """The numbers that are given up just before it, or that it waits for."""
    held_until_ms: int | None = None
    """It waits until then, by the stream's clock, unless the numbers come; None if it is due."""

    @property
    def duplicate(self) -> bool:
        """Whether the same callback has come before."""
        return self.order is None


async def read_snapshot(reader: RedisReader, session_uuid: str) -> SessionSnapshot:
    """Read it. Raises RedisUnavailableError, and JobError if Redis refuses a command."""
    keys, partition = reader.keys, partition_of(session_uuid, reader.partitions)
    stream, dead, state_key = (
        keys.callbacks(partition),
        keys.dead(partition),
        keys.session(partition, session_uuid),
    )
    last, last_dead, state, pending, groups = await reader.send(
        [
            query_for(stream, "XREVRANGE", stream, "+", "-", "COUNT", 1),
            query_for(dead, "XREVRANGE", dead, "+", "-", "COUNT", 1),
            query_for(state_key, "GET", state_key),
            query_for(stream, "XPENDING", stream, keys.group, "-", "+", UNFINISHED_MAX),
            query_for(stream, "XINFO", "GROUPS", stream),
        ]
    )
    checked([last, last_dead, state])
    ids = [] if isinstance(pending, hiredis.ReplyError) else [entry[0] for entry in pending]  # no group yet
    queries = [query_for(stream, "XRANGE", stream, one, one) for one in ids]
    # What waits is in the pending list from the next commit on.
    cursor = group_cursor(groups, keys.group)
    queries.append(query_for(stream, "XRANGE", stream, f"({cursor}", "+", "COUNT", UNFINISHED_MAX))
    found = checked(await reader.send(queries))
    waiting = _arrivals([entry for entries in found for entry in entries], reader.settings)
    return SessionSnapshot(
        session_uuid,
        partition,
        last[0][0].decode() if last else "0-0",
        last_dead[0][0].decode() if last_dead else "0-0",
        NEW_SESSION if state is None else _state(state),
        [arrival for arrival in waiting if arrival.payload.event.session_uuid == session_uuid],
    )


def place_of(snapshot: SessionSnapshot, arrival: Arrival, settings: Settings) -> Place:
    """Where the callback comes, if it arrives as the next one of its session."""
    policy = Policy(
        settings.gap_timeout_ms, settings.first_sequence, settings.held_max, settings.gap_spool_ms
    )
    order = SessionOrder(snapshot.state)
    for waiting in snapshot.waiting:
        order.arrive(waiting, policy)
    for outcome in order.arrive(arrival, policy):
        if outcome.arrival is arrival:
            return Place() if isinstance(outcome, Duplicate) else Place(outcome.order, outcome.missing)
    return _after_waiting(order, arrival, policy)


def _after_waiting(order: SessionOrder, arrival: Arrival, policy: Policy) -> Place:
    while (deadline_ms := order.deadline_ms(policy)) is not None:
        for release in order.expire(deadline_ms, policy):
            if release.arrival is arrival:
                return _held(release, deadline_ms)
    raise AssertionError("everything that waits is released in the end")


def _held(release: Release, until_ms: int) -> Place:
    return Place(release.order, release.missing, until_ms)


def group_cursor(groups: Any, group: str) -> str:
    """How far a group has read, from the reply to XINFO GROUPS; `0-0` if the stream or the group is not there yet."""
    for reply in [] if isinstance(groups, hiredis.ReplyError) else groups:
        of_one = dict(zip(reply[::2], reply[1::2], strict=True))
        if of_one[b"name"] == group.encode():
            return str(of_one[b"last-delivered-id"].decode())
    return "0-0"


def read_arrival(entry: Any, settings: Settings) -> Arrival | None:
    """The arrival of an entry as XRANGE gives it; None if it is no callback."""
    return next(iter(_arrivals([entry], settings)), None)


def _arrivals(entries: list[Any], settings: Settings) -> list[Arrival]:
    decoder = entry_decoder(frozenset(settings.ignored_parameters))
    return decoder.decode(entries, settings.recording_sequence == "shared", {})[1]


def _state(encoded: bytes) -> SessionState:
    try:
        return decode_state(encoded)
    except ValueError:  # of another release: the worker begins anew as well
        return NEW_SESSION
