"""Keeps an owned partition's retry queues: which are in memory, and what the next commit writes of all. Pure.

Invariants, so that a crash at any point loses, doubles and misorders nothing:
- what an event came to for a handler (`Outcome`) is written by the commit that finishes the event;
- a session's stored state names a queue from the commit that writes its first item to the one that removes its last;
- nobody but the partition's owner writes a queue, and only by commits; so a queue whose last change is confirmed
  (`retry_confirmed`) is in Redis as it is known here.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from maskline.schemas.privacy import redact
from maskline.worker.commands.commit import Commit
from maskline.worker.commands.retry_ops import (
    Again,
    Append,
    DeleteLetter,
    GiveUpWaiting,
    Park,
    Pop,
    Unpark,
    Untake,
)
from maskline.worker.counters import Counters
from maskline.worker.entries.dead_letter import Cause
from maskline.worker.entries.queue_item import QueueItem, encode_item
from maskline.worker.ordering.reorder import Release
from maskline.worker.partitions.ledger import EntryLedger, GroupPosition, Lease
from maskline.worker.partitions.partition_jobs import PartitionJobs
from maskline.worker.partitions.queue_item_reader import QueueItemReader, item_of
from maskline.worker.partitions.retry_queue import RetryQueue, SessionRetries
from maskline.worker.partitions.session import GivenUp, LiveSession, Outcome, Progress, SetAside

JOINED_DELAY_MS: Final = 200
"""Before a queue is run that began while its session had an event under way: the two must not run at once."""


WAITED_TOO_LONG: Final = Cause(
    "waited_too_long", "waited too long: the dead letter before it was neither replayed nor discarded in time"
)
"""Why an event behind a dead letter is given up after MASKLINE_DEAD_TTL_S."""


class RetryLedger(EntryLedger):
    """The open entries and the retry queues of one tenure of a partition, and its commits."""

    def __init__(
        self,
        lease: Lease,
        position: GroupPosition,
        reader: QueueItemReader,
        *,
        group: str,
        session_ttl_s: int,
        counters: Counters,
    ) -> None:
        super().__init__(lease, position, session_ttl_s=session_ttl_s, counters=counters)
        self.group = group
        """The consumer group that it is read for."""
        self._reader = reader
        self.retry_queues: dict[tuple[str, str], RetryQueue] = {}
        """The queues that are being run, by handler and SessionUUID."""
        self.retry_due_ms: dict[str, int] = {}
        """In how many ms a queue is due next, by handler: from commits just confirmed. The runner takes them away."""
        self.dead_letters_full = False
        """MASKLINE_DEAD_MAX_BYTES is reached: giving up waits."""
        self.jobs = PartitionJobs(self.write_job)
        """How far jobs are here. Their outcomes are written by the commits that write what events came to."""
        self._due_next: dict[str, int] = {}
        self._due_in_flight: dict[str, int] = {}
        self._changed_queues: set[tuple[str, str]] = set()
        self._queues_in_flight: set[tuple[str, str]] = set()

    # Commits

    def take_commit(self) -> Commit:
        """As `EntryLedger.take_commit`."""
        self._due_in_flight, self._due_next = self._due_next, {}
        self._queues_in_flight, self._changed_queues = self._changed_queues, set()
        return super().take_commit()

    def committed(self) -> None:
        """As `EntryLedger.committed`."""
        super().committed()
        for handler, delay_ms in self._due_in_flight.items():
            self.retry_due_ms[handler] = min(delay_ms, self.retry_due_ms.get(handler, delay_ms))
        self._due_in_flight, self._queues_in_flight = {}, set()

    def retry_confirmed(self, handler: str, session: str) -> bool:
        """Whether Redis has a queue as it is known here: it is not in memory, and no commit of it is outstanding."""
        queue = handler, session
        return (
            queue not in self.retry_queues
            and queue not in self._changed_queues
            and queue not in self._queues_in_flight
        )

    def unavailable_queues(self, handler: str) -> list[str]:
        """The sessions whose queue of this handler is in memory, or has a change that is not confirmed."""
        queues = {*self.retry_queues, *self._changed_queues, *self._queues_in_flight}
        return [session for of, session in queues if of == handler]

    # What events came to

    def write_outcomes(
        self, session: LiveSession, release: Release, outcomes: Mapping[str, Outcome], now_ms: int
    ) -> None:
        """Write what the session's first event came to for handlers that have not handled it.

        The caller finishes the event right after that. `now_ms`: the worker's clock.
        """
        retries = session.retries
        if retries is None:
            retries = session.retries = SessionRetries(release.state, {})
        for handler, outcome in outcomes.items():
            if isinstance(outcome, GivenUp) and outcome.parks and retries.blocks(handler):
                # A replay has begun meanwhile: the event goes behind it, and is given up there.
                outcome = SetAside(outcome.letter.attempts, outcome.letter.failed_at_ms, 0)  # noqa: PLW2901
            if isinstance(outcome, SetAside):
                self._append(
                    session.uuid, retries, handler, item_of(release, now_ms, outcome), outcome.delay_ms
                )
                continue
            self.add_dead_letter(outcome.letter)
            if not outcome.parks:
                retries.skip(handler, release.arrival.number)
                continue
            item = item_of(release, now_ms, SetAside(outcome.letter.attempts, None, 0))
            self.add_retry_op(Append(handler, session.uuid, 0, encode_item(item)))
            self.add_retry_op(Park(handler, session.uuid))
            retries.park(handler, release.arrival.number)

    def may_change_queues(self, session: LiveSession) -> bool:
        """Whether `append_replayed` and `unpark` may be called now: what is stored of the session's order is known.

        Not while the session has events under way and no retry queue: ask again when it is idle.
        """
        return session.retries is not None or session.idle

    def append_replayed(self, session: LiveSession, handler: str, items: Sequence[QueueItem]) -> None:
        """Add events that an operator replays to a retry queue. Raises ValueError unless `may_change_queues`."""
        retries = self._retries_of(session)
        if session.queue:
            retries.joined.add(handler)
        for item in items:
            self._append(session.uuid, retries, handler, item, JOINED_DELAY_MS if session.queue else 0)
        self.store_retries(session)

    def delete_letter(self, letter_id: str) -> None:
        """Delete a dead letter that no queue waits behind. `letter_id`: its entry in `{ns:p}:dead`."""
        self.add_retry_op(DeleteLetter(letter_id))

    def unpark(
        self, session: LiveSession, handler: str, letter_id: str, item: QueueItem | None, number: int | None
    ) -> None:
        """Remove the dead letter that a queue waits behind: `item`, which it stands for, runs first if it is given.

        `number`: the SequenceNumber of the letter's event, which the handler skips if there is no item. Raises
        ValueError unless `may_change_queues`.
        """
        retries = self._retries_of(session)
        retries.unpark(handler)
        if item is not None:
            retries.handled(handler, number)
            retries.add(handler, 1)
        self.add_retry_op(
            Unpark(handler, session.uuid, letter_id, None if item is None else encode_item(item))
        )
        self._note_change(handler, session.uuid, 0)
        self.store_retries(session)

    def give_up_waiting(
        self, session: LiveSession, handler: str, items: Sequence[bytes], *, now_ms: int
    ) -> None:
        """Give up the first events that wait behind a dead letter, one letter for each, and unpark the queue.

        `items`: these events, as Redis has them. Raises ValueError unless `may_change_queues`.
        """
        retries = self._retries_of(session)
        for encoded in items:
            letter, number, job = self._reader.letter_of(
                session.uuid, handler, encoded, WAITED_TOO_LONG, now_ms
            )
            if job is not None:
                self.jobs.run_ended(job, handler, session.uuid, succeeded=False)
            self.add_dead_letter(letter)
            retries.skip(handler, number)
        retries.add(handler, -len(items))
        retries.unpark(handler)
        self.add_retry_op(GiveUpWaiting(handler, session.uuid, len(items)))
        self._note_change(handler, session.uuid, 0)
        self.store_retries(session)

    # Queues in memory

    def open_queue(
        self,
        session: LiveSession,
        handler: str,
        items: Sequence[bytes],
        *,
        takes: int,
        waiting: int,
        now_ms: int,
    ) -> RetryQueue | None:
        """Take a queue into memory, with its first items as Redis has them; None if nothing of it can be run now.

        `takes`, `waiting`: how often it was taken without the end being committed, and how many items it has. An item
        that cannot be read becomes a dead letter. `now_ms`: the worker's clock.
        """
        if not self.may_change_queues(
            session
        ):  # its state was lost: what is stored of its order is not known
            self._untake(session.uuid, handler, JOINED_DELAY_MS)
            return None
        retries = self._retries_of(session)
        if retries[handler].waiting < waiting:  # as above
            retries.add(handler, waiting - retries[handler].waiting)
        if handler in retries.joined:
            self._untake(session.uuid, handler, JOINED_DELAY_MS)
            return None
        queue = RetryQueue(session, handler, takes)
        for encoded in items:
            try:
                queue.add(*self._reader.read(encoded))
            except Exception as error:  # noqa: BLE001 - one item is not to lose the others
                if not queue.items:
                    self._give_up_unreadable(session, handler, encoded, error, now_ms)
                    return None
                break
        queue.start_first()
        self.retry_queues[handler, session.uuid] = queue
        retries.running.add(handler)
        return queue

    def finish_first_item(self, queue: RetryQueue, progress: Progress) -> bool:
        """Write what the queue's first item came to. Returns whether the queue may go on with the next one."""
        session, handler = queue.session, queue.handler
        retries = self._retries_of(session)
        item, release = queue.items.pop(0), queue.queue.pop(0)
        outcome, number = progress.outcomes.get(handler), release.arrival.number
        if isinstance(outcome, SetAside):
            if item.job is not None and outcome.attempts and not item.attempts:
                self.jobs.on_failed_first(item.job)
            again = replace(
                item,
                attempts=outcome.attempts,
                first_failed_ms=outcome.first_failed_ms,
                why=outcome.why or item.why,
            )
            self.add_retry_op(Again(handler, session.uuid, outcome.delay_ms, encode_item(again)))
            self._note_change(handler, session.uuid, outcome.delay_ms)
            return False
        retries.add(handler, -1)
        if item.job is not None:
            self.jobs.run_ended(item.job, handler, session.uuid, succeeded=outcome is None)
        parks = False
        if outcome is None:
            retries.handled(handler, number)
        else:
            self.add_dead_letter(outcome.letter)
            parks = outcome.parks
        if parks:
            self.add_retry_op(Park(handler, session.uuid))
            retries.park(handler, number)
            self.jobs.queue_parked(handler, session.uuid)
        else:
            self.add_retry_op(Pop(handler, session.uuid))
            if outcome is not None:
                retries.skip(handler, number)
        goes_on = bool(queue.items) and not parks
        ends = not goes_on and retries[handler].waiting > 0 and not parks
        self._note_change(handler, session.uuid, 0 if ends else None)
        self.store_retries(session)
        if goes_on:
            queue.takes = 1
            queue.start_first()
        return goes_on

    def close_queue(self, queue: RetryQueue, *, untake: bool) -> bool:
        """Remove a queue from memory; False if it is not there. `untake`: its first item is as Redis has it."""
        handler, uuid = queue.handler, queue.uuid
        if self.retry_queues.get((handler, uuid)) is not queue:
            return False
        del self.retry_queues[handler, uuid]
        retries = queue.session.retries
        if retries is not None:
            retries.running.discard(handler)
            if retries.stored() is None:
                queue.session.retries = None
        if untake:
            self._untake(uuid, handler, 0)
        queue.items, queue.queue = [], []
        return True

    # Sessions

    def store_retries(self, session: LiveSession) -> None:
        """Write the session's state with the next commit, with its retry queues."""
        retries = session.retries
        if retries is None:
            return
        stored = retries.stored()
        self._changed[session.uuid] = replace(retries.settled, retries=stored)
        if retries.blocked:
            self._lasting.add(session.uuid)
        else:
            self._lasting.discard(session.uuid)
        if stored is None and not retries.running:
            session.retries = None
        self._uncommitted = True

    # Inside

    def _retries_of(self, session: LiveSession) -> SessionRetries:
        """The session's retry queues; made if it has none and is idle. Raises ValueError if it is not."""
        if session.retries is None:
            if not session.idle:
                raise ValueError("the session has events under way")
            session.retries = SessionRetries(session.state, {})
        return session.retries

    def _append(
        self, uuid: str, retries: SessionRetries, handler: str, item: QueueItem, delay_ms: int
    ) -> None:
        if not retries.blocks(handler):
            self._note_change(handler, uuid, delay_ms, changed=False)
        retries.add(handler, 1)
        self.add_retry_op(Append(handler, uuid, delay_ms, encode_item(item)))
        self._counters.set_aside[handler] += 1

    def _untake(self, uuid: str, handler: str, delay_ms: int) -> None:
        self.add_retry_op(Untake(handler, uuid))
        self._note_change(handler, uuid, delay_ms)

    def _note_change(self, handler: str, uuid: str, delay_ms: int | None, *, changed: bool = True) -> None:
        """Note that a queue's head changes with the next commit, and is due `delay_ms` after that; None: it is not."""
        if changed:
            self._changed_queues.add((handler, uuid))
        if delay_ms is not None:
            self._due_next[handler] = min(delay_ms, self._due_next.get(handler, delay_ms))

    def _give_up_unreadable(
        self, session: LiveSession, handler: str, encoded: bytes, error: Exception, now_ms: int
    ) -> None:
        """Make a dead letter of the first item of a queue, which this release cannot read."""
        cause = Cause("not_decodable", redact(f"not decodable: {error}"), handler)
        letter, number, job = self._reader.letter_of(session.uuid, handler, encoded, cause, now_ms)
        if job is not None:
            self.jobs.run_ended(job, handler, session.uuid, succeeded=False)
        self.add_dead_letter(letter)
        retries = self._retries_of(session)
        retries.add(handler, -1)
        retries.skip(handler, number)
        self.add_retry_op(Pop(handler, session.uuid))
        self._note_change(handler, session.uuid, 0 if retries[handler].waiting else None)
        self.store_retries(session)
