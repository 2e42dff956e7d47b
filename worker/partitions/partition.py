"""A partition in the hands of its owner: which entries are open, which sessions are live, what is to be committed.

No I/O and no clock of its own: the reader brings entries and session states in and carries the releases to the
dispatcher; the dispatcher says what is done; the committer fetches a Commit and reports back. The testing harness
uses it as it is, without Redis.

What is kept true, so that a crash at any point loses and doubles nothing:
- every entry up to the cursor is done or in the group's pending list once a commit is through;
- a session's committed state knows of the releases whose handlers are done, and of no later one;
- both are written by the same commit.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from maskline.schemas.errors import UndecodableEntryError
from maskline.worker.commands.commit import Commit
from maskline.worker.counters import Counters
from maskline.worker.entries.dead_letter import (
    INTERNAL_ERROR,
    DeadLetter,
    dead_letter_of,
    encode_dead_letter,
    internal_error,
)
from maskline.worker.entries.decode import StreamEntries, dead_letter_of_undecodable, entry_decoder
from maskline.worker.ordering.reorder import NONE_WAITING, Arrival, Policy, Release
from maskline.worker.ordering.state import NEW_SESSION, SessionState, decode_state
from maskline.worker.partitions.history import Seen, StreamEntry
from maskline.worker.partitions.phase import Phase, next_phase
from maskline.worker.partitions.session import NO_RELEASES, LiveSession
from maskline.worker.poison.tracker import Suspects

RUN_AHEAD_MAX: Final = 1_024
"""Entries taken in beyond the cursor that Redis knows. After a crash nobody can tell which of them were under way: it
bounds how many are suspected then."""

COMMIT_AHEAD: Final = 256
"""So many of them are worth a commit, even if nothing is done: the pending list then says what waits."""

FAULTS_KEPT_MAX: Final = 16
"""Faults of ours that wait for somebody to tell of them; what they did to an entry stands in its dead letter."""

DEADLINES_SPARE: Final = 64
"""Deadlines that are over, beside as many as there are live ones, before they are looked through."""

CLOSED_SESSION_TTL_S: Final = 3_600
"""A session whose SessionTimeout was handled is remembered for an hour, for stragglers."""


class PartitionSettings(NamedTuple):
    """What a partition needs of the settings."""

    group: str
    policy: Policy
    recording_shared: bool
    session_ttl_s: int
    ignored_parameters: frozenset[str] = frozenset()
    """They do not count where two callbacks are compared."""


class DecodedBatch(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A batch of entries, decoded, before it is put in order."""

    arrivals: list[Arrival]
    unknown: list[str]
    """Sessions that are not in memory: their states must be fetched from Redis first."""


class Partition:
    """One owned partition. `lease_value` and `token` come from the lease; the rest starts at the group's cursor."""

    def __init__(
        self, number: int, token: int, lease_value: str, cursor: str, entries_read: int, settings: PartitionSettings,
        counters: Counters,
    ) -> None:  # fmt: skip
        self.number, self.token, self.lease_value = number, token, lease_value
        self.cursor = cursor
        """The last entry taken in: all up to it are done or open."""
        self.read_id = cursor
        """The last entry read; those between are on their way through the reader."""
        self.last_entry: StreamEntry | None = None
        """That entry as it came; None before the first."""
        self.verified_at: object | None = None
        """The connection (`ServerConnections.incarnation`) whose server was found to have all that was seen. Over
        another one nothing is read and nothing committed before that was looked at
        (`worker.partitions.history_check`)."""
        self.look_up_at = 0.0  # when a commit has its cursor looked up again, by the committer's clock
        self.poller: object | None = None
        """Who has a read of it under way, or entries not fed yet: nobody else may read on meanwhile."""
        self.entries_read = entries_read
        self.run_ahead = 0
        """Entries taken in beyond the cursor that Redis knows."""
        self._ahead_at_commit = self.watermark_ms = 0
        self._evict_ms = 0  # the watermark at which to look again for sessions that Redis has forgotten
        # By the worker's clock, at the last decoding; how far the stream's time is ahead of the server's clock.
        self._now_ms = self._ahead_ms = 0
        self.lease_until = 0.0
        """Until when the lease is surely held, by `lease_clock()`."""
        self.phase = Phase.OPENING
        """Changed by `move_to` alone."""
        self.closed = False
        """Paused or lost: none of its handlers may start. Kept beside `phase`, since each event asks for it."""
        self.running = 0
        """Sessions with a handler under way."""
        self.unfinished = self.held = 0
        """Entries released to handlers and not done, and those that wait for a number."""
        self.session_cache = 0
        """Sessions kept in memory; idle ones over it are dropped and read back when they are needed."""
        self.commit_in_flight: Commit | None = None
        self.suspects: Suspects | None = None
        """Entries that may have brought the last owner down; None once there are none."""
        self._unmarked: list[str] = []
        self.internal_errors: list[tuple[str, BaseException]] = []
        """What we met on single entries and did not foresee, and while doing what: to be told and taken away."""
        self._settings, self._counters = settings, counters
        self._decoder = entry_decoder(settings.ignored_parameters)
        self._sessions: dict[str, LiveSession] = {}  # in the order of their last use
        self._deadlines, self._deadlines_max = list[tuple[int, str]](), DEADLINES_SPARE
        # Entries that are not done: those that no commit has put in the pending list yet, and those that are in it.
        self._fresh: set[str] = set()
        self._pending: set[str] = set()
        self._done, self._dead, self._changed = list[str](), list[bytes](), dict[str, SessionState]()
        # Sessions whose states the commit under way writes: Redis may still answer with the old ones.
        self._being_written: Collection[str] = ()
        self._uncommitted = False
        self.commit_requested = False
        """Whoever commits was told that something is done, and has not taken the next commit yet."""
        # Number and cursor of the last commit that Redis has confirmed.
        self._confirmed = 0, cursor

    # Its life

    def move_to(self, phase: Phase) -> None:
        """Enter a phase. Raises ValueError where `phase.TRANSITIONS` does not allow it; nothing changes then."""
        self.phase = next_phase(self.phase, phase)
        self.closed = phase is Phase.PAUSED or phase is Phase.LOST

    @property
    def lost(self) -> bool:
        """Given back or taken away: nothing of it may be committed any more."""
        return self.phase is Phase.LOST

    # Entries in

    def decode(self, entries: StreamEntries, *, pending: bool, now_ms: int) -> DecodedBatch:
        """Decode stream entries; those that cannot be are dead letters from here on.

        `pending`: they come from the group's pending list rather than from beyond the cursor. `now_ms` dates the
        dead letters.
        """
        self._now_ms = now_ms
        unreadable = self._decoder.unreadable
        ids, arrivals, unknown, refused = self._decoder.decode(
            entries, self._settings.recording_shared, self._sessions
        )
        if ids:
            self._take_in(ids, pending)
        if unreadable:
            if not pending:  # those were counted when they were read first
                self._counters.unreadable.update(unreadable)
            unreadable.clear()
        for entry_id, fields, error in refused:
            self._bury_undecoded(entry_id, fields, error, now_ms)
        return DecodedBatch(arrivals, unknown)

    def _take_in(self, ids: Sequence[str], pending: bool) -> None:
        if pending:
            self._pending.update(ids)
        else:
            self._fresh.update(ids)
            self.cursor = ids[-1]
            self.run_ahead += len(ids)
            if self.entries_read >= 0:
                self.entries_read += len(ids)
        if self.suspects is not None:
            for entry_id in ids:
                self._suspect(entry_id, pending=pending)

    def arrive(
        self, decoded: DecodedBatch, states: Mapping[str, bytes | None], watermark_ms: int
    ) -> list[LiveSession]:
        """Put a decoded batch in order and move the watermark on; return the sessions that now have work.

        `states`: the encoded state of each unknown session, None for a new one. `watermark_ms`: how far the stream's
        time has certainly come with this batch.
        """
        ready: list[LiveSession] = []
        arrivals, sessions, policy = self._dated(decoded.arrivals), self._sessions, self._settings.policy
        at = 0
        while at < len(arrivals):
            if arrive_ordinary is not None:
                at = arrive_ordinary(arrivals, at, sessions, states, policy, ready, self)
                if at == len(arrivals):
                    break
            self._arrive(arrivals[at], states, ready)
            at += 1
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        if self._deadlines:
            self._expire(ready)
        if len(sessions) > self.session_cache or self.watermark_ms >= self._evict_ms:
            self._evict()
        if self.run_ahead >= COMMIT_AHEAD:
            self._uncommitted = True
        return ready

    def _arrive(self, arrival: Arrival, states: Mapping[str, bytes | None], ready: list[LiveSession]) -> None:
        sessions, uuid = self._sessions, arrival.payload.event.session_uuid
        session = sessions.pop(uuid, None) or self.load_session(uuid, states.get(uuid))
        sessions[uuid] = session  # the dict's order is the order of use
        session.touched_ms = arrival.arrived_ms
        before = [*session.waiting]
        try:
            for decision in session.arrive(arrival, self._settings.policy):
                if decision.__class__ is Release:
                    self._release(session, decision, ready)
                else:
                    self._counters.duplicates += 1
                    self._finish_entry(decision.arrival.payload.entry_id)
        except Exception as error:  # noqa: BLE001 - one entry is not to lose the others
            self._lose(session, [*before, arrival], error)
        if before or session.waiting:
            self.count_waiting(session, len(before))

    def _dated(self, arrivals: list[Arrival]) -> list[Arrival]:
        if not self._ahead_ms:
            return arrivals
        # Their IDs stand still until the clock has caught up, and the stream's time does not.
        now_ms = self.watermark_ms
        return [replace(arrival, arrived_ms=max(arrival.arrived_ms, now_ms)) for arrival in arrivals]

    def stream_now_ms(self, now_ms: int) -> int:
        """The stream's time when the server's clock says `now_ms`: the same, unless that clock has gone back.

        Then IDs stand still until it has caught up, for an hour if it leapt by one. The stream's time goes on from
        the watermark meanwhile: gaps are given up in time all the same.
        """
        self._ahead_ms = max(self._ahead_ms, self.watermark_ms - now_ms)
        return now_ms + self._ahead_ms

    def take_in_deleted(self, entry_id: str, now_ms: int) -> None:
        """An entry of the pending list whose body somebody has deleted from the stream."""
        self._pending.add(entry_id)
        self._suspect(entry_id, pending=True)
        error = UndecodableEntryError(
            "entry_gone", "the entry was deleted from the stream before it was handled"
        )
        self._bury_undecoded(entry_id, (), error, now_ms)

    @property
    def next_deadline_ms(self) -> int | None:
        """The stream's time at which the next gap is given up; None if nothing is held."""
        while self._deadlines:
            deadline, uuid = self._deadlines[0]
            session = self._sessions.get(uuid)
            if session is not None and session.gap_ends_ms == deadline:
                return deadline
            heapq.heappop(self._deadlines)
        return None

    def give_up_oldest(self) -> list[LiveSession]:
        """Give up the gap that has waited longest, whatever the watermark: the process holds too much."""
        ready: list[LiveSession] = []
        deadline = self.next_deadline_ms
        if deadline is not None:
            self._expire_next(deadline, ready)
        return ready

    # Work done

    def finish(self, session: LiveSession, release: Release) -> None:
        """The first release of a session's queue is done: every handler has handled it or given it up."""
        if len(session.queue) == 1:
            session.queue = NO_RELEASES
        else:
            del session.queue[0]
        self.unfinished -= 1
        self._changed[session.uuid] = release.state
        # As `_finish_entry`, without a call: it is what happens to nearly every entry.
        entry_id = release.arrival.payload.entry_id
        if entry_id in self._fresh and self.suspects is None:
            self._fresh.remove(entry_id)
            self._uncommitted = True
        else:
            self._finish_entry(entry_id)

    def add_dead_letter(self, letter: DeadLetter) -> None:
        """Add a dead letter to the next commit."""
        self._dead.append(encode_dead_letter(letter))
        self._uncommitted = True
        self._counters.dead[letter.code] += 1

    # Commits out

    @property
    def group(self) -> str:
        return self._settings.group

    @property
    def wants_commit(self) -> bool:
        return self._uncommitted and self.commit_in_flight is None

    @property
    def uncommitted(self) -> bool:
        """Something was done that Redis has not confirmed."""
        return self._uncommitted or self.commit_in_flight is not None

    def take_commit(self) -> Commit:
        """What was done since the last one; it stays `commit_in_flight` until `committed`."""
        number, cursor = self._confirmed
        changed, life_s = self._changed, self._settings.session_ttl_s
        commit = Commit(
            number + 1, self.cursor, self.entries_read, [*self._fresh], self._done, self._dead, changed,
            life_s, min(CLOSED_SESSION_TTL_S, life_s), self._unmarked, self.cursor != cursor,
        )  # fmt: skip
        self._pending |= self._fresh
        self._fresh.clear()
        self._done = []
        self._dead = []
        self._unmarked = []
        self._being_written = changed
        self._changed = {}
        self._uncommitted = self.commit_requested = False
        self._ahead_at_commit = self.run_ahead
        self.commit_in_flight = commit
        return commit

    def committed(self) -> None:
        if (commit := self.commit_in_flight) is not None:
            self._confirmed = commit.number, commit.cursor
        self.run_ahead -= self._ahead_at_commit
        self.commit_in_flight = None
        self._being_written = ()

    def seen(self) -> Seen:
        """What a server must have, so that the partition can be gone on with there."""
        commits = dict([self._confirmed])
        if (commit := self.commit_in_flight) is not None:
            commits[commit.number] = commit.cursor
        return Seen(self.lease_value, commits, self.read_id, self.last_entry)

    # What is in memory

    @property
    def live_sessions(self) -> int:
        return len(self._sessions)

    @property
    def open_entries(self) -> int:
        return len(self._fresh) + len(self._pending)

    def sessions_with_work(self) -> list[LiveSession]:
        return [session for session in self._sessions.values() if session.queue]

    # What arrivals come to, told by `_arrive` or in C

    def load_session(self, uuid: str, encoded: bytes | None) -> LiveSession:
        state = NEW_SESSION
        if encoded is not None:
            try:
                state = decode_state(encoded)
            except Exception:  # noqa: BLE001 - a ValueError, or what we did not foresee
                # Somebody has written over it. The session's order starts anew; its events are not lost for that.
                self._counters.unreadable_states += 1
        return LiveSession(uuid, state, self)

    def count_released_in_order(self, count: int) -> None:
        self.unfinished += count
        self._counters.released["in_order"] += count

    def count_waiting(self, session: LiveSession, before: int) -> None:
        self.held += session.held - before
        deadline = session.deadline_ms(self._settings.policy)
        if deadline != session.gap_ends_ms:
            session.gap_ends_ms = deadline
            if deadline is not None:
                heapq.heappush(self._deadlines, (deadline, session.uuid))
                if len(self._deadlines) > self._deadlines_max:
                    self._drop_stale_deadlines()

    # Inside

    def _release(self, session: LiveSession, release: Release, ready: list[LiveSession]) -> None:
        if session.queue:
            session.queue.append(release)
        else:
            session.queue = [release]
        self.unfinished += 1
        self._counters.released[release.order] += 1
        if release.missing:
            self._counters.given_up += len(release.missing)
        if not session.scheduled:
            session.scheduled = True
            ready.append(session)

    def _expire(self, ready: list[LiveSession]) -> None:
        while (deadline := self.next_deadline_ms) is not None and deadline <= self.watermark_ms:
            self._expire_next(self.watermark_ms, ready)

    def _expire_next(self, watermark_ms: int, ready: list[LiveSession]) -> None:
        session = self._sessions[heapq.heappop(self._deadlines)[1]]
        session.gap_ends_ms = None
        before = [*session.waiting]
        try:
            for release in session.expire(watermark_ms, self._settings.policy):
                self._release(session, release, ready)
        except Exception as error:  # noqa: BLE001 - one session is not to hold up the others
            session.waiting = NONE_WAITING  # or the same would happen again
            self._lose(session, before, error)
        self.count_waiting(session, len(before))

    def _drop_stale_deadlines(self) -> None:
        """Forget the deadlines of gaps that have closed since: they would be met in their time, hours from now."""
        live = {
            (session.gap_ends_ms, uuid)
            for uuid, session in self._sessions.items()
            if session.gap_ends_ms is not None
        }
        self._deadlines = [*live]
        heapq.heapify(self._deadlines)
        self._deadlines_max = 2 * len(self._deadlines) + DEADLINES_SPARE

    def _lose(self, session: LiveSession, arrivals: Iterable[Arrival], error: Exception) -> None:
        """A fault of ours: what of these is neither released nor waiting any more becomes dead letters."""
        cause = internal_error(error, "ordering")
        kept = {id(release.arrival) for release in session.queue} | {id(one) for one in session.waiting}
        for arrival in arrivals:
            entry_id = arrival.payload.entry_id
            if id(arrival) not in kept and (entry_id in self._fresh or entry_id in self._pending):
                letter = dead_letter_of(arrival, cause, group=self.group, failed_at_ms=self._now_ms)
                self.add_dead_letter(letter)
                self._finish_entry(entry_id)
        self._fault("ordering", error)

    def _fault(self, doing: str, error: BaseException) -> None:
        if len(self.internal_errors) < FAULTS_KEPT_MAX:
            self.internal_errors.append((doing, error))

    def _finish_entry(self, entry_id: str) -> None:
        if entry_id in self._fresh:
            self._fresh.remove(entry_id)
        else:
            self._pending.remove(entry_id)
            self._done.append(entry_id)
        if self.suspects is not None:
            self._unmark(self.suspects.entry_done(entry_id))
        self._uncommitted = True

    def _suspect(self, entry_id: str, *, pending: bool) -> None:
        if self.suspects is not None:
            self._unmark(self.suspects.entry_read(entry_id, pending=pending))

    def _unmark(self, fields: Iterable[str]) -> None:
        self._unmarked += fields
        if self.suspects is not None and self.suspects.over:
            self.suspects = None

    def _bury_undecoded(
        self, entry_id: str, fields: Sequence[bytes], error: UndecodableEntryError, now_ms: int
    ) -> None:
        if error.code == INTERNAL_ERROR:
            self._fault("decoding", error.__cause__ or error)
        self.add_dead_letter(
            dead_letter_of_undecodable(entry_id, fields, error, group=self.group, now_ms=now_ms)
        )
        self._finish_entry(entry_id)

    def _evict(self) -> None:
        """Drop idle sessions from memory: those over the bound, and those that Redis has forgotten as well."""
        ttl_ms = self._settings.session_ttl_s * 1000
        forgotten_ms = self.watermark_ms - ttl_ms
        surplus = len(self._sessions) - self.session_cache
        changed, being_written = self._changed, self._being_written
        if surplus > 0 and evict_idle is not None:
            surplus -= evict_idle(self._sessions, surplus, changed, being_written)
        busy: list[LiveSession] = []
        for uuid, session in [*islice(self._sessions.items(), max(surplus, EVICTION_LOOK_MAX))]:
            if surplus <= 0 and session.touched_ms > forgotten_ms:
                self._evict_ms = min(session.touched_ms + ttl_ms, self.watermark_ms + EVICTION_INTERVAL_MS)
                break
            del self._sessions[uuid]
            if session.idle and uuid not in changed and uuid not in being_written:
                surplus -= 1
            else:
                busy.append(session)
        for session in busy:
            self._sessions[session.uuid] = session


EVICTION_LOOK_MAX: Final = 16
"""Sessions looked at for eviction with a batch, where the cache is not over its bound."""

EVICTION_INTERVAL_MS: Final = 1_000
"""Of the stream's time, between such looks, at most."""


def _in_c() -> tuple[Callable[..., int], Callable[..., int]] | tuple[None, None]:
    try:
        from maskline.worker.native import order  # noqa: PLC0415 - where there was no compiler, we are told so here
    except ImportError:
        return None, None
    return order.arrive_ordinary, order.evict_idle


arrive_ordinary, evict_idle = _in_c()
"""Take in arrivals, from one on, and drop sessions that are over the bound, as long as each is plain, which nearly all
are; return how far that went. Their types stand in `worker/native/order.pyi`. None where there was no compiler."""
