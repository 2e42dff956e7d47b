"""The spool with its thread: group commit, failures that pass, what is counted, what the next start finds."""

import asyncio
import contextlib
import resource
import threading

import pytest
from ingest_kit import node_settings, until

from maskline.ingest.metrics import Metrics
from maskline.ingest.outcome import InFlight, NotStoredError
from maskline.ingest.spool.spool import Spool
from maskline.runtime.tasks import BackgroundTasks


@contextlib.asynccontextmanager
async def spooling(**changes):
    settings = node_settings("", "ns", **changes)
    metrics, in_flight = Metrics(), InFlight()
    tasks = BackgroundTasks()
    spool = Spool(settings, metrics, in_flight, tasks)
    await spool.start()
    try:
        yield spool, metrics
    finally:
        await spool.stop()
        await tasks.stop()
        assert spool.waiting == in_flight.callbacks == in_flight.size_bytes == 0


async def everything(spool):
    return [row.value for taken in spool.files() for row in await spool.page(taken, 0, 10_000)]


@contextlib.contextmanager
def file_size_limit(limit_bytes):
    """What a full disk is to a process: no file of it grows beyond that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_concurrent_callbacks_share_commits_and_keep_their_order():
    async with spooling() as (spool, metrics):
        values = [b"%d" % n for n in range(2000)]
        await asyncio.gather(*(spool.write("redis_oom", n, value) for n, value in enumerate(values)))
        assert sum(metrics.commit_s.counts) < 5
        assert metrics.spooled == {"redis_oom": 2000}
        assert await everything(spool) == values
        assert spool.callbacks == 2000


async def test_spool_holds_a_session_until_its_last_callback_is_deleted():
    async with spooling() as (spool, _):
        await asyncio.gather(spool.write("x", 7, b"a"), spool.write("x", 7, b"b"), spool.write("x", 8, b"c"))
        assert spool.holds(7)
        assert spool.holds(7 + (5 << 16))  # the same bucket
        assert not spool.holds(9)
        (own,) = spool.files()
        rows = await spool.page(own, 0, 10)
        await spool.delete(own, rows[:1])
        assert spool.holds(7)
        await spool.delete(own, rows[1:2])
        assert not spool.holds(7)
        assert spool.holds(8)


async def test_next_start_finds_callbacks_and_removes_empty_files(spool_of_its_own):
    async with spooling() as (spool, _):
        await spool.write("x", 7, b"a")
    async with spooling() as (spool, _):
        assert await everything(spool) == [b"a"]
        assert spool.holds(7)
        assert spool.oldest_at_ms is not None
        (own,) = spool.files()
        await spool.delete(own, await spool.page(own, 0, 10))
        assert (spool.callbacks, spool.size_bytes, spool.oldest_at_ms) == (0, 0, None)
    assert list(spool_of_its_own.iterdir()) == []


async def test_processes_use_files_of_their_own_and_adopt_those_of_dead_ones(spool_of_its_own):
    async with spooling() as (first, _):
        async with spooling() as (second, _), spooling() as (third, _):
            for number, spool in enumerate((first, second, third)):
                await spool.write("x", number, b"%d" % number)
            assert [await everything(spool) for spool in (first, second, third)] == [[b"0"], [b"1"], [b"2"]]
        async with spooling() as (fourth, _):  # takes the second's place, and in the third's
            assert await everything(fourth) == [b"1", b"2"]
            assert fourth.callbacks == 2
            adopted = fourth.adopted[0]
            await fourth.delete(adopted, await fourth.page(adopted, 0, 10))
            assert fourth.adopted == ()
        assert await everything(first) == [b"0"]
        await first.adopt()
        assert await everything(first) == [b"0", b"1"]
    assert {path.name for path in spool_of_its_own.iterdir()} == {
        f"spool-ns-{n}.{kind}" for n in (0, 1) for kind in ("db", "lock")
    }


async def test_full_disk_fails_only_what_it_cannot_take_and_the_spool_recovers():
    async with spooling() as (spool, metrics):
        await spool.write("x", 1, b"before")
        with file_size_limit(200_000):
            outcomes = await asyncio.gather(
                *(spool.write("x", 2, bytes(50_000)) for _ in range(20)), return_exceptions=True
            )
            assert {type(outcome) for outcome in outcomes} == {NotStoredError}
            assert {outcome.code for outcome in outcomes} <= {"spool_full", "spool_failed"}
            assert spool.error is not None
            assert sum(metrics.spool_failures.values()) == 20
            assert not spool.holds(2)
        await until(lambda: spool.error is None)  # without a callback that would try it
        await spool.write("x", 3, b"after")
        assert await everything(spool) == [b"before", b"after"]


@pytest.mark.parametrize("before", [[], [b"before"]])
async def test_spool_recovers_from_a_disk_that_is_full_at_the_start(before):
    async with spooling() as (spool, _):
        for value in before:
            await spool.write("x", 1, value)
    with file_size_limit(4096):
        async with spooling() as (spool, _):
            with pytest.raises(NotStoredError, match="spool_f"):
                await spool.write("x", 2, b"lost")
            assert spool.error is not None
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await until(lambda: spool.error is None)
            await spool.write("x", 3, b"after")
            assert await everything(spool) == [*before, b"after"]


async def test_hanging_disk_fails_callbacks_after_the_timeout(monkeypatch):
    monkeypatch.setattr("maskline.ingest.spool.spool.WRITE_TIMEOUT_S", 0.05)
    monkeypatch.setattr("maskline.ingest.spool.spool.COMMIT_RECHECK_S", 0.01)
    async with spooling() as (spool, metrics):
        hangs, free = threading.Event(), threading.Event()
        hanging = spool._writer.call(lambda: (hangs.set(), free.wait()))
        await until(hangs.is_set)
        completion = spool.write("x", 1, b"a")
        with pytest.raises(NotStoredError, match="spool_slow"):
            await completion
        assert spool.error.code == "spool_slow"
        assert spool.waiting == 1  # it is still in memory, and counts there
        free.set()
        await hanging
        await until(lambda: not spool.waiting)
        await until(lambda: spool.error is None)
        await spool.write("x", 2, b"b")
        assert await everything(spool) == [b"b"]  # nobody was told that the first was kept
        assert not spool.holds(1)
        assert metrics.spool_failures == {"spool_slow": 1}


async def test_pages_are_read_however_many_callbacks_are_written():
    async with spooling() as (spool, _):

        async def pour():
            while True:
                await spool.write("x", 1, bytes(100))

        pouring = [asyncio.create_task(pour()) for _ in range(20)]
        (own,) = spool.files()
        for _ in range(20):
            await asyncio.wait_for(spool.page(own, 0, 10), 5)
        for task in pouring:
            task.cancel()
        await asyncio.gather(*pouring, return_exceptions=True)
        await until(lambda: not spool.waiting)


async def test_damaged_file_is_set_aside_at_the_start(spool_of_its_own):
    spool_of_its_own.mkdir()
    (spool_of_its_own / "spool-ns-0.db").write_bytes(b"no database" * 1000)
    (spool_of_its_own / "spool-ns-5.db").write_bytes(b"no database either" * 1000)
    async with spooling() as (spool, _):
        await until(lambda: len(spool.damaged) == 2)
        await spool.write("x", 1, b"a")
        assert await everything(spool) == [b"a"]
        assert spool.error is None
    async with spooling() as (spool, _):  # named until somebody looks at it
        assert [name.partition(".db.")[0] for name in spool.damaged] == ["spool-ns-0", "spool-ns-5"]
        aside = spool_of_its_own / spool.damaged[0]
        assert aside.read_bytes() == b"no database" * 1000


async def test_file_damaged_in_use_is_set_aside_and_no_callback_refused(spool_of_its_own):
    async with spooling() as (spool, _):
        for _ in range(3):
            await asyncio.gather(*(spool.write("x", 1, bytes(3000)) for _ in range(300)))
        (own,) = spool.files()
        await spool._writer.call(own.file._execute, "PRAGMA wal_checkpoint(TRUNCATE)")
        await spool._writer.call(own.file._execute, "PRAGMA cache_size = 1")
        with own.file.path.open("r+b") as raw:
            size = raw.seek(0, 2)
            raw.seek(4096)
            raw.write(b"\xff" * (size - 4096))
        await spool.write("x", 2, b"still kept")
        assert len(spool.damaged) == 1
        assert await everything(spool) == [b"still kept"]


async def test_damage_found_by_reading_sets_the_file_aside(spool_of_its_own):
    async with spooling() as (spool, _):
        await asyncio.gather(*(spool.write("x", 1, bytes(3000)) for _ in range(600)))
        (own,) = spool.files()
        await spool._writer.call(own.file._execute, "PRAGMA wal_checkpoint(TRUNCATE)")
        await spool._writer.call(own.file._execute, "PRAGMA cache_size = 1")
        with own.file.path.open("r+b") as raw:
            size = raw.seek(0, 2)
            raw.seek(4096)
            raw.write(b"\xff" * (size - 4096))
        with pytest.raises(Exception, match="damaged"):
            await spool.page(own, 0, 10_000)
        assert len(spool.damaged) == 1
        assert spool.callbacks == 0
        assert not spool.holds(1)
        await spool.write("x", 2, b"a")
        assert await everything(spool) == [b"a"]
