"""An event in a retry queue, as Redis keeps it: the callback, the decisions on its order, and its failed attempts.

The callback is decoded anew each time the event is run, so that a decoding fault that was mended is mended for it too.
"""

from typing import Final

import msgspec

from maskline.worker.ordering.reorder import Order

ITEM_VERSION: Final = 1

WHY_MAX_CHARS: Final = 160
"""An exception and the beginning of its message. Every event that waits after a failure has it in Redis's memory."""


class QueueItem(msgspec.Struct, frozen=True, array_like=True):
    """One event that waits for one handler of one session."""

    version: int
    entry_id: str
    """Its entry in `{ns:p}:callbacks`, which retention may have trimmed."""
    callback: bytes
    """The msgpack of a RawCallback, as it stood in the stream."""
    order: Order
    missing: tuple[int, ...]
    run: int
    aside_ms: int
    """When it was set aside, by the worker's clock: milliseconds since the epoch."""
    attempts: int = 0
    """Attempts that failed and count."""
    first_failed_ms: int | None = None
    """When the first of them failed, as `aside_ms`."""
    replayed: bool = False
    """An operator replays it."""
    job: str | None = None
    """The job that replays it, and counts its outcome."""
    why: str | None = None
    """What the last attempt that counts failed on, for operators: one line of WHY_MAX_CHARS, without phone numbers."""

    def __repr__(self) -> str:
        # The callback is left out, as it has phone numbers.
        return f"QueueItem({self.entry_id}, attempts={self.attempts})"


encode_item: Final = msgspec.msgpack.Encoder().encode

_decoder = msgspec.msgpack.Decoder(QueueItem)


def decode_item(encoded: bytes) -> QueueItem:
    """Read what `encode_item` wrote. Raises ValueError for anything else, and for another version."""
    try:
        item = _decoder.decode(encoded)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"not an item of a retry queue: {error}") from None
    if item.version != ITEM_VERSION:
        raise ValueError(
            f"not an item of a retry queue: version {item.version}, and this release reads {ITEM_VERSION}"
        )
    return item
