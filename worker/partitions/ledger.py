"""Keeps the open entries of an owned partition, and makes its commits. Pure: the base of `Partition`.

An entry is *fresh* if it was taken in and no commit has added it to the group's pending list yet, *pending* if it is in
that list, and done if neither. An entry that is done while it is fresh never enters the pending list.

Invariants, so that a crash at any point loses and doubles nothing:
- every entry up to the cursor is done, or in the group's pending list, once a commit is through;
- a session's committed state knows of the releases whose handlers are done, and of no later one;
- both are written by the same commit.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from maskline.worker.commands.commit import Commit
from maskline.worker.commands.retry_ops import DeleteLetter, Requeue, RetryOp, Unpark, WriteJob
from maskline.worker.counters import Counters
from maskline.worker.entries.dead_letter import DeadLetter, encode_dead_letter
from maskline.worker.entries.entry import entry_position
from maskline.worker.ordering.state import SessionState
from maskline.worker.partitions.history import Seen, StreamEntry
from maskline.worker.poison.tracker import Suspects

RUN_AHEAD_MAX: Final = 1_024
"""Entries taken in beyond the committed cursor. After a crash nobody can tell which of them were under way, so this
bounds how many become suspects."""

CLOSED_SESSION_TTL_S: Final = 3_600
"""A session whose SessionTimeout was handled is remembered for an hour, for late callbacks."""


class Lease(NamedTuple):
    """The lease by which a worker owns a partition."""

    partition: int
    token: int
    """The fencing token: greater with every change of owner."""
    value: str
    """`<fencing token> <worker>`, as it stands under the lease's key (`scripts.lease_value`)."""


class GroupPosition(NamedTuple):
    """The position of a partition's consumer group."""

    cursor: str = "0-0"
    """The ID of the last entry that the group was given."""
    entries_read: int = 0
    """Entries of the stream up to the cursor; -1 where the server does not know."""


class EntryLedger:
    """The open entries of one tenure of a partition, and its commits, one at a time."""

    def __init__(
        self, lease: Lease, position: GroupPosition, *, session_ttl_s: int, counters: Counters
    ) -> None:
        self.number, self.token, self.lease_value = lease
        self.cursor, self.entries_read = position
        """The last entry taken in: all up to it are done or open; and how many entries that is."""
        self.read_id = self.cursor
        """The last entry read; those between are on their way through the pipeline."""
        self.last_entry: StreamEntry | None = None
        """The entry under `read_id` as it came; None before the first."""
        self.run_ahead = 0
        """Entries taken in beyond the committed cursor."""
        self.commit_in_flight: Commit | None = None
        self.commit_requested = False
        """The committer knows that something is done, and how urgent it is, and has not taken the next commit yet."""
        self.suspects: Suspects | None = None
        """Entries that may have crashed the last owner; None once there are none."""
        self._session_ttl_s = session_ttl_s
        self._counters = counters
        self._fresh: set[str] = set()
        self._pending: set[str] = set()
        self._done, self._dead, self._unmarked = list[str](), list[bytes](), list[str]()
        self._changed: dict[str, SessionState] = {}
        """States that no commit has taken yet, by SessionUUID."""
        self._lasting = set[str]()
        """The SessionUUIDs of those states that are not to expire."""
        self._retry_ops: list[RetryOp] = []
        self._jobs: dict[str, bytes] = {}
        """The records of jobs that no commit has taken yet, by job id."""
        self._being_written: Collection[str] = ()
        """Sessions whose states the commit in flight writes: Redis may still answer with the old ones."""
        self._uncommitted = False
        self._run_ahead_at_commit = 0
        self._confirmed = 0, self.cursor
        """Number and cursor of the last commit that Redis has confirmed."""

    @property
    def open_entries(self) -> int:
        """Entries taken in that are not done."""
        return len(self._fresh) + len(self._pending)

    @property
    def wants_commit(self) -> bool:
        """Something is done that no commit has taken, and none is in flight."""
        return self._uncommitted and self.commit_in_flight is None

    @property
    def whole(self) -> bool:
        """All that was taken in since the last commit is done: a commit now puts nothing into the pending list."""
        return not self._fresh

    @property
    def uncommitted(self) -> bool:
        """Something is done that Redis has not confirmed."""
        return self._uncommitted or self.commit_in_flight is not None

    @property
    def commit_is_urgent(self) -> bool:
        """Something waits for the next commit: a retry queue or a job, whose next step follows it; the handlers of dead
        letters; or a mark, which would count as a crash of a handler that is done.
        """
        return bool(self._retry_ops or self._dead or self._jobs or self._unmarked)

    @property
    def last_commit_wanted(self) -> int:
        """The number of the commit with which all that is done by now will be written."""
        return self._confirmed[0] + (self.commit_in_flight is not None) + self._uncommitted

    def is_confirmed(self, number: int) -> bool:
        """Whether Redis has confirmed the commit of this number."""
        return self._confirmed[0] >= number

    def add_dead_letter(self, letter: DeadLetter) -> None:
        """Write a dead letter with the next commit."""
        self._dead.append(encode_dead_letter(letter))
        self._set_urgent()
        self._counters.dead[letter.code] += 1
        if letter.handler is not None:
            self._counters.gave_up[letter.handler] += 1

    def add_retry_op(self, op: RetryOp) -> None:
        """Change a retry queue with the next commit, after what was added before."""
        self._retry_ops.append(op)
        self._set_urgent()

    def letters_being_deleted(self) -> set[str]:
        """The dead letters that a commit deletes which Redis has not confirmed, by their entries in `{ns:p}:dead`."""
        in_flight = () if self.commit_in_flight is None else self.commit_in_flight.retry_ops
        deleting = (Unpark, DeleteLetter, Requeue)
        return {op.letter_id for op in (*in_flight, *self._retry_ops) if isinstance(op, deleting)}

    def write_job(self, job_id: str, record: bytes) -> None:
        """Write a job's progress with the next commit; the last record of a job that a commit takes counts.

        `record`: as `schemas.jobs.encode_partition_job` writes it.
        """
        self._jobs[job_id] = record
        self._set_urgent()

    def take_commit(self) -> Commit:
        """The finished work since the last commit; it is `commit_in_flight` until `committed` is called."""
        number, cursor = self._confirmed
        if self._jobs:
            self._retry_ops += (WriteJob(job_id, record) for job_id, record in self._jobs.items())
            self._jobs = {}
        commit = Commit(
            number=number + 1,
            cursor=self.cursor,
            entries_read=self.entries_read,
            waiting=[*self._fresh],
            done=self._done,
            dead=self._dead,
            states=self._changed,
            life_s=self._session_ttl_s,
            closed_life_s=min(CLOSED_SESSION_TTL_S, self._session_ttl_s),
            unmarked=self._unmarked,
            moved=self.cursor != cursor,
            retry_ops=self._retry_ops or (),
            lasting=self._lasting or (),
        )
        self._pending |= self._fresh
        self._fresh.clear()
        self._done, self._dead, self._unmarked = [], [], []
        self._being_written, self._changed = self._changed, {}
        if self._retry_ops:
            self._retry_ops = []
        if self._lasting:
            self._lasting = set()
        self._uncommitted = self.commit_requested = False
        self._run_ahead_at_commit = self.run_ahead
        self.commit_in_flight = commit
        return commit

    def committed(self) -> None:
        """Redis has confirmed the commit in flight."""
        if (commit := self.commit_in_flight) is not None:
            self._confirmed = commit.number, commit.cursor
        self.run_ahead -= self._run_ahead_at_commit
        self.commit_in_flight = None
        self._being_written = ()

    @property
    def commit_numbers(self) -> tuple[int, int]:
        """The numbers that the last commit in Redis may have: the last confirmed one, and the one in flight."""
        confirmed, _ = self._confirmed
        return confirmed, confirmed if self.commit_in_flight is None else self.commit_in_flight.number

    def seen(self) -> Seen:
        """The history that a server must have, so that the partition can continue there."""
        commits = dict([self._confirmed])
        if (commit := self.commit_in_flight) is not None:
            commits[commit.number] = commit.cursor
        return Seen(self.lease_value, commits, self.read_id, self.last_entry)

    def _take_in(self, ids: Sequence[str], *, pending: bool) -> None:
        """Take in entries that were read: `pending` ones from the group's pending list, others from beyond the cursor,
        in order.
        """
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
                if self.suspects is not None:  # `_unmark` drops them when the last is done
                    self._unmark(self.suspects.entry_read(entry_id, pending=pending))

    def _finish_entry(self, entry_id: str) -> None:
        """Count an open entry as done. Raises KeyError if it is not open."""
        if entry_id in self._fresh:
            self._fresh.remove(entry_id)
        else:
            self._pending.remove(entry_id)
            self._done.append(entry_id)
        if self.suspects is not None:
            self._unmark(self.suspects.entry_done(entry_id))
        self._uncommitted = True

    def has_open_up_to(self, entry_id: str) -> bool:
        """Whether an entry up to this one is taken in and not done."""
        last = entry_position(entry_id)
        return any(entry_position(one) <= last for one in (*self._fresh, *self._pending))

    def _is_open(self, entry_id: str) -> bool:
        return entry_id in self._fresh or entry_id in self._pending

    def _unmark(self, fields: Iterable[str]) -> None:
        """Delete marks with the next commit; forget the suspects once there are none."""
        self._unmarked += fields
        if self._unmarked:
            self.commit_requested = False
        if self.suspects is not None and self.suspects.over:
            self.suspects = None

    def _set_urgent(self) -> None:
        """Something is to be committed that is waited for: whoever reports what is done tells the committer again."""
        self._uncommitted = True
        self.commit_requested = False
