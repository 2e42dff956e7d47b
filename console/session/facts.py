"""What Redis has of one session: data alone, as `reading` gathers it and `standing` judges it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from maskline.handlers.redis_store.records import Record
from maskline.schemas.handler_control import Pause
from maskline.worker.entries.dead_letter import DeadLetter
from maskline.worker.entries.entry import Entry
from maskline.worker.entries.queue_item import QueueItem
from maskline.worker.ordering.reorder import Arrival
from maskline.worker.ordering.state import SessionState

KeptIn = Literal["stream", "retry queue", "dead letter"]
"""Where a callback was found: one that retention has trimmed may still wait for a handler, or be a dead letter."""

Progress = Literal["handled", "pending", "unread"]
"""`pending`: a worker has read it and not finished it. `unread`: no worker of the group has read it."""


class KeptCallback(NamedTuple):
    """One callback of the session, decoded."""

    arrival: Arrival
    """Its payload is an `Entry`."""
    kept_in: KeptIn
    progress: Progress = "handled"

    @property
    def entry(self) -> Entry:
        """The entry of its stream."""
        entry: Entry = self.arrival.payload
        return entry


class StreamFacts(NamedTuple):
    """What the server says of the partition's stream."""

    entries: int = 0
    kept_since_ms: int | None = None
    """The time of its oldest entry; None if it has none."""
    trimmed: bool = False
    """Older entries have been trimmed."""
    cursor: str | None = None
    """The last entry that the group has read; None if no worker of the group has ever read this partition."""


class QueueFacts(NamedTuple):
    """The retry queue of one handler in the session."""

    handler: str
    waiting: int
    """Events in it."""
    items: Sequence[QueueItem] = ()
    """The first of them, as far as they can be read."""
    parked: bool = False
    parked_ms: int | None = None
    since_ms: int | None = None
    """Since when there is a queue, as `due_ms` by the server's clock: milliseconds since the epoch."""
    due_ms: int | None = None
    """When its head is to be tried; None if it is parked."""


class LetterFacts(NamedTuple):
    """A dead letter of the session."""

    id: str
    """As operators name it."""
    letter: DeadLetter


class SessionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that Redis has of a session, for one consumer group."""

    session_uuid: str
    partition: int
    group: str
    now_ms: int
    """The server's clock."""
    stream: StreamFacts = StreamFacts()
    callbacks: Sequence[KeptCallback] = ()
    """In the order of the stream."""
    beyond: int = 0
    """Callbacks that are kept and were left out, as there are more than is read."""
    emitted: Collection[bytes] = ()
    """The fingerprints of what modules emitted for the session: it has its place in the order, and is no callback."""
    state: SessionState | None = None
    """The session's order in the group; None if it has none (any more)."""
    state_error: str | None = None
    """Why its order cannot be read, if it cannot."""
    queues: Sequence[QueueFacts] = ()
    letters: Sequence[LetterFacts] = ()
    """The oldest first; of all groups."""
    letters_beyond: int = 0
    timeline: Record | None = None
    """What the module `handlers.timeline` has recorded of it."""
    pauses: Mapping[str, Pause] = {}
    """Handlers that an operator has paused."""

    @property
    def is_unknown(self) -> bool:
        """Redis has nothing of it."""
        return not (
            self.callbacks
            or self.queues
            or self.letters
            or self.timeline
            or self.state is not None
            or self.state_error
        )


CALLBACKS_MAX: Final = 10_000
"""Callbacks of a session that are read, as many as an export takes: it has some dozen."""

CALLBACKS_MAX_BYTES: Final = 48 * 1024 * 1024
"""Of these callbacks: what an export of 64 MiB can still hold, written as JSON."""

LETTERS_MAX: Final = 200
"""Dead letters of a session that are read, the oldest."""

QUEUE_ITEMS_MAX: Final = 256
"""Events of a retry queue that are read, from its head on."""
