"""What a worker keeps in Redis, kept in memory: the stream, the pending list, session states, dead letters and retry
queues. Pure: the time is passed in, in ms.

A commit changes it as lua/commit.lua changes Redis; a property test holds the retry queues to the same model as the
script's.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from maskline.schemas.callback import as_replayed
from maskline.worker.commands.commit import Commit
from maskline.worker.commands.retry_ops import (
    Again,
    Append,
    DeleteLetter,
    GiveUpWaiting,
    Park,
    Pop,
    QueueOp,
    Requeue,
    RetryOp,
    Unpark,
    Untake,
)
from maskline.worker.entries.dead_letter import DeadLetter, decode_dead_letter
from maskline.worker.entries.entry import entry_position
from maskline.worker.ordering.state import SessionState, encode_state

FIRST_POSITION: Final = "0-0"


class Place(NamedTuple):
    """Where a retry queue is."""

    handler: str
    session: str
    """The SessionUUID."""


class _Queue:
    """A retry queue: due, parked, or gone."""

    __slots__ = ("due_ms", "items", "parked_ms")

    def __init__(self) -> None:
        self.items: list[bytes] = []
        self.due_ms: int | None = None
        """When its head is to be tried; None if it is parked."""
        self.parked_ms: int | None = None
        """Since when it waits behind a dead letter; None if it does not."""


class RetryQueues:
    """The retry queues of a partition."""

    def __init__(self) -> None:
        self._queues: dict[Place, _Queue] = {}

    def change(self, op: QueueOp, now_ms: int) -> None:
        """Carry out one operation of a commit at `now_ms`."""
        place = Place(op.handler, op.session)
        queue = self._queues.setdefault(place, _Queue())
        match op:
            case Append():
                queue.items.append(op.item)
                if queue.due_ms is None:
                    self._set_due(queue, now_ms + op.delay_ms)
            case Again():
                queue.items[:1] = [op.item]
                self._set_due(queue, now_ms + op.delay_ms)
            case Pop():
                del queue.items[:1]
                self._set_due(queue, now_ms)
            case Park():
                del queue.items[:1]
                queue.due_ms = None
                queue.parked_ms = now_ms if queue.parked_ms is None else queue.parked_ms
            case Unpark():
                queue.parked_ms = None
                queue.items[:0] = [op.item] if op.item else []
                self._set_due(queue, now_ms)
            case Untake():
                self._set_due(queue, now_ms)
            case GiveUpWaiting():
                queue.parked_ms = None
                del queue.items[: op.events]
                self._set_due(queue, now_ms)
        if queue.due_ms is None and queue.parked_ms is None:
            del self._queues[place]

    @property
    def parked(self) -> int:
        """How many events wait behind dead letters."""
        return sum(len(queue.items) for queue in self._queues.values() if queue.parked_ms is not None)

    @property
    def set_aside(self) -> int:
        """How many events wait to be tried."""
        return sum(len(queue.items) for queue in self._queues.values() if queue.parked_ms is None)

    def due(self) -> list[tuple[int, Place]]:
        """When each queue that is not parked is due, the first first."""
        return sorted(
            (queue.due_ms, place) for place, queue in self._queues.items() if queue.due_ms is not None
        )

    def parked_since(self) -> list[tuple[int, Place]]:
        """Since when each parked queue is so, the first first."""
        return sorted(
            (queue.parked_ms, place) for place, queue in self._queues.items() if queue.parked_ms is not None
        )

    def items(self, place: Place) -> list[bytes]:
        """The events of a queue, oldest first; none where there is no such queue."""
        queue = self._queues.get(place)
        return [] if queue is None else [*queue.items]

    def parked_ms(self, place: Place) -> int | None:
        """Since when a queue is parked; None if it is not."""
        queue = self._queues.get(place)
        return None if queue is None else queue.parked_ms

    def _set_due(self, queue: _Queue, at_ms: int) -> None:
        if queue.parked_ms is None:
            queue.due_ms = at_ms if queue.items else None


class Kept:
    """All that is kept of one partition and its group."""

    def __init__(self) -> None:
        self.stream: list[tuple[str, bytes]] = []
        """Every entry: its ID, and the msgpack of its RawCallback."""
        self.cursor = FIRST_POSITION
        """The last entry that the group was given."""
        self.pending: set[str] = set()
        """Entries up to the cursor that are not done."""
        self.letters: dict[str, DeadLetter] = {}
        """The dead letters, by their own IDs."""
        self.queues = RetryQueues()
        self._states: dict[str, tuple[bytes, int | None]] = {}
        """By SessionUUID: the state, and when it expires."""
        self._letters_written = 0

    def append(self, encoded: bytes, now_ms: int) -> str:
        """Append an entry to the stream, and return its ID. `now_ms` never falls."""
        entry_id = f"{now_ms}-{len(self.stream) + 1}"
        self.stream.append((entry_id, encoded))
        return entry_id

    def unread(self) -> tuple[list[tuple[str, bytes]], int]:
        """What a new owner reads first: the pending entries; and the place in the stream from which it reads on."""
        after = entry_position(self.cursor)
        pending = [entry for entry in self.stream if entry[0] in self.pending]
        read = sum(entry_position(entry_id) <= after for entry_id, _ in self.stream)
        return pending, read

    def states(self, sessions: Iterable[str], now_ms: int) -> dict[str, bytes | None]:
        """The states of sessions; None for one that there is none of."""
        return {session: self.state(session, now_ms) for session in sessions}

    def state(self, session: str, now_ms: int) -> bytes | None:
        """The state of a session; None if there is none, or no longer."""
        encoded, expires_ms = self._states.get(session, (None, None))
        return encoded if expires_ms is None or now_ms < expires_ms else None

    def apply(self, commit: Commit, now_ms: int) -> dict[str, DeadLetter]:
        """Carry a commit out. Returns the dead letters that it has written, by their IDs."""
        self.cursor = commit.cursor
        self.pending.update(commit.waiting)
        self.pending.difference_update(commit.done)
        for session, state in commit.states.items():
            self._keep_state(session, state, commit, now_ms)
        written: dict[str, DeadLetter] = {}
        for encoded in commit.dead:
            self._letters_written += 1
            written[f"{now_ms}-{self._letters_written}"] = decode_dead_letter(encoded)
        self.letters.update(written)
        for op in commit.retry_ops:
            self._change(op, now_ms)
        return written

    def _keep_state(self, session: str, state: SessionState, commit: Commit, now_ms: int) -> None:
        life_s = commit.closed_life_s if state.closed else commit.life_s
        expires_ms = None if session in commit.lasting else now_ms + life_s * 1000
        self._states[session] = encode_state(state), expires_ms

    def _change(self, op: RetryOp, now_ms: int) -> None:
        match op:
            case DeleteLetter():
                self.letters.pop(op.letter_id, None)
            case Requeue():
                if self.letters.pop(op.letter_id, None) is not None:
                    self.append(as_replayed(op.callback), now_ms)
            case Append() | Again() | Pop() | Park() | Unpark() | Untake() | GiveUpWaiting():
                if isinstance(op, Unpark):
                    self.letters.pop(op.letter_id, None)
                self.queues.change(op, now_ms)
            case _:  # the progress of jobs, of which a harness has none
                pass
