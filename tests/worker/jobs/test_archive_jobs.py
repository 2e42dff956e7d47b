"""Jobs about callbacks of an archive, which a command feeds: the test is the command."""

import pytest
from dispatch_kit import until
from jobs_kit import PARTITIONS, Seen, job_worker
from process_kit import callback

from maskline.schemas.handler_control import REVISION_FIELD
from maskline.schemas.jobs import NOTHING_SELECTED, PartitionJob, Selection, encode_partition_job
from maskline.schemas.keys import partition_of
from maskline.schemas.replay_feed import (
    BEGIN_FIELD,
    BEGIN_ID,
    END_FIELD,
    PART_FIELD,
    FeedPart,
    encode_part,
)
from maskline.worker.entries.entry import entry_position
from maskline.worker.jobs import executor

pytestmark = pytest.mark.server

OLD_MS = 1_600_000_000_000


class Feed:
    """The feeds of a job."""

    def __init__(self, worker, job_id, *, begin=True):
        self.worker = worker
        self.job_id = job_id
        self.sessions = 0
        for partition in range(PARTITIONS) if begin else ():
            worker.client.xadd(self.key(partition), {BEGIN_FIELD: b""}, id=BEGIN_ID)

    def key(self, partition):
        return self.worker.keys.feed(partition, self.job_id)

    def add(self, session, *callbacks, per_part=2):
        """Feed a session: IDs of entries with the values of callbacks."""
        self.sessions += 1
        for part, start in enumerate(range(0, len(callbacks), per_part)):
            some = [*callbacks[start : start + per_part]]
            self.add_part(session, some, part=part, last=start + per_part >= len(callbacks))

    def add_part(self, session, callbacks, *, part, last):
        """Feed a part of the session that was begun last."""
        value = encode_part(FeedPart(session, last, callbacks))
        key = self.key(partition_of(session, PARTITIONS))
        self.worker.client.xadd(key, {PART_FIELD: value}, id=f"{self.sessions}-{part}")

    def end(self):
        for partition in range(PARTITIONS):
            self.worker.client.xadd(self.key(partition), {END_FIELD: b""}, id=f"{self.sessions + 1}-0")

    def length(self):
        return sum(self.worker.client.xlen(self.key(partition)) for partition in range(PARTITIONS))


def archived(session, *numbers):
    """Callbacks that came long ago."""
    return [(f"{OLD_MS + place}-0", callback(session, number)) for place, number in enumerate(numbers)]


def create(worker, monkeypatch, selection=NOTHING_SELECTED):
    """A job with its feeds, which are there before it is."""
    monkeypatch.setattr("jobs_kit._names", iter(["archivejob"]))
    feed = Feed(worker, "archivejob")
    return feed, worker.create("archive", selection)


def replays(*numbers):
    return [Seen(number, "in_order", replayed=True) for number in numbers]


async def test_fed_sessions_run_again_in_order_and_the_feed_is_trimmed(
    redis_server, namespace, monkeypatch
) -> None:
    async with job_worker(redis_server, namespace) as worker:
        feed, job = create(worker, monkeypatch)
        feed.add("a", *archived("a", 2, 1, 4, 3, 3))
        feed.add("b", *archived("b", 1))
        await until(lambda: worker.totals(job).succeeded == 10)  # nothing waits for the end
        assert worker.handlers.of("well", "a") == replays(1, 2, 3, 4)
        feed.add("c", *archived("c", 1))
        feed.end()
        totals = await worker.until_ended(job)
        assert (totals.state, totals.succeeded) == ("done", 12)
        assert feed.length() <= 1 + 2 + 1  # begin of a partition without a session; c, maybe; the ends


async def test_the_selection_narrows_what_runs_and_not_what_orders(
    redis_server, namespace, monkeypatch
) -> None:
    async with job_worker(redis_server, namespace) as worker:
        feed, job = create(worker, monkeypatch, Selection(event="SessionTimeout", handler="well"))
        timeout = (f"{OLD_MS + 9}-0", callback("a", 3, EventName="SessionTimeout"))
        feed.add("a", *archived("a", 1, 2), timeout)
        feed.end()
        totals = await worker.until_ended(job)
        assert totals.succeeded == 1
        assert worker.handlers.of("well", "a") == replays(3)


async def test_what_the_group_is_yet_to_handle_is_left_out(redis_server, namespace, monkeypatch) -> None:
    """Number 3 waits for 2 in the stream; the archive has 1 and 3 of it, and 4, which is of a stream that is lost."""
    async with job_worker(redis_server, namespace, "well", gap_timeout_ms=1_000) as worker:
        await worker.put("a", 1)
        stream = worker.keys.callbacks(partition_of("a", PARTITIONS))
        three = worker.client.xadd(stream, {b"c": callback("a", 3)}).decode()
        kept = [(one.decode(), fields[b"c"]) for one, fields in worker.client.xrange(stream)]
        at_ms, _ = entry_position(three)
        feed, job = create(worker, monkeypatch)
        feed.add("a", *kept, (f"{at_ms + 10_000_000}-0", callback("a", 4)))
        feed.end()
        totals = await worker.until_ended(job)
        live = [one for one in worker.handlers.of("well", "a") if not one.replayed]
        assert [(one.number, one.order) for one in live] == [(1, "in_order"), (3, "after_gap")]
        again = [one.number for one in worker.handlers.of("well", "a") if one.replayed]
        assert again in ([1, 3, 4], [1, 4])  # 3, if it was handled before the session was looked at
        assert totals.succeeded == len(again)


async def test_a_feed_that_is_gone_before_its_end_stops_the_job_there(
    redis_server, namespace, monkeypatch
) -> None:
    async with job_worker(redis_server, namespace) as worker:
        feed, job = create(worker, monkeypatch)
        feed.add("a", *archived("a", 1))
        await until(lambda: worker.totals(job).succeeded == 2)
        for partition in range(PARTITIONS):
            worker.client.delete(feed.key(partition))
        totals = await worker.until_ended(job)
        assert (totals.state, totals.succeeded) == ("stopped", 2)


async def test_a_session_of_which_a_part_is_missing_is_not_run_and_stops_the_job_there(
    redis_server, namespace, monkeypatch
) -> None:
    async with job_worker(redis_server, namespace, "well") as worker:
        feed, job = create(worker, monkeypatch)
        feed.sessions += 1
        feed.add_part("a", archived("a", 1, 2, 3)[2:], part=1, last=True)  # Redis refused the first part
        feed.end()
        totals = await worker.until_ended(job)
        assert (totals.state, totals.selected) == ("stopped", 0)


async def test_the_next_owner_goes_on_where_the_last_one_was(redis_server, namespace, monkeypatch) -> None:
    async with job_worker(redis_server, namespace, "well") as worker:
        feed, job = create(worker, monkeypatch)
        feed.add("a", *archived("a", 1, 2, 3))
        first, second = archived("half", 1, 2)
        feed.sessions += 1
        feed.add_part("half", [first], part=0, last=False)
        await until(lambda: worker.totals(job).succeeded >= 3)
        handlers = worker.handlers
        await worker.crash()
    async with job_worker(redis_server, namespace, "well", handlers=handlers) as worker:
        feed.worker = worker
        feed.add_part("half", [second], part=1, last=True)
        feed.add("b", *archived("b", 1, 2, 3))
        feed.end()
        await worker.until_ended(job)
        assert handlers.of("well", "half") == replays(1, 2)
        assert handlers.of("well", "a") == replays(1, 2, 3)
        assert handlers.of("well", "b") == replays(1, 2, 3)


async def test_a_replay_whose_feed_has_a_pause_does_not_keep_another_one_waiting(
    redis_server, namespace, monkeypatch
) -> None:
    monkeypatch.setattr(executor, "FEEDS_AT_ONCE", PARTITIONS)
    async with job_worker(redis_server, namespace, "well") as worker:
        feed, job = create(worker, monkeypatch)
        feed.add("a", *archived("a", 1))
        await until(lambda: worker.totals(job).succeeded == 1)
        monkeypatch.setattr("jobs_kit._names", iter(["another"]))
        other = Feed(worker, "another")
        other.add("b", *archived("b", 1))
        other.end()
        totals = await worker.until_ended(worker.create("archive"))
        assert (totals.state, totals.succeeded) == ("done", 1)


async def test_an_operator_stops_it_however_long_the_feed_lasts(redis_server, namespace, monkeypatch) -> None:
    from msgspec.structs import replace

    async with job_worker(redis_server, namespace) as worker:
        _, job = create(worker, monkeypatch)
        worker.write(replace(job, stopped=True))
        assert (await worker.until_ended(job)).state == "stopped"


async def test_a_job_of_a_newer_release_keeps_its_records(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace) as worker:
        records = worker.keys.partition_jobs(0)
        worker.client.hset(worker.keys.jobs, "newer", b"\xc1")
        for job_id in ("newer", "forgotten"):
            worker.client.hset(records, job_id, encode_partition_job(PartitionJob(1, "0-0")))
        worker.node.jobs.revision_changed(worker.client.hincrby(worker.keys.control, REVISION_FIELD, 1))
        await until(lambda: not worker.client.hexists(records, "forgotten"))
        assert worker.client.hexists(records, "newer")
