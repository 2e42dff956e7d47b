"""Jobs about dead letters, carried out by a worker on a real server."""

import asyncio
import urllib.request

import pytest
from dispatch_kit import until
from jobs_kit import Handlers, Seen, job_worker
from msgspec.structs import replace

from maskline.schemas.callback import CALLBACK_FIELD
from maskline.schemas.jobs import Selection

pytestmark = pytest.mark.server


def read_metrics(admin_url: str) -> bytes:
    with urllib.request.urlopen(f"{admin_url}/metrics", timeout=60) as page:  # noqa: S310 our own
        shown: bytes = page.read()
    return shown


async def test_a_parked_letter_runs_first_and_what_waits_follows_in_order(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace) as worker:
        handlers = worker.handlers
        handlers.fail("parks", "a", 3)
        await worker.put("a", 1, 2, 3, 4, 5)
        assert handlers.numbers("parks", "a") == [1, 2]
        assert handlers.numbers("well", "a") == [1, 2, 3, 4, 5]
        assert worker.letter_numbers() == [3]
        handlers.mend()
        totals = await worker.carry_out("dead", Selection(handler="parks"))
        assert (totals.state, totals.selected, totals.succeeded) == ("done", 1, 1)
        await until(lambda: len(handlers.of("parks", "a")) == 5)
        assert handlers.of("parks", "a")[2:] == [
            Seen(3, "in_order", replayed=True),
            Seen(4, "in_order"),
            Seen(5, "in_order"),
        ]
        assert handlers.numbers("well", "a") == [1, 2, 3, 4, 5]
        assert worker.letters() == []
        assert all(len(keys) == 1 for keys in handlers.keys.values())
        shown = await asyncio.to_thread(read_metrics, worker.node.admin_url)
        assert b'maskline_worker_replays_total{outcome="succeeded"} 1.0' in shown


async def test_a_letter_that_fails_again_parks_its_queue_again(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace) as worker:
        worker.handlers.fail("parks", "a", 2)
        await worker.put("a", 1, 2, 3)
        totals = await worker.carry_out("dead", Selection(handler="parks"))
        assert (totals.state, totals.failed, totals.succeeded) == ("done", 1, 0)
        assert worker.letter_numbers() == [2]
        assert worker.handlers.numbers("parks", "a") == [1]
        worker.handlers.mend()
        assert (await worker.carry_out("dead", Selection(session="a"))).succeeded == 1
        await until(lambda: worker.handlers.numbers("parks", "a") == [1, 2, 3])


async def test_a_skipped_letter_runs_late_and_is_skipped_no_longer(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "skips") as worker:
        handlers = worker.handlers
        handlers.fail("skips", "a", 2)
        await worker.put("a", 1, 2, 3)
        assert handlers.of("skips", "a") == [Seen(1, "in_order"), Seen(3, "in_order", skipped=(2,))]
        handlers.mend()
        assert (await worker.carry_out("dead", Selection(event="SessionFirstPartyRinging"))).succeeded == 1
        assert handlers.of("skips", "a")[2].number == 2
        assert (handlers.of("skips", "a")[2].order, handlers.of("skips", "a")[2].replayed) == ("late", True)
        await worker.put("a", 4)
        assert handlers.of("skips", "a")[3] == Seen(4, "in_order")


async def test_a_skipped_letter_that_nothing_came_after_keeps_its_order(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "skips") as worker:
        worker.handlers.fail("skips", "a", 2)
        await worker.put("a", 1, 2)
        worker.handlers.mend()
        await worker.carry_out("dead", Selection(session="a"))
        assert worker.handlers.of("skips", "a")[1][:3] == Seen(2, "in_order", replayed=True)[:3]


async def test_discarded_letters_are_skipped_and_the_rest_goes_on(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "parks", "skips") as worker:
        handlers = worker.handlers
        for handler in ("parks", "skips"):
            handlers.fail(handler, "a", 2)
        await worker.put("a", 1, 2, 3)
        totals = await worker.carry_out("discard", Selection(session="a"))
        assert (totals.state, totals.selected, totals.discarded) == ("done", 2, 2)
        await until(lambda: len(handlers.of("parks", "a")) == 2)
        assert handlers.of("parks", "a")[1] == Seen(3, "in_order", skipped=(2,))
        assert worker.letters() == []
        await worker.put("a", 4)
        assert handlers.of("skips", "a")[2] == Seen(4, "in_order", skipped=(2,))


async def test_only_what_is_selected_is_replayed(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "skips") as worker:
        sessions = [f"s{number}" for number in range(6)]
        for session in sessions:
            worker.handlers.fail("skips", session, 1)
            await worker.put(session, 1)
        worker.handlers.mend()
        named = [name for name, letter in worker.letters() if letter.session_uuid in ("s1", "s4")]
        assert (await worker.carry_out("dead", Selection(ids=(*named, "0-1-1", "99-1-1")))).succeeded == 2
        left = {letter.session_uuid for _, letter in worker.letters()}
        assert left == {"s0", "s2", "s3", "s5"}
        assert (await worker.carry_out("dead", Selection(session="s2"))).succeeded == 1
        group = worker.letters()[0][1].group_key
        assert (await worker.carry_out("dead", Selection(group=group))).succeeded == 3


async def test_letters_of_another_group_are_left_alone(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "skips") as worker:
        worker.handlers.fail("skips", "a", 1)
        await worker.put("a", 1)
        from maskline.worker.entries.dead_letter import encode_dead_letter

        theirs = replace(worker.letters()[0][1], group="others")
        for partition in (0, 1):
            worker.client.xadd(worker.keys.dead(partition), {"d": encode_dead_letter(theirs)})
            worker.client.xadd(worker.keys.dead(partition), {"no": "letter"})
        assert (await worker.carry_out("discard")).discarded == 1
        assert sum(worker.client.xlen(worker.keys.dead(partition)) for partition in (0, 1)) == 4


async def test_a_letter_whose_handler_is_not_loaded_any_more_is_gone_and_stays(
    redis_server, namespace
) -> None:
    handlers = Handlers()
    async with job_worker(redis_server, namespace, "parks", handlers=handlers) as worker:
        handlers.fail("parks", "a", 1)
        await worker.put("a", 1, 2)
    async with job_worker(redis_server, namespace, "well", handlers=handlers) as worker:
        totals = await worker.carry_out("dead", Selection(handler="parks"))
        assert (totals.state, totals.selected, totals.gone) == ("done", 1, 1)
        assert worker.letter_numbers() == [1]
    async with job_worker(redis_server, namespace, "parks", handlers=handlers) as worker:
        handlers.mend()
        assert (await worker.carry_out("dead", Selection(handler="parks"))).succeeded == 1
        await until(lambda: handlers.numbers("parks", "a") == [1, 2])


async def test_late_letters_run_for_all_handlers(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "parks", "well", late="dead", gap_timeout_ms=20) as worker:
        await worker.put("a", 1)
        await worker.put("a", 3)
        await until(lambda: worker.handlers.numbers("well", "a") == [1, 3])
        await worker.put("a", 2)
        assert worker.letter_numbers() == [2]
        totals = await worker.carry_out("dead", Selection(reason="late"))
        assert (totals.selected, totals.succeeded) == (2, 2)
        for handler in ("parks", "well"):
            assert worker.handlers.of(handler, "a")[2][:3] == (2, "late", True)


async def test_what_could_not_be_decoded_goes_back_into_the_stream(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "well") as worker:
        worker.client.xadd(worker.keys.callbacks(0), {CALLBACK_FIELD: b"\xc1"})
        worker.client.xadd(worker.keys.callbacks(0), {"foreign": "entry"})
        await worker.until_read()
        before = worker.letters()
        totals = await worker.carry_out("dead", Selection(reason="foreign_entry"))
        assert (totals.selected, totals.succeeded, totals.gone) == (2, 1, 1)
        await worker.until_read()
        await until(lambda: len(worker.letters()) == 2)
        assert len({name for name, _ in worker.letters()} & {name for name, _ in before}) == 1


async def test_a_job_stops_itself_when_what_it_runs_fails_again(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "skips") as worker:
        for number in range(40):
            worker.handlers.fail("skips", f"s{number}", 1)
            await worker.put(f"s{number}", 1)
        job = worker.create("dead", Selection(handler="skips"), rate=100)
        totals = await worker.until_ended(job)
        assert totals.state == "failing"
        assert 5 <= totals.failed < 30
        await until(lambda: worker.job(job).failing)
        assert len(worker.letters()) == 40


async def test_a_job_that_is_stopped_takes_nothing_more_on(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "skips") as worker:
        for number in range(20):
            worker.handlers.fail("skips", f"s{number}", 1)
            await worker.put(f"s{number}", 1)
        worker.handlers.mend()
        job = worker.create("dead", Selection(handler="skips"), rate=0.001)
        await until(lambda: worker.totals(job).succeeded == 1)
        worker.write(replace(job, stopped=True))
        totals = await worker.until_ended(job)
        assert (totals.state, totals.succeeded) == ("stopped", 1)
        assert len(worker.letters()) == 19


async def test_two_jobs_about_the_same_letters_run_each_of_them_once(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "skips") as worker:
        sessions = [f"s{number}" for number in range(60)]
        for session in sessions:
            worker.handlers.fail("skips", session, 1)
            await worker.put(session, 1)
        worker.handlers.mend()
        jobs = [worker.create("dead", Selection(handler="skips")) for _ in range(3)]
        assert sum([(await worker.until_ended(job)).succeeded for job in jobs]) == 60
        assert all(len(worker.handlers.of("skips", session)) == 1 for session in sessions)
