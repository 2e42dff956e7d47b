"""Marks: Redis has one for each attempt that may crash a worker, as a field of the partition's marks hash.

`worker.poison.tracker` decides which marks are written; lua/mark.lua writes it, lua/acquire.lua returns it to the next
owner. The field is `<entry ID> <handler>`, the value `<crashes> <state>`: both stay as they are, since workers of two
releases may share a namespace.
"""

from typing import Final, Literal, NamedTuple, get_args

MARKS_TTL_S: Final = 7 * 86_400
"""Marks that nobody clears (a group deleted at the wrong moment) expire after a week without new ones."""

MarkState = Literal["idle", "running", "trial"]
"""Where the handler runs: nowhere, in the worker, or in a sandbox, which Redis calls `trial`."""

_STATES: Final[tuple[MarkState, ...]] = get_args(MarkState)


class Mark(NamedTuple):
    """The mark of one handler's attempts at one entry."""

    crashes: int
    """How often a worker went down while the handler ran: 0 … 9."""
    state: MarkState


def mark_field(entry_id: str, handler: str) -> str:
    """The field of a mark: of the stream entry's ID and the handler's name."""
    return f"{entry_id} {handler}"


def encode_mark(mark: Mark) -> str:
    """The value of a mark."""
    return f"{mark.crashes} {mark.state}"


def decode_mark(value: bytes) -> Mark | None:
    """Read the value that `encode_mark` wrote; None if it is not a mark."""
    crashes, _, state = value.partition(b" ")
    for known in _STATES:
        if state == known.encode() and len(crashes) == 1 and crashes.isdigit():
            return Mark(int(crashes), known)
    return None
