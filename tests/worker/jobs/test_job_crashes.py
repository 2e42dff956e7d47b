"""Workers that crash while they carry a job out: the next one goes on, leaves nothing out, and repeats little."""

from collections import Counter

import pytest
from dispatch_kit import until
from jobs_kit import Handlers, job_worker

from maskline.schemas.jobs import Job, JobTotals, Selection
from maskline.worker.jobs import session_spans

pytestmark = pytest.mark.server

SESSIONS = [f"s{number}" for number in range(24)]

CRASHES = 3

RATE = 200
"""Slow enough that a worker crashes in the middle of its work."""


async def carried_out(server, namespace: str, handlers: Handlers, job: Job) -> JobTotals:
    """Carry a job out by workers that crash one after the other, some runs after each has begun."""
    ended = 0
    for _ in range(CRASHES):
        async with job_worker(server, namespace, "parks", "well", handlers=handlers) as worker:
            await until(lambda: worker.totals(job).succeeded >= ended + 3)  # noqa: B023 called before the next
            await worker.crash()
            ended = worker.totals(job).succeeded
            assert not worker.totals(job).ended
    async with job_worker(server, namespace, "parks", "well", handlers=handlers) as worker:
        return await worker.until_ended(job)


def repeats(handlers: Handlers, after: int) -> int:
    """How many events came twice to a handler beyond the first `after` of each session."""
    counts = (Counter(one.number for one in seen[after:]) for seen in handlers.seen.values())
    return sum(count - 1 for of_session in counts for count in of_session.values())


def once_each(numbers: list[int | None]) -> list[int | None]:
    """The numbers in the order in which they came first."""
    return [*dict.fromkeys(numbers)]


async def test_kept_callbacks_run_again_in_order_through_crashes(
    redis_server, namespace, monkeypatch
) -> None:
    monkeypatch.setattr(session_spans, "BATCH_ENTRIES_MAX", 9)
    async with job_worker(redis_server, namespace) as worker:
        handlers = worker.handlers
        for number in (1, 2, 3, 4):
            for session in SESSIONS:
                await worker.put(session, number)
        job = worker.create("callbacks", Selection(since_ms=0), rate=RATE)
        await worker.crash()
    totals = await carried_out(redis_server, namespace, handlers, job)
    assert (totals.state, totals.selected, totals.succeeded) == ("done", 192, 192)
    for session in SESSIONS:
        for handler in ("parks", "well"):
            assert once_each(handlers.numbers(handler, session)[4:]) == [1, 2, 3, 4]
    assert all(len(keys) == 1 for keys in handlers.keys.values())
    assert repeats(handlers, 4) <= 2 * 8 * (CRASHES + 1), "no more than what was under way"


async def test_dead_letters_run_again_in_order_through_crashes(redis_server, namespace) -> None:
    async with job_worker(redis_server, namespace) as worker:
        handlers = worker.handlers
        for session in SESSIONS:
            handlers.fail("parks", session, 2)
            await worker.put(session, 1, 2, 3)
        handlers.mend()
        job = worker.create("dead", Selection(handler="parks"), rate=15)
        await worker.crash()
    totals = await carried_out(redis_server, namespace, handlers, job)
    assert (totals.state, totals.selected, totals.succeeded) == ("done", 24, 24)
    async with job_worker(redis_server, namespace, "parks", "well", handlers=handlers) as worker:
        await until(lambda: all(3 in handlers.numbers("parks", session) for session in SESSIONS))
        assert worker.letters() == []
    for session in SESSIONS:
        assert once_each(handlers.numbers("parks", session)) == [1, 2, 3]
    assert repeats(handlers, 0) <= 2 * (CRASHES + 1)
