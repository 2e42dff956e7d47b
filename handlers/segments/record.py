"""One archived callback, as a segment keeps it. Pure."""

from typing import Final

import msgspec

from maskline.schemas.callback import RawCallback


class ArchivedCallback(msgspec.Struct, frozen=True, array_like=True):
    """A callback with its place in the streams, which is the same however often it is archived."""

    partition: int
    """The partition it was read from; an installation may have another number of them when it is read back."""
    entry_id: str
    """Its entry in that partition's stream."""
    callback: RawCallback

    def __repr__(self) -> str:
        # The callback is left out, as it has phone numbers.
        return f"ArchivedCallback({self.partition}-{self.entry_id})"


encode_record: Final = msgspec.msgpack.Encoder().encode
"""ArchivedCallback to its msgpack."""
