"""One owned partition: decodes entries, orders each session's events, and returns the sessions that have work.

No I/O and no clock of its own. The pipeline brings entries and session states in, and passes releases on to the
dispatcher; the dispatcher reports what is done; the committer takes a Commit and reports its result. The testing
harness uses the class as it is, without Redis. Other files have the open entries and the commits (`ledger`), the phases
(`phase`), the deadlines of gaps (`gap_deadlines`), and the rules of order (`worker.ordering`).

One entry must not lose the others: an unforeseen exception in decoding or ordering makes dead letters of the entries
that it kept from being handled, and is recorded in `internal_errors`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from msgspec.structs import replace

from maskline.schemas.errors import UndecodableEntryError
from maskline.worker.counters import Counters
from maskline.worker.entries.dead_letter import INTERNAL_ERROR, dead_letter_of, internal_error
from maskline.worker.entries.decode import StreamEntries, dead_letter_of_undecodable, entry_decoder
from maskline.worker.ordering.reorder import NO_SPOOLS, NONE_WAITING, Arrival, Policy, Release
from maskline.worker.ordering.spool_history import SpoolHistory
from maskline.worker.ordering.state import NEW_SESSION, decode_state
from maskline.worker.partitions.commit_pace import COMMIT_AHEAD
from maskline.worker.partitions.decoded_batch import DecodedBatch
from maskline.worker.partitions.gap_deadlines import GapDeadlines
from maskline.worker.partitions.ledger import GroupPosition, Lease
from maskline.worker.partitions.phase import Phase, next_phase
from maskline.worker.partitions.queue_item_reader import QueueItemReader
from maskline.worker.partitions.retry_ledger import RetryLedger
from maskline.worker.partitions.retry_queue import SessionRetries
from maskline.worker.partitions.session import NO_RELEASES, LiveSession

INTERNAL_ERRORS_KEPT_MAX: Final = 16
"""Internal errors that wait to be logged. The dead letters have their effects."""

EVICTION_LOOK_MAX: Final = 16
"""Sessions checked for eviction with each batch while the cache is within its bound."""

EVICTION_INTERVAL_MS: Final = 1_000
"""The most of the stream's time between such checks."""


class PartitionSettings(NamedTuple):
    """The settings that a partition needs."""

    group: str
    """The consumer group, MASKLINE_GROUP."""
    policy: Policy
    recording_shared: bool
    """Recording events are numbered with the others: MASKLINE_RECORDING_SEQUENCE is `shared`."""
    session_ttl_s: int
    """MASKLINE_SESSION_TTL_S."""
    ignored_parameters: frozenset[str] = frozenset()
    """MASKLINE_IGNORED_PARAMETERS: they do not count where two callbacks are compared."""


class Partition(RetryLedger):
    """One owned partition, from an acquired lease until the lease is gone."""

    def __init__(
        self, lease: Lease, position: GroupPosition, settings: PartitionSettings, counters: Counters
    ) -> None:
        self._decoder = entry_decoder(settings.ignored_parameters, settings.group)
        super().__init__(
            lease,
            position,
            QueueItemReader(self._decoder, settings.group, recording_shared=settings.recording_shared),
            group=settings.group,
            session_ttl_s=settings.session_ttl_s,
            counters=counters,
        )
        self._settings = settings
        self.phase = Phase.OPENING
        """Only `move_to` changes it."""
        self.closed = False
        """Paused or lost: none of its handlers may start. Kept beside `phase`, as it is read for each event."""
        self.lease_until = 0.0
        """Until when the lease is surely held, by `lease_clock()`."""
        self.verified_at: object | None = None
        """The incarnation of the connections (`ServerConnections.incarnation`) whose server was found to have the
        partition's history. Over others nothing is read or committed before the check
        (`worker.partitions.history_check`)."""
        self.cursor_check_at = 0.0
        """When a commit next checks that the entry at its cursor exists, by the committer's clock."""
        self.poller: object | None = None
        """The poller that has a read of it under way, or unprocessed entries: no other may read it meanwhile."""
        self.watermark_ms = 0
        """The watermark: the stream's own time, in milliseconds; it never falls."""
        self._ahead_ms = 0  # how far the stream's time is ahead of the server's clock
        self._now_ms = 0  # the worker's clock at the last decoding: it dates dead letters
        self.running = 0
        """Sessions with a handler under way."""
        self.unfinished = 0
        """Entries released to handlers and not done."""
        self.held = 0
        """Entries that wait for a number, or for the opening of a run."""
        self.internal_errors: list[tuple[str, BaseException]] = []
        """Unforeseen exceptions, each with the step at which it was raised: the pipeline logs and removes them."""
        self.session_cache = 0
        """How many sessions are kept in memory. Idle ones beyond that are dropped, and read back when needed."""
        self._sessions: dict[str, LiveSession] = {}
        """The sessions in memory by SessionUUID, in the order of their last use."""
        self._evict_ms = 0  # the watermark at which to check again for sessions that Redis has forgotten
        self.gaps = GapDeadlines(self._sessions, settings.policy)

    # Its life

    def move_to(self, phase: Phase) -> None:
        """Enter a phase. Raises ValueError, and changes nothing, if `phase.TRANSITIONS` does not allow it."""
        self.phase = next_phase(self.phase, phase)
        self.closed = phase is Phase.PAUSED or phase is Phase.LOST

    @property
    def lost(self) -> bool:
        """Given back or taken away: nothing of it may be committed any more."""
        return self.phase is Phase.LOST

    # Entries in

    def decode(
        self, entries: StreamEntries, *, pending: bool, now_ms: int, watermark_ms: int = 0
    ) -> DecodedBatch:
        """Take stream entries in and decode them; those that cannot be decoded become dead letters.

        `pending`: they come from the group's pending list rather than from beyond the cursor. `now_ms`: the worker's
        clock, which dates the dead letters. `watermark_ms`: the stream's time after them.
        """
        self._now_ms = now_ms
        unreadable = self._decoder.unreadable
        ids, arrivals, unknown, refused = self._decoder.decode(
            entries, self._settings.recording_shared, self._sessions
        )
        if ids:
            self._take_in(ids, pending=pending)
        if unreadable:
            if not pending:  # those were counted when they were read first
                self._counters.unreadable.update(unreadable)
            unreadable.clear()
        for entry_id, fields, error in refused:
            self._refuse_entry(entry_id, fields, error, now_ms)
        look = self.gaps.must_look(arrivals, self.watermark_ms, watermark_ms)
        return DecodedBatch(arrivals, unknown, look)

    def take_in_deleted(self, entry_id: str, now_ms: int) -> None:
        """Take in an entry of the pending list that somebody has deleted from the stream: it becomes a dead letter."""
        self._take_in([entry_id], pending=True)
        error = UndecodableEntryError(
            "entry_gone", "the entry was deleted from the stream before it was handled"
        )
        self._refuse_entry(entry_id, (), error, now_ms)

    def arrive(
        self, decoded: DecodedBatch, states: Mapping[str, bytes | None], watermark_ms: int
    ) -> list[LiveSession]:
        """Order a decoded batch, and advance the watermark. Returns the sessions that now have work.

        `states`: the encoded state of each unknown session, None for a new one. `watermark_ms`: the stream's time after
        this batch.
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
        if decoded.look:
            self.gaps.spools.looked_ms = self.watermark_ms
        if self.gaps:
            self._expire(ready)
        if len(sessions) > self.session_cache or self.watermark_ms >= self._evict_ms:
            self._evict()
        if self.run_ahead >= COMMIT_AHEAD:
            self._uncommitted = True
        return ready

    # The stream's time

    def stream_now_ms(self, now_ms: int) -> int:
        """The stream's time when the server's clock says `now_ms`: the same, unless that clock has gone back.

        If it has, IDs stand still until it has caught up, for an hour if it leapt by an hour. Meanwhile the stream's
        time goes on from the watermark, so that gaps are given up in time.
        """
        self._ahead_ms = max(self._ahead_ms, self.watermark_ms - now_ms)
        self.gaps.spools.run_ahead(self._ahead_ms)
        return now_ms + self._ahead_ms

    @property
    def next_deadline_ms(self) -> int | None:
        """The stream's time at which a gap may be given up, or spools must be looked for; None if nothing is held."""
        return self.gaps.next_look_ms

    def give_up_oldest(self) -> list[LiveSession]:
        """Give up the gap that has waited longest, even before its deadline, as the process holds too much.

        Returns the sessions that now have work.
        """
        ready: list[LiveSession] = []
        deadline_ms = self.gaps.next_ms
        if deadline_ms is not None:
            self._expire_next(deadline_ms, ready, NO_SPOOLS)
        return ready

    # Work done

    def finish(self, session: LiveSession, release: Release) -> None:
        """Remove the first release of a session's queue: every handler has handled it or given it up."""
        if len(session.queue) == 1:
            session.queue = NO_RELEASES
        else:
            del session.queue[0]
        self.unfinished -= 1
        if session.retries is None:
            self._changed[session.uuid] = release.state
        else:
            session.retries.finished(release.state)
            self.store_retries(session)
        # `_finish_entry`, inlined: nearly every entry comes this way.
        entry_id = release.arrival.payload.entry_id
        if entry_id in self._fresh and self.suspects is None:
            self._fresh.remove(entry_id)
            self._uncommitted = True
        else:
            self._finish_entry(entry_id)

    # What is in memory

    @property
    def live_sessions(self) -> int:
        """How many sessions are in memory."""
        return len(self._sessions)

    def sessions_with_work(self) -> list[LiveSession]:
        """The sessions with released events that are not done."""
        return [session for session in self._sessions.values() if session.queue]

    # What arrivals come to: called by `_arrive`, and by `arrive_ordinary` in C

    def load_session(self, uuid: str, encoded: bytes | None) -> LiveSession:
        """Make a session from its encoded state, None for a new one. It is not kept in memory yet."""
        state = NEW_SESSION
        if encoded is not None:
            try:
                state = decode_state(encoded)
            except Exception:  # noqa: BLE001 - a ValueError, or an unforeseen error
                # The state was overwritten by something else. The session's order starts anew; no event is lost.
                self._counters.unreadable_states += 1
        session = LiveSession(uuid, state, self)
        if state.retries is not None:
            session.state = replace(state, retries=None)
            session.retries = SessionRetries(session.state, state.retries)
        return session

    def session_of(self, uuid: str, encoded: bytes | None) -> LiveSession:
        """The session, taken into memory if it is not there. `encoded`: its state as Redis has it now."""
        session = self._sessions.pop(uuid, None)
        if session is None:
            session = self.load_session(uuid, encoded)
            session.touched_ms = self.watermark_ms
        self._sessions[uuid] = session
        return session

    def count_released_in_order(self, count: int) -> None:
        """Count arrivals that were released `in_order`."""
        self.unfinished += count
        self._counters.released["in_order"] += count

    def count_waiting(self, session: LiveSession, before: int) -> None:
        """Count the arrivals waiting in a session, `before` until now, and record its new deadline."""
        self.held += session.held - before
        deadline_ms = session.deadline_ms(self._settings.policy)
        if deadline_ms != session.gap_ends_ms:
            session.gap_ends_ms = deadline_ms
            if deadline_ms is not None:
                self.gaps.add(deadline_ms, session.uuid)

    # Inside

    def _arrive(self, arrival: Arrival, states: Mapping[str, bytes | None], ready: list[LiveSession]) -> None:
        sessions, uuid = self._sessions, arrival.payload.event.session_uuid
        session = sessions.pop(uuid, None) or self.load_session(uuid, states.get(uuid))
        sessions[uuid] = session  # the dict's order is the order of use
        session.touched_ms = arrival.arrived_ms
        before = [*session.waiting]
        try:
            for outcome in session.arrive(arrival, self._settings.policy, self.gaps.spools):
                if outcome.__class__ is Release:
                    self._release(session, outcome, ready)
                else:
                    self._counters.duplicates += 1
                    self._finish_entry(outcome.arrival.payload.entry_id)
        except Exception as error:  # noqa: BLE001 - one entry is not to lose the others
            self._give_up_unordered(session, [*before, arrival], error)
        if before or session.waiting:
            self.count_waiting(session, len(before))

    def _dated(self, arrivals: list[Arrival]) -> list[Arrival]:
        if not self._ahead_ms:
            return arrivals
        # Their IDs stand still until the clock has caught up; the stream's time goes on.
        now_ms = self.watermark_ms
        return [replace(arrival, arrived_ms=max(arrival.arrived_ms, now_ms)) for arrival in arrivals]

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
        """Give up the gaps whose deadlines the watermark has passed, unless they wait for spools."""
        while self.gaps.expired(self.watermark_ms):
            self._counters.spools_given_up += self.gaps.outlasted_by_spools
            self._expire_next(self.watermark_ms, ready, self.gaps.spools)

    def _expire_next(self, watermark_ms: int, ready: list[LiveSession], spools: SpoolHistory) -> None:
        session = self.gaps.pop()
        before = [*session.waiting]
        try:
            for release in session.expire(watermark_ms, self._settings.policy, spools):
                self._release(session, release, ready)
        except Exception as error:  # noqa: BLE001 - one session is not to hold up the others
            session.waiting = NONE_WAITING  # or the same would happen again
            self._give_up_unordered(session, before, error)
        self.count_waiting(session, len(before))

    def _give_up_unordered(self, session: LiveSession, arrivals: Iterable[Arrival], error: Exception) -> None:
        """Make dead letters of those arrivals that are neither released nor waiting, as ordering has failed."""
        cause = internal_error(error, "ordering")
        kept = {id(release.arrival) for release in session.queue} | {id(held) for held in session.waiting}
        for arrival in arrivals:
            entry_id = arrival.payload.entry_id
            if id(arrival) not in kept and self._is_open(entry_id):
                letter = dead_letter_of(arrival, cause, group=self.group, failed_at_ms=self._now_ms)
                self.add_dead_letter(letter)
                self._finish_entry(entry_id)
        self._record_internal_error("ordering", error)

    def _refuse_entry(
        self, entry_id: str, fields: Sequence[bytes], error: UndecodableEntryError, now_ms: int
    ) -> None:
        """Make a dead letter of an entry that cannot be decoded; it is done."""
        if error.code == INTERNAL_ERROR:
            self._record_internal_error("decoding", error.__cause__ or error)
        self.add_dead_letter(
            dead_letter_of_undecodable(entry_id, fields, error, group=self.group, now_ms=now_ms)
        )
        self._finish_entry(entry_id)

    def _record_internal_error(self, doing: str, error: BaseException) -> None:
        if len(self.internal_errors) < INTERNAL_ERRORS_KEPT_MAX:
            self.internal_errors.append((doing, error))

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


def _in_c() -> tuple[Callable[..., int], Callable[..., int]] | tuple[None, None]:
    try:
        from maskline.worker.native import order  # noqa: PLC0415 - where there was no compiler, this fails
    except ImportError:
        return None, None
    return order.arrive_ordinary, order.evict_idle


arrive_ordinary, evict_idle = _in_c()
"""The ordinary case of `_arrive`, and of `_evict`, in C: each does as many items as it can, and returns how many.
`worker/native/order.pyi` has their types. None if maskline was installed without a compiler: Python does everything."""
