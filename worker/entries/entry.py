"""A stream entry in a worker, from decoding to commit: the payload of its `Arrival`."""

import msgspec

from maskline.schemas.events import Event


class Entry(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A stream entry that was read and decoded, and is not done yet."""

    entry_id: str
    """`<milliseconds>-<counter>`, as Redis gave it."""
    encoded: bytes
    """The msgpack of a RawCallback, as it stands in the stream: a dead letter carries it on."""
    received_at_ms: int
    """When ingest received the callback: milliseconds since the epoch."""
    replayed: bool
    event: Event

    def __repr__(self) -> str:
        # The callback is left out, as it has phone numbers.
        return f"Entry({self.entry_id})"
