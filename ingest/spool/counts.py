"""Counts spooled callbacks by session and by partition, so that the event loop need not ask the disk. Pure."""

from array import array
from typing import Final

SESSION_BUCKETS: Final = 1 << 16
"""Sessions are counted by the low bits of their partition hash. With a thousand of them here, one in 65 other sessions
shares a bucket and goes through the spool as well; the detour does no other harm."""

_BUCKET_MASK: Final = SESSION_BUCKETS - 1


class SpoolCounts:
    """How many callbacks there are, by bucket of their partition hash, and by partition.

    `partitions`: MASKLINE_PARTITIONS. A partition hash is the CRC-32 of the SessionUUID.
    """

    __slots__ = ("buckets", "partitions")

    def __init__(self, partitions: int) -> None:
        self.buckets = array("I", bytes(4 * SESSION_BUCKETS))
        """By bucket."""
        self.partitions = array("I", bytes(4 * partitions))
        """By partition."""

    def add(self, partition_hash: int, count: int = 1) -> bool:
        """Count so many more callbacks. Returns whether they are the first of their partition."""
        self.buckets[partition_hash & _BUCKET_MASK] += count
        partitions = self.partitions
        partition = partition_hash % len(partitions)
        partitions[partition] += count
        return partitions[partition] == count

    def remove(self, partition_hash: int) -> None:
        """Count one callback less; nothing where there is none, as all were counted anew meanwhile."""
        bucket, partition = partition_hash & _BUCKET_MASK, partition_hash % len(self.partitions)
        if self.buckets[bucket]:
            self.buckets[bucket] -= 1
        if self.partitions[partition]:
            self.partitions[partition] -= 1

    def holds_session(self, partition_hash: int) -> bool:
        """Whether there may be a callback of the session."""
        return self.buckets[partition_hash & _BUCKET_MASK] > 0

    def held_partitions(self) -> list[int]:
        """The partitions with callbacks."""
        return [partition for partition, count in enumerate(self.partitions) if count]

    def plus(self, other: "SpoolCounts") -> "SpoolCounts":
        """The sum of both. Both have the same number of partitions."""
        total = SpoolCounts(len(self.partitions))
        total.buckets = array("I", map(int.__add__, self.buckets, other.buckets))
        total.partitions = array("I", map(int.__add__, self.partitions, other.partitions))
        return total
