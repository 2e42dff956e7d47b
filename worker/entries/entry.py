"""A stream entry in a worker, from decoding to commit: the payload of its `Arrival`; and the IDs of entries."""

import msgspec

from maskline.schemas.call_summary import Handled


class Entry(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A stream entry that was read and decoded, and is not done yet."""

    entry_id: str
    """`<milliseconds>-<counter>`, as Redis gave it."""
    encoded: bytes
    """The msgpack of a RawCallback, as it stands in the stream: a dead letter carries it on."""
    received_at_ms: int
    """When ingest received the callback: milliseconds since the epoch."""
    replayed: bool
    event: Handled

    def __repr__(self) -> str:
        # The callback is left out, as it has phone numbers.
        return f"Entry({self.entry_id})"


EntryPosition = tuple[int, int]
"""The ID of a stream entry as numbers, which sort as the entries do."""


def entry_position(entry_id: str) -> EntryPosition:
    """The position of `<milliseconds>-<counter>`. Raises ValueError for any other text."""
    milliseconds, _, counter = entry_id.partition("-")
    return int(milliseconds), int(counter)


def entry_id_at(position: EntryPosition) -> str:
    """The ID of the entry at a position."""
    return f"{position[0]}-{position[1]}"
