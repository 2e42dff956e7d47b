"""Jobs about kept callbacks, carried out by a worker on a real server."""

import time

import pytest
from dispatch_kit import until
from jobs_kit import Seen, job_worker

from maskline.schemas.jobs import Selection
from maskline.worker.jobs import callback_scan, session_runs, session_spans

pytestmark = pytest.mark.server


def replays(numbers, order="in_order"):
    return [Seen(number, order, replayed=True) for number in numbers]


async def test_a_session_runs_again_in_order_under_the_same_keys(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace) as worker:
        await worker.put("a", 2, 1, 4, 3, None, 3)
        await worker.put("b", 1)
        totals = await worker.carry_out("callbacks", Selection(session="a"))
        assert (totals.state, totals.selected, totals.succeeded) == ("done", 10, 10)
        for handler in ("parks", "well"):
            again = worker.handlers.of(handler, "a")[5:]
            assert [one for one in again if one.number is not None] == replays([1, 2, 3, 4])
            assert [one for one in again if one.number is None] == replays([None], "unsequenced")
            assert len(worker.handlers.of(handler, "b")) == 1
        assert all(len(keys) == 1 for keys in worker.handlers.keys.values())


async def test_events_and_handlers_narrow_what_runs_again(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace) as worker:
        await worker.put("a", 1)
        await worker.put("a", 2, EventName="SessionFirstPartyAnswer")
        await worker.put("a", 3)
        await worker.carry_out("callbacks", Selection(event="SessionFirstPartyRinging", handler="well"))
        assert worker.handlers.of("well", "a")[3:] == replays([1, 3])
        assert len(worker.handlers.of("parks", "a")) == 3


async def test_only_callbacks_received_in_the_time_selected_run_again(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace) as worker:
        await worker.put("a", 1, 2)
        since_ms = time.time_ns() // 1_000_000 + 1
        await until(lambda: time.time_ns() // 1_000_000 > since_ms)
        await worker.put("a", 3, 4)
        until_ms = time.time_ns() // 1_000_000 + 1
        await until(lambda: time.time_ns() // 1_000_000 > until_ms)
        await worker.put("a", 5)
        totals = await worker.carry_out("callbacks", Selection(since_ms=since_ms, until_ms=until_ms))
        assert totals.succeeded == 4
        assert worker.handlers.of("well", "a")[5:] == replays([3, 4])


async def test_every_session_runs_again_once_whatever_the_windows(
    redis_server, namespace, monkeypatch
) -> None:
    monkeypatch.setattr(session_spans, "BATCH_ENTRIES_MAX", 7)
    async with job_worker(redis_server, namespace, "well") as worker:
        sessions = [f"s{number}" for number in range(30)]
        for number in range(1, 6):
            for session in sessions:
                await worker.put(session, number)
        totals = await worker.carry_out("callbacks", Selection(handler="well"))
        assert (totals.state, totals.succeeded) == ("done", 150)
        for session in sessions:
            assert worker.handlers.of("well", session)[5:] == replays([1, 2, 3, 4, 5])


async def test_a_large_session_takes_several_commits(redis_server, namespace, monkeypatch) -> None:
    monkeypatch.setattr(session_runs, "RUNS_PER_COMMIT_MAX", 7)
    async with job_worker(redis_server, namespace) as worker:
        await worker.put("a", *range(1, 31))
        totals = await worker.carry_out("callbacks", Selection(session="a"))
        assert totals.succeeded == 60
        assert worker.handlers.of("well", "a")[30:] == replays(range(1, 31))


async def test_a_session_that_windows_cut_in_two_runs_again_in_order(
    redis_server, namespace, monkeypatch
) -> None:
    monkeypatch.setattr(callback_scan, "WINDOW_ENTRIES_MAX", 16)
    async with job_worker(redis_server, namespace, "well") as worker:
        await worker.put("a", *range(1, 41))
        totals = await worker.carry_out("callbacks", Selection(session="a"))
        assert totals.succeeded == 40
        assert worker.handlers.of("well", "a")[40:] == replays(range(1, 41))


async def test_live_events_of_the_session_wait_behind_the_replayed_ones(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "parks") as worker:
        await worker.put("a", 1, 2, 3)
        worker.handlers.fail("parks", "a", 1)
        job = worker.create("callbacks", Selection(session="a"))
        totals = await worker.until_ended(job)
        assert (totals.failed, totals.parked) == (1, 2)
        await worker.put("a", 4)
        assert len(worker.handlers.of("parks", "a")) == 3
        worker.handlers.mend()
        assert (await worker.carry_out("dead", Selection(session="a"))).succeeded == 1
        await until(lambda: len(worker.handlers.of("parks", "a")) == 7)
        assert worker.handlers.of("parks", "a")[3:] == [*replays([1, 2, 3]), Seen(4, "in_order")]
        await until(lambda: worker.totals(job).parked == 0)
        assert (worker.totals(job).succeeded, worker.totals(job).failed) == (2, 1)


async def test_what_waits_anyway_and_the_letter_before_it_are_left_out(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace, "parks") as worker:
        worker.handlers.fail("parks", "a", 2)
        await worker.put("a", 1, 2, 3, 4)
        totals = await worker.carry_out("callbacks", Selection(session="a"))
        assert (totals.selected, totals.parked) == (1, 1)
        worker.handlers.mend()
        await worker.carry_out("dead", Selection(session="a"))
        await until(lambda: len(worker.handlers.of("parks", "a")) == 5)
        assert worker.handlers.numbers("parks", "a") == [1, 2, 3, 4, 1]


async def test_an_empty_stream_is_done_at_once(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace) as worker:
        assert (await worker.carry_out("callbacks")).state == "done"
        await worker.put("a", 1)
        assert (await worker.carry_out("callbacks", Selection(session="nobody"))).selected == 0
