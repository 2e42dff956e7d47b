"""A batch of entries between decoding and ordering. Pure."""

import msgspec

from maskline.worker.ordering.reorder import Arrival


class DecodedBatch(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A batch of decoded entries that are not ordered yet."""

    arrivals: list[Arrival]
    unknown: list[str]
    """SessionUUIDs that are not in memory: their states must be fetched from Redis first."""
    look: bool = False
    """Spool notices must be fetched first as well."""
