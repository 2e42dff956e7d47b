"""Jobs about what has changed under them: expired queues, lost states, busy sessions, paused handlers."""

import asyncio

import pytest
from dispatch_kit import until
from jobs_kit import PARTITIONS, Handlers, JobWorker, job_worker

from maskline.runtime.clock import wall_clock_ms
from maskline.schemas.errors import RedisUnavailableError
from maskline.schemas.handler_control import REVISION_FIELD, Pause, encode_pause, pause_field
from maskline.schemas.jobs import Selection
from maskline.schemas.keys import partition_of
from maskline.worker.jobs.job_run import JobRun

pytestmark = pytest.mark.server

PARTITION = partition_of("ride", PARTITIONS)


def expire_queue(worker: JobWorker) -> None:
    """What MASKLINE_DEAD_TTL_S does to the queue of `ride`; the next commit of the partition writes it."""
    key, client = worker.keys.retry_queue(PARTITION, "parks", "ride"), worker.client
    partition = next(one for one in worker.node.partitions if one.number == PARTITION)
    session = partition.session_of("ride", client.get(worker.keys.session(PARTITION, "ride")))
    partition.give_up_waiting(session, "parks", client.lrange(key, 0, -1), now_ms=wall_clock_ms())


async def test_letter_whose_queue_expired_takes_no_later_letter_out_of_its_park(
    redis_server, namespace, monkeypatch
) -> None:
    monkeypatch.setattr("maskline.worker.jobs.letter_scan.PARKED_WITHIN_MS", 0)
    async with job_worker(redis_server, namespace) as worker:
        worker.handlers.fail("parks", "ride", 2, 4)
        await worker.put("ride", 1, 2, 3)
        expire_queue(worker)
        await worker.put("ride", 4, 5)
        letters = {letter.sequence_number: name for name, letter in worker.letters()}
        assert letters.keys() == {2, 3, 4}
        worker.handlers.mend()
        totals = await worker.carry_out("dead", Selection(ids=(letters[2],)))
        assert (totals.state, totals.parked, totals.succeeded) == ("done", 1, 0)
        assert worker.handlers.numbers("parks", "ride") == [1], "5 waits behind 4"
        await worker.carry_out("discard", Selection(ids=(letters[3],)))
        assert worker.handlers.numbers("parks", "ride") == [1]
        await worker.carry_out("dead", Selection(ids=(letters[4],)))
        await until(lambda: worker.handlers.numbers("parks", "ride") == [1, 4, 5, 2])
        assert worker.handlers.of("parks", "ride")[-1].order == "late"


@pytest.mark.parametrize(("kind", "after"), [("dead", [2, 3]), ("discard", [3])])
async def test_queue_of_a_session_whose_state_was_lost_goes_on(redis_server, namespace, kind, after) -> None:
    handlers = Handlers()
    async with job_worker(redis_server, namespace, handlers=handlers) as worker:
        handlers.fail("parks", "ride", 2)
        await worker.put("ride", 1, 2, 3)
    handlers.mend()
    async with job_worker(redis_server, namespace, handlers=handlers) as worker:
        assert worker.client.delete(worker.keys.session(PARTITION, "ride"))
        totals = await worker.carry_out(kind, Selection(session="ride"))
        assert (totals.state, totals.parked) == ("done", 0)
        await until(lambda: handlers.numbers("parks", "ride") == [1, *after])
        await until(lambda: not worker.client.exists(worker.keys.retry_parked(PARTITION, "parks")))


async def test_letter_of_a_busy_session_waits_and_then_runs(redis_server, namespace) -> None:
    handlers = Handlers()
    beside = next(name for name in map(str, range(99)) if partition_of(name, PARTITIONS) == PARTITION)
    async with job_worker(redis_server, namespace, "well", handlers=handlers, late="dead") as worker:
        for session in (beside, "ride"):
            await worker.put(session, 2)
            await worker.put(session, 1)
        handlers.hold = asyncio.Event()
        putting = asyncio.create_task(worker.put("ride", 3))
        await until(lambda: ("well", "ride", 3) in handlers.keys)
        job = worker.create("dead", Selection(reason="late"))
        await until(lambda: worker.totals(job).selected)
        assert (worker.totals(job).selected, len(worker.letters())) == (1, 1), "that of the other session"
        handlers.hold.set()
        await putting
        assert (await worker.until_ended(job)).succeeded == 2
        assert not worker.node.background.failures
        assert [(one.number, one.order) for one in handlers.of("well", "ride")] == [
            (2, "after_gap"),
            (3, "in_order"),
            (1, "late"),
        ]


async def test_job_waits_for_a_paused_handler(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace) as worker:
        for at in range(12):
            worker.handlers.fail("parks", f"s{at}", 1)
            await worker.put(f"s{at}", 1, 2)
        worker.handlers.mend()
        pause(worker, Pause(wall_clock_ms(), "downstream away"))
        await until(lambda: worker.node.gates.paused("parks") is not None)
        job = worker.create("dead", Selection(handler="parks"))
        await until(lambda: worker.totals(job).under_way == 12)
        assert worker.totals(job).state == "running"
        pause(worker, None)
        totals = await worker.until_ended(job)
        assert (totals.state, totals.succeeded) == ("done", 12)
        await until(lambda: all(worker.handlers.numbers("parks", f"s{at}") == [1, 2] for at in range(12)))


def pause(worker: JobWorker, how: Pause | None) -> None:
    """Pause `parks`, or let it go on."""
    control = worker.keys.control
    if how is None:
        worker.client.hdel(control, pause_field("parks"))
    else:
        worker.client.hset(control, pause_field("parks"), encode_pause(how))
    worker.client.hincrby(control, REVISION_FIELD, 1)


async def test_nothing_is_left_of_a_job_in_a_partition_that_was_lost(
    redis_server, namespace, monkeypatch
) -> None:
    async def without_redis(_run: JobRun) -> None:
        raise RedisUnavailableError("as for a partition whose server was never verified again")

    monkeypatch.setattr("maskline.worker.jobs.executor.carry_out_letters", without_redis)
    async with job_worker(redis_server, namespace, lease_ttl_ms=500) as worker:
        job = worker.create("dead")
        await until(lambda: worker.node.jobs.running == 1)
        for partition in range(PARTITIONS):
            worker.client.set(worker.keys.lease(partition), "999999 another")
        await until(lambda: not worker.node.partitions)
        await until(lambda: worker.node.jobs.running == 0)
        assert worker.totals(job).state == "running", "its next owner goes on with it"
