"""What a commit changes in retry queues, and how it is packed for lua/commit.lua. Pure.

A *retry queue* holds the events of one session that wait for one handler, oldest first. It is either *due* (its head is
to be tried at a time) or *parked* (its head was given up and is a dead letter; the rest waits for an operator). It is
gone with its last event, unless it is parked. A worker that runs a queue has *taken* it (lua/take.lua); the
operation that ends that is named with each.

Every operation leaves the sorted sets and the counts right, whatever state its queue is in: a queue is never both due
and parked, a parked one is not made due by anything but `Unpark` and `GiveUpWaiting`, and no count falls below 0.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from maskline.schemas.callback import as_replayed
from maskline.schemas.keys import PartitionKeys, encode_handler


class Append(NamedTuple):
    """Add an event to the end of a queue. A new queue is due in `delay_ms`; one that there is stays as it is."""

    handler: str
    session: str
    """The SessionUUID."""
    delay_ms: int
    item: bytes
    """As `worker.retry_queues.item` encodes it; never empty."""


class Again(NamedTuple):
    """Put the head of a queue back with one more attempt: due in `delay_ms`, and no longer taken.

    Where the queue has lost its events, it has this one again.
    """

    handler: str
    session: str
    delay_ms: int
    item: bytes


class Pop(NamedTuple):
    """Remove the head of a queue, which is done. What follows it is due now. The queue is no longer taken."""

    handler: str
    session: str


class Park(NamedTuple):
    """Remove the head of a queue, which is a dead letter of this commit, and park the rest. No longer taken."""

    handler: str
    session: str


class Unpark(NamedTuple):
    """Delete the dead letter that a queue waits behind; the queue is due now."""

    handler: str
    session: str
    letter_id: str
    """Its entry in `{ns:p}:dead`."""
    item: bytes | None
    """The dead letter's event, which becomes the head of the queue; None if it is not to run again."""


class Untake(NamedTuple):
    """Give a queue back without an attempt: due now, and no longer taken."""

    handler: str
    session: str


class GiveUpWaiting(NamedTuple):
    """Remove the first events of a queue, which are dead letters of this commit. The rest is due now."""

    handler: str
    session: str
    events: int
    """How many."""


class DeleteLetter(NamedTuple):
    """Delete a dead letter, if it is still there."""

    letter_id: str


class Requeue(NamedTuple):
    """Delete a dead letter and add its callback to the stream again, flagged as replayed.

    For letters that no handler was reached for. Nothing happens if the letter is gone.
    """

    letter_id: str
    callback: bytes
    """As `DeadLetter.callback` has it: the msgpack of a RawCallback."""


class WriteJob(NamedTuple):
    """Write the progress of a job in this partition."""

    job_id: str
    record: bytes


class DeleteJob(NamedTuple):
    """Forget a job in this partition."""

    job_id: str


QueueOp = Append | Again | Pop | Park | Unpark | Untake | GiveUpWaiting
RetryOp = QueueOp | DeleteLetter | Requeue | WriteJob | DeleteJob

Argument = bytes | str | int

END_MARK: Final = "retry-ops"
"""The last argument of a commit with operations. No other argument that may be the last one is this word: states and
dead letters begin with a byte of msgpack, IDs and lives with a digit, and the consumer has another name."""


class PackedOps(NamedTuple):
    """Operations as lua/commit.lua takes them."""

    keys: list[str]
    """Behind all other keys."""
    arguments: list[Argument]
    """Behind all other arguments."""


def pack_retry_ops(ops: Sequence[RetryOp], keys: PartitionKeys) -> PackedOps:
    """The keys and arguments of operations, in their order; nothing for none. `keys`: of the partition."""
    if not ops:
        return PackedOps([], [])
    packer = _Packer(keys)
    for op in ops:
        packer.add(op)
    return packer.packed()


class _Packer:
    """Numbers the handlers and queues that operations name, so that each has its keys once."""

    def __init__(self, keys: PartitionKeys) -> None:
        self._keys = keys
        self._handlers: dict[str, int] = {}
        self._queues: dict[tuple[str, str], int] = {}
        self._arguments: list[Argument] = []

    def add(self, op: RetryOp) -> None:
        arguments = self._arguments
        match op:
            case Append():
                arguments += "append", *self._queue(op), op.delay_ms, op.item
            case Again():
                arguments += "again", *self._queue(op), op.delay_ms, op.item
            case Pop():
                arguments += "pop", *self._queue(op)
            case Park():
                arguments += "park", *self._queue(op)
            case Unpark():
                arguments += "unpark", *self._queue(op), op.letter_id, op.item or b""
            case Untake():
                arguments += "untake", *self._queue(op)
            case GiveUpWaiting():
                arguments += "give up", *self._queue(op), op.events
            case DeleteLetter():
                arguments += "delete letter", op.letter_id
            case Requeue():
                arguments += "requeue", op.letter_id, as_replayed(op.callback)
            case WriteJob():
                arguments += "write job", op.job_id, op.record
            case DeleteJob():
                arguments += "delete job", op.job_id

    def packed(self) -> PackedOps:
        at = self._keys
        handlers, queues = [*map(encode_handler, self._handlers)], [*self._queues]
        keys = [at.retry_counts, at.retry_taken, at.jobs]
        for handler in handlers:
            keys += at.retry_due + handler, at.retry_parked + handler, at.retry_since + handler
        keys += [f"{at.retry}{encode_handler(handler)}:{session}" for handler, session in queues]
        arguments = [len(handlers), *handlers, *self._arguments, len(keys), END_MARK]
        return PackedOps(keys, arguments)

    def _queue(self, op: QueueOp) -> tuple[int, int, str]:
        """The numbers of the handler and of the queue, from 1, and the session."""
        handler = self._handlers.setdefault(op.handler, len(self._handlers) + 1)
        queue = self._queues.setdefault((op.handler, op.session), len(self._queues) + 1)
        return handler, queue, op.session
