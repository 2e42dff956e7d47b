"""Packs the XREAD that names all partitions of a server, from what stays the same between two reads. Pure.

Under modest load there is a read for every few callbacks, and to pack each of its arguments anew took a worker a tenth
of its time.
"""

from collections.abc import Sequence

from maskline.runtime.redis.pipeline import pack
from maskline.worker.partitions.partition import Partition
from maskline.worker.streams.read_replies import StreamKeys


class CombinedRead:
    """Packs the combined reads of one poller. `keys`: the keys of the streams."""

    __slots__ = ("_keys", "_packed_keys", "_partitions")

    def __init__(self, keys: StreamKeys) -> None:
        self._keys = keys
        self._partitions: list[Partition] = []
        """Those of the last read."""
        self._packed_keys = b""

    def pack(self, partitions: Sequence[Partition], count: int, block_ms: int | None) -> bytes:
        """The command that reads at most `count` entries of each of these partitions.

        `block_ms`: how long it waits at the server if there are none; None if it does not.
        """
        if self._partitions != partitions:
            self._partitions = [*partitions]
            keys = [self._keys[partition.number] for partition in partitions]
            self._packed_keys = b"".join([b"$%d\r\n%b\r\n" % (len(key), key) for key in keys])
        ids = [partition.read_id for partition in partitions]
        block = () if block_ms is None else ("BLOCK", block_ms)
        head = ("XREAD", "COUNT", count, *block, "STREAMS")
        # The array's length, which is one digit in what `pack` returns, counts the keys and IDs as well.
        length = b"*%d" % (len(head) + 2 * len(ids))
        packed_ids = "".join([f"${len(read_id)}\r\n{read_id}\r\n" for read_id in ids])
        return b"".join((length, pack(*head)[2:], self._packed_keys, packed_ids.encode()))
