"""What feeds workers from an archive: whole sessions, a bounded number of bytes ahead of them, through failovers."""

import asyncio
import contextlib

import msgspec
import pytest
from job_kit import change_record, record_in

from maskline.console.jobs.archive import feeder as module
from maskline.console.jobs.archive.feeder import ArchiveFeeder
from maskline.console.jobs.archive.session_sort import SessionSort
from maskline.console.jobs.records import create_job, new_job
from maskline.console.redis_reader import open_reader
from maskline.schemas.jobs import NOTHING_SELECTED
from maskline.schemas.replay_feed import BEGIN_FIELD, END_FIELD, FEED_TTL_MS, PART_FIELD, decode_part
from maskline.schemas.settings import Settings

pytestmark = pytest.mark.server

BYTES_EACH = 1_000
CALLBACKS = 3


class Feeding:
    """A feeder at work, with sessions s1 … sN in one partition; the test plays the worker."""

    def __init__(self, client, namespace, reader, job, feeder):
        self.client, self.namespace, self.job = client, namespace, job
        self.key = reader.keys.feed(0, job.id)
        self.feeder = feeder

    def entries(self):
        return self.client.xrange(self.key)

    def sessions(self):
        """Those in the feed that are whole, with their entry IDs."""
        found, parts = {}, []
        for _, fields in self.entries():
            if PART_FIELD in fields:
                part = decode_part(fields[PART_FIELD])
                parts += part.callbacks
                if part.last:
                    found[part.session_uuid] = [entry_id for entry_id, _ in parts]
                    parts = []
        return found

    def take_on(self, count):
        """Take on the first sessions that are there, as a worker does."""
        last = None
        for entry_id, fields in self.entries():
            if PART_FIELD in fields and count:
                last = entry_id.decode()
                count -= decode_part(fields[PART_FIELD]).last
        change_record(self.client, self.namespace, self.job, 0, cursor=last)
        self.client.xtrim(self.key, minid=f"{int(last.partition('-')[0]) + 1}-0", approximate=False)

    async def until(self, condition):
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)


@pytest.fixture
async def feeding(redis_server, namespace, monkeypatch):
    """Starts a feeder with so many sessions."""
    settings = Settings(redis_url=redis_server.url, namespace=namespace, partitions=1)
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "RECONNECT_S", 0.01)
    async with contextlib.AsyncExitStack() as stack:
        client = stack.enter_context(redis_server.client())

        async def start(sessions):
            sort = stack.enter_context(SessionSort())
            for number in range(1, sessions + 1):
                for place in range(CALLBACKS):
                    sort.add(
                        f"s{number}", 0, f"{number}-{place}", bytes(BYTES_EACH), identity="", selected=True
                    )
            reader = await open_reader(settings)
            stack.callback(reader.close)
            sort.partitions()
            job, feeder = new_job("archive", NOTHING_SELECTED, [0], 0.0), ArchiveFeeder(sort)
            await feeder.open(reader, job)
            await feeder.open(reader, job)  # harmless to repeat
            assert await create_job(reader, job, {0: "0-0"})
            task = asyncio.create_task(feeder.run(reader, job))

            async def end():
                task.cancel()
                await asyncio.wait({task})
                assert task.cancelled(), task.exception()

            stack.push_async_callback(end)
            return Feeding(client, namespace, reader, job, feeder)

        yield start


async def test_all_sessions_come_whole_and_in_their_order_then_the_end(feeding, monkeypatch):
    monkeypatch.setattr(module, "PART_MAX_BYTES", 2 * BYTES_EACH)
    feed = await feeding(4)
    await feed.until(lambda: feed.feeder.all_fed)
    expected = {f"s{number}": [f"{number}-{place}" for place in range(CALLBACKS)] for number in range(1, 5)}
    assert feed.sessions() == expected
    fields = [next(iter(one)) for _, one in feed.entries()]
    assert fields == [BEGIN_FIELD, *[PART_FIELD] * 8, END_FIELD]
    assert 0 < feed.client.pttl(feed.key) <= FEED_TTL_MS


async def test_no_more_is_ahead_of_the_workers_than_the_bound(feeding, monkeypatch):
    monkeypatch.setattr(module, "FEED_MAX_BYTES", 6_500)
    feed = await feeding(20)
    seen = []
    while not feed.feeder.all_fed:
        await feed.until(lambda: feed.feeder.all_fed or len(feed.sessions()) == 3)
        seen += [*feed.sessions()][:2]
        feed.take_on(2)
        assert len(feed.sessions()) <= 3
    assert seen == [f"s{number}" for number in range(1, len(seen) + 1)]
    assert len(seen) >= 16


async def test_a_session_that_is_larger_than_all_bounds_goes_in_whole(feeding, monkeypatch):
    for bound in ("FEED_MAX_BYTES", "SEND_MAX_BYTES", "PART_MAX_BYTES"):
        monkeypatch.setattr(module, bound, 10)
    feed = await feeding(1)
    await feed.until(lambda: feed.feeder.all_fed or len(feed.sessions()) == 1)
    assert len(feed.sessions()["s1"]) == CALLBACKS


async def test_what_a_failover_has_lost_of_a_feed_is_fed_again(feeding, monkeypatch):
    monkeypatch.setattr(module, "PART_MAX_BYTES", BYTES_EACH)
    feed = await feeding(4)
    await feed.until(lambda: feed.feeder.all_fed)
    before = feed.entries()
    with feed.client.pipeline(transaction=True) as server:
        server.delete(feed.key)
        for entry_id, fields in before[: [one for one, _ in before].index(b"3-0") + 1]:
            server.xadd(feed.key, fields, id=entry_id)  # up to a third of s3
        server.execute()
    for one in feed.client.client_list():
        if one["name"] == "maskline-console":
            feed.client.client_kill_filter(_id=one["id"])
    await feed.until(lambda: len(feed.entries()) == len(before))
    assert feed.entries() == before


async def test_a_feed_that_has_expired_is_not_begun_anew(feeding, monkeypatch):
    """Its command slept for too long: what was in it is lost, and what follows must not look like all of it."""
    monkeypatch.setattr(module, "FEED_MAX_BYTES", 10)
    feed = await feeding(5)
    await feed.until(lambda: len(feed.sessions()) == 1)
    feed.client.delete(feed.key)
    change_record(feed.client, feed.namespace, feed.job, 0, cursor="1-0")
    await feed.until(lambda: feed.feeder.all_fed)
    assert not feed.client.exists(feed.key)


async def test_a_job_that_is_stopped_is_fed_no_more(feeding, monkeypatch):
    monkeypatch.setattr(module, "FEED_MAX_BYTES", 10)
    feed = await feeding(5)
    await feed.until(lambda: len(feed.sessions()) == 1)
    change_record(feed.client, feed.namespace, feed.job, 0, state="stopped")
    await feed.until(lambda: feed.feeder.all_fed)
    assert record_in(feed.client, feed.namespace, feed.job, 0) == msgspec.structs.replace(
        record_in(feed.client, feed.namespace, feed.job, 0), state="stopped"
    )
    assert len(feed.sessions()) == 1
