"""A combined read is packed as every other command is, whatever was packed before it."""

from dispatch_kit import partition_of_test
from hypothesis import given
from hypothesis import strategies as st

from maskline.runtime.redis.pipeline import pack
from maskline.schemas.keys import Keys
from maskline.worker.streams.combined_read import CombinedRead
from maskline.worker.streams.read_replies import StreamKeys

KEYS = Keys("maskline", "workers")
PARTITIONS = [partition_of_test(number) for number in range(12)]

ids = st.builds("{}-{}".format, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
reads = st.tuples(
    st.lists(st.tuples(st.sampled_from(PARTITIONS), ids), min_size=1, unique_by=lambda one: one[0].number),
    st.integers(1, 10_000),
    st.none() | st.integers(1, 250),
)


@given(st.lists(reads, min_size=1, max_size=4))
def test_combined_reads_are_packed_as_every_command(several):
    combined = CombinedRead(StreamKeys(KEYS))
    for read, count, block_ms in several:
        for partition, read_id in read:
            partition.read_id = read_id
        block = () if block_ms is None else ("BLOCK", block_ms)
        keys = [KEYS.callbacks(partition.number) for partition, _ in read]
        expected = pack("XREAD", "COUNT", count, *block, "STREAMS", *keys, *(one for _, one in read))
        assert combined.pack([partition for partition, _ in read], count, block_ms) == expected
