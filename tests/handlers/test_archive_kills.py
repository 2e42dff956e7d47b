"""Worker processes with the archive are killed at the worst moments: nothing is lost, and nothing counts twice.

ARCHIVE_KILLS=200 makes it long.
"""

import asyncio
import os
import random
from collections import Counter

import pytest
from process_kit import PATIENCE_S, Fleet, load
from servers import wait_until

from maskline.handlers.segments.names import TimeRange
from maskline.handlers.segments.reader import ArchiveReader
from maskline.handlers.segments.stores import open_store
from maskline.schemas.callback import CALLBACK_FIELD, decode_callback

KILLS = int(os.environ.get("ARCHIVE_KILLS", "1"))
SESSIONS, EVENTS = 12, 6

pytestmark = pytest.mark.server


def archived(folder):
    """How often each callback is in the archive, by partition and entry; every named file must be whole."""

    async def read():
        reader = ArchiveReader(open_store(str(folder), write=False))
        files = [await reader.read(path) async for path in reader.paths(TimeRange())]
        assert [file.problem for file in files if file.problem] == []
        return Counter((r.partition, r.entry_id, r.callback) for file in files for r in file.records)

    return asyncio.run(read())


def settings_of(crew: Fleet, **more):
    return {
        "handlers": "maskline.handlers.archive",
        "archive_url": crew.directory / "archive",
        "archive_segment_max_age_ms": 20,
        "concurrency": 64,
    } | more


def segments(crew: Fleet) -> int:
    """How many there are; those that are being written have another name."""
    return len([*(crew.directory / "archive").glob("*/*/*/[!.]*.segment")])


def in_streams(crew: Fleet) -> Counter:
    """Every callback that was taken, as `archived` has it."""
    return Counter(
        (partition, entry_id.decode(), decode_callback(fields[CALLBACK_FIELD]))
        for partition in range(crew.partitions)
        for entry_id, fields in crew.client.xrange(crew.keys.callbacks(partition))
    )


def test_after_kills_every_callback_is_in_the_archive_and_known_by_its_entry(crew: Fleet):
    settings = settings_of(crew)
    rng = random.Random(KILLS)
    workers = [crew.start(**settings), *(crew.launch(**settings) for _ in range(KILLS > 1))]
    for kill in range(KILLS):
        before = segments(crew)
        crew.put_all(load(SESSIONS, EVENTS, name=f"k{kill}-", seed=kill))
        wait_until(
            lambda before=before: segments(crew) > before, within_s=PATIENCE_S, what="a segment to be durable"
        )
        victim = rng.randrange(len(workers))
        workers[victim].kill()
        workers[victim] = crew.launch(**settings)
    crew.until_drained()
    for worker in workers:
        assert worker.until_started().terminate() == 0
    kept, taken = archived(crew.directory / "archive"), in_streams(crew)
    assert len(taken) == KILLS * SESSIONS * EVENTS
    assert set(kept) == set(taken)
    assert crew.dead_letters() == []


def test_killed_between_the_segment_and_the_commit_the_same_callbacks_come_under_the_same_entries(
    own_crew: Fleet,
):
    crew = own_crew
    settings = settings_of(crew, archive_segment_max_age_ms=2_000)  # time enough for what follows
    worker = crew.start(**settings)
    crew.put_all(load(SESSIONS, 1))
    wait_until(
        lambda: worker.metric("callbacks_read_total") == SESSIONS,
        within_s=PATIENCE_S,
        what="the callbacks to wait for their segment",
    )
    crew.client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")  # no commit from here on
    wait_until(lambda: segments(crew) == 1, within_s=PATIENCE_S, what="the segment to be durable")
    worker.kill()
    wait_until(  # or the commit that the server holds would still be carried out
        lambda: not any(one["name"].startswith("maskline") for one in crew.client.client_list()),
        within_s=PATIENCE_S,
        what="the server to have noticed",
    )
    crew.client.execute_command("CLIENT", "UNPAUSE")
    crew.start(**settings)
    crew.until_drained()
    kept = archived(crew.directory / "archive")
    assert set(kept) == set(in_streams(crew))
    assert [*kept.values()] == [2] * SESSIONS
