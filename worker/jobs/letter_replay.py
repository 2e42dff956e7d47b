"""Takes a dead letter away: puts its event back into its handlers' retry queues, or lets its session go on without it.

Pure: the partition writes it with its next commit. Jobs carry out operators' replays and discards with it, and so does
the harness for tests.
"""

from typing import NamedTuple

from maskline.worker.entries.dead_letter import DeadLetter
from maskline.worker.entries.queue_item import ITEM_VERSION, QueueItem
from maskline.worker.jobs.letter_plan import LetterPlan, order_of_replay
from maskline.worker.ordering.reorder import Order
from maskline.worker.partitions.partition import Partition
from maskline.worker.partitions.session import LiveSession


class PutBack(NamedTuple):
    """Where the event of a letter went."""

    queued: tuple[str, ...]
    """The handlers in whose retry queues it is tried."""
    parked: int
    """In how many others it waits behind another dead letter."""


def put_back(
    partition: Partition,
    session: LiveSession,
    letter_id: str,
    letter: DeadLetter,
    plan: LetterPlan,
    *,
    parks: bool,
    now_ms: int,
    job: str | None = None,
) -> PutBack:
    """Put a letter's event into the retry queues of `plan.handlers`, and delete the letter.

    `letter_id`: its entry in `{ns:p}:dead`. `plan`: its action is `run`. `parks`: a queue waits behind it. `now_ms`:
    the worker's clock. `job`: the one that replays it. Raises ValueError unless `partition.may_change_queues(session)`.
    """
    if parks and letter.handler is not None:
        item = _item(letter, letter.order or "late", now_ms, job)
        partition.unpark(session, letter.handler, letter_id, item, plan.number)
        return PutBack(plan.handlers, 0)
    queued: list[str] = []
    for handler in plan.handlers:
        waits = session.retries is not None and session.retries.blocks(handler)
        order = order_of_replay(letter, plan, session.state, queue_waits=waits)
        partition.append_replayed(session, handler, [_item(letter, order, now_ms, job)])
        if session.retries is None or not session.retries[handler].parked:
            queued.append(handler)
    partition.delete_letter(letter_id)
    return PutBack(tuple(queued), len(plan.handlers) - len(queued))


def discard(
    partition: Partition, session: LiveSession | None, letter_id: str, letter: DeadLetter, *, parks: bool
) -> None:
    """Delete a letter; what waits behind it goes on, with its number in `ctx.skipped`.

    Arguments as for `put_back`; the session is only needed if `parks`.
    """
    if parks and session is not None and letter.handler is not None:
        partition.unpark(session, letter.handler, letter_id, None, letter.sequence_number)
    else:
        partition.delete_letter(letter_id)


def _item(letter: DeadLetter, order: Order, now_ms: int, job: str | None) -> QueueItem:
    missing = letter.missing if order == "after_gap" else ()
    return QueueItem(
        ITEM_VERSION,
        letter.entry_id,
        letter.callback,
        order,
        missing,
        letter.run,
        now_ms,
        replayed=True,
        job=job,
    )
