"""When a segment is closed, and whom it lets go on."""

import asyncio

import pytest

from maskline.handlers.segments.errors import ArchiveError
from maskline.handlers.segments.names import SegmentName
from maskline.handlers.segments.record import ArchivedCallback, encode_record
from maskline.handlers.segments.segment import Segment
from maskline.handlers.segments.writer import WRITES_MAX, SegmentBounds, SegmentWriter
from maskline.schemas.callback import RawCallback

RECORD = encode_record(ArchivedCallback(1, "5-0", RawCallback("POST", b"", "", b"x" * 50, 5, "")))
BOUNDS = SegmentBounds(bytes_max=1 << 20, age_max_ms=600_000, records_max=1_000)


class Store:
    """Notes what is put, and holds or fails it as a test says."""

    def __init__(self):
        self.counts = []
        self.under_way = 0
        self.most = 0
        self.go = asyncio.Event()
        self.go.set()
        self.error = None

    async def put(self, path, data):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.go.wait()
        self.under_way -= 1
        if self.error is not None:
            raise self.error
        self.counts.append(len([*Segment(data).records()]))


async def spin(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_at_so_many_records():
    store = Store()
    writer = SegmentWriter(store, BOUNDS._replace(records_max=3), group="g")
    await asyncio.gather(*(writer.keep(RECORD, 1) for _ in range(9)))
    assert store.counts == [3, 3, 3]


async def test_at_so_many_bytes():
    store = Store()
    writer = SegmentWriter(store, BOUNDS._replace(bytes_max=2 * len(RECORD)), group="g")
    await asyncio.gather(*(writer.keep(RECORD, 1) for _ in range(4)))
    assert store.counts == [2, 2]


async def test_after_its_age_and_sooner_for_one_that_is_to_be_kept_soon():
    store = Store()
    writer = SegmentWriter(store, BOUNDS._replace(age_max_ms=1), group="g")
    await writer.keep(RECORD, 1)
    writer = SegmentWriter(store, BOUNDS, group="g")  # whose age no test waits for
    patient = asyncio.create_task(writer.keep(RECORD, 1))
    await asyncio.sleep(0)
    await writer.keep(RECORD, 1, soon=True)
    await patient
    assert store.counts == [1, 2]


async def test_nobody_goes_on_before_the_store_has_confirmed():
    store = Store()
    store.go.clear()
    writer = SegmentWriter(store, BOUNDS._replace(records_max=1), group="g")
    tasks = [asyncio.create_task(writer.keep(RECORD, 1)) for _ in range(WRITES_MAX + 3)]
    await spin(lambda: store.under_way == WRITES_MAX)
    assert not any(task.done() for task in tasks)
    store.go.set()
    await asyncio.gather(*tasks)
    assert (store.most, len(store.counts)) == (WRITES_MAX, WRITES_MAX + 3)


@pytest.mark.parametrize("error", [ArchiveError("the store is away"), RuntimeError("a fault in here")])
async def test_all_that_wait_fail_with_their_segment_and_the_next_one_is_well(error):
    store = Store()
    store.error = error
    writer = SegmentWriter(store, BOUNDS._replace(records_max=2), group="g")
    failed = await asyncio.gather(writer.keep(RECORD, 1), writer.keep(RECORD, 1), return_exceptions=True)
    assert [type(one) for one in failed] == [ArchiveError] * 2
    assert all(str(error) in str(one) for one in failed)
    assert failed[0] is not failed[1]
    store.error = None
    await asyncio.gather(writer.keep(RECORD, 1), writer.keep(RECORD, 1))
    assert store.counts == [2]


async def test_one_that_is_cancelled_takes_nobody_with_it():
    store = Store()
    writer = SegmentWriter(store, BOUNDS._replace(records_max=2), group="g")
    one = asyncio.create_task(writer.keep(RECORD, 1))
    await asyncio.sleep(0)
    one.cancel()
    await writer.keep(RECORD, 1)
    assert (one.cancelled(), store.counts) == (True, [2])


async def test_closing_writes_what_has_gathered():
    store = Store()
    writer = SegmentWriter(store, BOUNDS, group="g")
    kept = asyncio.create_task(writer.keep(RECORD, 1))
    await asyncio.sleep(0)
    await writer.close()
    await kept
    assert store.counts == [1]


async def test_a_name_says_no_earlier_time_than_its_callbacks_whatever_the_clock_says():
    """A reader that looks for a time goes by it."""
    names = []

    class Names(Store):
        async def put(self, path, data):
            names.append(SegmentName.read(path))

    await SegmentWriter(Names(), BOUNDS._replace(records_max=1), group="g", now_ms=lambda: 1_000).keep(
        RECORD, 5_000
    )
    assert names[0].closed_ms == names[0].earliest_ms == 5_000
