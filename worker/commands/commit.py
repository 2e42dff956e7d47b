"""The data of one commit of a partition, which `scripts.commit` packs for lua/commit.lua."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from maskline.worker.commands.retry_ops import RetryOp
from maskline.worker.ordering.state import SessionState


class Commit(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The data of one fenced call. Its number makes it harmless to repeat a call whose reply was lost."""

    number: int
    """1, 2, … under one fencing token."""
    cursor: str
    """The last entry taken in: every entry up to it is in `waiting`, in `done`, or was in an earlier commit."""
    entries_read: int
    """Entries of the stream up to the cursor; -1 where unknown."""
    waiting: Sequence[str]
    """IDs that enter the group's pending list."""
    done: Sequence[str]
    """IDs that leave the group's pending list."""
    dead: Sequence[bytes]
    """Dead letters, as `encode_dead_letter` writes them."""
    states: Mapping[str, SessionState]
    """The states that changed, by SessionUUID."""
    life_s: int
    """How long states live that are not closed, seconds."""
    closed_life_s: int
    """How long closed ones live, seconds."""
    unmarked: Sequence[str] = ()
    """The fields of marks that are over (`commands.marks`)."""
    moved: bool = True
    """Whether the cursor differs from the one that the last commit, or the acquisition, left in Redis."""
    retry_ops: Sequence[RetryOp] = ()
    """What changes in the retry queues, in this order."""
    lasting: Collection[str] = ()
    """The SessionUUIDs, of those in `states`, whose states do not expire: events of theirs wait in a retry queue."""
